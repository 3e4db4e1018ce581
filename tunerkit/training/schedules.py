"""The learning rate as a pure function of the step.

The trainer writes `learning_rate(config, step, total_steps)` into the optimizer before every step. There is
no scheduler object and no scheduler state, so a resumed run takes the same rates by construction.

Notation: `n` is the step (optimizer steps already done, so the first is 0), `w` = `lr_warmup_steps`, `D` =
`lr_decay_steps` (counted from step 0; the length of the run when it is not set), `top` = `learning_rate`,
`end` = `lr_end`, and `progress = (n - w) / (D - w)`, limited to [0, 1]. From step D on the rate stays at
`end`.

=====================  ==========================================================================
`lr_scheduler`         rate after the warmup
=====================  ==========================================================================
constant               top, without any warmup
constant_with_warmup   top
linear                 end + (top - end) * (1 - progress)
polynomial             end + (top - end) * (1 - progress) ** lr_power
cosine                 end + (top - end) * (1 + cos(pi * progress)) / 2
cosine_with_restarts   the same with the fraction of lr_num_cycles * progress: that many falls, each from top
rex                    end + (top - end) * (1 - progress) / (1 - progress / 2)
sine                   end + (top - end) * sin(pi * (n + 1) / (D + 1)): one half wave, up to top and down again
=====================  ==========================================================================

Warmup multiplies the rate of the first w steps by (n + 1) / (w + 1): a straight line with w steps below
`top`, full from step w on, where the decay starts. It never gives a rate of zero; the common form n / w
wastes the first step. For the same reason the decay reaches `end` at step D, which a run of D steps does not
take: with `lr_end` 0 its last step still learns. The half wave of `sine` spans steps 0 to D; a warmup
flattens its beginning. `rex` stays high for long and falls fast at the end (J. Chen et al., "REX: Revisiting Budgeted
Training with an Improved Schedule", 2021, arXiv 2107.04197).

With `lr_scale`, `top` is `learning_rate` times the samples of an optimizer step: train_batch_size *
gradient_accumulation_steps * processes; with `lr_scale_sqrt` too, times their root. `end` is not scaled.
"""

from __future__ import annotations

import math
from typing import Protocol

from tunerkit.errors import ConfigError, Problem

SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "sine",
    "rex",
)


class ScheduleSettings(Protocol):
    """The settings a schedule reads; `TrainConfig` has them."""

    @property
    def lr_scheduler(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def lr_warmup_steps(self) -> int: ...
    @property
    def lr_end(self) -> float: ...
    @property
    def lr_power(self) -> float: ...
    @property
    def lr_num_cycles(self) -> int: ...
    @property
    def lr_decay_steps(self) -> int | None: ...
    @property
    def lr_scale(self) -> bool: ...
    @property
    def lr_scale_sqrt(self) -> bool: ...
    @property
    def train_batch_size(self) -> int: ...
    @property
    def gradient_accumulation_steps(self) -> int: ...


def learning_rate(config: ScheduleSettings, step: int, total_steps: int, processes: int = 1) -> float:
    """The learning rate of one optimizer step; the formulas stand at the top of this module.

    Args:
        config: the schedule and its numbers.
        step: optimizer steps already done, from 0.
        total_steps: optimizer steps of the whole run, where `lr_decay_steps` is not set.
        processes: how many train together.

    Raises:
        ConfigError: `lr_scheduler` is not one of `SCHEDULES`.
    """
    name, top, end = config.lr_scheduler, config.learning_rate * _scale(config, processes), config.lr_end
    if name not in SCHEDULES:
        problem = Problem("lr_scheduler", name, "is not a known schedule", f"one of {', '.join(SCHEDULES)}")
        raise ConfigError([problem])
    if name == "constant":
        return top
    warmup = config.lr_warmup_steps
    last = total_steps if config.lr_decay_steps is None else config.lr_decay_steps
    warmup_factor = min(1.0, (step + 1) / (warmup + 1))
    if name == "sine":
        wave = math.sin(math.pi * (step + 1) / (last + 1)) if step < last else 0.0
        return warmup_factor * (end + (top - end) * wave)
    if step < warmup or name == "constant_with_warmup":
        return warmup_factor * top
    progress = min(1.0, (step - warmup) / (last - warmup)) if last > warmup else 1.0
    return end + (top - end) * _remaining(config, progress)


def _scale(config: ScheduleSettings, processes: int) -> float:
    """What `learning_rate` is multiplied by."""
    if not config.lr_scale:
        return 1.0
    samples = config.train_batch_size * config.gradient_accumulation_steps * processes
    return math.sqrt(samples) if config.lr_scale_sqrt else float(samples)


def _remaining(config: ScheduleSettings, progress: float) -> float:
    """The part of (top - end) that is left at `progress`, 0 (end of the warmup) to 1 (step D)."""
    if config.lr_scheduler == "linear":
        return 1.0 - progress
    if config.lr_scheduler == "rex":
        return (1.0 - progress) / (1.0 - progress / 2.0)
    if config.lr_scheduler == "polynomial":
        return (1.0 - progress) ** config.lr_power
    if progress >= 1.0:
        return 0.0
    cycles = config.lr_num_cycles if config.lr_scheduler == "cosine_with_restarts" else 1
    return (1.0 + math.cos(math.pi * math.fmod(cycles * progress, 1.0))) / 2.0
