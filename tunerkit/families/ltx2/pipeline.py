"""Rendering with the stock LTX-2 pipelines: cached text, the official gates, sound to video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline

from tunerkit.families.ltx2.checkpoint import checkpoint_of
from tunerkit.families.ltx2.objective import official_gates, unpack
from tunerkit.families.ltx2.sound import encode_sound
from tunerkit.families.pipelines import any_precision, as_bytes, watching
from tunerkit.families.rendering import Rendered

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.rendering import RenderRequest

IMAGE_CRF = 33
"""H.264 quality that a first frame goes through before it is encoded, as in the training of 2.0 to 2.3."""

CFG_ONLY: Mapping[str, Any] = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
}
"""Two passes a step: enough to compare one step of the training with another."""


def full_guidance(config: Any) -> dict[str, Any]:
    """The guidance that the model's authors sample with: up to four passes a step.

    Skipping the self-attention of a block (STG) needs a model that was made for it (2.3); on 2.0 it would cost a pass
    and change nothing.

    Args:
        config: the transformer's configuration.
    """
    layers = config.num_layers
    skips = bool(config.perturbed_attn)
    block = min(28, layers - 1)
    return {
        "stg_scale": 1.0 if skips else 0.0,
        "audio_stg_scale": 1.0 if skips else 0.0,
        "modality_scale": 3.0,
        "audio_modality_scale": 3.0,
        "guidance_rescale": 0.7,
        "audio_guidance_rescale": 0.7,
        "spatio_temporal_guidance_blocks": [block] if skips else None,
    }


class CachedConnectors(torch.nn.Module):
    """Stands in the connectors' place: splits what the cache holds of a text into the picture's and the sound's part.

    The pipeline takes one tensor per text; `joined` makes it of the two.
    """

    def __init__(self, video_width: int, device: torch.device) -> None:
        super().__init__()
        self.video_width = video_width
        self.device = device
        """The pipeline asks one of its parts where it is."""

    @staticmethod
    def joined(text: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`[1, 1024, D + D']` of cached tensors without a batch dimension."""
        return torch.cat([text["prompt_embeds"], text["audio_prompt_embeds"]], dim=-1)[None]

    def forward(
        self, joined: torch.Tensor, mask: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return joined[..., : self.video_width], joined[..., self.video_width :], mask


def build(config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
    """The stock pipeline around live components, with the checkpoint's audio VAE, vocoder and sampling shift."""
    checkpoint = checkpoint_of(config)
    pipeline_class: Any = LTX2ImageToVideoPipeline if image_to_video else LTX2Pipeline
    audio_vae, vocoder = (
        checkpoint.load(part, torch.float32).requires_grad_(False).to(transformer.device).eval()
        for part in ("audio_vae", "vocoder")
    )
    pipeline = pipeline_class(
        scheduler=checkpoint.scheduler(),
        vae=vae,
        audio_vae=audio_vae,
        text_encoder=None,
        tokenizer=None,
        connectors=None,
        transformer=transformer,
        vocoder=vocoder,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def render(pipeline: Any, request: RenderRequest, guidance: Mapping[str, Any]) -> Rendered:
    """One video with its sound.

    Args:
        pipeline: a stock pipeline without text encoder, its connectors still to be set.
        request: what to render. With `sound`, the picture is made to this sound, which stays as it is.
        guidance: arguments of the pipeline beside the guidance scales.
    """
    device = pipeline.transformer.device
    dtype = pipeline.transformer.dtype
    pipeline.register_modules(connectors=CachedConnectors(request.text["prompt_embeds"].shape[-1], device))
    positive = CachedConnectors.joined(request.text).to(device, dtype)
    negative = CachedConnectors.joined(request.negative_text).to(device, dtype)
    mask = torch.ones(positive.shape[:2], device=device)
    arguments: dict[str, Any] = {
        "prompt_embeds": positive,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": mask,
        "height": request.height,
        "width": request.width,
        "num_frames": request.frames,
        "frame_rate": request.fps,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "audio_guidance_scale": request.guidance if request.audio_guidance is None else request.audio_guidance,
        "generator": torch.Generator().manual_seed(request.seed),
        "use_cross_timestep": False,
        "output_type": "np",
        "return_dict": False,
        **guidance,
        **watching(request, lambda latents: unpack(latents, _grid(pipeline, request))),
    }
    if request.image is not None:
        arguments |= {"image": request.image, "image_crf": IMAGE_CRF}
    with ExitStack() as stack:
        if request.image is not None:
            stack.enter_context(any_precision(pipeline.vae))
        if request.sound is not None:
            waveform = torch.from_numpy(request.sound)[None].to(device)
            arguments["audio_latents"] = _unnormalised(pipeline.audio_vae, encode_sound(pipeline.audio_vae, waveform))
            stack.enter_context(_fixed_sound(pipeline.transformer))
        stack.enter_context(official_gates(pipeline.transformer))
        frames, sound = pipeline(**arguments)
    rate = int(pipeline.vocoder.config.output_sampling_rate)
    # The audio VAE gives back a little less than went in (4L - 3 of 4L spectra): silence for the last hundredths.
    wanted = round(request.frames / request.fps * rate)
    heard = sound[0].float().cpu()[:, :wanted]
    return Rendered(
        frames=as_bytes(frames[0]),
        sound=torch.nn.functional.pad(heard, (0, wanted - heard.shape[1])).numpy(),
        sound_rate=rate,
    )


def _grid(pipeline: Any, request: RenderRequest) -> tuple[int, int, int]:
    """Latent frames, height and width of the video, which the pipeline keeps as a row of tokens."""
    edge = pipeline.vae_spatial_compression_ratio
    frames = (request.frames - 1) // pipeline.vae_temporal_compression_ratio + 1
    return frames, request.height // edge, request.width // edge


@contextmanager
def _fixed_sound(transformer: Any) -> Iterator[None]:
    """Inside, the sound that the transformer is given counts as clean, and no change of it is predicted."""

    def as_clean(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        still = torch.zeros_like(named["sigma"])
        return arguments, {**named, "audio_timestep": still, "audio_sigma": still}

    def unchanged(_: Any, __: Any, outputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        video, audio = outputs
        return video, torch.zeros_like(audio)

    hooks = [
        transformer.register_forward_pre_hook(as_clean, with_kwargs=True),
        transformer.register_forward_hook(unchanged),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _unnormalised(vae: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Audio tokens `[B, L, C F]` as the pipeline takes them: `[B, C, L, F]`, not normalised."""
    packed = tokens * vae.latents_std.float() + vae.latents_mean.float()
    return packed.unflatten(-1, (vae.config.latent_channels, -1)).transpose(1, 2)
