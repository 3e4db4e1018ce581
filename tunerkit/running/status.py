"""status.json: what a training does now, written by it every two seconds and read by whoever watches."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerkit.running.json_files import read_object, replace_object
from tunerkit.running.processes import is_running, process_started

STATUS_FILE = "status.json"
OUTPUT_FILE = "out.log"
"""What the process prints."""
ENDED = ("done", "stopped", "failed", "died")
"""States after which nothing more happens."""
HEARTBEAT_SECONDS = 2.0
CHANGE_SECONDS = 1.0
"""Longest time until a change of something else than the state is written."""
SILENT_SECONDS = 30.0
"""A process of another machine that has not written for so long is taken for dead."""
LOG_LINES = 20


@dataclass(frozen=True)
class RunStatus:
    """What a run does, as its files tell it.

    Attributes:
        state: "starting" (the process is up and has written nothing yet), "preparing" (see `activity`), "running",
            "paused", "validating", "saving", "done", "stopped", "failed" (see `error` and `hint`), or "died" (the
            process is gone and could not say why; see `log`).
        activity: what it does in this state, in words ("encoding clips 5 of 8"); may be empty.
        step, total_steps: optimizer steps done, and of the whole run; `total_steps` is 0 while it is not known.
        pid: the training process. alive: whether it exists.
        seconds_per_step: median of the latest steps. seconds_left: what is left at this speed. None if not known.
        loss, lr: of the latest step.
        memory_used, memory_peak, memory_total: bytes, of `device`'s memory where that is a GPU, else of the machine's.
        disk_free: bytes on the disk of the output folder.
        started, heartbeat: seconds since 1970; when the process began, and when it wrote last.
        error, hint: what went wrong in one message, and what to change.
        log: the last lines the process printed; only where it died or failed.
    """

    state: str
    activity: str = ""
    step: int = 0
    total_steps: int = 0
    pid: int | None = None
    alive: bool = False
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    loss: float | None = None
    lr: float | None = None
    memory_used: int | None = None
    memory_peak: int | None = None
    memory_total: int | None = None
    device: str | None = None
    disk_free: int | None = None
    started: float | None = None
    heartbeat: float | None = None
    error: str | None = None
    hint: str | None = None
    log: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


def starting_row(pid: int) -> dict[str, Any]:
    """What status.json says of a process that has written nothing yet."""
    now = time.time()
    return {
        "state": "starting",
        "activity": "",
        "step": 0,
        "total_steps": 0,
        "pid": pid,
        "process_started": process_started(pid),
        "host": socket.gethostname(),
        "started": now,
        "time": now,
    }


def read_status(folder: Path) -> RunStatus | None:
    """The status of the run in `folder`; None if there is no status.json that can be read."""
    row = read_object(folder / STATUS_FILE)
    if row is None:
        return None
    alive = _alive(row)
    state = str(row.get("state"))
    if state not in ENDED and not alive:
        state = "died"
    step, total = int(row.get("step") or 0), int(row.get("total_steps") or 0)
    seconds = row.get("seconds")
    memory = row.get("memory") or {}
    return RunStatus(
        state=state,
        activity="" if state == "died" else row.get("activity") or "",
        step=step,
        total_steps=total,
        pid=row.get("pid"),
        alive=alive,
        seconds_per_step=seconds,
        seconds_left=seconds * max(0, total - step) if seconds is not None and state not in ENDED else None,
        loss=row.get("loss"),
        lr=row.get("lr"),
        memory_used=memory.get("used"),
        memory_peak=memory.get("peak"),
        memory_total=memory.get("total"),
        device=memory.get("device"),
        disk_free=row.get("disk_free"),
        started=row.get("started"),
        heartbeat=row.get("time"),
        error=_died_words(row) if state == "died" else row.get("error"),
        hint=row.get("hint"),
        log=tuple(last_lines(folder / OUTPUT_FILE, LOG_LINES)) if state in ("died", "failed") else (),
    )


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a text file that may be large; of a line that redraws itself, its last form."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 400 * max(count, 20)))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:] if count > 0 else []


def _alive(row: dict[str, Any]) -> bool:
    pid = row.get("pid")
    if not isinstance(pid, int):
        return False
    if row.get("host", socket.gethostname()) != socket.gethostname():
        return time.time() - float(row.get("time") or 0.0) < SILENT_SECONDS
    started = row.get("process_started")
    return is_running(pid, started if isinstance(started, int) else None)


def _died_words(row: dict[str, Any]) -> str:
    where = f"at step {row.get('step')} of {row.get('total_steps')}" if row.get("total_steps") else "before it trained"
    return (
        f"the training process ended {where} and could not say why: it was killed, the machine was switched off, or "
        "its memory (RAM) ran out"
    )


class StatusWriter:
    """Keeps status.json of the run that this process trains, with a heartbeat from a thread of its own.

    A disk that is full makes the file old, and nothing else: it is written again when there is room.

    Args:
        folder: the run's output folder.
        measure: gives the `memory` entry.
    """

    def __init__(self, folder: Path, measure: Callable[[], dict[str, Any]]) -> None:
        self._path, self._measure = folder / STATUS_FILE, measure
        self._row: dict[str, Any] = {}
        self._changed = False
        self._written = 0.0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> str:
        """The state told last; empty before the first."""
        return str(self._row.get("state", ""))

    @property
    def step(self) -> int:
        """The step told last."""
        return int(self._row.get("step", 0))

    def start(self, state: str, **facts: Any) -> None:
        """Write the first status and begin the heartbeat."""
        self._row = {**starting_row(os.getpid()), "state": state, **facts}
        self._write()
        self._thread = threading.Thread(target=self._beat, name="tunerkit-heartbeat", daemon=True)
        self._thread.start()

    def update(self, **facts: Any) -> None:
        """Change the status; a change of the state is written at once, others within a second."""
        with self._lock:
            at_once = facts.get("state", self.state) != self.state
            self._row = {**self._row, **facts}
            self._changed = True
        if at_once:
            self._write()

    def close(self) -> None:
        """Write the last status and end the heartbeat."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._thread = None
        self._write()

    def _beat(self) -> None:
        while not self._end.wait(CHANGE_SECONDS):
            if self._changed or time.time() - self._written >= HEARTBEAT_SECONDS - 0.1:
                self._write()

    def _write(self) -> None:
        with self._lock:
            self._row["time"] = self._written = time.time()
            with contextlib.suppress(Exception):  # figures that cannot be measured must not stop the heartbeat
                self._row["memory"] = self._measure()
            with contextlib.suppress(OSError):
                self._row["disk_free"] = shutil.disk_usage(self._path.parent).free
            self._changed = False
            try:
                replace_object(self._path, self._row)
            except OSError:
                self._changed = True
