"""The real 19B and 22B models without their weights: their sizes, and a traced training step of their blocks."""

from __future__ import annotations

import pytest
import torch
from full_size import LTX2_MODELS, ltx2_step

BLOCKS = 6
"""Of 48, which are alike; `benchmarks/traced_memory.py` traces all."""


@pytest.mark.parametrize(("model", "billions"), [("19B", 18.88), ("22B", 18.99)])
def test_the_whole_model_has_its_published_size(model: str, billions: float) -> None:
    from diffusers import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        transformer = LTX2VideoTransformer3DModel(rope_type="split", **LTX2_MODELS[model][0])
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(("model", "frames"), [("19B", 49), ("22B", 121)])
def test_one_step_at_768x512(model: str, frames: int) -> None:
    """Shapes and dtypes hold, and all adapters learn."""
    traced = ltx2_step(model, frames, fake=False, blocks=BLOCKS)
    trained = [p for p in traced.transformer.parameters() if p.requires_grad]
    assert traced.loss.dtype == torch.float32
    assert len(trained) == BLOCKS * 6 * 4 * 2
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32 for p in trained)
