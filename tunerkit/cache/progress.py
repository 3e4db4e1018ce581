"""How the progress of filling the cache is shown."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total) after every entry."""


class ProgressBar:
    """A tqdm bar with the time that is left (`progress = True`), a callable that is told, or nothing."""

    def __init__(self, phase: str, total: int, progress: Progress | bool) -> None:
        self._phase, self._total, self._done = phase, total, 0
        self._callback = progress if callable(progress) else None
        self._bar = None
        if progress is True:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=f"encoding {phase}", unit="", dynamic_ncols=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """`count` more entries are there, made here or elsewhere."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        if self._callback is not None:
            self._callback(self._phase, self._done, self._total)
