"""Progress of `tk.build_cache`, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tunerkit_widgets.guard import guarded
from tunerkit_widgets.surroundings import headless, quiet_libraries
from tunerkit_widgets.texts import duration, text
from tunerkit_widgets.throttle import Throttle

PLAIN_SECONDS = 60.0
"""Longest silence between two plain lines."""


class CacheProgress:
    """A bar per phase, or a few lines where nobody watches: `tk.build_cache(config, progress=CacheProgress())`.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._headless = headless()
        self._phases: dict[str, _Phase] = {}
        if self._headless:
            quiet_libraries()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` entries of a phase are ready."""
        if phase not in self._phases:
            view = _PlainRow if self._headless else _BarRow
            self._phases[phase] = _Phase(view(text(f"cache.{phase}"), total), self._clock)
        self._phases[phase].update(done, total)


class _Phase:
    """One phase: measures, and tells its row."""

    def __init__(self, row: _BarRow | _PlainRow, clock: Callable[[], float]) -> None:
        self._row, self._clock = row, clock
        self._first: tuple[int, float] | None = None
        # A display that fails must not end an hour of encoding: the row says what happened instead.
        self._show = Throttle(guarded(row.show, row.fail), clock=clock)

    def update(self, done: int, total: int) -> None:
        now = self._clock()
        first = self._first = self._first or (done, now)
        # The first entry carries the loading of the model; later ones tell the speed.
        rate = (done - first[0]) / (now - first[1]) if done > first[0] and now > first[1] else None
        self._show(done, total, (total - done) / rate if rate else None, now - first[1])
        if done >= total:
            self._show.flush()


class _BarRow:
    """A bar with a line of text, made when the phase starts."""

    def __init__(self, label: str, total: int) -> None:
        import ipywidgets as widgets
        from IPython.display import display

        self.bar = widgets.IntProgress(max=max(1, total), description=label)
        self.bar.style.description_width = "110px"
        self.line = widgets.HTML()
        self.box: Any = widgets.HBox([self.bar, self.line])
        display(self.box)

    def show(self, done: int, total: int, left: float | None, spent: float) -> None:
        self.bar.max, self.bar.value = max(1, total), done
        if done >= total:
            self.bar.bar_style = "success"
        self.line.value = _line(done, total, left, spent)

    def fail(self, message: str) -> None:
        self.line.value = message


class _PlainRow:
    """Lines at the start, at each quarter, and at least once a minute."""

    def __init__(self, label: str, total: int) -> None:
        del total
        self._label, self._quarter, self._spoken = label, -1, 0.0

    def show(self, done: int, total: int, left: float | None, spent: float) -> None:
        quarter = 4 * done // max(1, total)
        if quarter == self._quarter and spent - self._spoken < PLAIN_SECONDS:
            return
        self._quarter, self._spoken = quarter, spent
        print(f"{self._label}: {_line(done, total, left, spent)}")

    def fail(self, message: str) -> None:
        print(message)


def _line(done: int, total: int, left: float | None, spent: float) -> str:
    if done >= total:
        return text("cache.done", total=total, spent=duration(spent))
    if left is None:
        return text("cache.started", done=done, total=total)
    return text("cache.running", done=done, total=total, left=duration(left))
