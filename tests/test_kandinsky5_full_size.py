"""One training step of the real 2B and 19B models, traced: shapes and dtypes hold, and all adapters learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.families.base import Batch
from tunerkit.families.kandinsky5.family import FAMILY
from tunerkit.training.blocks import BlockRunner
from tunerkit.training.weights import add_adapter

COMMON: dict[str, Any] = {"in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 3584, "visual_cond": True}
LITE: dict[str, Any] = {"model_dim": 1792, "ff_dim": 7168, "time_dim": 512, "axes_dims": (16, 24, 24)}
PRO: dict[str, Any] = {"model_dim": 4096, "ff_dim": 16384, "time_dim": 1024, "axes_dims": (32, 48, 48)}


def traced_step(settings: dict[str, Any], texts: int, visuals: int, first_frame: bool) -> tuple[Any, torch.Tensor]:
    """One LoRA step with gradient checkpointing at 768x512, 121 frames, on tensors without content."""
    from diffusers import Kandinsky5Transformer3DModel

    config = tk.TrainConfig(lora_rank=16, mixed_precision="bf16")
    with torch.device("meta"):
        transformer: Any = Kandinsky5Transformer3DModel(
            **COMMON, **settings, num_text_blocks=texts, num_visual_blocks=visuals
        )
        for name, parameter in transformer.named_parameters():  # as from_pretrained loads it
            if not any(part in name for part in transformer._keep_in_fp32_modules):
                parameter.data = parameter.data.to(torch.bfloat16)
        add_adapter(transformer, FAMILY, config)
        BlockRunner(FAMILY.blocks(transformer), checkpointing=True).install(transformer)
        transformer.train()
        batch = Batch(
            latents=torch.empty(1, 16, FAMILY.latent_frames(121), 64, 96),
            text={
                "prompt_embeds": torch.empty(1, 200, 3584, dtype=torch.bfloat16),
                "pooled": torch.empty(1, 768, dtype=torch.bfloat16),
            },
            fps=torch.empty(1),
            first_frame=torch.ones(1, dtype=torch.bool, device="cpu") if first_frame else None,
        )
        loss = FAMILY.loss(transformer, batch, sigma=torch.empty(1), noise=torch.empty_like(batch.latents))
        loss.backward()
    return transformer, loss


@pytest.mark.parametrize(
    ("settings", "texts", "visuals", "billions", "first_frame"),
    [(LITE, 2, 32, 2.0, False), (PRO, 4, 60, 19.31, True)],
    ids=["lite", "pro"],
)
def test_one_step_at_768x512(
    settings: dict[str, Any], texts: int, visuals: int, billions: float, first_frame: bool
) -> None:
    transformer, loss = traced_step(settings, texts, visuals, first_frame)
    parameters = list(transformer.parameters())
    base = sum(p.numel() for p in parameters if not p.requires_grad) / 1e9
    trained = [p for p in parameters if p.requires_grad]
    assert base == pytest.approx(billions, abs=0.01)
    assert loss.dtype == torch.float32
    assert len(trained) == (texts + 2 * visuals) * 4 * 2
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.dtype == torch.float32 for p in trained)
