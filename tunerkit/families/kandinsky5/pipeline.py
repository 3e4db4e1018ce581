"""Rendering with the stock Kandinsky 5.0 Video pipelines from cached text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunerkit.families.base import Rendered
from tunerkit.families.pipelines import any_precision

if TYPE_CHECKING:
    from tunerkit.families.base import RenderRequest


def render(pipeline: Any, request: RenderRequest) -> Rendered:
    """One video; from `request.image` where there is one."""
    arguments: dict[str, Any] = {
        **_text(request.text, "", pipeline.transformer),
        **_text(request.negative_text, "negative_", pipeline.transformer),
        "height": request.height,
        "width": request.width,
        "num_frames": request.frames,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "np",
    }
    if request.image is not None:
        arguments["image"] = request.image
    with any_precision(pipeline.vae):
        frames = np.asarray(pipeline(**arguments).frames[0])
    return Rendered((frames * 255.0).round().clip(0, 255).astype(np.uint8))


def _text(text: Mapping[str, torch.Tensor], prefix: str, transformer: Any) -> dict[str, torch.Tensor]:
    """A cached text under the pipeline's names; its length goes along as `[0, L]`."""
    device, dtype = transformer.device, transformer.dtype
    embeds = text["prompt_embeds"]
    return {
        f"{prefix}prompt_embeds_qwen": embeds[None].to(device, dtype),
        f"{prefix}prompt_embeds_clip": text["pooled"][None].to(device, dtype),
        f"{prefix}prompt_cu_seqlens": torch.tensor([0, len(embeds)], dtype=torch.int32, device=device),
    }
