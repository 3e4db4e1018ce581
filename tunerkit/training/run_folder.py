"""The files of a run that other programs read: lock, metrics, evaluation, events, status, control.

`metrics.jsonl` has one JSON object per optimizer step, `evaluation.jsonl` one per evaluation, `events.jsonl` one per
thing that happened; `status.json` says what the run is doing; a person or a button writes `control.json`. The lock
keeps two programs from training into one folder; it falls when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import TunerkitError
from tunerkit.files import write_atomically
from tunerkit.reporting.listening import Listeners
from tunerkit.running.control import Command, Control, Orders, write_change, write_command
from tunerkit.running.json_files import JsonLines, JsonLinesWriter
from tunerkit.running.locks import FileLock
from tunerkit.running.memory import measured_memory
from tunerkit.running.status import ENDED, STATUS_FILE, StatusWriter

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.validation.previews import Preview

__all__ = ["Command", "RunFolder", "read_metrics", "send_command"]

logger = logging.getLogger("tunerkit")
LOCK_FILE, METRICS_FILE = ".lock", "metrics.jsonl"
EVALUATION_FILE, EVENTS_FILE = "evaluation.jsonl", "events.jsonl"
RECENT_STEPS = 20
"""Steps whose median duration the status tells."""


class RunFolder:
    """The files of one run under `output_dir`.

    Attributes:
        device: where the run trains, as torch names it; the status tells its memory.
        listeners: who is told what is written here.

    Raises:
        TunerkitError: if the folder cannot be written.
    """

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            probe = output_dir / f".write-test-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise TunerkitError(
                f"output_dir = {str(output_dir)!r} cannot be written ({error.strerror}). Fix: choose a folder you may "
                "write to"
            ) from error
        self.device: str | None = None
        self.listeners = Listeners()
        self._lock = FileLock(output_dir / LOCK_FILE)
        self._metrics = JsonLinesWriter(output_dir / METRICS_FILE)
        self._evaluations = JsonLinesWriter(output_dir / EVALUATION_FILE)
        self._events = JsonLinesWriter(output_dir / EVENTS_FILE)
        self._event_number, self._event_lock = 0, threading.RLock()  # a warning within an event is another event
        self._status = StatusWriter(output_dir, lambda: measured_memory(self.device))
        self._control = Control(output_dir)
        self._seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._warnings = _WarningEvents(self)
        self._lines_lost = False

    # Lock ------------------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Claim the folder for this process and begin the heartbeat; does nothing when it is claimed already.

        Raises:
            TunerkitError: if another process trains into it.
        """
        if self._lock.held:
            return
        if not self._lock.acquire():
            raise TunerkitError(
                f"output_dir = {str(self.path)!r} is in use by {self._lock.owner()}. Fix: wait for it, stop it, or "
                "choose another output_dir"
            )
        self._control.clear()  # commands that were meant for an earlier process
        events = JsonLines(self.path / EVENTS_FILE).rows()
        self._event_number = max((int(row.get("number") or 0) for row in events), default=0)
        self._status.start("preparing", activity="starting")
        self.event("state", 0, "preparing")
        logger.addHandler(self._warnings)

    def close(self) -> None:
        """Give up the lock; a run that was neither done nor failed is stopped."""
        if not self._lock.held:
            return
        if self.state not in ENDED:
            self._status.update(state="stopped", activity="")
        self.listeners.close()
        logger.removeHandler(self._warnings)
        self._status.close()
        self._lock.release()

    # Metrics, evaluations and events ---------------------------------------------------------------------------

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS_FILE

    def keep_metrics(self, last_step: int) -> None:
        """Drop metrics and evaluations after `last_step`, so that the files continue where the run does."""
        for path in (self.metrics_path, self.path / EVALUATION_FILE):
            kept = [json.dumps(row) for row in read_metrics(path) if row["step"] <= last_step]
            if kept or path.exists():
                write_atomically(path, "".join(f"{line}\n" for line in kept))

    def log(self, row: dict[str, Any], total: int) -> None:
        """Append the line of a step and tell it in the status."""
        self._append(self._metrics, row)
        self._seconds.append(row["seconds"])
        self._tell(
            "running",
            step=row["step"],
            total_steps=total,
            loss=row["loss"],
            lr=row["lr"],
            seconds=statistics.median(self._seconds),
        )
        self.listeners.tell("step", row, total)

    def log_evaluation(self, row: dict[str, Any]) -> None:
        """Append one line to evaluation.jsonl."""
        self._append(self._evaluations, row)
        self.event("evaluation", row["step"], f"loss at fixed noise {row['loss']:.5f}", loss=row["loss"])
        self.listeners.tell("evaluation", row)

    def evaluated_steps(self) -> set[int]:
        """Steps whose loss at fixed noise is known."""
        return {row["step"] for row in read_metrics(self.path / EVALUATION_FILE)}

    def preview(self, preview: Preview) -> None:
        """Tell of an unfinished video."""
        from tunerkit.validation.previews import MEDIA_TYPE

        facts = {
            "path": Path(*preview.path.parts[-3:]).as_posix(),  # validation/step-<n>/<file>
            "name": preview.name,
            "denoised": preview.denoised,
            "steps": preview.steps,
        }
        words = f"{preview.name} after {preview.denoised} of {preview.steps} sampling steps"
        self.event("preview", preview.step, words, **facts)
        self.listeners.tell("preview", {"step": preview.step, **facts}, preview.path.read_bytes(), MEDIA_TYPE)

    def change(self, config: TrainConfig, step: int, changes: dict[str, Any]) -> None:
        """Save the settings that the run goes on with, and tell which are new.

        Args:
            step: optimizer steps done.
            changes: setting -> its new value, as JSON has it.

        Raises:
            OSError: they cannot be saved; the earlier ones stay.
        """
        config.save(self.path / "config.json")
        words = ", ".join(f"{key} = {json.dumps(value)}" for key, value in changes.items())
        self.event("change", step, words, settings=changes)
        self.listeners.tell("settings", config)

    def event(self, kind: str, step: int, text: str, **more: Any) -> None:
        """Append one line to events.jsonl.

        Args:
            kind: state, checkpoint, video, preview, evaluation, change, warning or error.
            step: optimizer steps done.
            text: what happened, for a person.
            more: facts for programs.
        """
        with self._event_lock:
            self._event_number += 1
            row = {"number": self._event_number, "time": time.time(), "kind": kind, "step": step, "text": text, **more}
            self._append(self._events, row)
        self.listeners.tell("event", row)

    def _append(self, writer: JsonLinesWriter, row: dict[str, Any]) -> None:
        """A line that cannot be written is said once: the training is worth more than its record."""
        error = writer.append(row)
        if error is not None and not self._lines_lost:
            self._lines_lost = True  # first: the warning is an event itself
            logger.warning("%s cannot be written (%s); training goes on", writer.path, error.strerror)

    # Status and control ----------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The state last written to status.json by this process; empty before the first."""
        return self._status.state

    @property
    def step(self) -> int:
        """The step last written to status.json by this process."""
        return self._status.step

    def status(self, state: str, step: int, total: int, *, activity: str = "", **more: Any) -> None:
        """Write status.json; a changed state becomes an event."""
        self._tell(state, step=step, total_steps=total, activity=activity, **more)

    def activity(self, words: str) -> None:
        """Say what is done within the present state; empty when it is what the state says."""
        self._status.update(activity=words)
        if words:
            self.listeners.tell("activity", words)

    @contextlib.contextmanager
    def meanwhile(self, state: str) -> Iterator[None]:
        """Tell `state` in status.json, and afterwards what it told before."""
        before = self.state
        self._tell(state)
        yield
        self._tell(before)

    def fail(self, message: str, hint: str | None = None) -> None:
        """Say in status and events why the run failed."""
        self._status.update(state="failed", activity="", error=message, hint=hint)
        self.event("error", self.step, message, hint=hint)

    def _tell(self, state: str, **facts: Any) -> None:
        changed = state != self.state
        if changed:
            facts = {"activity": "", **facts}
        self._status.update(state=state, **facts)
        if changed:
            self.event("state", self.step, state)

    def orders(self) -> Orders:
        """What control.json asks for; "save", "validate" and changes of settings are reported once."""
        return self._control.orders()

    @property
    def stop_asked(self) -> bool:
        """Whether control.json asks the run to end."""
        return self._control.stop_asked

    def clear_control(self) -> None:
        """Forget what was asked for."""
        self._control.clear()


class _WarningEvents(logging.Handler):
    """Puts the warnings of the process that trains into events.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(logging.WARNING)
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        self._folder.event("warning", self._folder.step, record.getMessage())
        if logging.lastResort is not None and self._is_alone():
            logging.lastResort.handle(record)

    def _is_alone(self) -> bool:
        """Whether nobody else takes warnings, so that Python itself would print them if this handler were not there."""
        others = [*logger.handlers, *(logging.root.handlers if logger.propagate else [])]
        return others[0] is self and all(isinstance(one, _WarningEvents) for one in others)


def send_command(output_dir: str | Path, command: Command | dict[str, Any]) -> None:
    """Tell the run in `output_dir` what to do, or which settings to go on with; it looks once per step.

    Raises:
        TunerkitError: if there is no run, or control.json cannot be written.
    """
    folder = Path(output_dir)
    if not (folder / STATUS_FILE).is_file():
        raise TunerkitError(f"{folder} holds no run (no status.json). Fix: give the output_dir of a started run")
    try:
        if isinstance(command, dict):
            write_change(folder, command)
        else:
            write_command(folder, command)
    except OSError as error:
        raise TunerkitError(
            f"{folder / 'control.json'} cannot be written ({error.strerror}). Fix: make space, or allow writing there"
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl, oldest first; empty if there is no file."""
    return [row for row in JsonLines(path).rows() if isinstance(row.get("step"), int)]
