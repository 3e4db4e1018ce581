"""The largest batch of a run. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family


@dataclass(frozen=True)
class Largest:
    """What the largest batch of a run is made of.

    Attributes:
        width, height: pixels.
        frames: of a clip.
        fps: frames per second.
        clips: samples of the batch.
        sound: seconds of sound of each clip; None = trained without.
        first_frame: whether first frames are given.
        mask: whether there are masks.
        tokens: of a text, where its length is not fixed.
    """

    width: int
    height: int
    frames: int
    fps: float
    clips: int
    sound: float | None = None
    first_frame: bool = False
    mask: bool = False
    tokens: int = 512

    @property
    def label(self) -> str:
        """`832x480, 81 frames, 1 clip`."""
        heard = "" if self.sound is None else f", {self.sound:.2f} s of sound"
        return f"{self.width}x{self.height}, {self.frames} frames{heard}, batch of {self.clips}"


def largest_batch(config: TrainConfig, family: Family, samples: Sequence[Sample] = ()) -> Largest:
    """The largest batch: of the samples where there are any, else as the settings say."""
    found = [of_sample(config, sample) for sample in samples]
    found = found or [_of_settings(config, family, dataset) for dataset in config.media_datasets]
    return max(found, key=lambda one: (one.width * one.height * one.frames * one.clips, one.sound or 0.0))


def of_sample(config: TrainConfig, sample: Sample) -> Largest:
    """A batch of one sample's kind."""
    sizes = {dataset.id: dataset.train_batch_size for dataset in config.media_datasets}
    return Largest(
        *sample.size,
        frames=len(sample.frame_indices),
        fps=sample.fps,
        clips=int(sizes.get(sample.dataset) or config.train_batch_size),
        sound=None if sample.sound is None else sample.sound.seconds,
        first_frame=sample.is_i2v,
        mask=sample.mask is not None,
    )


def _of_settings(config: TrainConfig, family: Family, dataset: DatasetConfig) -> Largest:
    """A batch of a dataset whose clips are not known: pictures of the resolution's area in the model's own shape."""
    frames = dataset.video.num_frames or config.validation_num_video_frames or 1
    count = family.legal_frames(frames) if dataset.dataset_type == "video" else 1
    fps = float(config.framerate or family.framerate)
    width, height = _size(config, family, *config.resolution_of(dataset))
    return Largest(
        width,
        height,
        count,
        fps,
        int(dataset.train_batch_size or config.train_batch_size),
        sound=count / fps if config.trains_sound else None,
        first_frame=bool(dataset.video.is_i2v) or family.image_to_video(config),
    )


def _size(config: TrainConfig, family: Family, resolution: float | None, kind: str) -> tuple[int, int]:
    """Width and height of a landscape picture of this resolution, in the shape that the family renders."""
    shape = max(config.validation_sizes or family.model_sizes(config), key=lambda size: size[0] * size[1])
    if kind == "model" or resolution is None:
        return max(family.model_sizes(config), key=lambda size: size[0] * size[1])
    aspect = shape[0] / shape[1]
    if kind == "pixel":  # the shorter edge
        height = resolution if aspect >= 1 else resolution / aspect
    else:
        area = resolution * 1e6 if kind == "area" else resolution**2
        height = (area / aspect) ** 0.5
    multiple = family.multiple(config)
    width, height = (max(multiple, round(edge / multiple) * multiple) for edge in (height * aspect, height))
    return width, height
