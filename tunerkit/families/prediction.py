"""What a model predicted of a batch beside what it should have predicted, and the loss that follows from both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunerkit.families.batch import LossParts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Predicted:
    """The velocities of one modality.

    Attributes:
        velocity: as the transformer gives it; picture `[B, C, T, H, W]`, sound `[B, L, D]`.
        target: `noise - latents`, float32, of the same shape.
        weight: in [0, 1], broadcastable to the target; None = every position counts.
        learned: bool `[B]`; False where a sample has no share in the loss. None = all have.
    """

    velocity: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor | None = None
    learned: torch.Tensor | None = None

    def loss(self) -> torch.Tensor:
        """Mean squared error, weighted over the positions of a sample, averaged over the samples. Float32."""
        return self.averaged(self.per_sample())

    def per_sample(self) -> torch.Tensor:
        """Mean squared error of each sample, weighted over its positions: float32 `[B]`."""
        from tunerkit.families.flow import weighted_mse

        return weighted_mse(self.velocity, self.target, self.weight)

    def averaged(self, per_sample: torch.Tensor) -> torch.Tensor:
        """Mean of one number per sample, `[B]`, over the samples that are learned; 0 where there are none."""
        if self.learned is None:
            return per_sample.mean()
        return per_sample.where(self.learned, 0.0).sum() / self.learned.sum().clamp_min(1)


@dataclass(frozen=True)
class Prediction:
    """The velocities of a batch: picture, and sound where it has some (`audio_loss_weight`: its share in the total)."""

    video: Predicted
    audio: Predicted | None = None
    audio_loss_weight: float = 1.0

    def losses(self) -> LossParts:
        """`video + audio_loss_weight * audio`."""
        video = self.video.loss()
        if self.audio is None:
            return LossParts(video, {"video": video.detach()})
        audio = self.audio.loss()
        return LossParts(self.total(video, audio), {"video": video.detach(), "audio": audio.detach()})

    def total(self, video: torch.Tensor, audio: torch.Tensor | None) -> torch.Tensor:
        """The terms of both modalities in one."""
        if audio is None or not self.audio_loss_weight:  # a weight of 0 must not let a NaN through
            return video
        return video + self.audio_loss_weight * audio
