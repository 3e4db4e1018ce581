"""Writing cache entries in a thread, so that the encoder does not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunerkit.errors import TunerkitError

WAITING = 32
"""Entries that may wait to be written; then the encoder waits."""

USE_ANOTHER_FOLDER = (
    "free space there, or set cache_dir (or the dataset's cache_dir / cache_dir_vae) to a folder you may write to"
)

Outcome = Callable[[Exception | None], None]
"""Called in the main thread when an entry is written (None), or cannot be used (why)."""


class WriteBehind:
    """One thread that writes entries in the order they come. Use as a context.

    At the end of the context everything that was handed over is written, also when it ends with an interrupt.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[None], Path, Outcome]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tunerkit-write")

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.settle(0)

    def put(self, folder: Path, write: Callable[[], None], outcome: Outcome) -> None:
        """Have `write()` called, which writes into `folder`; then, at some later call, `outcome`.

        Raises:
            TunerkitError: an earlier entry could not be written (disk full, folder gone).
        """
        self._waiting.append((self._pool.submit(write), folder, outcome))
        self.settle(WAITING)

    def settle(self, at_most: int) -> None:
        """Report what is written, and wait until no more than `at_most` entries are left.

        Raises:
            TunerkitError: an entry could not be written.
        """
        while self._waiting and (len(self._waiting) > at_most or self._waiting[0][0].done()):
            future, folder, outcome = self._waiting.popleft()
            error = future.exception()
            if isinstance(error, OSError):
                raise cannot_write(folder, error) from error
            if error is not None and not isinstance(error, Exception):
                raise error
            outcome(error)


def folder_in_the_way(error: OSError) -> str:
    """What to tell when an entry cannot be written because a folder has its name; empty for other errors."""
    path = error.filename2 or error.filename
    return f"a folder stands where cache file {path} is to be written" if isinstance(error, IsADirectoryError) else ""


def cannot_write(folder: Path, error: OSError) -> TunerkitError:
    """What to tell about a cache folder that takes no more files, or not the one that was to be written."""
    if folder_in_the_way(error):
        return TunerkitError(f"{folder_in_the_way(error)}. Fix: delete that folder, then start again")
    return TunerkitError(
        f"cache folder {folder} cannot be written ({error.strerror or error}). What was written so far is whole and "
        f"will be used. Fix: {USE_ANOTHER_FOLDER}; then start again"
    )
