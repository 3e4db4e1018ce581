"""Which samples form which batch: a pure function of (samples, batch size, seed, number of the batch).

Nothing is remembered between batches, so a run resumes at any batch, and several processes share one order by taking
every n-th batch of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tunerkit.data.samples import Sample
from tunerkit.draws import generator


@dataclass(frozen=True)
class Draw:
    """One batch: its number since the start of the run, its epoch (from 0) and indices into the samples."""

    number: int
    epoch: int
    indices: tuple[int, ...]


class BatchPlan:
    """The order of batches.

    Every sample is visited `repeats + 1` times an epoch. A batch holds samples of one bucket; the last batch of a
    bucket is smaller when the bucket does not divide evenly, so nothing is dropped and nothing is drawn twice.

    Args:
        samples: the samples of the run, in a fixed order.
        batch_size: largest number of samples of a batch, at least 1.
        seed: the run's seed.
    """

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int) -> None:
        if not samples:
            raise ValueError("a batch plan needs at least one sample")
        self.batch_size = batch_size
        self.seed = seed
        self._buckets: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            self._buckets.setdefault(sample.bucket, []).extend([index] * (sample.repeats + 1))
        self.batches_per_epoch = sum(-(-len(visits) // batch_size) for visits in self._buckets.values())
        self._epoch = lru_cache(maxsize=2)(self._shuffled_epoch)

    def draw(self, number: int) -> Draw:
        """Batch `number` (from 0) of the endless sequence of epochs."""
        epoch, position = divmod(number, self.batches_per_epoch)
        return Draw(number, epoch, self._epoch(epoch)[position])

    def _shuffled_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        import torch

        source = generator(self.seed, "order", epoch)
        batches: list[tuple[int, ...]] = []
        for visits in self._buckets.values():
            order = torch.randperm(len(visits), generator=source).tolist()
            shuffled = [visits[i] for i in order]
            batches += [tuple(shuffled[i : i + self.batch_size]) for i in range(0, len(shuffled), self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=source).tolist()]
