"""A phase of filling the cache: the sound of the clips, with the audio VAE alone in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.cache.after_clips import Phase
from tunerkit.cache.encode import EncodingError, encode_sounds, load_audio_vae, sound_waveform

if TYPE_CHECKING:
    import torch

    from tunerkit.cache.job import Job
    from tunerkit.data.samples import Sample


def encode_missing_sounds(job: Job, samples: Iterable[Sample]) -> None:
    """Encode the sound that is missing; clips that failed before are passed over."""
    wanted = [sample for sample in job.usable(samples) if sample.sound is not None]
    if wanted:
        _Sounds(job, wanted).run()


class _Sounds(Phase):
    label = "sound"
    _vae: Any = None

    def without_entry(self, samples: Sequence[Sample]) -> list[Sample]:
        return self.job.cache.without_sound(samples)

    def has_entry(self, sample: Sample) -> bool:
        return self.job.cache.has_sound(sample)

    def name(self, sample: Sample) -> str:
        return self.job.cache.namer.sound(sample)

    def put(self, sample: Sample, made: torch.Tensor) -> None:
        self.job.cache.put_sound(sample, made)

    def count(self, made: int, reused: int) -> None:
        self.job.result.sounds_encoded += made
        self.job.result.sounds_reused += reused

    def order(self, sample: Sample) -> tuple[float, str, str, float]:
        """Those of one length and dataset, which share a batch, next to each other; short ones first."""
        sound = sample.sound
        assert sound is not None
        return round(sound.seconds, 6), sample.dataset, str(sound.file), sound.start

    def batch_size(self, dataset: str) -> int:
        return self.job.batch_sizes[dataset]

    def together(self, one: Sample, other: Sample) -> bool:
        return self.order(one)[:2] == self.order(other)[:2]

    def decode(self, sample: Sample) -> torch.Tensor:
        return sound_waveform(self.job.family, sample)

    def encode(self, decoded: Sequence[torch.Tensor]) -> list[torch.Tensor | EncodingError]:
        if self._vae is None:
            self._vae = load_audio_vae(self.job.config, self.job.family)
        return encode_sounds(self._vae, self.job.family, decoded)

    def close(self) -> None:
        self._vae = None
