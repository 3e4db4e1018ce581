"""From the number of a batch to tensors: samples, captions, conditioning and noise, all functions of the seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.cache.entries import Cache
from tunerkit.cache.repair import rebuild_features, rebuild_latents, rebuild_mask, rebuild_sound, rebuild_text
from tunerkit.cache.store import CacheEntryError
from tunerkit.config.crepa_rules import needs_features
from tunerkit.data.sampler import Draw, batch_plan
from tunerkit.draws import generator
from tunerkit.errors import TunerkitError
from tunerkit.families.base import Family
from tunerkit.families.batch import Audio, Batch, LossParts
from tunerkit.families.facts import TextKind
from tunerkit.families.prediction import Prediction

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample

TEXT_BYTES = 1 << 30
"""Text entries kept in memory: 64 of LTX-2 (16 MB each), some hundreds of the others."""


@dataclass(frozen=True)
class Drawn:
    """A batch with every random draw that its loss needs.

    Attributes:
        sigma: `[B]`, float32.
        noise: like the latents, float32.
        audio_sigma: `[B]`, float32; None = `sigma`.
        audio_noise: like the audio latents, float32; None without sound.
        features: an image encoder's features of the clips, float16 `[B, T, h, w, E]`; None where nothing is aligned
            with some.
    """

    draw: Draw
    batch: Batch
    sigma: torch.Tensor
    noise: torch.Tensor
    audio_sigma: torch.Tensor | None = None
    audio_noise: torch.Tensor | None = None
    features: torch.Tensor | None = None

    def to(self, device: torch.device) -> Drawn:
        """The same draws with every tensor on `device`."""

        def there(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            batch=self.batch.to(device),
            sigma=self.sigma.to(device, non_blocking=True),
            noise=self.noise.to(device, non_blocking=True),
            audio_sigma=there(self.audio_sigma),
            audio_noise=there(self.audio_noise),
            features=there(self.features),
        )

    def predict(self, family: Family, transformer: Any) -> Prediction:
        """What the transformer, which is where the tensors are, predicts with these draws."""
        return family.predict(
            transformer,
            self.batch,
            sigma=self.sigma,
            noise=self.noise,
            audio_sigma=self.audio_sigma,
            audio_noise=self.audio_noise,
        )

    def losses(self, family: Family, transformer: Any, device: torch.device) -> LossParts:
        """The family's own loss of this batch, computed on `device`; training asks the `Objective` instead."""
        return self.to(device).predict(family, transformer).losses()


class BatchSource:
    """Batches of a run by number; the next one is read in a thread while the current one trains.

    Draws are made on the CPU, so a run takes the same ones on every device. A cache entry that is gone or damaged is
    made anew on the way.
    """

    def __init__(self, config: TrainConfig, family: Family, cache: Cache, samples: Sequence[Sample]) -> None:
        self.plan = batch_plan(config, samples)
        self._config, self._family, self.cache, self.samples = config, family, cache, samples
        self._texts: dict[tuple[str, TextKind], dict[str, torch.Tensor]] = {}
        self._text_bytes = 0
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tunerkit-batches")
        self._next: tuple[int, Future[Drawn]] | None = None

    def get(self, number: int, following: int | None = None) -> Drawn:
        """Batch `number`; `following` is read ahead."""
        if self._next is not None and self._next[0] == number:
            drawn = self._next[1].result()
        else:
            drawn = self.make(number)
        self._next = None if following is None else (following, self._reader.submit(self.make, following))
        return drawn

    def change(self, config: TrainConfig) -> None:
        """From now on, read as these settings say, which order and draw the batches alike; what was read ahead is
        read anew."""
        if self._next is not None:
            wait([self._next[1]])
        self._config, self._next = config, None

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def make(self, number: int) -> Drawn:
        """Read batch `number` and make its draws: caption, dropout, first-frame conditioning, sigma, noise."""
        draw = self.plan.draw(number)
        samples = [self.samples[index] for index in draw.indices]
        clips = [self._clip(sample) for sample in samples]
        latents = torch.stack([clip["latents"] for clip in clips])
        first_frame = self._first_frame(samples, number)
        batch = Batch(
            latents=latents,
            text=self._family.collate_text([self._text(sample, number, at) for at, sample in enumerate(samples)]),
            fps=torch.tensor([sample.fps for sample in samples]),
            first_frame=first_frame,
            image=self._image(clips, first_frame),
            first_frame_method=self._config.first_frame_conditioning_method,
            loss_mask=self._mask(samples, number, latents),
            audio=self._audio(samples, number),
            names=tuple(sample.name for sample in samples),
        )
        seed, family, config = self._config.seed, self._family, self._config
        return Drawn(
            draw,
            batch,
            sigma=family.sample_sigmas(config, batch, generator(seed, "sigma", number)),
            noise=torch.randn(latents.shape, generator=generator(seed, "noise", number)),
            audio_sigma=family.sample_audio_sigmas(config, batch, generator(seed, "audio sigma", number)),
            audio_noise=_noise_like(batch.audio, generator(seed, "audio noise", number)),
            features=self._features(samples),
        )

    def single(self, sample: Sample) -> Batch:
        """A batch of one sample without any draw: its first caption, mask, sound, and first frame if it is I2V."""
        clip = self._clip(sample)
        first_frame = torch.tensor([True]) if sample.is_i2v else None
        return Batch(
            latents=clip["latents"][None],
            text=self._family.collate_text([self._cached_text(sample.captions[0], "positive")]),
            fps=torch.tensor([sample.fps]),
            first_frame=first_frame,
            image=self._image([clip], first_frame),
            first_frame_method=self._config.first_frame_conditioning_method,
            loss_mask=None if sample.mask is None else self._weights(sample, clip["latents"])[None],
            audio=self._audio([sample], None),
            names=(sample.name,),
        )

    def _clip(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Latents of a sample, and of its first frame alone where the family encodes it; see `Cache.clip`."""
        try:
            return self.cache.clip(sample)
        except CacheEntryError as damage:
            with _explained(damage):
                return rebuild_latents(self._config, self._family, self.cache, sample)

    def _image(self, clips: Sequence[dict[str, torch.Tensor]], given: torch.Tensor | None) -> torch.Tensor | None:
        """Latents of the first frames alone `[B, C, 1, H, W]`, where they are needed: `given` says of which samples."""
        if not self._family.encodes_first_frame or given is None:
            return None
        return torch.stack([clip["first_frame"] for clip in clips])

    def _audio(self, samples: Sequence[Sample], number: int | None) -> Audio | None:
        """The sound of a batch; without a batch number, none of it is given clean."""
        sounds = [sample.sound for sample in samples]
        if sounds[0] is None:  # a bucket holds clips with sound, or clips without
            return None
        given = None
        probability = self._config.sound_conditioning_probability
        if number is not None and probability > 0:
            chance = torch.rand(len(samples), generator=generator(self._config.seed, "given sound", number))
            given = chance < probability
        return Audio(
            latents=torch.stack([self._sound(sample) for sample in samples]),
            heard=torch.tensor([sound is not None and not sound.silent for sound in sounds]),
            given=given,
            loss_weight=self._config.audio_loss_weight,
        )

    def _sound(self, sample: Sample) -> torch.Tensor:
        """Audio latents `[L, D]` of a sample with sound."""
        try:
            return self.cache.sound(sample)
        except CacheEntryError as damage:
            with _explained(damage):
                return rebuild_sound(self._config, self._family, self.cache, sample)

    def _features(self, samples: Sequence[Sample]) -> torch.Tensor | None:
        """Features of the clips' frames `[B, T, h, w, E]`, where hidden states are aligned with some."""
        if not needs_features(self._config):
            return None
        return torch.stack([self._frame_features(sample) for sample in samples])

    def _frame_features(self, sample: Sample) -> torch.Tensor:
        try:
            return self.cache.features(sample)
        except CacheEntryError as damage:
            with _explained(damage):
                return rebuild_features(self._config, self._family, self.cache, sample)

    def _weights(self, sample: Sample, latents: torch.Tensor) -> torch.Tensor:
        """Loss weights `[1, T, H, W]` of a sample with a mask."""
        try:
            return self.cache.mask(sample)
        except CacheEntryError as damage:
            with _explained(damage):
                return rebuild_mask(self._family, self.cache, sample, latents)

    def _mask(self, samples: Sequence[Sample], number: int, latents: torch.Tensor) -> torch.Tensor | None:
        """Loss weights `[B, 1, T, H, W]`; 1 where a sample has no mask, or by chance goes without it."""
        if not any(sample.mask for sample in samples):
            return None
        chance = torch.rand(len(samples), generator=generator(self._config.seed, "mask", number))
        masked = chance < self._config.masked_loss_probability
        weights = torch.ones(len(samples), 1, *latents.shape[2:])
        for place, sample in enumerate(samples):
            if sample.mask is not None and masked[place]:
                weights[place] = self._weights(sample, latents[place])
        return weights

    def _text(self, sample: Sample, number: int, place: int) -> dict[str, torch.Tensor]:
        source = generator(self._config.seed, "caption", number, place)
        dropped = float(torch.rand((), generator=source)) < self._config.caption_dropout_probability
        if dropped:
            return self._cached_text("", "negative")
        choice = int(torch.randint(len(sample.captions), (), generator=source))
        return self._cached_text(sample.captions[choice], "positive")

    def _cached_text(self, text: str, kind: TextKind) -> dict[str, torch.Tensor]:
        """Text entries stay in memory while there is room: they are read again in every epoch."""
        tensors = self._texts.get((text, kind))
        if tensors is None:
            tensors = self._read_text(text, kind)
            size = sum(tensor.nbytes for tensor in tensors.values())
            if self._text_bytes + size > TEXT_BYTES:
                self._texts, self._text_bytes = {}, 0
            self._texts[text, kind] = tensors
            self._text_bytes += size
        return tensors

    def _read_text(self, text: str, kind: TextKind) -> dict[str, torch.Tensor]:
        try:
            return self.cache.text(text, kind)
        except CacheEntryError as damage:
            with _explained(damage):
                return rebuild_text(self._config, self._family, self.cache, text, kind)

    def _first_frame(self, samples: Sequence[Sample], number: int) -> torch.Tensor | None:
        """Which samples are conditioned on their own first frame: image to video, by chance. None = none of them."""
        chance = torch.rand(len(samples), generator=generator(self._config.seed, "first frame", number))
        eligible = torch.tensor([sample.is_i2v for sample in samples])
        probability = self._config.first_frame_conditioning_probability
        given = eligible & (chance < (1.0 if probability is None else probability))
        return given if bool(given.any()) else None


def _noise_like(audio: Audio | None, source: torch.Generator) -> torch.Tensor | None:
    return None if audio is None else torch.randn(audio.latents.shape, generator=source)


@contextlib.contextmanager
def _explained(damage: CacheEntryError) -> Iterator[None]:
    """Where an entry cannot be made anew, say what was wrong with it as well."""
    try:
        yield
    except TunerkitError as error:
        raise CacheEntryError(f"{damage}. It could not be made anew while training: {error}") from error
