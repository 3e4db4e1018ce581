"""What happened in a training: both loss curves, times and the last videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tunerkit as tk

Curve = Sequence[tuple[int, float]]
"""(step, loss) pairs, by step."""


@dataclass
class TrainingHistory:
    """Everything a run has logged, in this kernel and before.

    Attributes:
        losses: training loss after each step. Noise levels differ from step to step, and so does it.
        parts: its named terms, as far as there is more than one (picture and sound).
        evaluations: loss at fixed samples, noise levels and noise.
        seconds: time of all steps, without validation and evaluation.
        session_steps: steps done in this kernel.
        session_seconds: their time.
        videos: the last round rendered in this kernel.
        stopped: why the training ended early, if it did.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    parts: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    session_steps: int = 0
    session_seconds: float = 0.0
    videos: tuple[tk.Rendering, ...] = ()
    stopped: str | None = None

    @classmethod
    def read(cls, output_dir: Path, last_step: int) -> TrainingHistory:
        """What `metrics.jsonl` and `evaluation.jsonl` of a run's folder tell of its steps up to `last_step`."""
        metrics = _rows(output_dir / "metrics.jsonl", last_step)
        evaluations = _rows(output_dir / "evaluation.jsonl", last_step)
        history = cls(
            losses=[(row["step"], float(row["loss"])) for row in metrics],
            # A step that was evaluated twice, before and after a restart, gave the same number twice.
            evaluations=sorted({row["step"]: float(row["loss"]) for row in evaluations}.items()),
            seconds=sum(float(row.get("seconds", 0.0)) for row in metrics),
        )
        for row in metrics:
            history._add_parts(row["step"], row.get("parts") or {})
        return history

    def add(self, result: tk.StepResult) -> None:
        """Append one step."""
        self.losses.append((result.step, result.loss))
        self._add_parts(result.step, result.parts)
        self.seconds += result.seconds
        self.session_seconds += result.seconds
        self.session_steps += 1
        self.videos = result.videos or self.videos

    def _add_parts(self, step: int, parts: Mapping[str, float]) -> None:
        if len(parts) > 1:
            for name, loss in parts.items():
                self.parts.setdefault(name, []).append((step, float(loss)))

    @property
    def best_evaluation(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest evaluation loss."""
        return min(self.evaluations, key=lambda point: point[1], default=None)


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


def _rows(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The whole lines of a JSON Lines file with a loss and a step up to `last_step`."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if isinstance(row, dict) and "loss" in row and isinstance(row.get("step"), int) and row["step"] <= last_step:
            rows.append(row)
    return rows
