"""JSON files that another process is writing at this moment."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from tunerkit.files import temporary_path


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is no file, or no whole object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def replace_object(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path`: a reader sees the old object or the new one.

    Unlike `tunerkit.files.write_json` it does not wait for the disk: for files that are written every second, of which
    the last state is of no use after a power cut.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file stays.
    """
    temporary = temporary_path(path)
    try:
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class JsonLines:
    """The objects of a JSON Lines file that grows while it is read: each look parses only what is new.

    Lines that are not whole, or not JSON (torn by a kill or a full disk), are passed over; the line that is being
    written is taken at a later look. A file that was replaced or cut is read from its start. Safe to use from threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._read = 0
        self._inode: int | None = None

    def rows(self) -> list[dict[str, Any]]:
        """All whole objects, oldest first; empty when there is no file."""
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    self._take(file.fileno(), file)
            except OSError:
                self._rows, self._read, self._inode = [], 0, None
            return list(self._rows)

    def _take(self, descriptor: int, file: Any) -> None:
        facts = os.fstat(descriptor)
        if facts.st_ino != self._inode or facts.st_size < self._read:
            self._rows, self._read, self._inode = [], 0, facts.st_ino
        file.seek(self._read)
        new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self._rows.append(row)


class JsonLinesWriter:
    """Appends objects to a JSON Lines file; a disk that is full costs lines and never the training.

    Args:
        path: the file; it is created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._torn = True
        """Whether the file may end within a line, left by a killed process or a full disk."""

    def append(self, row: dict[str, Any]) -> OSError | None:
        """Write one line: the error, if it could not be written."""
        line = json.dumps(row).encode() + b"\n"
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(b"\n" + line if self._torn and _ends_within_line(self.path) else line)
            except OSError as error:
                self._torn = True
                return error
            self._torn = False
        return None


def _ends_within_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
