"""The widgets of a dashboard."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunerkit_widgets.dashboard_controls import Controls
from tunerkit_widgets.dashboard_preview import PreviewPicture
from tunerkit_widgets.dashboard_run import BROKEN, STARTING, RunReader
from tunerkit_widgets.dashboard_words import (
    chip_html,
    facts,
    facts_html,
    log_html,
    marked_html,
    note_html,
    step_words,
    trouble_html,
)
from tunerkit_widgets.list_rows import LINE_WIDTH
from tunerkit_widgets.loss_plot import DPI, SIZE_INCHES, loss_png
from tunerkit_widgets.texts import text
from tunerkit_widgets.videos import videos_html


class DashboardView:
    """Draws what a reader has read; each part is sent to the page only where it has changed.

    Args:
        reader: of the run.
        changed: called after a click.
    """

    def __init__(self, reader: RunReader, changed: Callable[[], None]) -> None:
        import ipywidgets as widgets

        layout = widgets.Layout
        self._reader = reader
        self.chip = widgets.HTML()
        self.bar = widgets.IntProgress(layout=layout(flex="1 1 160px", min_width="100px", max_width="420px"))
        self.step = widgets.HTML()
        head = widgets.HBox(
            [self.chip, self.bar, self.step], layout=layout(flex_flow="row wrap", align_items="center", grid_gap="10px")
        )
        self.facts = widgets.HTML()
        self.controls = Controls(reader.run, self.fail, changed)
        self.note = widgets.HTML()
        self.warnings = widgets.HTML()
        self.trouble = widgets.HTML()
        self.plot = widgets.Image(
            format="png", layout=layout(width=f"{SIZE_INCHES[0] * DPI:.0f}px", max_width=LINE_WIDTH, display="none")
        )
        self.preview = PreviewPicture(reader.run.output_dir)
        self.videos = widgets.HTML()
        self.log = widgets.HTML()
        # An accordion stays open while its content changes; <details> in the content would be folded by each change.
        self.log_fold = widgets.Accordion([self.log], selected_index=None)
        self.log_fold.set_title(0, text("dashboard.log"))
        self.faults = widgets.HTML()
        self._videos: list[Path] = []
        parts = [head, self.facts, self.controls.widget, self.note, self.warnings, self.trouble, self.faults]
        parts += [self.plot, self.preview.widget, self.videos, self.log_fold]
        self.widget = widgets.VBox(parts)
        self._all = (self.widget, *parts, self.chip, self.bar, self.step, self.log, *self.controls.all_widgets)
        self._all += self.preview.all_widgets

    def draw(self, note: str) -> None:
        """All but plot and log; `note` says whether the view is live."""
        reader, status = self._reader, self._reader.status
        self.chip.value = chip_html(status)
        self.bar.max, self.bar.value = max(1, status.total_steps), reader.step
        self.bar.bar_style = _bar_style(status.state)
        self.step.value = f"<span style='font-variant-numeric:tabular-nums'>{html.escape(step_words(reader))}</span>"
        self.facts.value = facts_html(facts(reader))
        self.controls.update(reader)
        saved = "" if reader.saved_step is None else text("dashboard.saved", step=reader.saved_step)
        self.note.value = note_html([self.controls.waiting, saved])
        self.warnings.value = marked_html([*reader.warnings, note])
        self.trouble.value = trouble_html(reader)
        self.log_fold.layout.display = "none" if status.state in BROKEN else None  # it stands in the error card
        self.preview.draw(reader.preview if status.state == "validating" else None)
        self._draw_videos()

    def draw_plot(self) -> None:
        """The curves, once there is a point of them."""
        history = self._reader.history
        if history.losses or history.evaluations:
            self.plot.value = loss_png(history)
            self.plot.layout.display = None

    def draw_log(self) -> None:
        self.log.value = log_html(self._reader.log, titled=False) or html.escape(text("dashboard.no_log"))

    def fail(self, message: str) -> None:
        """Show the HTML of an error that happened here, and not in the run."""
        self.faults.value = message

    def supersede(self, note: str) -> None:
        """Say that another view has taken over; nothing changes here any more."""
        self.controls.disable()
        self.note.value, self.warnings.value = "", marked_html([note])

    def close(self) -> None:
        """Take all widgets from the page and out of the kernel."""
        for widget in self._all:
            widget.close()

    def _draw_videos(self) -> None:
        paths = [video.path for video in self._reader.videos]
        if paths != self._videos:  # a player that is drawn anew starts anew
            self._videos = paths
            # The class gives the table the distances that it has in the result of a cell, but centres it.
            table = videos_html(self._reader.videos)
            table = f"<div class='jp-RenderedHTMLCommon' style='display:inline-block'>{table}</div>"
            self.videos.value = table if paths else ""


def _bar_style(state: str) -> Any:
    if state in BROKEN:
        return "danger"
    if state == "done":
        return "success"
    return "warning" if state == "paused" else "info" if state in STARTING else ""
