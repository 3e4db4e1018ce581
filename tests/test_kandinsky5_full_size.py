"""One training step of the real 2B and 19B models, traced: shapes and dtypes hold, and all adapters learn."""

from __future__ import annotations

import pytest
import torch
from full_size import kandinsky5_step


@pytest.mark.parametrize(
    ("model", "frames", "billions", "blocks", "from_image"),
    [("Lite", 121, 2.0, 2 + 2 * 32, False), ("Pro", 61, 19.31, 4 + 2 * 60, True)],
)
def test_one_step_at_768x512(model: str, frames: int, billions: float, blocks: int, from_image: bool) -> None:
    traced = kandinsky5_step(model, frames, from_image=from_image)
    parameters = list(traced.transformer.parameters())
    base = sum(p.numel() for p in parameters if not p.requires_grad) / 1e9
    trained = [p for p in parameters if p.requires_grad]
    assert base == pytest.approx(billions, abs=0.01)
    assert traced.loss.dtype == torch.float32
    assert len(trained) == blocks * 4 * 2
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32 for p in trained)
    # Each visual block keeps its input; more would mean that checkpointing does not reach it.
    tokens, width = (frames - 1) // 4 * 32 * 48 + 32 * 48, traced.transformer.config.model_dim
    kept = traced.transformer.config.num_visual_blocks * tokens * width * 2
    assert kept < traced.peak - traced.weights < 6 * kept
