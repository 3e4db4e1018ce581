"""Rendering with the stock Sana Video pipelines from cached text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
)

from tunerkit.families.checkpoint_files import base_source, readable
from tunerkit.families.pipelines import as_bytes, watching
from tunerkit.families.rendering import Rendered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.rendering import RenderRequest

SAMPLING_SHIFT = 8.0
"""For checkpoints whose scheduler configuration names none."""


def build(config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
    """The stock pipeline around live components, with the checkpoint's sampling shift."""
    pipeline_class: Any = SanaImageToVideoPipeline if image_to_video else SanaVideoPipeline
    pipeline = pipeline_class(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=_scheduler(config, image_to_video=image_to_video),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _scheduler(config: TrainConfig, *, image_to_video: bool) -> Any:
    source = base_source(config)
    with readable(source.model, source.setting, "scheduler"):
        stored: Any = DPMSolverMultistepScheduler.load_config(
            source.model, subfolder="scheduler", revision=source.revision
        )
    if image_to_video:
        # Keeping frame 0 fixed needs a one-step solver. Its shift is called `shift`: `flow_shift` is ignored.
        return FlowMatchEulerDiscreteScheduler(shift=stored.get("shift", stored.get("flow_shift", SAMPLING_SHIFT)))
    if stored.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        return FlowMatchEulerDiscreteScheduler.from_config(stored)
    return DPMSolverMultistepScheduler.from_config(stored)


def render(pipeline: Any, request: RenderRequest) -> Rendered:
    """One video; from `request.image` where there is one."""
    device = pipeline.transformer.device
    arguments: dict[str, Any] = {
        **_text(request.text, "", device),
        **_text(request.negative_text, "negative_", device),
        "negative_prompt": None,
        "height": request.height,
        "width": request.width,
        "frames": request.frames,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "np",
        # Sizes were checked when the settings were read; binning would render another size and rescale it.
        "use_resolution_binning": False,
        **watching(request, lambda latents: latents),
    }
    if request.image is not None:
        arguments["image"] = request.image
    return Rendered(as_bytes(pipeline(**arguments).frames[0]))


def _text(text: Mapping[str, torch.Tensor], prefix: str, device: torch.device) -> dict[str, torch.Tensor]:
    """A cached text under the pipeline's names."""
    return {f"{prefix}{name}": text[name][None].to(device) for name in ("prompt_embeds", "prompt_attention_mask")}
