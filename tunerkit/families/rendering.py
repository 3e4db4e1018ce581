"""What a family's pipeline takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    ReadState = Callable[[], tuple[float, torch.Tensor]]
    """Gives the noise level, and normalised latents `[C, T, H, W]` as a float32 copy on the CPU."""
    StepWatcher = Callable[[int, ReadState], None]
    """Called after each sampling step with the number of steps done."""


@dataclass(frozen=True)
class RenderRequest:
    """One video to render.

    Attributes:
        text, negative_text: cached text tensors without a batch dimension.
        audio_guidance: guidance scale of the sound; None = `guidance`.
        image: first frame (image to video).
        sound: waveform that the video is made to (sound to video), as long as the video, float32
            `[channels, samples]` in the family's `sound` format.
        watch: sees the latents after each sampling step, and changes nothing; None = nobody does.
    """

    text: Mapping[str, torch.Tensor]
    negative_text: Mapping[str, torch.Tensor]
    width: int
    height: int
    frames: int
    steps: int
    guidance: float
    seed: int
    fps: float
    audio_guidance: float | None = None
    image: Image.Image | None = None
    sound: np.ndarray | None = None
    watch: StepWatcher | None = None


@dataclass(frozen=True)
class Rendered:
    """What a pipeline made.

    Attributes:
        frames: uint8 `[T, H, W, 3]`.
        sound: float32 `[channels, samples]` in [-1, 1]; None where the model makes no sound.
        sound_rate: samples per second of `sound`.
    """

    frames: np.ndarray
    sound: np.ndarray | None = None
    sound_rate: int | None = None
