"""What Sana Video is trained on: noise levels, the transformer's input as the released pipelines make it, and the loss.

Shape suffixes: B batch, C channels, T latent frames, H and W latent height and width, D channels of a text token.
`sigma` is the noise level: 0 = clean, 1 = pure noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tunerkit.families import flow
from tunerkit.families.prediction import Predicted, Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunerkit.families.batch import Batch


def sample_sigmas(count: int, shift: float, source: torch.Generator) -> torch.Tensor:
    """Logit-normal draws moved by `shift`, float32 `[count]` on the CPU: for a shift of 3 `sigma = 3u / (1 + 2u)`.

    The official code reads the same curve from a table of 1000 entries; the curve itself is used here.
    """
    return flow.shift_sigma(flow.logit_normal(count, source), shift)


def prediction(transformer: Any, batch: Batch, *, sigma: torch.Tensor, noise: torch.Tensor) -> Prediction:
    """The predicted velocity beside `noise - latents`.

    Where `batch.first_frame` is set, the first latent frame is given clean with timestep 0 on its tokens and has no
    share in the loss, as SanaImageToVideoPipeline samples.
    """
    given = flow.given_frames(batch)
    noisy = flow.with_given(flow.add_noise(batch.latents, noise, sigma), batch.latents, given)
    predicted = predict(transformer, noisy, batch.text, sigma=sigma, given=given)
    weight = flow.loss_weight(batch.loss_mask, given)
    return Prediction(Predicted(predicted, flow.velocity(batch.latents, noise), weight))


def predict(
    transformer: Any,
    noisy: torch.Tensor,
    text: Mapping[str, torch.Tensor],
    *,
    sigma: torch.Tensor,
    given: torch.Tensor | None,
) -> torch.Tensor:
    """Velocity `[B, C, T, H, W]` that the transformer predicts.

    Args:
        noisy: latents `[B, C, T, H, W]`, clean where `given`.
        text: `prompt_embeds` `[B, 300, D]` and `prompt_attention_mask` `[B, 300]`.
        sigma: noise levels `[B]`.
        given: 1 where a latent frame is given clean, `[B, 1, T, 1, 1]`; None when nothing is.
    """
    model = getattr(transformer, "module", transformer)  # inside DistributedDataParallel
    timestep = sigma.to(noisy.device).float() * flow.TIMESTEPS
    if given is not None:
        # One timestep per token, [B, 1, T, H/2, W/2]: 0 on the tokens of the given frame.
        _, patch_height, patch_width = model.config.patch_size
        _, _, frames, height, width = noisy.shape
        grid = (len(noisy), 1, frames, height // patch_height, width // patch_width)
        timestep = (flow.broadcast(timestep, noisy) * (1.0 - given)).expand(grid)
    dtype = model.patch_embedding.weight.dtype
    return transformer(
        noisy.to(dtype),
        encoder_hidden_states=text["prompt_embeds"].to(dtype),
        # [B, 300], so that the model turns it into a bias; [B, 1, 300] would be taken as a ready bias.
        encoder_attention_mask=text["prompt_attention_mask"],
        timestep=timestep,
        return_dict=False,
    )[0]
