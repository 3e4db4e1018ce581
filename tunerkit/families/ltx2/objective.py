"""What LTX-2 is trained on: noise levels, tokens, and the joint loss of picture and sound.

Shape suffixes: B batch, C channels, T latent frames, H and W latent height and width, S = T H W video tokens, L audio
tokens, D channels of an audio token. `sigma` is the noise level: 0 = clean, 1 = pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.families import flow
from tunerkit.families.prediction import Predicted, Prediction

if TYPE_CHECKING:
    from tunerkit.families.batch import Batch

LOW_QUANTILE, HIGH_QUANTILE = -2.5758293035489004, 3.090232306167813
"""Of the standard normal: 0.5 % and 99.9 %. The density between them is stretched over the whole range."""
UNIFORM_SHARE = 0.1
"""Share of samples whose noise level is uniform instead."""
SMALLEST = 1e-3
"""Stretched noise levels below it are reflected: at 0 there is nothing to predict."""
SHIFT_LOW, SHIFT_HIGH = (1024, 0.95), (4096, 2.05)
"""(tokens, mean of the logits): two points of the line that gives the mean for any number of tokens."""


# Noise levels ----------------------------------------------------------------------------------------------------


def sample_sigmas(count: int, tokens: int, shift: float | None, source: torch.Generator) -> torch.Tensor:
    """Noise levels from the official density for sequences of `tokens`, or a logit-normal moved by `shift`.

    Returns:
        float32 `[count]` on the CPU.
    """
    if shift is None:
        return stretched_logit_normal(count, logit_mean(tokens), source)
    return flow.shift_sigma(flow.logit_normal(count, source), shift)


def logit_mean(tokens: int) -> float:
    """Mean of the logit-normal density for a sequence of `tokens`: 0.95 at 1024, 2.05 at 4096, a line through both.

    It is not clamped outside of these (ltx-trainer, timestep_samplers.py).
    """
    (low, at_low), (high, at_high) = SHIFT_LOW, SHIFT_HIGH
    return at_low + (tokens - low) * (at_high - at_low) / (high - low)


def stretched_logit_normal(count: int, mean: float, source: torch.Generator) -> torch.Tensor:
    """`count` noise levels of the official density, float32 `[count]` in [0, 1] on the CPU.

    `s = sigmoid(N(mean, 1))`; `(s - lo) / (hi - lo)` with `lo`, `hi` the values at the 0.5 % and 99.9 % quantiles;
    below 1e-3 reflected to `2e-3 - s`; clamped; one in ten replaced by a uniform draw in [1e-3, 1]
    (ltx-trainer, timestep_samplers.py: ShiftedLogitNormalTimestepSampler).
    """
    normal = torch.randn(count, generator=source, dtype=torch.float64)
    uniform = torch.rand(count, generator=source, dtype=torch.float64)
    chance = torch.rand(count, generator=source, dtype=torch.float64)
    low, high = (1.0 / (1.0 + math.exp(-(mean + quantile))) for quantile in (LOW_QUANTILE, HIGH_QUANTILE))
    stretched = (torch.sigmoid(normal + mean) - low) / (high - low)
    reflected = torch.where(stretched < SMALLEST, 2 * SMALLEST - stretched, stretched).clamp(0.0, 1.0)
    return torch.where(chance < UNIFORM_SHARE, SMALLEST + (1.0 - SMALLEST) * uniform, reflected).float()


# Tokens ----------------------------------------------------------------------------------------------------------


def pack(latents: torch.Tensor) -> torch.Tensor:
    """`[B, C, T, H, W]` as tokens `[B, S, C]`, frame after frame, row after row."""
    return latents.flatten(2).transpose(1, 2)


def unpack(tokens: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Tokens `[B, S, C]` as `[B, C, T, H, W]` with `grid` = (T, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def video_coordinates(model: Any, grid: tuple[int, int, int], fps: torch.Tensor) -> torch.Tensor:
    """Start and end of each video token in seconds and pixels, `[B, 3, S, 2]`; every sample at its own `fps` `[B]`."""
    coordinates = model.rope.prepare_video_coords(len(fps), *grid, fps.device, fps=1.0)
    coordinates[:, 0] = coordinates[:, 0] / fps.view(-1, 1, 1)
    return coordinates


# Cross-modality gates --------------------------------------------------------------------------------------------


@contextmanager
def official_gates(model: Any) -> Iterator[None]:
    """Inside, the gates between picture and sound follow the noise level of the *other* modality, as in ltx-core.

    There, scale and shift of the cross attention come from a modality's own timesteps, one per token, and the gate from
    the other's noise level (ltx-core, transformer_args.py). diffusers has one switch for both, `use_cross_timestep`;
    it has to be False here, and the gates' inputs are exchanged. With equal noise levels and no clean tokens nothing
    differs.
    """
    levels: dict[str, torch.Tensor] = {}

    def remember(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        levels["video"] = arguments["sigma"].flatten()
        other = arguments.get("audio_sigma")
        levels["audio"] = levels["video"] if other is None else other.flatten()

    def follow(modality: str) -> Any:
        factor = model.config.cross_attn_timestep_scale_multiplier / model.config.timestep_scale_multiplier
        return lambda _, arguments: (levels[modality] * factor, *arguments[1:])

    hooks = [
        model.register_forward_pre_hook(remember, with_kwargs=True),
        model.av_cross_attn_video_a2v_gate.register_forward_pre_hook(follow("audio")),
        model.av_cross_attn_audio_v2a_gate.register_forward_pre_hook(follow("video")),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# Loss ------------------------------------------------------------------------------------------------------------


def prediction(
    transformer: Any,
    batch: Batch,
    *,
    sigma: torch.Tensor,
    noise: torch.Tensor,
    audio_sigma: torch.Tensor | None,
    audio_noise: torch.Tensor | None,
) -> Prediction:
    """The predicted velocities of picture and sound beside `noise - latents`.

    Picture: where `batch.first_frame` is set, the first latent frame is given clean, with timestep 0 on its tokens, and
    has no share in the loss. Sound: samples whose sound is silence in place of none, or is given clean, have no share.
    """
    given = flow.given_frames(batch)
    noisy = flow.with_given(flow.add_noise(batch.latents, noise, sigma), batch.latents, given)
    sound = batch.audio
    audio_sigma = sigma if audio_sigma is None else audio_sigma
    if sound is not None and sound.given is not None:
        audio_sigma = audio_sigma.masked_fill(sound.given, 0.0)
    noisy_sound = None
    if sound is not None:
        if audio_noise is None:
            raise ValueError("the batch has sound, so its loss needs audio_noise")
        noisy_sound = flow.add_noise(sound.latents, audio_noise, audio_sigma)
    predicted, predicted_sound = predict(
        transformer,
        batch,
        pack(noisy),
        noisy_sound,
        sigma=sigma,
        audio_sigma=audio_sigma,
        given=None if given is None else pack(given.expand(-1, -1, *noisy.shape[2:])),
    )
    grid = (noisy.shape[2], noisy.shape[3], noisy.shape[4])
    weight = flow.loss_weight(batch.loss_mask, given)
    video = Predicted(unpack(predicted, grid), flow.velocity(batch.latents, noise), weight)
    if sound is None or predicted_sound is None or audio_noise is None:
        return Prediction(video)
    learned = sound.heard if sound.given is None else sound.heard & ~sound.given
    heard = Predicted(predicted_sound, flow.velocity(sound.latents, audio_noise), learned=learned)
    return Prediction(video, heard, sound.loss_weight)


def predict(
    transformer: Any,
    batch: Batch,
    noisy: torch.Tensor,
    noisy_sound: torch.Tensor | None,
    *,
    sigma: torch.Tensor,
    audio_sigma: torch.Tensor,
    given: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Velocities of the video tokens `[B, S, C]` and of the audio tokens `[B, L, D]` (None without sound).

    Args:
        noisy: video tokens `[B, S, C]`.
        noisy_sound: audio tokens `[B, L, D]`. None = the modalities are isolated, and the picture is predicted as if
            the model had no sound.
        sigma, audio_sigma: `[B]`.
        given: 1 where a video token is given clean, `[B, S, 1]`; None when none is.
    """
    model = getattr(transformer, "module", transformer)  # inside DistributedDataParallel
    dtype = model.proj_in.weight.dtype
    frames, height, width = batch.latents.shape[2:]
    level = sigma.to(noisy.device).float() * flow.TIMESTEPS
    sound_level = audio_sigma.to(noisy.device).float() * flow.TIMESTEPS
    isolated = noisy_sound is None
    if noisy_sound is None:
        noisy_sound, sound_level = noisy.new_zeros(len(noisy), 1, model.config.audio_in_channels), level
    timestep = level if given is None else level[:, None] * (1.0 - given[..., 0])
    text = batch.text["prompt_embeds"].to(dtype)
    mask = text.new_ones(text.shape[:2])  # the connectors leave no padding
    with official_gates(model):
        video, audio = transformer(
            hidden_states=noisy.to(dtype),
            audio_hidden_states=noisy_sound.to(dtype),
            encoder_hidden_states=text,
            audio_encoder_hidden_states=batch.text["audio_prompt_embeds"].to(dtype),
            timestep=timestep,
            audio_timestep=sound_level,
            sigma=level,
            audio_sigma=sound_level,
            encoder_attention_mask=mask,
            audio_encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            audio_num_frames=noisy_sound.shape[1],
            video_coords=video_coordinates(model, (frames, height, width), batch.fps.to(noisy.device)),
            isolate_modalities=isolated,
            use_cross_timestep=False,
            return_dict=False,
        )
    return video, None if isolated else audio
