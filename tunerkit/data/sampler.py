"""Which samples form which batch: a pure function of (samples, settings, seed, number of the batch).

Nothing is remembered between batches, so a run resumes at any batch, and several processes share one order by taking
every n-th batch of it.

Datasets of equal probability and batch size are pooled: a bucket holds the clips of all of them, so that fewer batches
are short. (With `sampling = "uniform"`, where a dataset's share does not depend on its size, each is a pool of its
own.) A pool has its own endless sequence of batches, one shuffled epoch after the other; in one of its epochs every
clip is visited `repeats + 1` times. An epoch of the run takes the next batches of every pool, as many as are due to it,
and shuffles them together. Pool `d` with `B_d` batches an epoch has rate `r_d` in [0, 1] and gives run epoch `e`

    floor(B_d r_d (e + 1)) - floor(B_d r_d e)

batches, so that its share is exact over time, without a draw. With probabilities `p_d`, the rate is `p_d / max p`
(auto-weighting: shares go with probability x size), or `p_d / B_d` divided by the largest of these (uniform: shares are
the probabilities). So the pool of rate 1 is seen once in an epoch of the run, and the others in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from tunerkit.data.samples import Sample
from tunerkit.draws import generator
from tunerkit.errors import DatasetError

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

Sampling = Literal["auto-weighting", "uniform"]


@dataclass(frozen=True)
class Draw:
    """One batch: its number since the start of the run, its epoch (from 0) and indices into the samples."""

    number: int
    epoch: int
    indices: tuple[int, ...]


class BatchPlan:
    """The order of batches.

    A batch holds samples of one bucket; the last batch of a bucket is smaller when the bucket does not divide evenly,
    so nothing is dropped and nothing is drawn twice, unless `fill` asks for it. Of a clip with several windows to
    choose from (`Sample.alternatives`), each visit draws one.

    Args:
        samples: the samples of the run, in a fixed order.
        batch_size: largest number of samples of a batch, at least 1.
        seed: the run's seed.
        probabilities: by dataset, at least 0; 1 where none is given. A dataset of probability 0 is never drawn.
        sampling: whether larger datasets are drawn more often (`auto-weighting`), or not (`uniform`).
        batch_sizes: by dataset, where it differs from `batch_size`.
        fill: fill the last batch of a bucket with further visits of the same bucket instead.

    Raises:
        DatasetError: every dataset that has samples has probability 0.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_size: int,
        seed: int,
        *,
        probabilities: Mapping[str, float] | None = None,
        sampling: Sampling = "auto-weighting",
        batch_sizes: Mapping[str, int] | None = None,
        fill: bool = False,
    ) -> None:
        if not samples:
            raise ValueError("a batch plan needs at least one sample")
        found, ignored = _pooled(samples, batch_size, probabilities or {}, sampling, batch_sizes or {})
        if not found:
            raise DatasetError(
                f"nothing is drawn: the datasets with usable clips have probability 0 ({', '.join(ignored)}). "
                f"Fix: set probability to 1 for one of them, or make clips of another dataset usable."
            )
        self._pools = [
            _Pool(place, key.batch_size, list(buckets.values()), seed, fill)
            for place, (key, buckets) in enumerate(found.items())
        ]
        weights = [
            key.probability / (pool.batches if sampling == "uniform" else 1)
            for key, pool in zip(found, self._pools, strict=True)
        ]
        self._rates = [weight / max(weights) for weight in weights]
        self.mean_batches = sum(
            (pool.batches * rate for pool, rate in zip(self._pools, self._rates, strict=True)), start=Fraction(0)
        )
        """Batches of an epoch, on average over all epochs."""
        self._seed = seed
        self._run_epoch = lru_cache(maxsize=2)(self._mixed_epoch)
        pool_remarks = (remark for pool in self._pools for remark in pool.remarks(fill))
        self.remarks: tuple[str, ...] = (*_ignored_remarks(ignored), *pool_remarks)
        """What a person may not expect: a line per dataset that is never drawn and per bucket smaller than a batch."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch; where datasets differ in probability, later ones may differ (`first_batch`)."""
        return self.first_batch(1)

    def first_batch(self, epoch: int) -> int:
        """Number of the first batch of `epoch` (from 0): what the epochs before it have taken together."""
        return sum(pool.due(rate, epoch) for pool, rate in zip(self._pools, self._rates, strict=True))

    def draw(self, number: int) -> Draw:
        """Batch `number` (from 0) of the endless sequence of epochs."""
        # Rounding down puts an epoch's first batch before its exact place, so the search starts there and goes up, at
        # most as many epochs as there are pools. None is empty: the pool of rate 1 takes part in every one.
        epoch = int(number / self.mean_batches)
        while self.first_batch(epoch + 1) <= number:
            epoch += 1
        pools, numbers = self._run_epoch(epoch)
        position = number - self.first_batch(epoch)
        return Draw(number, epoch, self._pools[pools[position]].batch(int(numbers[position])))

    def _mixed_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each batch of a run epoch its pool and its number in the pool's sequence; both int64 `[batches]`."""
        spans = [
            np.arange(pool.due(rate, epoch), pool.due(rate, epoch + 1))
            for pool, rate in zip(self._pools, self._rates, strict=True)
        ]
        pools = np.repeat(np.arange(len(spans)), [len(span) for span in spans])
        numbers = np.concatenate(spans)
        if len(spans) == 1:  # shuffled already
            return pools, numbers
        import torch

        order = torch.randperm(len(numbers), generator=generator(self._seed, "mix", epoch)).numpy()
        return pools[order], numbers[order]


def batch_plan(config: TrainConfig, samples: Sequence[Sample]) -> BatchPlan:
    """The order of batches that the settings of a run and of its datasets ask for.

    Args:
        config: resolved settings.
        samples: what `inspect_dataset` found for them, at least one.

    Raises:
        DatasetError: every dataset that has samples has probability 0.
    """
    return BatchPlan(
        samples,
        config.train_batch_size,
        config.seed,
        probabilities={dataset.id: dataset.probability for dataset in config.media_datasets},
        sampling=config.data_backend_sampling,
        batch_sizes={d.id: d.train_batch_size for d in config.media_datasets if d.train_batch_size is not None},
        fill=config.allow_dataset_oversubscription,
    )


class _Key(NamedTuple):
    """What datasets of one pool have in common; `alone` is the dataset's name where pools are not shared."""

    probability: Fraction
    batch_size: int
    alone: str


@dataclass
class _Bucket:
    """Clips that can share a batch: index of the first window, number of windows to draw from, visits an epoch."""

    name: str
    firsts: list[int] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    visits: list[int] = field(default_factory=list)
    datasets: dict[str, None] = field(default_factory=dict)

    def add(self, first: int, windows: int, visits: int, dataset: str) -> None:
        self.firsts.append(first)
        self.windows.append(windows)
        self.visits.append(visits)
        self.datasets[dataset] = None


class _Pool:
    """Clips that are drawn at one rate, and their endless sequence of batches."""

    def __init__(self, place: int, batch_size: int, buckets: Sequence[_Bucket], seed: int, fill: bool) -> None:
        self.batch_size = batch_size
        self._buckets = buckets
        self._salt = (place,) if place else ()
        self._seed = seed
        visits = np.array([sum(bucket.visits) for bucket in buckets])
        counts = -(-visits // batch_size)
        self.batches = int(counts.sum())
        """Batches of one epoch of the pool."""
        self._visits, self._slots = visits, counts * batch_size if fill else visits
        starts = np.cumsum(self._slots) - self._slots
        within = np.arange(self.batches) - np.repeat(np.cumsum(counts) - counts, counts)
        self._starts = np.repeat(starts, counts) + within * batch_size
        self._stops = np.minimum(self._starts + batch_size, np.repeat(starts + self._slots, counts))
        self._firsts = [np.repeat(bucket.firsts, bucket.visits) for bucket in buckets]
        self._windows = [np.repeat(bucket.windows, bucket.visits) for bucket in buckets]
        self._drawn = any(max(bucket.windows) > 1 for bucket in buckets)
        self._epoch = lru_cache(maxsize=2)(self._shuffled_epoch)

    def due(self, rate: Fraction, epochs: int) -> int:
        """Batches of the pool that the first `epochs` epochs of the run take."""
        return self.batches * epochs * rate.numerator // rate.denominator

    def batch(self, number: int) -> tuple[int, ...]:
        """Sample indices of batch `number` of the pool's own sequence."""
        epoch, position = divmod(number, self.batches)
        order, places = self._epoch(epoch)
        place = places[position]
        return tuple(order[self._starts[place] : self._stops[place]].tolist())

    def _shuffled_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample indices, bucket after bucket, `[slots]`, and the shuffled order of the batches, `[batches]`; int64."""
        import torch

        source = generator(self._seed, "order", epoch, *self._salt)
        chosen = [
            # Filled up from the beginning of the bucket's order, as often as it takes.
            np.resize(torch.randperm(int(visits), generator=source).numpy(), int(slots))
            for visits, slots in zip(self._visits, self._slots, strict=True)
        ]
        order = np.concatenate([firsts[at] for firsts, at in zip(self._firsts, chosen, strict=True)])
        if self._drawn:
            windows = np.concatenate([windows[at] for windows, at in zip(self._windows, chosen, strict=True)])
            chance = torch.rand(
                len(order), dtype=torch.float64, generator=generator(self._seed, "window", epoch, *self._salt)
            )
            order = order + (chance.numpy() * windows).astype(np.int64)
        return order, torch.randperm(self.batches, generator=source).numpy()

    def remarks(self, fill: bool) -> list[str]:
        """A line per bucket that has fewer visits an epoch than a batch has places."""
        lines = []
        for bucket, visits in zip(self._buckets, self._visits.tolist(), strict=True):
            if visits >= self.batch_size:
                continue
            repeats = -(-self.batch_size // len(bucket.firsts)) - 1
            what = "its clips stand several times in one batch" if fill else f"its batches hold {visits}"
            lines.append(
                f"bucket {bucket.name} of {_named(bucket.datasets)} is smaller than a batch: {_count(visits, 'visit')} "
                f"an epoch, train_batch_size = {self.batch_size}; {what}. "
                f"Fix: set repeats to {repeats}, or train_batch_size to {visits}, or leave it so"
            )
        return lines


def _pooled(
    samples: Sequence[Sample],
    batch_size: int,
    probabilities: Mapping[str, float],
    sampling: Sampling,
    batch_sizes: Mapping[str, int],
) -> tuple[dict[_Key, dict[str, _Bucket]], dict[str, int]]:
    """The buckets of every pool by name, and the number of clips of every dataset that is never drawn."""
    pools: dict[_Key, dict[str, _Bucket]] = {}
    of_dataset: dict[str, dict[str, _Bucket]] = {}
    ignored: dict[str, int] = {}
    for first, windows in _clips(samples):
        sample = samples[first]
        name = sample.dataset
        if not probabilities.get(name, 1):
            ignored[name] = ignored.get(name, 0) + 1
            continue
        if name not in of_dataset:
            # As written: 0.1 is a tenth, not the binary number next to it.
            probability = Fraction(str(probabilities.get(name, 1)))
            key = _Key(probability, batch_sizes.get(name, batch_size), name if sampling == "uniform" else "")
            of_dataset[name] = pools.setdefault(key, {})
        buckets, label = of_dataset[name], sample.bucket
        if label not in buckets:
            buckets[label] = _Bucket(label)
        buckets[label].add(first, windows, sample.repeats + 1, name)
    return pools, ignored


def _clips(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """(index of the first sample, number of samples) of every clip: windows to draw from belong together."""
    clips: list[tuple[int, int]] = []
    previous: Sample | None = None
    for index, sample in enumerate(samples):
        if (
            sample.alternatives > 1
            and previous is not None
            and (previous.file, previous.dataset) == (sample.file, sample.dataset)
        ):
            first, windows = clips[-1]
            clips[-1] = (first, windows + 1)
        else:
            clips.append((index, 1))
        previous = sample
    return clips


def _ignored_remarks(ignored: Mapping[str, int]) -> list[str]:
    return [
        f"dataset '{name}' is never drawn from: probability = 0, {_count(clips, 'usable clip')}. "
        f"Fix: set its probability above 0, or disabled to true so that it is not cached either"
        for name, clips in ignored.items()
    ]


def _named(datasets: Mapping[str, None]) -> str:
    names = ", ".join(f"'{name}'" for name in datasets)
    return f"dataset {names}" if len(datasets) == 1 else f"datasets {names}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
