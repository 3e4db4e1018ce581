"""Unfinished videos, shown while they are denoised.

The path of the sampler is followed on a straight line to noise level 0: from the last two states `x` at noise levels
`s`, `x_0 = x_i - s_i (x_i - x_{i-1}) / (s_i - s_{i-1})`. For Euler's method that is the clean video which the model
predicted in that step; for others it is near it. Its pictures are those of a `PreviewDecoder` where somebody has one,
else they have the colours of `preview_projection`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import TunerkitError
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

    PreviewDecoder = Callable[[torch.Tensor], np.ndarray | torch.Tensor]
    """Makes pictures of the clean latents that a sampler is on the way to.

    It is given `[C, T, H, W]` of one video as the transformer has them: normalised as they are trained, float32, on the
    CPU. It returns `[F, H, W, 3]` in red, green and blue, uint8 from 0 to 255 or floating point from 0 to 1 (what lies
    beyond is clipped), an array or a tensor on any device. Size and number are free: as many as there are latent frames
    stand for these, any other number is spread evenly over the video. It is called without gradients, between two
    sampling steps, which wait for it. For example with a Tiny AutoEncoder that takes `[1, T, C, H, W]` and gives
    `[1, F, 3, H, W]`:

        trainer.preview_decoder = lambda latents: tiny.decode_video(latents.transpose(0, 1)[None])[0].movedim(1, -1)
    """

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

    """

    def __init__(self, config: TrainConfig, family: Family, cache: Cache, samples: Sequence[Sample]) -> None:
        self._every = config.validation_preview_steps
        self._family, self._cache, self._samples = family, cache, samples
        self._wanted, self._failed = config.validation_preview, False
        self._projection: Projection | None = None
        self._decoder: PreviewDecoder | None = None
        self._listener: Callable[[Preview], object] | None = None

    def hear(self, listener: Callable[[Preview], object] | None, decoder: PreviewDecoder | None) -> None:
        """From now on, tell `listener` of each preview, and let `decoder` make its pictures; None = nobody does.

        Where previews ended by a failure, another decoder is given a chance.
        """
        if decoder is not self._decoder:
            self._failed = False
        self._listener, self._decoder = listener, decoder

    def prepare(self, folder: Path) -> None:
        """Fit the colours, or read them from the run's `validation` folder; once in a run, and with no decoder."""
        if self._wanted and self._decoder is None and self._projection is None:
            self._tried(lambda: self._fit(folder / PROJECTION_FILE))

    def watcher(self, video: Path, step: int, request: RenderRequest) -> StepWatcher | None:
        """What watches the rendering of one video; None where no previews are made.

        Args:
            video: the file that the video will be written to.
            step: optimizer steps done.
        """
        if not self._wanted or self._failed or (self._decoder is None and self._projection is None):
            return None
        watched = _Watched(self, video, step, request)
        return lambda denoised, read: self._tried(lambda: watched.see(denoised, read))

    def due(self, denoised: int, steps: int) -> bool:
        """Whether a preview is due after so many of all sampling steps."""
        return denoised % self._every == 0 or denoised == steps

    def show(self, preview: Preview, estimate: torch.Tensor, fps: float, width: int) -> None:
        """Write a preview of the estimated latents `[C, T, H, W]` of a video `width` pixels wide, and tell of it."""
        pictures = self._pictures(estimate)
        times = milliseconds(len(pictures), estimate.shape[1], self._family.temporal_compression, fps)
        write_atomically(preview.path, encoded(pictures, times, width))
        if self._listener is not None:
            self._listener(preview)

    def _pictures(self, estimate: torch.Tensor) -> np.ndarray:
        if self._decoder is not None:
            return checked_pictures(self._decoder(estimate))
        assert self._projection is not None
        return self._projection.pictures(estimate)

    def _fit(self, path: Path) -> None:
        self._projection = projection_of(path, self._family, self._cache, self._samples)

    def _tried(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # whatever it is: a video is worth more than its previews
            self._failed = True
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


def checked_pictures(found: Any) -> np.ndarray:
    """uint8 `[F, H, W, 3]` of what a `PreviewDecoder` returned.

    Raises:
        TunerkitError: it is something else.
    """
    import numpy as np
    import torch

    if isinstance(found, torch.Tensor):
        found = (found.detach().float() if found.is_floating_point() else found.detach()).cpu().numpy()
    is_array = isinstance(found, np.ndarray)
    if not is_array or found.ndim != 4 or found.shape[-1] != 3 or found.size == 0:
        form = list(found.shape) if is_array else type(found).__name__
        raise TunerkitError(f"preview_decoder returned {form}, not pictures [F, H, W, 3]")
    if found.dtype == np.uint8:
        return found
    if not np.issubdtype(found.dtype, np.floating):
        raise TunerkitError(f"preview_decoder returned {found.dtype}, not uint8 or floating point from 0 to 1")
    return (np.nan_to_num(found).clip(0, 1) * 255).round().astype(np.uint8)


def milliseconds(pictures: int, latent_frames: int, temporal_compression: int, fps: float) -> list[int]:
    """How long each picture is shown, so that all together last as long as the video.

    Args:
        pictures: how many there are; one for each latent frame, or spread evenly.
        temporal_compression: frames that each latent frame after the first stands for.
        fps: frames per second of the video.
    """
    counts: list[float] = [1, *[temporal_compression] * (latent_frames - 1)]
    if pictures != latent_frames:
        counts = [sum(counts) / pictures] * pictures
    return [max(1, round(1000 * count / fps)) for count in counts]


def encoded(pictures: np.ndarray, times: Sequence[int], width: int) -> bytes:
    """An animated WebP.

    Args:
        pictures: uint8 `[F, H, W, 3]`.
        times: milliseconds of each.
        width: pixels of the video, which the preview is no larger than.
    """
    from PIL import Image

    _, rows, columns, _ = pictures.shape
    scale = min(EDGE / max(rows, columns), width / columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    first, *others = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    file = io.BytesIO()
    if others:
        durations = list(times)
        first.save(file, "WEBP", quality=QUALITY, save_all=True, append_images=others, duration=durations, loop=0)
    else:
        first.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()
