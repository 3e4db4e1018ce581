"""control.json: what a person or a button asks a running training to do.

    {"command": "pause", "requests": {"save": 2, "validate": 1}, "time": 1700000000.0}

`command` holds until another one is written; `requests` counts how often something was asked for, so that none is lost
when several are written between two steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunerkit.files import write_json
from tunerkit.running.json_files import read_object

Command = Literal["run", "pause", "stop", "save", "validate"]
CONTROL_FILE = "control.json"
MODES = ("run", "pause", "stop")
REQUESTS = ("save", "validate")


@dataclass(frozen=True)
class Orders:
    """What is asked for: `mode` is run, pause or stop; `requests` are save, validate, both or none."""

    mode: str = "run"
    requests: frozenset[str] = frozenset()


class Control:
    """Reads control.json for a run; each request is reported once.

    Args:
        folder: the run's output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CONTROL_FILE
        self._seen: dict[str, int] = {}

    def orders(self) -> Orders:
        """What is asked for now; a file that is missing or damaged asks for nothing."""
        mode, counts = _read(self._path)
        new = {name for name in REQUESTS if counts.get(name, 0) > self._seen.get(name, 0)}
        self._seen = counts
        return Orders(mode, frozenset(new))

    @property
    def stop_asked(self) -> bool:
        """Whether the run is to end; requests stay unread."""
        return _read(self._path)[0] == "stop"

    def clear(self) -> None:
        """Forget what was asked for."""
        self._path.unlink(missing_ok=True)
        self._seen = {}


def write_command(folder: Path, command: Command) -> None:
    """Ask the run in `folder` to do something; it looks between two steps.

    Raises:
        OSError: control.json cannot be written.
    """
    path = folder / CONTROL_FILE
    mode, counts = _read(path)
    if command in REQUESTS:
        counts = {**counts, command: counts.get(command, 0) + 1}
    else:
        mode = command
    write_json(path, {"command": mode, "requests": counts, "time": time.time()})


def _read(path: Path) -> tuple[str, dict[str, int]]:
    """The mode, and how often each thing was asked for; `{"command": "save"}` written by hand counts as once."""
    row: dict[str, Any] = read_object(path) or {}
    command = row.get("command")
    given = row.get("requests")
    counts = {name: n for name, n in given.items() if isinstance(n, int)} if isinstance(given, dict) else {}
    if command in REQUESTS:
        counts[str(command)] = counts.get(str(command), 0) + 1
    return (str(command) if command in MODES else "run"), counts
