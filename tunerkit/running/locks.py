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
ASKING_SECONDS = 2.0
"""Somebody who only asks whether a lock is held holds it for a moment too."""


class FileLock:
    """An exclusive lock on a file, among all processes of this machine.

    Args:
        path: the file that is locked; created when missing, and never deleted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self, seconds: float = 0.0) -> bool:
        """Take the lock and write this process's name into the file; False when another process keeps it so long.

        Raises:
            OSError: the file cannot be made.
        """
        handle = self.path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + seconds
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                handle.close()
                return False
            time.sleep(_RETRY_SECONDS)
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
        if not self.acquire(seconds):
            raise TunerkitError(f"{self.path.parent} is being prepared by {self.owner()}. Fix: wait for it")
        try:
            yield
        finally:
            self.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on this file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    if not lock.acquire():
        return True
    lock.release()
    return False


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock for a block; False where another process keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    taken = lock.acquire(ASKING_SECONDS)
    try:
        yield taken
    finally:
        lock.release()


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
