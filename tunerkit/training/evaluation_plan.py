"""When to measure the loss at fixed noise during a training."""

from __future__ import annotations

WANTED = 20
"""Evaluations of a run, where they are cheap."""
FREE_SECONDS = 60.0
SHARE = 0.2
"""Evaluations may take a minute, or this share of the time that the training took."""


class EvaluationPlan:
    """Evaluates before the first and after the last step, and between them about twenty times or as asked.

    Args:
        every: steps between evaluations; None: about twenty in all, fewer where they cost much; 0: never.

    Raises:
        ValueError: if `every` is negative.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 0:
            raise ValueError(f"evaluate_every = {every} is negative; use 0 for never")
        self._every = every
        self._spent = 0.0
        self._longest = 0.0

    def due(self, step: int, total: int, trained: float, *, saved: bool = False) -> bool:
        """Whether to evaluate after `step` of `total` steps and `trained` seconds of training in this process.

        Args:
            saved: whether a checkpoint was saved after this step; where no interval is asked for, it is worth knowing
                how good it is.
        """
        if self._every == 0:
            return False
        if step >= total:
            return True
        every = self._every or max(1, total // WANTED)
        if step % every and not (saved and self._every is None):
            return False
        return self._every is not None or self._spent + self._longest <= max(FREE_SECONDS, SHARE * trained)

    def took(self, seconds: float) -> None:
        """Tell how long an evaluation took."""
        self._spent += seconds
        self._longest = max(self._longest, seconds)
