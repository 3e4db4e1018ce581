"""When to measure the loss at fixed noise during a training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

WANTED = 20
"""Evaluations of a run, where they are cheap."""
FREE_SECONDS = 10.0
SHARE = 0.1
"""Evaluations of a run may take some seconds, spread over its steps, or this share of the time that it trained."""


class EvaluationPlan:
    """Evaluates before the first and after the last step, and between them about twenty times or as asked.

    Args:
        every: steps between evaluations; None: about twenty in all, fewer where they cost much; 0: never.
        epochs: epochs between evaluations, beside those after `every` steps; fractions count. None or 0: none.

    Attributes:
        steps_per_epoch: optimizer steps that an epoch takes, not always whole; known once the clips are.

    Raises:
        ValueError: if `every` is negative.
    """

    def __init__(self, every: int | None = None, epochs: float | None = None) -> None:
        if every is not None and every < 0:
            raise ValueError(f"evaluate_every = {every} is negative; use 0 for never")
        self._every, self._epochs = every, epochs or 0.0
        self.steps_per_epoch = 1.0
        self._spent = 0.0
        self._longest = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> EvaluationPlan:
        """The plan that the settings ask for."""
        return cls(0) if config.eval_loss_disable else cls(config.eval_steps_interval, config.eval_epoch_interval)

    def change(self, config: TrainConfig) -> None:
        """From now on, evaluate as these settings ask; what evaluations took so far still counts."""
        other = self.of(config)
        self._every, self._epochs = other._every, other._epochs

    def due(self, step: int, total: int, trained: float, *, saved: bool = False) -> bool:
        """Whether to evaluate after `step` of `total` steps and `trained` seconds of training in this process.

        Args:
            saved: whether a checkpoint was saved after this step; where no interval is asked for, it is worth knowing
                how good it is.
        """
        if self._every == 0 and not self._epochs:
            return False
        if step >= total:
            return True
        if self._every is not None or self._epochs:
            return (bool(self._every) and step % self._every == 0) or self._epoch_is_due(step)
        if step % max(1, total // WANTED) and not saved:
            return False
        return self._spent + self._longest <= max(FREE_SECONDS * step / total, SHARE * trained)

    def _epoch_is_due(self, step: int) -> bool:
        """Whether `step` completes a multiple of the interval; before the first step it does."""
        if not self._epochs:
            return False
        intervals = [(done / (self._epochs * self.steps_per_epoch)) for done in (step - 1, step)]
        before, now = (math.floor(count + 1e-9) for count in intervals)  # 0.1 epochs, ten times, are one
        return now > before

    def took(self, seconds: float) -> None:
        """Tell how long an evaluation took."""
        self._spent += seconds
        self._longest = max(self._longest, seconds)
