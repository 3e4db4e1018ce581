"""A training step in which samples are rolled out: now and then, over distances of all lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunerkit.config.rollout_rules import END, FIRST, OFFSET, PROBABILITY, RAMP
from tunerkit.methods.reflexflow import Reflex
from tunerkit.methods.rollout import length_at, steps_over

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

_POINTS = 1000
"""Distances that are averaged over."""


def always_rolled(config: TrainConfig) -> TrainConfig:
    """The same settings, with every sample rolled out in every step, over a single step of the integration."""
    return config.model_copy(update={OFFSET: 1, PROBABILITY: 1.0, RAMP: 0, FIRST: 0})


def share_of(config: TrainConfig) -> float:
    """Share of the samples that are rolled out when the ramp, if there is one, is over."""
    return getattr(config, END if config.scheduled_sampling_ramp_steps else PROBABILITY)


def forwards(config: TrainConfig) -> float:
    """Further forward passes of a sample that is rolled out, on average."""
    points = [(place + 0.5) / _POINTS for place in range(_POINTS)]
    steps = sum(steps_over(length_at(config, point)) for point in points) / _POINTS
    weighed = config.scheduled_sampling_reflexflow is not False and Reflex.of(config).weighs
    return steps + weighed
