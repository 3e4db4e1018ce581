"""What ReflexFlow (Huang et al. 2025, arXiv 2512.04904) adds to the loss of samples that are rolled out.

Frequency compensation: a rolled-out input misses some of what the clean one has, and the model's answers to both differ
where. There, the squared error counts for more:

    w = 1 + alpha e / ||e||_1,   e = |v(clean) - v(rolled out)|, without gradient

Anti-drift rectification: the velocity is to point from the clip to where the input is, however far that is:

    || v / ||v||  -  (x - x_0) / ||x - x_0|| ||^2 = 2 - 2 cos(v, x - x_0)

A sample's loss is `beta2` times the first plus `beta1` times the second. Here `||e||_1` is the mean of `e` over what is
learned of a sample, not its sum: the weights are 1 + alpha on average whatever the clip's size, where a sum over
millions of latents would leave nothing of them. Sound has the same terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tunerkit.families.batch import LossParts
from tunerkit.families.prediction import Predicted, Prediction

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

BIAS, DRIFT = "exposure_bias", "anti_drift"
"""Names of what is logged of the picture, as means over all samples of a batch, with 0 for those that are not rolled
out: the mean of `e`, and the anti-drift term before it is weighted, in [0, 4]."""


@dataclass(frozen=True)
class Reflex:
    """The weights of the terms: `scheduled_sampling_reflexflow_alpha`, `_beta1` and `_beta2`."""

    alpha: float
    drift: float
    error: float

    @classmethod
    def of(cls, config: TrainConfig) -> Reflex:
        return cls(
            config.scheduled_sampling_reflexflow_alpha,
            config.scheduled_sampling_reflexflow_beta1,
            config.scheduled_sampling_reflexflow_beta2,
        )

    @property
    def weighs(self) -> bool:
        """Whether it matters what the model predicts of the clean input."""
        return self.alpha > 0 and self.error > 0

    def losses(
        self, prediction: Prediction, losses: LossParts, clean: Prediction | None, places: Sequence[int]
    ) -> LossParts:
        """The loss of a batch.

        Args:
            prediction: of the whole batch.
            losses: its own; they are what is logged of picture and sound in any case.
            clean: what was predicted of the samples at `places` before they were rolled out; None where `weighs` is
                false, or there are none.
            places: which samples are rolled out.
        """
        nothing = losses.total.new_zeros(())
        if not places:
            return LossParts(losses.total, {**losses.parts, BIAS: nothing, DRIFT: nothing})
        video, bias, drift = self._term(prediction.video, clean and clean.video, places)
        audio = None
        if prediction.audio is not None:
            audio, _, _ = self._term(prediction.audio, clean and clean.audio, places)
        return LossParts(prediction.total(video, audio), {**losses.parts, BIAS: bias, DRIFT: drift})

    def _term(
        self, predicted: Predicted, clean: Predicted | None, places: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of a modality, and what is logged of it."""
        plain = predicted.per_sample()
        rows = torch.tensor(places, device="cpu").to(plain.device)
        velocity, target = predicted.velocity.float()[rows], predicted.target[rows]
        weight = None if predicted.weight is None else predicted.weight.expand_as(predicted.target)[rows]
        drift = anti_drift(velocity, target, weight)
        bias = torch.zeros_like(drift)
        error = plain[rows]
        if clean is not None:
            error, bias = compensated(velocity, target, clean.velocity.float(), weight, self.alpha)
        term = self.error * error + self.drift * drift
        count = len(plain)
        return (
            predicted.averaged(plain.index_copy(0, rows, term)),
            bias.detach().sum() / count,
            drift.detach().sum() / count,
        )


def compensated(
    velocity: torch.Tensor, target: torch.Tensor, clean: torch.Tensor, weight: torch.Tensor | None, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error of each sample, which counts for more where the velocity is not that of the clean input.

    Args:
        velocity, target, clean: `[B, ...]`, float32.
        weight: of the same shape, in [0, 1]; None = every position counts.

    Returns:
        the errors and the means of `e`, both `[B]`.
    """
    bias = (clean - velocity.detach()).abs()
    mean = _mean(bias, weight)
    shape = (-1, *(1,) * (bias.ndim - 1))
    emphasis = 1.0 + alpha * bias / mean.clamp_min(1e-12).view(shape)
    return _mean(emphasis * (velocity - target).square(), weight), mean


def anti_drift(velocity: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """`|| v / ||v|| - d / ||d|| ||^2` of each sample, `[B]` in [0, 4], over its positions by their weight.

    Args:
        velocity: `[B, ...]`, float32.
        target: `(x - x_0) / sigma` of the rolled-out input `x`: its direction is that of `x - x_0`.
        weight: of the same shape, in [0, 1]; None = every position counts.
    """
    if weight is not None:
        root = weight.sqrt()
        velocity, target = velocity * root, target * root
    directions = [torch.nn.functional.normalize(one.flatten(1), dim=1) for one in (velocity, target)]
    return (directions[0] - directions[1]).square().sum(1)


def _mean(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """The mean of each sample by the weight of its positions, `[B]`; 0 where all weights are 0."""
    if weight is None:
        return values.flatten(1).mean(1)
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-8)
