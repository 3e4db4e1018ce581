"""What a family's loss takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

FirstFrameMethod = Literal["in_place", "channels"]


@dataclass(frozen=True)
class Audio:
    """The sound of a batch.

    Attributes:
        latents: clean normalised audio latents as the transformer takes them, float32 `[B, L, D]`.
        heard: bool `[B]`; False where silence stands in for missing sound: no share in the loss.
        given: bool `[B]`; True where the sound is given clean (sound to video): no share in the loss either.
        loss_weight: weight of the audio term in the total, at least 0.
    """

    latents: torch.Tensor
    heard: torch.Tensor
    given: torch.Tensor | None = None
    loss_weight: float = 1.0

    def to(self, device: torch.device | str) -> Audio:
        """The same sound with every tensor on `device`."""
        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            heard=self.heard.to(device, non_blocking=True),
            given=None if self.given is None else self.given.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket, ready for a family's loss.

    Attributes:
        latents: clean normalised latents, float32 `[B, C, T, H, W]`.
        text: the family's cached text tensors, batched on dim 0 (for example `prompt_embeds` `[B, L, D]`).
        fps: frames per second of each sample, float32 `[B]`.
        first_frame: bool `[B]`; True where the first frame is given (image to video). None = nowhere.
        image: latents of the first frame encoded alone, as when a video is made from an image, float32
            `[B, C, 1, H, W]`. None = the first latent frame, where both are the same.
        first_frame_method: how a first frame is given; see the setting `first_frame_conditioning_method`.
        loss_mask: weights in [0, 1] on the latent grid, `[B, 1, T, H, W]`. None = every position counts.
        audio: the clips' sound, of equal length in a batch. None = the batch is trained without sound.
        names: file name of each sample, for messages.
    """

    latents: torch.Tensor
    text: Mapping[str, torch.Tensor]
    fps: torch.Tensor
    first_frame: torch.Tensor | None = None
    image: torch.Tensor | None = None
    first_frame_method: FirstFrameMethod = "in_place"
    loss_mask: torch.Tensor | None = None
    audio: Audio | None = None
    names: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            text={key: value.to(device, non_blocking=True) for key, value in self.text.items()},
            fps=self.fps.to(device, non_blocking=True),
            first_frame=move(self.first_frame),
            image=move(self.image),
            loss_mask=move(self.loss_mask),
            audio=None if self.audio is None else self.audio.to(device),
        )


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of: `total` is the scalar to differentiate, `parts` its detached named terms."""

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
