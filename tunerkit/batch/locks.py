"""Locks that fall when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

RETRY_SECONDS = 2.0
"""Somebody who only asks whether a lock is held holds it for a moment too."""


class Lock:
    """An exclusive lock on a file, among all processes of this machine.

    Args:
        path: the file; made when it is missing, never deleted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[str] | None = None

    def take(self, seconds: float = 0.0) -> bool:
        """Whether the lock is held now; tries for so many seconds.

        Raises:
            OSError: the file cannot be made.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = self.path.open("a+", encoding="utf-8")
        until = time.monotonic() + seconds
        while not _claim(handle):
            if time.monotonic() >= until:
                handle.close()
                return False
            time.sleep(0.05)
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock up; does nothing when it is not held."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on this file."""
    if not path.exists():
        return False
    lock = Lock(path)
    if not lock.take():
        return True
    lock.release()
    return False


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock for a block; False where another process keeps it."""
    lock = Lock(path)
    taken = lock.take(RETRY_SECONDS)
    try:
        yield taken
    finally:
        lock.release()


def _claim(handle: IO[str]) -> bool:
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
