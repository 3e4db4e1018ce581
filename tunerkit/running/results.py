"""What a run has left in its folder: checkpoints, videos, and its result in figures."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import CheckpointError
from tunerkit.running.json_files import read_object

if TYPE_CHECKING:
    from tunerkit.running.status import RunStatus
    from tunerkit.validation.render import Rendering

Rows = Sequence[dict[str, Any]]
WEIGHTS = ("pytorch_lora_weights.safetensors", "transformer")
"""What a finished run leaves: an adapter, or a folder with the model."""
_VIDEO = re.compile(r"(?P<nickname>.+)-\d+x\d+-\d+(?P<ema>-ema)?\.mp4")
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class CheckpointInfo:
    """One whole checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        size_bytes: of all its files.
        time: when it was saved, in seconds since 1970.
        loss: training loss of that step, if it is known.
        evaluation: loss at fixed noise after that step, if it was measured.
        is_final: whether the run ends with this step.
    """

    path: Path
    step: int
    size_bytes: int
    time: float
    loss: float | None
    evaluation: float | None
    is_final: bool


def read_checkpoints(folder: Path, total_steps: int, metrics: Rows, evaluations: Rows) -> list[CheckpointInfo]:
    """The finished checkpoints of a run, by rising step; files are not read through."""
    from tunerkit.training.checkpoints import MANIFEST, list_checkpoints

    losses = {row.get("step"): row.get("loss") for row in metrics}
    evaluated = {row.get("step"): row.get("loss") for row in evaluations}
    found: list[CheckpointInfo] = []
    for step, path in list_checkpoints(folder):
        manifest = read_object(path / MANIFEST)
        if manifest is None:
            continue
        try:
            saved = (path / MANIFEST).stat().st_mtime
        except OSError:  # just deleted
            continue
        found.append(
            CheckpointInfo(
                path=path,
                step=step,
                size_bytes=_size(path),
                time=saved,
                loss=losses.get(step),
                evaluation=evaluated.get(step),
                is_final=step == total_steps,
            )
        )
    return found


def delete_checkpoint(folder: Path, step: int) -> int:
    """Delete `checkpoint-<step>`: the bytes that are free now.

    Raises:
        CheckpointError: if there is none, or it cannot be deleted.
    """
    path = folder / f"checkpoint-{step}"
    if not path.is_dir():
        raise CheckpointError(f"{folder} holds no checkpoint-{step}. Fix: see run.checkpoints() for those there are")
    size = _size(path)
    # Renamed first: a process killed while deleting must not leave half a folder under this name.
    hidden = path.with_name(f".{path.name}.gone-{os.getpid()}")
    try:
        path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be deleted ({error.strerror}). Fix: allow writing there") from error
    return size


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # just deleted
            continue
    return total


def read_videos(folder: Path, step: int | None) -> list[Rendering]:
    """The rendered videos of a run, by step and name, from what was recorded beside them.

    Args:
        folder: the run's output folder.
        step: only those rendered after this step.
    """
    rounds = sorted(
        (int(match[1]), path)
        for path in (folder / "validation").glob("step-*")
        if (match := _STEP.fullmatch(path.name)) and step in (None, int(match[1]))
    )
    return [video for number, path in rounds for video in _round(path, number)]


def _round(folder: Path, step: int) -> list[Rendering]:
    from tunerkit.validation.record import RECORD
    from tunerkit.validation.render import Rendering

    videos: list[Rendering] = []
    for name, facts in sorted((read_object(folder / RECORD) or {}).items()):
        path, match = folder / name, _VIDEO.fullmatch(name)
        if match is None or not path.is_file():
            continue
        comparison = path.with_name(f"{path.stem}-beside-base.mp4")
        width, height = facts["size"]
        videos.append(
            Rendering(
                path=path,
                prompt=facts["prompt"],
                nickname=match["nickname"],
                seed=facts["seed"],
                step=step,
                frames=facts["frames"],
                fps=facts["fps"],
                size=(width, height),
                ema=match["ema"] is not None,
                comparison=comparison if comparison.is_file() else None,
            )
        )
    return videos


def pairs(videos: Sequence[Rendering], step: int | None, other: int) -> list[tuple[Rendering, Rendering]]:
    """(of round `other`, of round `step`) for each prompt, size and seed that both have; None is the newest round."""
    if step is None:
        step = max((video.step for video in videos), default=0)
    # The base model has no EMA: it stands beside both kinds of weights.
    others = {(*_what(video), video.ema and other > 0): video for video in videos if video.step == other}
    shown = [(video, (*_what(video), video.ema and other > 0)) for video in videos if video.step == step]
    return [(others[key], video) for video, key in shown if key in others]


def _what(video: Rendering) -> tuple[Any, ...]:
    return video.nickname, video.size, video.seed


def summarised(folder: Path, status: RunStatus, metrics: Rows, evaluations: Rows) -> dict[str, Any]:
    """A run in figures, for tables.

    Returns:
        `output_dir`, `state`, `step`, `total_steps`; `seconds` of training without validation and saving, and
        `seconds_per_step`; `final_loss`: mean of the last tenth of the training losses; `first_evaluation`,
        `final_evaluation`, `best_evaluation`: loss at fixed noise; `best_step`; `memory_peak` in bytes and its
        `device`; `weights`: path of the adapter or model, once it is written; `error` and `hint`. None where not known.
    """
    losses = [row["loss"] for row in metrics if isinstance(row.get("loss"), (int, float))]
    last = losses[-max(1, len(losses) // 10) :]
    seconds = sum(float(row.get("seconds") or 0.0) for row in metrics)
    curve = sorted((row["step"], row["loss"]) for row in evaluations)
    best = min(curve, key=lambda point: point[1], default=(None, None))
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    return {
        "output_dir": str(folder),
        "state": status.state,
        "step": status.step,
        "total_steps": status.total_steps,
        "seconds": seconds,
        "seconds_per_step": seconds / len(losses) if losses else None,
        "final_loss": sum(last) / len(last) if last else None,
        "first_evaluation": curve[0][1] if curve else None,
        "final_evaluation": curve[-1][1] if curve else None,
        "best_evaluation": best[1],
        "best_step": best[0],
        "memory_peak": status.memory_peak,
        "device": status.device,
        "weights": None if weights is None else str(weights),
        "error": status.error,
        "hint": status.hint,
    }
