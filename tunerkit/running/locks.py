"""Locks on files: held by one process at a time, and given up when it ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tunerkit.errors import TunerkitError

_RETRY_SECONDS = 0.05


class FileLock:
    """Args:
    path: the file that is locked; created when missing, and never deleted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self) -> bool:
        """Take the lock and write this process's name into the file; False when another process holds it."""
        handle = self.path.open("a+", encoding="utf-8")
        if not _try_lock(handle):
            handle.close()
            return False
        handle.truncate(0)
        with contextlib.suppress(OSError):  # a full disk must not keep a run from being locked
            handle.write(f"process {os.getpid()} on {socket.gethostname()}")
            handle.flush()
        self._handle = handle
        return True

    def owner(self) -> str:
        """Who wrote its name into the file last."""
        try:
            return self.path.read_text(encoding="utf-8").strip() or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        """Give the lock up; does nothing when it is not held."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.close()
        self._handle = None

    @contextlib.contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """Hold the lock, after waiting for it.

        Raises:
            TunerkitError: if another process did not give it up within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not self.acquire():
            if time.monotonic() > deadline:
                raise TunerkitError(f"{self.path.parent} is being prepared by {self.owner()}. Fix: wait for it")
            time.sleep(_RETRY_SECONDS)
        try:
            yield
        finally:
            self.release()


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
