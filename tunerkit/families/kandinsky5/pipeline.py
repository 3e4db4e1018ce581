"""Rendering with the stock Kandinsky 5.0 Video pipelines from cached text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5I2VPipeline, Kandinsky5T2VPipeline

from tunerkit.families.checkpoint_files import base_source, readable
from tunerkit.families.pipelines import any_precision, as_bytes, watching
from tunerkit.families.rendering import Rendered

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.rendering import RenderRequest


def build(config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
    """The stock pipeline around live components, with the checkpoint's sampling shift.

    For a first frame in the condition channels it is the text-to-video pipeline: see `render`.
    """
    in_place = image_to_video and config.first_frame_conditioning_method == "in_place"
    pipeline_class: Any = Kandinsky5I2VPipeline if in_place else Kandinsky5T2VPipeline
    source = base_source(config)
    with readable(source.model, source.setting, "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
            source.model, subfolder="scheduler", revision=source.revision
        )
    texts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = pipeline_class(transformer=transformer, vae=vae, scheduler=scheduler, **texts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def render(pipeline: Any, request: RenderRequest) -> Rendered:
    """One video; from `request.image` where there is one.

    A text-to-video pipeline is given the image in the condition channels, as `objective.prediction` trains with
    `first_frame_method = "channels"`.
    """
    source = torch.Generator().manual_seed(request.seed)
    arguments: dict[str, Any] = {
        **_text(request.text, "", pipeline.transformer),
        **_text(request.negative_text, "negative_", pipeline.transformer),
        "height": request.height,
        "width": request.width,
        "num_frames": request.frames,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": source,
        "output_type": "np",
        **watching(request, lambda latents: latents[..., : _channels(pipeline)].permute(0, 4, 1, 2, 3)),
    }
    with any_precision(pipeline.vae):
        if isinstance(pipeline, Kandinsky5I2VPipeline):
            arguments["image"] = request.image
        elif request.image is not None:
            arguments["latents"] = _noise_and_condition(pipeline, request, source)
        return Rendered(as_bytes(cast(Any, pipeline)(**arguments).frames[0]))


def _noise_and_condition(pipeline: Any, request: RenderRequest, source: torch.Generator) -> torch.Tensor:
    """What the pipeline would start from, with the image's latents beside the first frame, `[1, T, H, W, 2C + 1]`."""
    device = pipeline.transformer.device
    latents = pipeline.prepare_latents(
        1, pipeline.transformer.config.in_visual_dim, request.height, request.width, request.frames,
        torch.float32, device, source,
    )  # fmt: skip
    pixels = pipeline.video_processor.preprocess(request.image, height=request.height, width=request.width)
    with torch.no_grad():
        image = pipeline.vae.encode(pixels[:, :, None].to(device)).latent_dist.mode()
    channels = image.shape[1]
    latents[:, :1, ..., channels : 2 * channels] = (image * pipeline.vae.config.scaling_factor).permute(0, 2, 3, 4, 1)
    latents[:, :1, ..., -1] = 1.0
    return latents


def _channels(pipeline: Any) -> int:
    """Channels of a latent; the pipeline keeps those of the condition and the mask behind them."""
    return pipeline.transformer.config.out_visual_dim


def _text(text: Mapping[str, torch.Tensor], prefix: str, transformer: Any) -> dict[str, torch.Tensor]:
    """A cached text under the pipeline's names; its length goes along as `[0, L]`."""
    device, dtype = transformer.device, transformer.dtype
    embeds = text["prompt_embeds"]
    return {
        f"{prefix}prompt_embeds_qwen": embeds[None].to(device, dtype),
        f"{prefix}prompt_embeds_clip": text["pooled"][None].to(device, dtype),
        f"{prefix}prompt_cu_seqlens": torch.tensor([0, len(embeds)], dtype=torch.int32, device=device),
    }
