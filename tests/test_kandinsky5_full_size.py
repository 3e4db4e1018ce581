"""The real 2B and 19B models without their weights: their sizes, and a traced training step of their blocks."""

from __future__ import annotations

import pytest
import torch
from full_size import KANDINSKY5_MODELS, kandinsky5_step

BLOCKS = 4
"""Of 32 or 60 visual blocks, which are alike; `benchmarks/traced_memory.py` traces all."""


@pytest.mark.parametrize(("model", "billions"), [("Lite", 2.0), ("Pro", 19.31)])
def test_the_whole_model_has_its_published_size(model: str, billions: float) -> None:
    from diffusers import Kandinsky5Transformer3DModel

    widths = {"in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 3584, "visual_cond": True}
    with torch.device("meta"):
        transformer = Kandinsky5Transformer3DModel(**widths, **KANDINSKY5_MODELS[model])
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(
    ("model", "frames", "text_blocks", "from_image"), [("Lite", 121, 2, False), ("Pro", 61, 4, True)]
)
def test_one_step_at_768x512(model: str, frames: int, text_blocks: int, from_image: bool) -> None:
    """Shapes and dtypes hold, all adapters learn, and checkpointing reaches every block."""
    traced = kandinsky5_step(model, frames, from_image=from_image, blocks=BLOCKS)
    trained = [p for p in traced.transformer.parameters() if p.requires_grad]
    assert traced.loss.dtype == torch.float32
    assert len(trained) == (text_blocks + 2 * BLOCKS) * 4 * 2
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32 for p in trained)
    # Each visual block keeps its input, and one at a time what it computes.
    tokens, width = (frames - 1) // 4 * 32 * 48 + 32 * 48, traced.transformer.config.model_dim
    whole = kandinsky5_step(model, frames, from_image=from_image, blocks=2 * BLOCKS)
    assert (whole.peak - whole.weights) - (traced.peak - traced.weights) < 1.5 * BLOCKS * tokens * width * 2
