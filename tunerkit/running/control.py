"""control.json: what a person or a button asks a running training to do.

    {"command": "pause", "requests": {"save": 2, "validate": 1}, "changes": [{"crepa_lambda": 0.1}], "time": 1.7e9}

`command` holds until another one is written; `requests` counts how often something was asked for, and `changes` has all
the settings that the run was asked to go on with, so that none is lost when several are written between two steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
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
    """What is asked for: `mode` is run, pause or stop; `requests` are save, validate, both or none; `changes` are
    settings to go on with, one set after the other."""

    mode: str = "run"
    requests: frozenset[str] = frozenset()
    changes: tuple[dict[str, Any], ...] = ()


class Control:
    """Reads control.json for a run; each request and each change is reported once.

    Args:
        folder: the run's output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CONTROL_FILE
        self._seen = _Asked()

    def orders(self) -> Orders:
        """What is asked for now; a file that is missing or damaged asks for nothing."""
        asked, seen = _read(self._path), self._seen
        new = {name for name in REQUESTS if asked.counts.get(name, 0) > seen.counts.get(name, 0)}
        self._seen = asked
        return Orders(asked.mode, frozenset(new), asked.changes[len(seen.changes) :])

    @property
    def stop_asked(self) -> bool:
        """Whether the run is to end; requests stay unread."""
        return _read(self._path).mode == "stop"

    def clear(self) -> None:
        """Forget what was asked for."""
        self._path.unlink(missing_ok=True)
        self._seen = _Asked()


@dataclass(frozen=True)
class _Asked:
    """All that control.json has: the mode, how often each thing was asked for, and all changes."""

    mode: str = "run"
    counts: dict[str, int] = field(default_factory=dict)
    changes: tuple[dict[str, Any], ...] = ()


def write_command(folder: Path, command: Command) -> None:
    """Ask the run in `folder` to do something; it looks between two steps.

    Raises:
        OSError: control.json cannot be written.
    """
    asked = _read(folder / CONTROL_FILE)
    if command in REQUESTS:
        _write(folder, replace(asked, counts={**asked.counts, command: asked.counts.get(command, 0) + 1}))
    else:
        _write(folder, replace(asked, mode=command))


def write_change(folder: Path, settings: dict[str, Any]) -> None:
    """Ask the run in `folder` to go on with other settings.

    Args:
        settings: setting -> value, as JSON can have it.

    Raises:
        OSError: control.json cannot be written.
    """
    asked = _read(folder / CONTROL_FILE)
    _write(folder, replace(asked, changes=(*asked.changes, settings)))


def _write(folder: Path, asked: _Asked) -> None:
    row = {"command": asked.mode, "requests": asked.counts, "changes": list(asked.changes), "time": time.time()}
    write_json(folder / CONTROL_FILE, row)


def _read(path: Path) -> _Asked:
    """What is asked for; `{"command": "save"}` written by hand counts as once."""
    row: dict[str, Any] = read_object(path) or {}
    command, given, changes = row.get("command"), row.get("requests"), row.get("changes")
    counts = {name: n for name, n in given.items() if isinstance(n, int)} if isinstance(given, dict) else {}
    if command in REQUESTS:
        counts[str(command)] = counts.get(str(command), 0) + 1
    settings = tuple(one for one in changes if isinstance(one, dict)) if isinstance(changes, list) else ()
    return _Asked(str(command) if command in MODES else "run", counts, settings)
