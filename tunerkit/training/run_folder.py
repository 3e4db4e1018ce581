"""The files of a run that other programs read: lock, metrics, status, control.

`metrics.jsonl` has one JSON object per optimizer step; `status.json` says what the run is doing; a person or a button
writes `control.json`. The lock keeps two programs from training into one folder; it falls when its process ends,
however it ends.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any, Literal

from tunerkit.errors import TunerkitError
from tunerkit.files import write_atomically

Command = Literal["run", "pause", "stop", "save", "validate"]
STATUS_SECONDS = 1.0
"""Shortest time between two writes of an unchanged state to status.json."""


class RunFolder:
    """The files of one run under `output_dir`.

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
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._status: tuple[str, float] = ("", 0.0)
        self._control_seen = 0

    # Lock ------------------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Claim the folder for this process; does nothing when it is claimed already.

        Raises:
            TunerkitError: if another process trains into it.
        """
        if self._lock is not None:
            return
        handle = (self.path / ".lock").open("a+", encoding="utf-8")
        if not _try_lock(handle):
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise TunerkitError(
                f"output_dir = {str(self.path)!r} is in use by {owner}. Fix: wait for it, stop it, or choose another "
                "output_dir"
            )
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        self._lock = handle

    def close(self) -> None:
        """Give up the lock and close the files."""
        for handle in (self._lock, self._metrics):
            if handle is not None:
                handle.close()
        self._lock = self._metrics = None

    # Metrics ---------------------------------------------------------------------------------------------------

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def keep_metrics(self, last_step: int) -> None:
        """Drop lines after `last_step`, and a torn last line, so that the file continues where the run does."""
        kept = [json.dumps(row) for row in read_metrics(self.metrics_path) if row["step"] <= last_step]
        write_atomically(self.metrics_path, "".join(f"{line}\n" for line in kept))

    def log(self, row: dict[str, Any]) -> None:
        """Append one line."""
        if self._metrics is None:
            self._metrics = self.metrics_path.open("a", encoding="utf-8", buffering=1)
        self._metrics.write(json.dumps(row) + "\n")

    def log_evaluation(self, row: dict[str, Any]) -> None:
        """Append one line to evaluation.jsonl."""
        with (self.path / "evaluation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    # Status and control ----------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The state last written to status.json by this process; empty before the first."""
        return self._status[0]

    def status(self, state: str, step: int, total: int, **more: Any) -> None:
        """Write status.json; an unchanged state is written at most once a second."""
        now = time.time()
        if state == self._status[0] and now - self._status[1] < STATUS_SECONDS:
            return
        self._status = (state, now)
        row = {"state": state, "step": step, "total_steps": total, "pid": os.getpid(), "time": now, **more}
        write_atomically(self.path / "status.json", json.dumps(row))

    def command(self) -> Command:
        """The last command written to control.json; "save" and "validate" are reported once."""
        path = self.path / "control.json"
        try:
            changed = path.stat().st_mtime_ns
            command = json.loads(path.read_text(encoding="utf-8")).get("command", "run")
        except (OSError, ValueError, AttributeError):
            return "run"
        if command in ("save", "validate"):
            if changed == self._control_seen:
                return "run"
            self._control_seen = changed
        return command if command in ("pause", "stop", "save", "validate") else "run"

    def clear_control(self) -> None:
        """Forget commands that were meant for an earlier process."""
        (self.path / "control.json").unlink(missing_ok=True)


def send_command(output_dir: str | Path, command: Command) -> None:
    """Tell the run in `output_dir` what to do; it looks once per step.

    Raises:
        TunerkitError: if there is no run.
    """
    folder = Path(output_dir)
    if not (folder / "status.json").is_file():
        raise TunerkitError(f"{folder} holds no run (no status.json). Fix: give the output_dir of a started run")
    write_atomically(folder / "control.json", json.dumps({"command": command, "time": time.time()}))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl, oldest first; empty if there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that was being written when the process was killed
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _try_lock(handle: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
