"""What the trainer returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunerkit.validation.render import Rendering


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        step: number of steps done, counting this one; the first is 1.
        loss: mean over the step's samples, before the update.
        parts: named terms of the loss.
        lr: learning rate of the step.
        grad_norm: 2-norm of all gradients before clipping.
        seconds: duration of the step.
        epoch: epoch of the step's last sample, from 0.
        samples: file names of the samples.
        checkpoint: folder of the checkpoint that `Trainer.steps` saved after the step.
        videos: what `Trainer.steps` rendered after the step.
    """

    step: int
    loss: float
    parts: Mapping[str, float]
    lr: float
    grad_norm: float
    seconds: float
    epoch: int
    samples: tuple[str, ...]
    checkpoint: Path | None = None
    videos: tuple[Rendering, ...] = field(default=())

    def row(self) -> dict[str, Any]:
        """The line of metrics.jsonl. An overflowed float16 gradient has no norm that JSON could hold: null."""
        row = asdict(replace(self, checkpoint=None, videos=()))
        norm = self.grad_norm if math.isfinite(self.grad_norm) else None
        return {key: value for key, value in row.items() if key not in ("checkpoint", "videos")} | {"grad_norm": norm}
