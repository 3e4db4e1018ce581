"""The flow-matching objective that the families share, as pure functions.

Shape suffixes: B batch, C channels, T latent frames, H and W latent height and width. `sigma` is the noise level:
0 = clean, 1 = pure noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tunerkit.families.batch import Batch

TIMESTEPS = 1000.0
"""Models are told sigma * 1000."""


def broadcast(sigma_b: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`sigma_b` `[B]` as `[B, 1, ...]` with as many dimensions as `like`."""
    return sigma_b.reshape(-1, *(1,) * (like.ndim - 1))


def given_frames(batch: Batch) -> torch.Tensor | None:
    """1 where a latent frame is given (the first one, where `batch.first_frame` is set), else 0: `[B, 1, T, 1, 1]`.

    None when nothing is given: nowhere, or of still images, of which nothing would be left to learn.
    """
    frames = batch.latents.shape[2]
    if batch.first_frame is None or frames == 1:
        return None
    given = batch.latents.new_zeros(len(batch.latents), 1, frames, 1, 1)
    given[:, :, 0] = batch.first_frame.to(given.dtype).view(-1, 1, 1, 1)
    return given


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma_b: torch.Tensor) -> torch.Tensor:
    """Straight line between clean latents and noise: `x_t = (1 - sigma) x_0 + sigma eps`, in float32.

    Rectified flow, Liu et al. 2022 (arXiv 2209.03003), eq. 1, with time counted as noise level.
    """
    sigma = broadcast(sigma_b.float(), clean)
    return (1.0 - sigma) * clean.float() + sigma * noise.float()


def with_given(noisy: torch.Tensor, clean: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """`noisy` (float32), and `clean` where `given` is 1; `given` is broadcastable to both, None = nowhere."""
    return noisy if given is None else noisy.lerp(clean.float(), given)  # 0 or 1: exactly one of the two


def velocity(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the model learns to predict: `d x_t / d sigma = eps - x_0`, in float32."""
    return noise.float() - clean.float()


def loss_weight(mask: torch.Tensor | None, given: torch.Tensor | None) -> torch.Tensor | None:
    """`mask` (None = 1 everywhere), and 0 where `given` is 1; None when every position counts."""
    if given is None:
        return mask
    return 1.0 - given if mask is None else mask * (1.0 - given)


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Squared error of each sample, averaged over everything but the batch: float32 `[B]`.

    With `weight` (broadcastable to the target, in [0, 1]) it is the weighted mean `sum(w l) / sum(w)`, so a small mask
    does not shrink the loss. A sample whose weight is zero everywhere contributes 0.
    """
    error = (prediction.float() - target.float()).square()
    if weight is None:
        return error.flatten(1).mean(1)
    weight = weight.float().expand_as(error).flatten(1)
    return (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1e-8)


def shift_sigma(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards 1: `shift u / (1 + (shift - 1) u)` (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    return shift * u / (1.0 + (shift - 1.0) * u)


def logit_normal(count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` draws of `sigmoid(N(0, 1))`, float32 `[count]` on the CPU."""
    return torch.sigmoid(torch.randn(count, generator=generator))
