"""What the runs of a sweep came to."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.batch.folders import LOG, NOTEBOOK, RunFolder, SweepFolder, columns
from tunerkit.batch.plan import short
from tunerkit.cli_output import duration
from tunerkit.errors import MissingExtraError, TunerkitError
from tunerkit.files import read_json, write_atomically
from tunerkit.training.run_folder import read_metrics

if TYPE_CHECKING:
    import pandas

TABLE, REPORT = "results.csv", "report.html"


@dataclass(frozen=True)
class SweepRow:
    """One run.

    Attributes:
        number: from 1, in the order in which runs were asked for.
        settings: the parameters that distinguish it.
        state: queued, waiting (for a GPU), running, done, failed, interrupted.
        loss: training loss of the last step.
        evaluation: lowest loss at fixed noise; None where it was not measured.
        evaluation_step: the step that it was measured after.
        step: steps done.
        total_steps: steps asked for.
        peak_memory: bytes of the GPU if one was used, else of the machine.
        seconds: from start to end, or until now.
        video: the newest rendered video.
        notebook: the notebook as executed.
        output: what the notebook wrote.
        log: what it printed.
        error: why it failed, in one line.
    """

    number: int
    settings: Mapping[str, Any]
    state: str
    loss: float | None
    evaluation: float | None
    evaluation_step: int | None
    step: int | None
    total_steps: int | None
    peak_memory: int | None
    seconds: float | None
    video: Path | None
    notebook: Path
    output: Path
    log: Path
    error: str

    @property
    def title(self) -> str:
        """The settings in words."""
        return ", ".join(f"{name}={short(value)}" for name, value in self.settings.items()) or f"run {self.number}"

    def __str__(self) -> str:
        words = [f"{self.title}: {self.state}"]
        if self.step is not None and self.state != "done":
            words.append(f"step {self.step}" + (f" of {self.total_steps}" if self.total_steps else ""))
        if self.loss is not None:
            words.append(f"loss {self.loss:.4g}")
        if self.evaluation is not None:
            words.append(f"evaluation {self.evaluation:.4g}")
        if self.seconds is not None:
            words.append(duration(self.seconds))
        return f"run {self.number}, " + ", ".join([*words, *([self.error] if self.error else [])])


@dataclass(frozen=True)
class SweepResult:
    """All runs of a sweep; the last value of a cell shows them as a table."""

    output_dir: Path
    notebook: Path | None
    rows: tuple[SweepRow, ...]

    @property
    def names(self) -> list[str]:
        """The parameters that were varied."""
        return list(dict.fromkeys(name for row in self.rows for name in row.settings))

    @property
    def best(self) -> SweepRow | None:
        """The finished run with the lowest evaluation loss, or the lowest training loss where none was measured."""
        done = [row for row in self.rows if row.state == "done"]
        measured = [row for row in done if row.evaluation is not None]
        if measured:
            return min(measured, key=lambda row: row.evaluation or 0.0)
        trained = [row for row in done if row.loss is not None]
        return min(trained, key=lambda row: row.loss or 0.0) if trained else None

    def __iter__(self) -> Iterator[SweepRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary per run; files as paths relative to the sweep's folder where they lie in it."""
        return [self._record(row) for row in self.rows]

    def to_dataframe(self) -> pandas.DataFrame:
        """The records as a table.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("to_dataframe()", "pandas") from error
        return pandas.DataFrame(self.records())

    def save_csv(self, path: str | Path) -> Path:
        """Write the records as CSV.

        Raises:
            TunerkitError: the file cannot be written.
        """
        records = self.records()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]) if records else ["run"])
        writer.writeheader()
        writer.writerows(records)
        return _written(Path(path), text.getvalue())

    def report(self, path: str | Path) -> Path:
        """Write one page that shows everything and plays its videos without internet.

        Raises:
            TunerkitError: the file cannot be written.
        """
        from tunerkit.batch.report import page

        return _written(Path(path), page(self, Path(path).absolute().parent))

    def to_html(self, video_bytes: int = 0) -> str:
        """The table alone, as HTML that needs no file or script.

        Args:
            video_bytes: room for all videos together; runs whose video does not fit have their numbers alone.
        """
        from tunerkit.batch.report import table

        return table(self, room=video_bytes)

    def _repr_html_(self) -> str:
        return self.to_html()

    def __str__(self) -> str:
        return "\n".join(str(row) for row in self.rows) or f"no runs in {self.output_dir}"

    def relative(self, path: Path, start: Path | None = None) -> str:
        """A path as seen from the sweep's folder (or from `start`), with slashes; absolute where it lies outside."""
        try:
            return path.relative_to(start or self.output_dir).as_posix()
        except ValueError:
            return path.as_posix()

    def _record(self, row: SweepRow) -> dict[str, Any]:
        return {
            "run": row.number,
            **{name: row.settings.get(name) for name in self.names},
            "state": row.state,
            "loss": row.loss,
            "evaluation": row.evaluation,
            "step": row.step,
            "total_steps": row.total_steps,
            "peak_memory_gib": None if row.peak_memory is None else round(row.peak_memory / 2**30, 3),
            "seconds": None if row.seconds is None else round(row.seconds, 1),
            "video": None if row.video is None else self.relative(row.video),
            "notebook": self.relative(row.notebook),
            "error": row.error,
        }


def read_sweep(output_dir: str | Path) -> SweepResult:
    """The results of a sweep so far, while it runs too.

    Raises:
        TunerkitError: there is no sweep in the folder.
    """
    folder = Path(output_dir).expanduser().absolute()
    sweep = SweepFolder(folder)
    if not sweep.exists():
        raise TunerkitError(f"{folder} holds no sweep (no sweep.json). Fix: give the output_dir of a sweep")
    runs = sweep.shown()
    names = columns(runs)
    rows = tuple(read_row(run, names) for run in runs)
    return SweepResult(folder, sweep.notebook(), rows)


def read_row(run: RunFolder, names: list[str] | None = None) -> SweepRow:
    """What a run's folder tells of it.

    Args:
        run: the run.
        names: the parameters to show; those that it was told apart by when it was made, if not given.
    """
    state = run.state()
    output = run.output
    metrics = [row for row in read_metrics(output / "metrics.jsonl") if _finite(row.get("loss"))]
    measured = [row for row in read_metrics(output / "evaluation.jsonl") if _finite(row.get("loss"))]
    best = min(measured, key=lambda row: row["loss"], default=None)
    status = _status(output)
    memory = status.get("memory")
    peak = memory.get("peak") if isinstance(memory, dict) else None
    step = metrics[-1]["step"] if metrics else status.get("step")
    known = run.parameters
    return SweepRow(
        number=run.number,
        settings=run.settings if names is None else {name: known[name] for name in names if name in known},
        state=state["state"],
        loss=metrics[-1]["loss"] if metrics else None,
        evaluation=best["loss"] if best else None,
        evaluation_step=best["step"] if best else None,
        step=step,
        total_steps=status.get("total_steps"),
        peak_memory=peak or state.get("peak_ram"),
        seconds=_seconds(state),
        video=newest_video(output),
        notebook=run.path / NOTEBOOK,
        output=output,
        log=run.path / LOG,
        error=state.get("error") or "",
    )


def newest_video(output: Path) -> Path | None:
    """A video of the latest step that rendered one, never the base model's; one elsewhere below where there is none."""
    rounds = [
        (int(match[1]), video)
        for video in output.glob("validation/step-*/*.mp4")
        if (match := re.fullmatch(r"step-(\d+)", video.parent.name)) and match[1] != "0" and _is_single(video)
    ]
    if rounds:
        newest = max(step for step, _ in rounds)
        return min(video for step, video in rounds if step == newest)
    others = [video for video in output.glob("*.mp4") if video.is_file()]
    return max(others, key=lambda video: video.stat().st_mtime, default=None)


def curve(row: SweepRow) -> list[tuple[int, float]]:
    """(step, training loss) of a run."""
    rows = read_metrics(row.output / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in rows if _finite(line.get("loss"))]


def _seconds(state: Mapping[str, Any]) -> float | None:
    if state["state"] == "running" and "started" in state:
        return time.time() - state["started"]
    return state.get("seconds")


def _is_single(video: Path) -> bool:
    """Not a comparison of two videos in one picture."""
    return re.fullmatch(r".+-\d+x\d+-\d+(-ema)?", video.stem) is not None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _status(output: Path) -> dict[str, Any]:
    try:
        status = read_json(output / "status.json")
    except (OSError, TunerkitError):
        return {}
    return status if isinstance(status, dict) else {}


def _written(path: Path, content: str) -> Path:
    try:
        return write_atomically(path, content)
    except OSError as error:
        raise TunerkitError(
            f"{path} cannot be written ({error.strerror}). Fix: name a file in a folder you may write to"
        ) from error
