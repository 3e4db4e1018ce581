"""What Kandinsky 5.0 Video is trained on: the transformer's input as the released pipelines make it, and the loss.

Shape suffixes: B batch, C channels, T latent frames, H and W latent height and width, L text tokens. `sigma` is the
noise level: 0 = clean, 1 = pure noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import Kandinsky5T2VPipeline

from tunerkit.families import flow
from tunerkit.families.base import LossParts
from tunerkit.families.kandinsky5.attention import PIXEL_MULTIPLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunerkit.families.base import Batch

TRAINING_SHIFT = 3.0
"""Flow shift of the training density where no setting names one. The official density is not published; sampling uses 5
or 10, read from the checkpoint's scheduler."""


def sample_sigmas(count: int, shift: float | None, source: torch.Generator) -> torch.Tensor:
    """Logit-normal draws moved by `shift` (`TRAINING_SHIFT` for None), float32 `[count]` on the CPU."""
    return flow.shift_sigma(flow.logit_normal(count, source), TRAINING_SHIFT if shift is None else shift)


def losses(transformer: Any, batch: Batch, *, sigma: torch.Tensor, noise: torch.Tensor) -> LossParts:
    """Mean squared error of the predicted velocity `noise - latents`, float32.

    Where `batch.first_frame` is set, the first latent frame is given clean and has no share in the loss, as
    Kandinsky5I2VPipeline samples.
    """
    given = given_frames(batch)
    noisy = flow.add_noise(batch.latents, noise, sigma)
    if given is not None:
        noisy = noisy.lerp(batch.latents.float(), given)  # 0 or 1: exactly one of the two
    prediction = predict(transformer, noisy, batch.text, sigma=sigma, given=given)
    weight = batch.loss_mask
    if given is not None:
        weight = (1.0 - given) if weight is None else weight * (1.0 - given)
    total = flow.weighted_mse(prediction, flow.velocity(batch.latents, noise), weight).mean()
    return LossParts(total, {"video": total.detach()})


def given_frames(batch: Batch) -> torch.Tensor | None:
    """1 where a latent frame is given clean, `[B, 1, T, 1, 1]`; None when nothing is."""
    frames = batch.latents.shape[2]
    if batch.first_frame is None or frames == 1 or not bool(batch.first_frame.any()):
        return None  # of a still image, nothing would be left to learn
    given = batch.latents.new_zeros(len(batch.latents), 1, frames, 1, 1)
    given[:, :, 0] = batch.first_frame.to(given.dtype).view(-1, 1, 1, 1)
    return given


def predict(
    transformer: Any,
    noisy: torch.Tensor,
    text: Mapping[str, torch.Tensor],
    *,
    sigma: torch.Tensor,
    given: torch.Tensor | None,
) -> torch.Tensor:
    """Velocity `[B, C, T, H, W]` that the transformer predicts.

    RoPE scale and sparse attention come from the stock pipeline's own methods, so that both follow the size as when a
    video is made. The timestep stays float32: in bfloat16 it would be rounded to steps of 4 near 1000.

    Args:
        noisy: latents `[B, C, T, H, W]`, clean where `given`.
        text: `prompt_embeds` `[B, L, D]` and `pooled` `[B, D']`: real tokens only, for the model knows no text mask.
        sigma: noise levels `[B]`.
        given: 1 where a latent frame is given clean, `[B, 1, T, 1, 1]`; None when nothing is.

    Raises:
        ValueError: the size does not fit sparse attention.
    """
    model = getattr(transformer, "module", transformer)  # inside DistributedDataParallel
    stock = _pipeline_around(model)
    states = with_condition(noisy, given).to(model.visual_embeddings.in_layer.weight.dtype)
    frames, height, width = states.shape[1:4]
    pixels = [edge * stock.vae_scale_factor_spatial for edge in (height, width)]
    if model.config.attention_type == "nabla" and any(edge % PIXEL_MULTIPLE for edge in pixels):
        raise ValueError(
            f"{pixels[1]}x{pixels[0]} pixels: this checkpoint's sparse attention needs multiples of {PIXEL_MULTIPLE}"
        )
    device, dtype = states.device, states.dtype
    embeds = text["prompt_embeds"].to(dtype)
    _, patch_height, patch_width = model.config.patch_size
    return transformer(
        hidden_states=states,
        encoder_hidden_states=embeds,
        pooled_projections=text["pooled"].to(dtype),
        timestep=sigma.to(device).float() * flow.TIMESTEPS,
        visual_rope_pos=[
            torch.arange(edge, device=device) for edge in (frames, height // patch_height, width // patch_width)
        ],
        text_rope_pos=torch.arange(embeds.shape[1], device=device),
        scale_factor=stock._get_scale_factor(*pixels),
        sparse_params=stock.get_sparse_params(states, device),
        return_dict=True,  # False gives a bare tensor, not a tuple, whose [0] would drop the batch
    ).sample.permute(0, 4, 1, 2, 3)


def with_condition(noisy: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """The transformer's input, channels last: latents, empty condition channels and the mask, `[B, T, H, W, 2C + 1]`.

    A given frame stands among the latents themselves; the mask says where, and the condition channels stay zero, as in
    the released pipelines.
    """
    latents = noisy.permute(0, 2, 3, 4, 1)
    mask = torch.zeros_like(latents[..., :1])
    if given is not None:
        mask = mask + given.permute(0, 2, 3, 4, 1)
    return torch.cat([latents, torch.zeros_like(latents), mask], dim=-1)


def _pipeline_around(model: Any) -> Any:
    """A stock pipeline that holds nothing but `model`: made in a fraction of a millisecond."""
    absent: Any = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"))
    return Kandinsky5T2VPipeline(transformer=model, **absent)
