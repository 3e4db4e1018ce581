"""Learning rates against closed forms worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tunerkit.errors import ConfigError
from tunerkit.training.schedules import SCHEDULES, learning_rate


@dataclass
class Settings:
    lr_scheduler: str
    learning_rate: float = 2e-4
    lr_warmup_steps: int = 0
    lr_end: float = 0.0
    lr_power: float = 1.0
    lr_num_cycles: int = 1
    lr_decay_steps: int | None = None
    lr_scale: bool = False
    lr_scale_sqrt: bool = False
    train_batch_size: int = 1
    gradient_accumulation_steps: int = 1


def rates(settings: Settings, total: int, count: int | None = None) -> list[float]:
    return [learning_rate(settings, step, total) for step in range(total if count is None else count)]


def test_constant_has_no_warmup():
    assert set(rates(Settings("constant", lr_warmup_steps=5), 10)) == {2e-4}


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("constant", "sine")])
def test_warmup_is_a_straight_line_that_starts_above_zero_and_is_full_at_step_w(name: str):
    taken = rates(Settings(name, lr_warmup_steps=4, lr_end=1e-5), 20)
    assert taken[:5] == pytest.approx([2e-4 * k / 5 for k in (1, 2, 3, 4, 5)], rel=1e-12)
    assert taken[0] > 0
    increments = [b - a for a, b in pairwise(taken[:5])]
    assert increments == pytest.approx([2e-4 / 5] * 4, rel=1e-9)


def test_constant_with_warmup_stays_exactly_at_the_top():
    taken = rates(Settings("constant_with_warmup", lr_warmup_steps=3, lr_end=1e-5, lr_decay_steps=5), 50)
    assert set(taken[3:]) == {2e-4}


def test_linear_falls_to_lr_end_at_the_decay_step_and_stays():
    taken = rates(Settings("linear", lr_warmup_steps=2, lr_end=2e-5, lr_decay_steps=12), 20)
    assert taken[2:13] == pytest.approx([2e-4 - 1.8e-4 * k / 10 for k in range(11)], rel=1e-12)
    assert taken[12:] == [2e-5] * 8


def test_cosine_endpoints_middle_and_quarter():
    settings = Settings("cosine", lr_warmup_steps=10, lr_end=2e-5)
    taken = rates(settings, 110, count=130)
    assert taken[10] == pytest.approx(2e-4, rel=1e-12)
    assert taken[60] == pytest.approx((2e-4 + 2e-5) / 2, rel=1e-12)
    assert taken[35] == pytest.approx(2e-5 + 1.8e-4 * (1 + math.sqrt(0.5)) / 2, rel=1e-12)
    assert taken[109] > 2e-5
    assert taken[110:] == [2e-5] * 20
    assert all(a > b for a, b in pairwise(taken[10:111]))


def test_cosine_without_decay_steps_spans_the_run():
    assert rates(Settings("cosine"), 8) == rates(Settings("cosine", lr_decay_steps=8), 8)
    long_decay = rates(Settings("cosine", lr_decay_steps=400_000), 10)
    assert long_decay[-1] == pytest.approx(2e-4, rel=1e-8)


def test_cosine_with_restarts_falls_three_times_from_the_top():
    taken = rates(Settings("cosine_with_restarts", lr_num_cycles=3, lr_end=1e-5), 30, count=33)
    single = rates(Settings("cosine", lr_end=1e-5), 10)
    assert taken[:30] == pytest.approx(single * 3, rel=1e-9)
    assert taken[30:] == [1e-5] * 3


@pytest.mark.parametrize("power", [0.5, 0.8, 2.0])
def test_polynomial(power: float):
    taken = rates(Settings("polynomial", lr_power=power, lr_end=1e-5, lr_warmup_steps=5), 25, count=27)
    assert taken[15] == pytest.approx(1e-5 + 1.9e-4 * 0.5**power, rel=1e-12)
    assert taken[5] == pytest.approx(2e-4, rel=1e-12)
    assert taken[25:] == [1e-5, 1e-5]


def test_sine_is_one_half_wave_that_peaks_in_the_middle():
    taken = rates(Settings("sine", lr_end=1e-5), 19, count=22)
    assert taken[9] == pytest.approx(2e-4, rel=1e-12)
    assert taken[0] == pytest.approx(1e-5 + 1.9e-4 * math.sin(math.pi / 20), rel=1e-12)
    assert taken[:19] == pytest.approx(taken[:19][::-1], rel=1e-9)
    assert taken[19:] == [1e-5] * 3


def test_rex_is_above_the_line_and_ends_with_it():
    taken = rates(Settings("rex", lr_end=1e-5, lr_warmup_steps=5), 25, count=27)
    assert taken[5] == pytest.approx(2e-4, rel=1e-12)
    assert taken[15] == pytest.approx(1e-5 + 1.9e-4 * 2 / 3, rel=1e-12)
    assert taken[20] == pytest.approx(1e-5 + 1.9e-4 * 0.4, rel=1e-12)
    assert taken[25:] == [1e-5, 1e-5]


@pytest.mark.parametrize(("root", "factor"), [(False, 24.0), (True, math.sqrt(24.0))])
def test_the_rate_grows_with_the_samples_of_a_step(root: bool, factor: float):
    kind = {"lr_scale_sqrt": root, "train_batch_size": 4, "gradient_accumulation_steps": 3, "lr_end": 1e-5}
    scaled, plain = Settings("linear", lr_scale=True, **kind), Settings("linear", **kind)
    assert learning_rate(scaled, 0, 10, 2) == pytest.approx(2e-4 * factor, rel=1e-12)
    assert learning_rate(scaled, 10, 10, 2) == 1e-5
    assert learning_rate(plain, 0, 10, 2) == 2e-4


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_step_of_a_run_has_a_rate_of_zero(name: str):
    assert min(rates(Settings(name, lr_warmup_steps=3), 12)) > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_shorter_than_its_warmup_only_climbs(name: str):
    taken = rates(Settings(name, lr_warmup_steps=400), 10)
    assert all(0 < rate <= 2e-4 for rate in taken)


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"lr_scheduler = 'cosin'.*cosine_with_restarts"):
        learning_rate(Settings("cosin"), 0, 10)
