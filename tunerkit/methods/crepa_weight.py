"""How strongly hidden states are aligned in which step, and when that ends (the settings `crepa_lambda` and on)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig


@dataclass(frozen=True)
class WeightCurve:
    """The weight of the alignment's term by the number of optimizer steps done.

    Over the first `warmup` steps it rises from 0 to `base`, then it goes to `end`, which it has from step `decay` on.

    Attributes:
        kind: "constant" (no way down), "linear", "cosine" or "polynomial".
        cutoff: step from which on there is no term; 0 = never.
    """

    kind: str
    base: float
    end: float
    warmup: int
    decay: int
    power: float
    cutoff: int

    @classmethod
    def of(cls, config: TrainConfig, total_steps: int) -> WeightCurve:
        """The curve that the settings describe for a run of so many steps."""
        return cls(
            kind=config.crepa_scheduler or "constant",
            base=0.5 if config.crepa_lambda is None else config.crepa_lambda,
            end=config.crepa_lambda_end,
            warmup=config.crepa_warmup_steps,
            decay=config.crepa_decay_steps or total_steps,
            power=config.crepa_power,
            cutoff=config.crepa_cutoff_step,
        )

    def at(self, step: int) -> float:
        """The weight when `step` optimizer steps are done."""
        if self.over(step):
            return 0.0
        if step < self.warmup:
            return self.base * step / self.warmup
        if self.kind == "constant":
            return self.base
        done = min(1.0, (step - self.warmup) / max(1, self.decay - self.warmup))
        left = {
            "linear": 1.0 - done,
            "cosine": (1.0 + math.cos(math.pi * done)) / 2.0,
            "polynomial": (1.0 - done) ** self.power,
        }[self.kind]
        return self.end + (self.base - self.end) * left

    def over(self, step: int) -> bool:
        """Whether there will never be a term again."""
        return bool(self.cutoff) and step >= self.cutoff


class SimilarityStop:
    """Ends the term when hidden states are similar enough to the features: a smoothed similarity is watched.

    Args:
        threshold: similarity from which on the term is off; None = it is never switched off.
        decay: share of the smoothed value that stays in each step.
        recoverable: whether the term comes back when the similarity falls below the threshold again.
    """

    def __init__(self, threshold: float | None, decay: float, *, recoverable: bool) -> None:
        self._threshold, self._decay, self._recoverable = threshold, decay, recoverable
        self.average: float | None = None
        self.stopped = False

    @classmethod
    def of(cls, config: TrainConfig) -> SimilarityStop:
        recoverable = config.crepa_threshold_mode == "recoverable"
        return cls(config.crepa_similarity_threshold, config.crepa_similarity_ema_decay, recoverable=recoverable)

    @property
    def for_good(self) -> bool:
        """Whether there will never be a term again."""
        return self.stopped and not self._recoverable

    def observe(self, similarity: float) -> None:
        """Take in the mean similarity of a step."""
        if self._threshold is None or not math.isfinite(similarity):
            return
        before = similarity if self.average is None else self.average
        self.average = self._decay * before + (1.0 - self._decay) * similarity
        self.stopped = self.average >= self._threshold or self.for_good

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"average": self.average, "stopped": self.stopped}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state()` gave; under another threshold, the next step decides anew."""
        self.average = state["average"]
        self.stopped = bool(state["stopped"]) and self._threshold is not None
