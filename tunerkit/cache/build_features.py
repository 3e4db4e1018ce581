"""A phase of filling the cache: features of the clips' frames, with an image encoder alone in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.cache.after_clips import Phase
from tunerkit.cache.encode import ON_CPU, EncodingError, is_out_of_memory, load_where_it_fits
from tunerkit.config.crepa_rules import needs_features
from tunerkit.devices import free_memory, run_device

if TYPE_CHECKING:
    import torch

    from tunerkit.cache.job import Job
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family

logger = logging.getLogger("tunerkit")


def encode_missing_features(job: Job, samples: Iterable[Sample]) -> None:
    """Make the features that are missing, where the settings align hidden states with some; clips that failed before
    are passed over."""
    if not needs_features(job.config):
        return
    trained = {dataset.id for dataset in job.config.media_datasets}  # no term is added to an evaluation's loss
    wanted = [sample for sample in job.usable(samples) if sample.dataset in trained]
    if wanted:
        _Features(job, wanted).run()


def check_features(config: TrainConfig) -> None:
    """What features are made with must be there, where some are needed.

    Raises:
        ModelError: the image encoder cannot be reached, or is no DINOv2.
    """
    if needs_features(config):
        from tunerkit.methods.crepa_teacher import check_teacher

        check_teacher(config)


class FeatureEncoder:
    """An image encoder that takes as many pictures at a time as there is memory for.

    Args:
        config: resolved settings; nothing is loaded before the first clip.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._teacher: Any = None
        self._at_once = config.crepa_encoder_frames_batch_size

    def close(self) -> None:
        """Free the encoder."""
        self._teacher = None
        free_memory()

    def encode(self, frames: torch.Tensor) -> torch.Tensor | EncodingError:
        """Features of the frames of a clip, uint8 `[T, H, W, 3]`: float16 `[T, h, w, E]` on the CPU.

        Where memory is short, in halves, at last one by one on the CPU; and all that follow so as well.

        Raises:
            ModelError: the encoder cannot be loaded.
        """
        if self._teacher is None:
            self._teacher = _load(self._config)
        at_once = self._at_once if self._at_once > 0 else len(frames)
        trouble: Exception | None = None
        try:
            return _features(self._teacher, frames, self._config, at_once)
        except Exception as error:  # whatever one clip makes of the encoder must not end the job
            if not is_out_of_memory(error):
                trouble = error
        if trouble is not None:
            return EncodingError(
                f"the image encoder refused it: {type(trouble).__name__}: {trouble}", clip_at_fault=False
            )
        free_memory()  # outside of the handler: the error keeps the tensors alive
        if at_once > 1:
            self._at_once = min(at_once, len(frames)) // 2 or 1
            logger.warning("out of memory in the image encoder: now with %d frames at a time", self._at_once)
            return self.encode(frames)
        if next(self._teacher.parameters()).device.type != ON_CPU:
            logger.warning("out of memory in the image encoder: it goes to the CPU, which is slower")
            self._teacher.to(ON_CPU)
            free_memory()
            return self.encode(frames)
        return EncodingError("out of memory even when its frames are encoded one by one", clip_at_fault=False)


def decoded_frames(sample: Sample, family: Family) -> torch.Tensor:
    """The frames that features are made of, uint8 `[T, H, W, 3]` with a frame for each latent frame.

    Raises:
        UnreadableMedia: they cannot be decoded.
    """
    import torch

    from tunerkit.data.decode import decode
    from tunerkit.methods.crepa_teacher import teacher_sample

    return torch.from_numpy(decode(teacher_sample(sample, family.temporal_compression)))


def _load(config: TrainConfig) -> Any:
    from tunerkit.methods.crepa_teacher import load_teacher

    return load_where_it_fits(lambda device: load_teacher(config, device), run_device(config), "the image encoder")[0]


def _features(teacher: Any, frames: torch.Tensor, config: TrainConfig, at_once: int) -> torch.Tensor:
    from tunerkit.methods.crepa_teacher import frame_features

    return frame_features(teacher, frames, config.crepa_encoder_image_size, at_once)


class _Features(Phase):
    label = "features"

    def __init__(self, job: Job, samples: Sequence[Sample]) -> None:
        super().__init__(job, samples)
        self._encoder = FeatureEncoder(job.config)

    def without_entry(self, samples: Sequence[Sample]) -> list[Sample]:
        return self.job.cache.without_features(samples)

    def has_entry(self, sample: Sample) -> bool:
        return self.job.cache.has_features(sample)

    def name(self, sample: Sample) -> str:
        return self.job.cache.namer.features(sample)

    def put(self, sample: Sample, made: torch.Tensor) -> None:
        self.job.cache.put_features(sample, made)

    def count(self, made: int, reused: int) -> None:
        self.job.result.features_encoded += made
        self.job.result.features_reused += reused

    def order(self, sample: Sample) -> tuple[int, str, str, int]:
        return (
            len(sample.frame_indices) * sample.size[0] * sample.size[1],
            sample.dataset,
            str(sample.file),
            sample.window,
        )

    def decode(self, sample: Sample) -> torch.Tensor:
        return decoded_frames(sample, self.job.family)

    def encode(self, decoded: Sequence[torch.Tensor]) -> list[torch.Tensor | EncodingError]:
        return [self._encoder.encode(frames) for frames in decoded]

    def close(self) -> None:
        self._encoder.close()
