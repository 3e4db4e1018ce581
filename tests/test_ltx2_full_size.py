"""One training step of the real 19B and 22B models, traced: shapes and dtypes hold, and all adapters learn."""

from __future__ import annotations

import pytest
import torch
from full_size import ltx2_step


@pytest.mark.parametrize(("model", "frames", "billions"), [("19B", 49, 18.88), ("22B", 121, 18.99)])
def test_one_step_at_768x512(model: str, frames: int, billions: float) -> None:
    traced = ltx2_step(model, frames, fake=False)
    parameters = list(traced.transformer.parameters())
    base = sum(p.numel() for p in parameters if not p.requires_grad) / 1e9
    trained = [p for p in parameters if p.requires_grad]
    assert base == pytest.approx(billions, abs=0.01)
    assert traced.loss.dtype == torch.float32
    assert len(trained) == 48 * 6 * 4 * 2
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32 for p in trained)
