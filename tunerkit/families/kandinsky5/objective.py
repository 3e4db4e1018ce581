"""What Kandinsky 5.0 Video is trained on: the transformer's input as the released pipelines make it, and the loss.

Shape suffixes: B batch, C channels, T latent frames, H and W latent height and width, L text tokens. `sigma` is the
noise level: 0 = clean, 1 = pure noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import Kandinsky5T2VPipeline

from tunerkit.families import flow
from tunerkit.families.kandinsky5.attention import PIXEL_MULTIPLE
from tunerkit.families.prediction import Predicted, Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunerkit.families.batch import Batch


def sample_sigmas(count: int, shift: float, source: torch.Generator) -> torch.Tensor:
    """Logit-normal draws moved by `shift`, float32 `[count]` on the CPU."""
    return flow.shift_sigma(flow.logit_normal(count, source), shift)


def prediction(transformer: Any, batch: Batch, *, sigma: torch.Tensor, noise: torch.Tensor) -> Prediction:
    """The predicted velocity beside `noise - latents`.

    Where `batch.first_frame` is set, the transformer is shown the latents of the first frame alone: in place of the
    first latent frame, which then has no share in the loss, as Kandinsky5I2VPipeline samples; or with
    `first_frame_method = "channels"` in the condition channels, beside a first frame that is noisy and learned as all
    others are.
    """
    given = flow.given_frames(batch)
    in_place = given if batch.first_frame_method == "in_place" else None
    shown = with_first_frame(batch.latents, batch.image)
    noisy = flow.with_given(flow.add_noise(batch.latents, noise, sigma), shown, in_place)
    condition = given * shown if given is not None and in_place is None else None
    predicted = predict(transformer, noisy, batch.text, sigma=sigma, given=given, condition=condition)
    weight = flow.loss_weight(batch.loss_mask, in_place)
    return Prediction(Predicted(predicted, flow.velocity(batch.latents, noise), weight))


def with_first_frame(latents: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
    """Latents `[B, C, T, H, W]` whose first frame is `image` `[B, C, 1, H, W]`, if there is one; float32."""
    latents = latents.float()
    return latents if image is None else torch.cat([image.float(), latents[:, :, 1:]], dim=2)


def predict(
    transformer: Any,
    noisy: torch.Tensor,
    text: Mapping[str, torch.Tensor],
    *,
    sigma: torch.Tensor,
    given: torch.Tensor | None,
    condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """Velocity `[B, C, T, H, W]` that the transformer predicts.

    RoPE scale and sparse attention come from the stock pipeline's own methods, so that both follow the size as when a
    video is made. The timestep stays float32: in bfloat16 it would be rounded to steps of 4 near 1000.

    Args:
        noisy: latents `[B, C, T, H, W]`, clean where `given` in place.
        text: as `text.collate` makes it. The model knows no text mask, so samples whose texts differ in length go
            through it one length after the other: equal to a mask, at no cost worth naming where a single clip has
            thousands of tokens.
        sigma: noise levels `[B]`.
        given: 1 where a latent frame is given, `[B, 1, T, 1, 1]`; None when nothing is.
        condition: what the condition channels hold, `[B, C, T, H, W]`; None = zeros, as in the released pipelines.

    Raises:
        ValueError: the size does not fit sparse attention.
    """
    states = model_input(noisy, given, condition)
    if "tokens" not in text:
        return _velocity(transformer, states, text["prompt_embeds"], text["pooled"], sigma)
    lengths = text["tokens"].tolist()
    rows: list[torch.Tensor | None] = [None] * len(lengths)
    for places in equal_lengths(lengths):
        embeds = text["prompt_embeds"][places, : lengths[places[0]]]
        made = _velocity(transformer, states[places], embeds, text["pooled"][places], sigma[places])
        for place, velocity in zip(places, made, strict=True):
            rows[place] = velocity
    return torch.stack([row for row in rows if row is not None])


def equal_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """The places of equal numbers, the smallest number first."""
    return [[place for place, one in enumerate(lengths) if one == length] for length in sorted(set(lengths))]


def _velocity(
    transformer: Any, states: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Velocity `[B, C, T, H, W]` of `states` `[B, T, H, W, 2C + 1]`, with texts of one length `[B, L, D]`."""
    model = getattr(transformer, "module", transformer)  # inside DistributedDataParallel
    stock = _pipeline_around(model)
    states = states.to(model.visual_embeddings.in_layer.weight.dtype)
    frames, height, width = states.shape[1:4]
    pixels = [edge * stock.vae_scale_factor_spatial for edge in (height, width)]
    if model.config.attention_type == "nabla" and any(edge % PIXEL_MULTIPLE for edge in pixels):
        raise ValueError(
            f"{pixels[1]}x{pixels[0]} pixels: this checkpoint's sparse attention needs multiples of {PIXEL_MULTIPLE}"
        )
    device, dtype = states.device, states.dtype
    _, patch_height, patch_width = model.config.patch_size
    return transformer(
        hidden_states=states,
        encoder_hidden_states=embeds.to(dtype),
        pooled_projections=pooled.to(dtype),
        timestep=sigma.to(device).float() * flow.TIMESTEPS,
        visual_rope_pos=[
            torch.arange(edge, device=device) for edge in (frames, height // patch_height, width // patch_width)
        ],
        text_rope_pos=torch.arange(embeds.shape[1], device=device),
        scale_factor=stock._get_scale_factor(*pixels),
        sparse_params=stock.get_sparse_params(states, device),
        return_dict=True,  # False gives a bare tensor, not a tuple, whose [0] would drop the batch
    ).sample.permute(0, 4, 1, 2, 3)


def model_input(noisy: torch.Tensor, given: torch.Tensor | None, condition: torch.Tensor | None) -> torch.Tensor:
    """The transformer's input, channels last: latents, condition channels and the mask, `[B, T, H, W, 2C + 1]`."""
    latents = noisy.permute(0, 2, 3, 4, 1)
    beside = torch.zeros_like(latents) if condition is None else condition.permute(0, 2, 3, 4, 1)
    mask = torch.zeros_like(latents[..., :1])
    if given is not None:
        mask = mask + given.permute(0, 2, 3, 4, 1)
    return torch.cat([latents, beside, mask], dim=-1)


def _pipeline_around(model: Any) -> Any:
    """A stock pipeline that holds nothing but `model`: made in a fraction of a millisecond."""
    absent: Any = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"))
    return Kandinsky5T2VPipeline(transformer=model, **absent)
