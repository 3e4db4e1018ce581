"""The real models without their weights: their sizes, and a traced training step of a few of their blocks."""

from __future__ import annotations

import pytest
import torch
from full_size import traced_step

import tunerkit as tk
from tunerkit.families.published import build
from tunerkit.planning.largest import Largest

SANA, LTX2, KANDINSKY5 = "sanavideo", "ltxvideo2", "kandinsky5-video"


@pytest.mark.parametrize(
    ("family", "flavour", "billions"),
    [
        (SANA, "2b-480p", 2.06),
        (LTX2, "dev", 18.88),
        (LTX2, "2.3-dev", 18.99),
        (KANDINSKY5, "t2v-lite-sft-5s", 2.0),
        (KANDINSKY5, "t2v-pro-sft-5s-hd", 19.31),
    ],
)
def test_the_whole_model_has_its_published_size(family: str, flavour: str, billions: float) -> None:
    with torch.device("meta"):
        transformer = build(tk.family(family).published_config(flavour, "transformer"))
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(
    ("family", "flavour", "largest", "modules"),
    [
        (SANA, "2b-480p", Largest(832, 480, 81, 16.0, 1), 2 * 4),
        (LTX2, "dev", Largest(768, 512, 49, 24.0, 1, sound=49 / 24), 6 * 4),
        (LTX2, "2.3-dev", Largest(768, 512, 121, 24.0, 1, sound=121 / 24), 6 * 4),
    ],
)
def test_one_step(family: str, flavour: str, largest: Largest, modules: int) -> None:
    """Shapes and dtypes hold, and all adapters learn."""
    blocks = 4
    traced = traced_step(family, flavour, largest, blocks=blocks, fake=False)
    trained = [p for p in traced.transformer.parameters() if p.requires_grad]
    assert traced.loss.dtype == torch.float32
    assert len(trained) == blocks * modules * 2
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32 for p in trained)


@pytest.mark.parametrize(
    ("flavour", "frames", "text_blocks", "from_image"),
    [("t2v-lite-sft-5s", 121, 2, False), ("i2v-pro-sft-5s", 61, 4, True)],
)
def test_one_step_of_kandinsky(flavour: str, frames: int, text_blocks: int, from_image: bool) -> None:
    """As above, and checkpointing reaches every block."""
    blocks, largest = 4, Largest(768, 512, frames, 24.0, 1, first_frame=from_image, tokens=200)
    traced = traced_step(KANDINSKY5, flavour, largest, blocks=blocks)
    trained = [p for p in traced.transformer.parameters() if p.requires_grad]
    assert traced.loss.dtype == torch.float32
    assert len(trained) == (text_blocks + 2 * blocks) * 4 * 2
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32 for p in trained)
    # Each visual block keeps its input, and one at a time what it computes.
    tokens, width = (frames - 1) // 4 * 32 * 48 + 32 * 48, traced.transformer.config.model_dim
    whole = traced_step(KANDINSKY5, flavour, largest, blocks=2 * blocks)
    assert (whole.peak - whole.weights) - (traced.peak - traced.weights) < 1.5 * blocks * tokens * width * 2
