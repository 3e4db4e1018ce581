"""The list of files that could not be decoded or encoded, and are left out until they change or are taken off it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.data.discover import Stamp

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

log = logging.getLogger("tunerkit")

FILE_NAME = "quarantine.jsonl"


class Quarantine:
    """One line of JSON per file: its path, size, time of last change and what was wrong with it.

    A line is appended by one write, which no other process can cut in two; a line that is torn all the same is passed
    over. A file that was replaced is no longer quarantined.

    Args:
        path: the list; it need not exist. None = nothing is quarantined.
        delete_files: delete the files that are added, as well as listing them.
    """

    def __init__(self, path: Path | None, *, delete_files: bool = False) -> None:
        self.path = path
        self.delete_files = delete_files
        self._reasons = self._read()

    @classmethod
    def of(cls, config: TrainConfig) -> Quarantine:
        """The list of a run, in its cache folder. It is empty, and nothing is added, where
        `delete_problematic_images` is off."""
        known = config.cache_dir is not None or config.output_dir is not None
        path = config.cache_path / FILE_NAME if known and config.delete_problematic_images else None
        return cls(path, delete_files=config.delete_quarantined_files)

    def reason(self, file: Path) -> str | None:
        """Why an unchanged file is quarantined; None where it is not."""
        return self.reason_of(file, _stamp(file)) if self._reasons else None

    def reason_of(self, file: Path, stamp: Stamp | None) -> str | None:
        """As `reason`, for a file whose size and time are known."""
        if not self._reasons or stamp is None:
            return None
        return self._reasons.get((os.path.abspath(file), *stamp))

    def add(self, file: Path, reason: str) -> None:
        """Put a file on the list; with `delete_files` it is then deleted.

        Raises:
            OSError: the list cannot be written; then the file stays.
        """
        stamp = _stamp(file)
        if self.path is None or stamp is None or self.reason_of(file, stamp):
            return
        key = (os.path.abspath(file), *stamp)
        record = dict(zip(("file", "size", "mtime_ns", "reason"), (*key, reason), strict=True))
        self._append(json.dumps(record).encode() + b"\n")
        self._reasons[key] = reason
        if self.delete_files:
            file.unlink(missing_ok=True)
            log.warning("%s is deleted (delete_quarantined_files): %s", file, reason)

    def _append(self, line: bytes) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            if end:  # a line that was cut off must not swallow this one
                os.lseek(descriptor, end - 1, os.SEEK_SET)
                line = line if os.read(descriptor, 1) == b"\n" else b"\n" + line
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> dict[tuple[str, int, int], str]:
        reasons: dict[tuple[str, int, int], str] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self.path.read_bytes().splitlines() if self.path else ():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    reasons[record["file"], record["size"], record["mtime_ns"]] = record["reason"]
        return reasons


def _stamp(file: Path) -> Stamp | None:
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns
