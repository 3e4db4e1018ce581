"""Unfinished videos, shown while they are denoised.

The path of the sampler is followed on a straight line to noise level 0: from the last two states `x` at noise levels
`s`, `x_0 = x_i - s_i (x_i - x_{i-1}) / (s_i - s_{i-1})`. For Euler's method that is the clean video which the model
predicted in that step; for others it is near it. Its colours are those of `preview_projection`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.files import write_atomically
from tunerkit.validation.preview_projection import Projection, projection_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tunerkit.cache.entries import Cache
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.families.rendering import ReadState, RenderRequest, StepWatcher

logger = logging.getLogger("tunerkit")
PROJECTION_FILE = "preview_colours.json"
MEDIA_TYPE = "image/webp"
EDGE = 256
"""Pixels of the longer edge, at most; never more than the video's."""
QUALITY = 80


@dataclass(frozen=True)
class Preview:
    """A video as it looks so far.

    Attributes:
        path: an animated WebP; the next preview of the same video takes its place.
        name: the file name that the video will have, without its ending.
        step: optimizer steps done; 0 is the base model.
        denoised: sampling steps done.
        steps: sampling steps in all.
    """

    path: Path
    name: str
    step: int
    denoised: int
    steps: int


class Previews:
    """Makes previews of the videos of a run. What goes wrong ends them, never the video.

    Args:
        config: resolved settings.
        family: the model family.
        cache: holds the latents of `samples`.
        samples: clips that colours are fitted to.

    Attributes:
        listener: called with each preview; None = nobody listens.
    """

    def __init__(self, config: TrainConfig, family: Family, cache: Cache, samples: Sequence[Sample]) -> None:
        self._every = config.validation_preview_steps
        self._family, self._cache, self._samples = family, cache, samples
        self._wanted = config.validation_preview
        self._projection: Projection | None = None
        self.listener: Callable[[Preview], object] | None = None

    def prepare(self, folder: Path) -> None:
        """Fit the colours, or read them from the run's `validation` folder; once in a run."""
        if self._wanted and self._projection is None:
            self._tried(lambda: self._fit(folder / PROJECTION_FILE))

    def watcher(self, video: Path, step: int, request: RenderRequest) -> StepWatcher | None:
        """What watches the rendering of one video; None where no previews are made.

        Args:
            video: the file that the video will be written to.
            step: optimizer steps done.
        """
        if not self._wanted or self._projection is None:
            return None
        watched = _Watched(self, video, step, request)
        return lambda denoised, read: self._tried(lambda: watched.see(denoised, read))

    def due(self, denoised: int, steps: int) -> bool:
        """Whether a preview is due after so many of all sampling steps."""
        return denoised % self._every == 0 or denoised == steps

    def show(self, preview: Preview, estimate: torch.Tensor, fps: float, width: int) -> None:
        """Write a preview of the estimated latents `[C, T, H, W]` of a video `width` pixels wide, and tell of it."""
        assert self._projection is not None
        pictures = self._projection.pictures(estimate)
        write_atomically(preview.path, encoded(pictures, fps, self._family.temporal_compression, width))
        if self.listener is not None:
            self.listener(preview)

    def _fit(self, path: Path) -> None:
        self._projection = projection_of(path, self._family, self._cache, self._samples)

    def _tried(self, action: Callable[[], None]) -> None:
        if not self._wanted:
            return
        try:
            action()
        except Exception as error:  # whatever it is: a video is worth more than its previews
            self._wanted = False
            words = str(error).partition("\n")[0] or type(error).__name__
            logger.warning("no more previews are made of videos being rendered (%s); the videos themselves are", words)


class _Watched:
    """One video: the state that its sampler was in at the step before."""

    def __init__(self, previews: Previews, video: Path, step: int, request: RenderRequest) -> None:
        self._previews, self._name, self._step = previews, video.stem, step
        self._path = video.with_name(f"preview-{video.stem}.webp")
        self._steps, self._fps, self._width = request.steps, request.fps, request.width
        self._before: tuple[float, torch.Tensor] | None = None

    def see(self, denoised: int, read: ReadState) -> None:
        due = self._previews.due(denoised, self._steps)
        if not due and not self._previews.due(denoised + 1, self._steps):
            return
        now = read()
        estimate = clean_estimate(self._before, now) if due else None
        self._before = now
        if estimate is not None:
            preview = Preview(self._path, self._name, self._step, denoised, self._steps)
            self._previews.show(preview, estimate, self._fps, self._width)


def clean_estimate(before: tuple[float, torch.Tensor] | None, now: tuple[float, torch.Tensor]) -> torch.Tensor | None:
    """Where the line through two states (noise level, latents) reaches noise level 0; None where there is no line."""
    sigma, latents = now
    if sigma == 0.0:
        return latents
    if before is None or before[0] == sigma:
        return None
    return latents - sigma * (latents - before[1]) / (sigma - before[0])


def encoded(pictures: np.ndarray, fps: float, temporal_compression: int, width: int) -> bytes:
    """An animated WebP that lasts as long as the video.

    Args:
        pictures: uint8 `[T, H, W, 3]`, one for each latent frame.
        fps: frames per second of the video.
        temporal_compression: frames that each picture after the first stands for.
        width: pixels of the video, which the preview is no larger than.
    """
    from PIL import Image

    _, rows, columns, _ = pictures.shape
    scale = min(EDGE / max(rows, columns), width / columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    first, *others = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    file = io.BytesIO()
    if others:
        milliseconds = [round(1000 * count / fps) for count in (1, *(temporal_compression,) * len(others))]
        first.save(file, "WEBP", quality=QUALITY, save_all=True, append_images=others, duration=milliseconds, loop=0)
    else:
        first.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()
