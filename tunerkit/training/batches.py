"""From the number of a batch to tensors: samples, captions, conditioning and noise, all functions of the seed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tunerkit.cache.entries import Cache
from tunerkit.data.sampler import BatchPlan, Draw
from tunerkit.draws import generator
from tunerkit.families.base import Batch, Family, TextKind

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample


@dataclass(frozen=True)
class Drawn:
    """A batch with every random draw that its loss needs: `sigma` `[B]` and `noise` like the latents, float32."""

    draw: Draw
    batch: Batch
    sigma: torch.Tensor
    noise: torch.Tensor

    def to(self, device: torch.device) -> Drawn:
        return Drawn(
            self.draw,
            self.batch.to(device),
            self.sigma.to(device, non_blocking=True),
            self.noise.to(device, non_blocking=True),
        )


class BatchSource:
    """Batches of a run by number; the next one is read in a thread while the current one trains.

    Draws are made on the CPU, so a run takes the same ones on every device.
    """

    def __init__(self, config: TrainConfig, family: Family, cache: Cache, samples: Sequence[Sample]) -> None:
        self.plan = BatchPlan(samples, config.train_batch_size, config.seed)
        self._config, self._family, self.cache, self.samples = config, family, cache, samples
        self._texts: dict[tuple[str, TextKind], dict[str, torch.Tensor]] = {}
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

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def make(self, number: int) -> Drawn:
        """Read batch `number` and make its draws: caption, dropout, first-frame conditioning, sigma, noise."""
        draw = self.plan.draw(number)
        samples = [self.samples[index] for index in draw.indices]
        latents = torch.stack([self.cache.latents(sample) for sample in samples])
        texts = [self._text(sample, number, place) for place, sample in enumerate(samples)]
        batch = Batch(
            latents=latents,
            text={key: torch.stack([text[key] for text in texts]) for key in texts[0]},
            fps=torch.tensor([sample.fps for sample in samples]),
            first_frame=self._first_frame(samples, number),
            names=tuple(sample.name for sample in samples),
        )
        seed = self._config.seed
        sigma = self._family.sample_sigmas(batch, generator(seed, "sigma", number))
        noise = torch.randn(latents.shape, generator=generator(seed, "noise", number))
        return Drawn(draw, batch, sigma, noise)

    def _text(self, sample: Sample, number: int, place: int) -> dict[str, torch.Tensor]:
        source = generator(self._config.seed, "caption", number, place)
        dropped = float(torch.rand((), generator=source)) < self._config.caption_dropout_probability
        if dropped:
            return self._cached_text("", "negative")
        choice = int(torch.randint(len(sample.captions), (), generator=source))
        return self._cached_text(sample.captions[choice], "positive")

    def _cached_text(self, text: str, kind: TextKind) -> dict[str, torch.Tensor]:
        """Text entries stay in memory while they are few: they are small and read in every epoch."""
        if (text, kind) not in self._texts:
            if len(self._texts) >= 256:
                self._texts.clear()
            self._texts[text, kind] = self.cache.text(text, kind)
        return self._texts[text, kind]

    def _first_frame(self, samples: Sequence[Sample], number: int) -> torch.Tensor | None:
        """Which samples are conditioned on their own first frame: those of image-to-video datasets, by chance."""
        if not any(sample.is_i2v for sample in samples):
            return None
        chance = torch.rand(len(samples), generator=generator(self._config.seed, "first frame", number))
        eligible = torch.tensor([sample.is_i2v for sample in samples])
        probability = self._config.first_frame_conditioning_probability
        return eligible & (chance < (1.0 if probability is None else probability))
