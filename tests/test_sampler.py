"""The order of batches: epochs, datasets by probability, windows, and what is said about small buckets."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tunerkit.data.sampler import BatchPlan
from tunerkit.data.samples import Sample, Source
from tunerkit.draws import generator
from tunerkit.errors import DatasetError

SOURCE = Source(640, 360, 16.0, 100, 6.25, 0, False, "h264", 1, 1, "ab" * 32)


def sample(name: str, dataset: str = "clips", **changes: Any) -> Sample:
    made = Sample(
        dataset, Path("/") / name, "video", (name,), SOURCE, (0, 1, 2, 3, 4), 16.0, (64, 32), (64, 36), (0, 2), 0, False
    )
    return made._replace(**changes)


def clips(count: int, dataset: str = "clips", **changes: Any) -> list[Sample]:
    return [sample(f"{dataset}{number}.mp4", dataset, **changes) for number in range(count)]


def windows(name: str, count: int, **changes: Any) -> list[Sample]:
    return [
        sample(name, window=number, alternatives=count, frame_indices=tuple(range(number, number + 5)), **changes)
        for number in range(count)
    ]


def epoch(plan: BatchPlan, number: int) -> list[tuple[int, ...]]:
    batches = [plan.draw(at) for at in range(plan.first_batch(number), plan.first_batch(number + 1))]
    assert all(batch.epoch == number for batch in batches)
    return [batch.indices for batch in batches]


def test_one_dataset_in_the_order_written_by_hand() -> None:
    samples = [*clips(5, repeats=1), *clips(3, size=(32, 64))]
    plan = BatchPlan(samples, 4, seed=7)
    for number in range(3):
        source = generator(7, "order", number)
        expected: list[tuple[int, ...]] = []
        for visits in ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [5, 6, 7]):
            order = [visits[at] for at in torch.randperm(len(visits), generator=source).tolist()]
            expected += [tuple(order[at : at + 4]) for at in range(0, len(order), 4)]
        assert epoch(plan, number) == [expected[at] for at in torch.randperm(4, generator=source).tolist()]


def test_a_batch_never_mixes_buckets_and_an_epoch_visits_all() -> None:
    samples = [*clips(7, repeats=2), *clips(5, size=(32, 64)), *clips(4, frame_indices=(0,))]
    plan = BatchPlan(samples, 4, seed=1)
    for number in range(4):
        batches = epoch(plan, number)
        assert all(len({samples[index].bucket for index in batch}) == 1 for batch in batches)
        assert Counter(index for batch in batches for index in batch) == Counter(
            {index: sample.repeats + 1 for index, sample in enumerate(samples)}
        )
    assert plan.batches_per_epoch == 6 + 2 + 1


def test_equal_datasets_share_their_buckets() -> None:
    samples = [*clips(3, "a"), *clips(1, "b")]
    plan = BatchPlan(samples, 4, seed=0, probabilities={"a": 0.5, "b": 0.5})
    assert plan.batches_per_epoch == 1
    assert sorted(plan.draw(0).indices) == [0, 1, 2, 3]
    assert plan.remarks == ()


def counted(plan: BatchPlan, samples: list[Sample], batches: int) -> Counter[str]:
    drawn = [samples[plan.draw(number).indices[0]].dataset for number in range(batches)]
    return Counter(drawn)


def test_auto_weighting_goes_with_probability_and_size() -> None:
    samples = [*clips(30, "large"), *clips(10, "small")]
    plan = BatchPlan(samples, 1, seed=3, probabilities={"large": 0.5, "small": 1.0})
    # Rates 1/2 and 1: 15 of the 30 and all 10 in every epoch.
    assert plan.batches_per_epoch == 25
    assert counted(plan, samples, 50) == {"large": 30, "small": 20}
    # Two run epochs are one epoch of the large dataset: every clip once.
    drawn = Counter(plan.draw(number).indices[0] for number in range(50))
    assert drawn == Counter({**dict.fromkeys(range(30), 1), **dict.fromkeys(range(30, 40), 2)})


def test_uniform_goes_with_probability_alone() -> None:
    samples = [*clips(30, "large"), *clips(10, "small")]
    plan = BatchPlan(samples, 1, seed=3, probabilities={"large": 1.0, "small": 3.0}, sampling="uniform")
    # Weights 1/30 and 3/10: the small one is seen whole, of the large one 30/9 batches are due to an epoch.
    assert [plan.first_batch(number) for number in range(4)] == [0, 13, 26, 40]
    assert counted(plan, samples, 40) == {"large": 10, "small": 30}


def test_uniform_with_equal_probabilities_gives_each_dataset_half() -> None:
    samples = [*clips(12, "large"), *clips(4, "small")]
    plan = BatchPlan(samples, 2, seed=3, sampling="uniform")
    assert counted(plan, samples, 40) == {"large": 20, "small": 20}


def test_probabilities_are_taken_as_written() -> None:
    samples = [*clips(10, "tenth"), *clips(10, "whole")]
    plan = BatchPlan(samples, 1, seed=0, probabilities={"tenth": 0.7})
    assert plan.batches_per_epoch == 17  # the binary 0.7 is a little less than seven tenths: 6 + 10


def test_datasets_are_mixed_within_an_epoch() -> None:
    samples = [*clips(50, "a"), *clips(50, "b")]
    plan = BatchPlan(samples, 1, seed=0, probabilities={"a": 0.5})
    order = [samples[batch[0]].dataset for batch in epoch(plan, 0)]
    assert Counter(order) == {"a": 25, "b": 50}
    assert 5 < order[:37].count("a") < 20
    assert order != [samples[batch[0]].dataset for batch in epoch(plan, 1)]


def test_probability_zero_is_never_drawn_and_said() -> None:
    samples = [*clips(2, "off"), *clips(3, "on")]
    plan = BatchPlan(samples, 1, seed=0, probabilities={"off": 0.0})
    assert counted(plan, samples, 30) == {"on": 30}
    (remark,) = plan.remarks
    assert "'off' is never drawn" in remark
    assert "2 usable clips" in remark
    with pytest.raises(DatasetError, match=r"probability 0 \(off, on\)"):
        BatchPlan(samples, 1, seed=0, probabilities={"off": 0.0, "on": 0})


def test_batch_sizes_of_datasets() -> None:
    samples = [*clips(8, "a"), *clips(8, "b")]
    plan = BatchPlan(samples, 2, seed=0, batch_sizes={"b": 4})
    sizes = Counter((samples[batch[0]].dataset, len(batch)) for batch in epoch(plan, 0))
    assert sizes == {("a", 2): 4, ("b", 4): 2}


def test_fill_completes_the_last_batch_from_its_own_bucket() -> None:
    samples = [*clips(5), *clips(1, size=(32, 64))]
    plan = BatchPlan(samples, 4, seed=0, fill=True)
    for number in range(3):
        batches = epoch(plan, number)
        assert [len(batch) for batch in batches] == [4, 4, 4]
        wide = [batch for batch in batches if batch[0] < 5]
        assert all(len(set(batch)) == 4 for batch in wide)
        assert {index for batch in wide for index in batch} == set(range(5))
        assert (5, 5, 5, 5) in batches


def test_every_visit_draws_a_window_and_counts_as_one() -> None:
    samples = [*clips(2), *windows("long.mp4", 3, repeats=1), *windows("longer.mp4", 2)]
    plan = BatchPlan(samples, 2, seed=5)
    seen: Counter[int] = Counter()
    for number in range(300):
        visits = Counter(index for batch in epoch(plan, number) for index in batch)
        assert visits[0] == visits[1] == 1
        assert sum(visits[index] for index in (2, 3, 4)) == 2
        assert visits[5] + visits[6] == 1
        seen += visits
    assert all(150 < seen[index] < 250 for index in (2, 3, 4))  # 200 expected, standard deviation 12
    assert all(110 < seen[index] < 190 for index in (5, 6))  # 150 expected, standard deviation 9


def test_neighbouring_clips_with_windows_are_kept_apart() -> None:
    same_name = [*windows("x.mp4", 2, dataset="a"), *windows("x.mp4", 2, dataset="b")]
    plan = BatchPlan([*same_name, *windows("y.mp4", 1)], 1, seed=0)
    assert plan.batches_per_epoch == 3
    for number in range(5):
        assert sorted(batch[0] // 2 for batch in epoch(plan, number)) == [0, 1, 2]


def test_small_buckets_are_named_with_a_fix_that_is_true() -> None:
    samples = [*clips(9), *clips(2, size=(32, 64))]
    (remark,) = BatchPlan(samples, 5, seed=0).remarks
    assert remark.startswith("bucket 32x64@5 of dataset 'clips' is smaller than a batch: 2 visits an epoch")
    assert "set repeats to 2, or train_batch_size to 2" in remark
    assert BatchPlan([*clips(9), *clips(2, size=(32, 64), repeats=2)], 5, seed=0).remarks == ()
    assert len(BatchPlan([*clips(9), *clips(2, size=(32, 64), repeats=1)], 5, seed=0).remarks) == 1
    assert BatchPlan(samples, 2, seed=0).remarks == ()
    (filled,) = BatchPlan(samples, 5, seed=0, fill=True).remarks
    assert "several times in one batch" in filled


def test_far_batches_are_found_without_walking_there() -> None:
    samples = [*clips(30, "a"), *clips(10, "b")]
    plan = BatchPlan(samples, 1, seed=0, probabilities={"a": 0.3})
    draw = plan.draw(10**12)
    assert plan.first_batch(draw.epoch) <= 10**12 < plan.first_batch(draw.epoch + 1)
    assert draw == BatchPlan(samples, 1, seed=0, probabilities={"a": 0.3}).draw(10**12)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="at least one"):
        BatchPlan([], 1, seed=0)


def test_an_epoch_of_a_hundred_thousand_samples_is_planned_quickly() -> None:
    samples = clips(1000) * 100
    plan = BatchPlan(samples, 4, seed=0)
    began = time.process_time()
    plan.draw(0)
    assert time.process_time() - began < 0.5
