"""The results of a sweep, while it runs and afterwards."""

from __future__ import annotations

import asyncio
import html
import threading
import time
from pathlib import Path
from typing import Any

import tunerkit as tk
from tunerkit import batch
from tunerkit_widgets.guard import guarded
from tunerkit_widgets.surroundings import headless, show
from tunerkit_widgets.texts import text

VIDEO_BYTES = 120_000
"""All videos of the table together, in a notebook that is kept."""
LIVE_VIDEO_BYTES = 2_000_000
WATCH_SECONDS = 1.0


class SweepTable:
    """One row per run: settings, state, losses, memory, time and video. Follows a sweep that goes on.

    Args:
        output_dir: the sweep's folder; it may still be empty.

    Attributes:
        widget: what is on the page; None where nobody can click.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.widget: Any = None
        self._watcher: threading.Thread | None = None
        self._state: object = None
        if not headless():
            self._build()

    def result(self) -> batch.SweepResult | None:
        """What is there so far; None before the sweep has begun."""
        try:
            return batch.read_sweep(self.output_dir)
        except tk.TunerkitError:
            return None

    def refresh(self) -> None:
        """Show what has changed since the last time."""
        result = self.result()
        # The times of running runs change all the while; the videos need not be sent again for that.
        state = None if result is None else [(row.state, row.step, row.loss, row.video) for row in result]
        if self.widget is not None and (state != self._state or not self._page.value):
            self._state = state
            self._page.value = self._html(result, LIVE_VIDEO_BYTES)

    def watch(self) -> None:
        """Refresh in the background until the sweep has ended; also for one that began after this was shown."""
        if self.widget is None or (self._watcher is not None and self._watcher.is_alive()):
            return
        self._watcher = threading.Thread(target=guarded(self._follow, self._fail), daemon=True, name="sweep-table")
        self._watcher.start()

    async def finished(self) -> batch.SweepResult | None:
        """Wait in an asynchronous cell until the sweep has ended; clicks are handled in the meantime."""
        while batch.sweep_goes_on(self.output_dir):
            self.refresh()
            await asyncio.sleep(WATCH_SECONDS)
        self.refresh()
        return self.result()

    def static(self) -> str:
        """The table as HTML that needs no widgets, and plays small copies of the videos."""
        return self._html(self.result(), VIDEO_BYTES)

    def __str__(self) -> str:
        result = self.result()
        return text("sweep.empty", folder=self.output_dir) if result is None else str(result)

    def _ipython_display_(self) -> None:
        if self.widget is None:
            show(self.static(), str(self))
            return
        from IPython.display import display

        display(self.widget)
        self.watch()

    def _build(self) -> None:
        import ipywidgets as widgets

        self._page = widgets.HTML()
        self.refresh_button = widgets.Button(
            description=text("sweep.refresh"), tooltip=text("sweep.refresh_help"), icon="refresh"
        )
        self.refresh_button.on_click(guarded(lambda _: self.refresh(), self._fail))
        self.widget = widgets.VBox([self._page, self.refresh_button])
        self.refresh()

    def _follow(self) -> None:
        while batch.sweep_goes_on(self.output_dir):
            self.refresh()
            time.sleep(WATCH_SECONDS)
        self.refresh()

    def _html(self, result: batch.SweepResult | None, room: int) -> str:
        if result is None:
            return f"<p>{html.escape(text('sweep.empty', folder=self.output_dir))}</p>"
        where = text("sweep.report", path=self.output_dir / "report.html")
        return f"{result.to_html(room)}<p>{html.escape(where)}</p>"

    def _fail(self, message: str) -> None:
        self._page.value = message
