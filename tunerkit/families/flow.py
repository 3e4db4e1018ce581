"""The flow-matching objective that the families share, as pure functions.

Shape suffixes: B batch, C channels, T latent frames, H and W latent height and width. `sigma` is the noise level:
0 = clean, 1 = pure noise.
"""

from __future__ import annotations

import torch

TIMESTEPS = 1000.0
"""Models are told sigma * 1000."""


def broadcast(sigma_b: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`sigma_b` `[B]` as `[B, 1, ...]` with as many dimensions as `like`."""
    return sigma_b.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma_b: torch.Tensor) -> torch.Tensor:
    """Straight line between clean latents and noise: `x_t = (1 - sigma) x_0 + sigma eps`, in float32.

    Rectified flow, Liu et al. 2022 (arXiv 2209.03003), eq. 1, with time counted as noise level.
    """
    sigma = broadcast(sigma_b.float(), clean)
    return (1.0 - sigma) * clean.float() + sigma * noise.float()


def velocity(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the model learns to predict: `d x_t / d sigma = eps - x_0`, in float32."""
    return noise.float() - clean.float()


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
