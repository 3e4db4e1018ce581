"""Processes of this machine by their id, which is given again to others once they have ended."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tunerkit.files import process_runs

_children: dict[int, subprocess.Popen[bytes]] = {}
"""What this process started: an ended child keeps its id until it has been asked for its exit status."""


def remember_child(child: subprocess.Popen[bytes]) -> None:
    """Ask for the exit status of `child` whenever it is looked for."""
    _children[child.pid] = child


def process_started(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None where the system does not tell (no /proc)."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None  # field 22 of proc(5)


def is_running(pid: int, started: int | None) -> bool:
    """Whether the process `pid` that started at `started` (None: not known) is running here."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
    if not process_runs(pid):
        return False
    fields = _stat(pid)
    if fields is None:
        return True
    if fields[0] in "ZX":  # ended, but not asked for its exit status
        return False
    return started is None or int(fields[19]) == started


def kill(pid: int) -> None:
    """End a process and those it started in its own process group, at once."""
    if os.name != "nt" and os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the name: the state, and so on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
