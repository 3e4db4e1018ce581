"""What happened in a training: its loss curves and the time it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Curve = Sequence[tuple[int, float]]
"""(step, loss) pairs, by step."""


class HasCurves(Protocol):
    """A run, as far as its curves are concerned."""

    def metrics(self, after: int = 0) -> list[dict[str, Any]]: ...
    def evaluations(self) -> list[dict[str, Any]]: ...


@dataclass
class TrainingHistory:
    """Everything a run has logged.

    Attributes:
        losses: training loss after each step. Noise levels differ from step to step, and so does it.
        parts: its named terms, as far as there is more than one (picture and sound).
        evaluations: loss at fixed samples, noise levels and noise.
        seconds: time of all steps, without validation and evaluation.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    parts: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def of(cls, run: HasCurves) -> TrainingHistory:
        """What a run has logged so far."""
        history = cls()
        for row in run.metrics():
            history.add(row)
        history.evaluated(run.evaluations())
        return history

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one line of the metrics."""
        self.losses.append((row["step"], float(row["loss"])))
        self.seconds += float(row.get("seconds") or 0.0)
        parts = row.get("parts") or {}
        if len(parts) > 1:
            for name, loss in parts.items():
                self.parts.setdefault(name, []).append((row["step"], float(loss)))

    def evaluated(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over the losses at fixed noise, in the place of those known before."""
        self.evaluations = sorted((row["step"], float(row["loss"])) for row in rows)


def tenths(curve: Curve) -> tuple[float, float] | None:
    """Mean loss of the first and of the last tenth of a curve's points (one point at least); None without points."""
    if not curve:
        return None
    count = max(1, len(curve) // 10)
    values = [loss for _, loss in curve]
    return sum(values[:count]) / count, sum(values[-count:]) / count


def smoothed(curve: Curve) -> list[tuple[int, float]]:
    """Exponential moving average of a curve over about a twentieth of its points, ten at least.

    The sum of weights is divided out, so that the average does not lean towards its start.
    """
    decay = 1.0 - 1.0 / max(10.0, len(curve) / 20)
    result, average, weight = [], 0.0, 0.0
    for step, loss in curve:
        average = decay * average + (1 - decay) * loss
        weight = decay * weight + (1 - decay)
        result.append((step, average / weight))
    return result
