"""A training that runs in a process of its own, as it is: state, curves, videos and buttons.

    run = tk.start(config)
    await tw.follow(run)

The dashboard only reads the run's folder and its buttons only write there, so every notebook can attach to every run.
"""

from __future__ import annotations

import html
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Protocol

import tunerkit as tk
from tunerkit_widgets.dashboard_plain import PlainLines
from tunerkit_widgets.dashboard_run import BROKEN, ENDED, RunReader, Status, WatchedRun
from tunerkit_widgets.dashboard_view import DashboardView
from tunerkit_widgets.dashboard_words import (
    attach_words,
    chip_html,
    closing_words,
    facts,
    marked_html,
    progress_line,
    step_words,
    trouble_html,
)
from tunerkit_widgets.guard import guarded
from tunerkit_widgets.loss_plot import loss_png
from tunerkit_widgets.previews import data_uri
from tunerkit_widgets.surroundings import headless, show, show_widget
from tunerkit_widgets.tables import table_html
from tunerkit_widgets.texts import text
from tunerkit_widgets.throttle import Throttle
from tunerkit_widgets.videos import videos_html

EVERY_SECONDS = 0.25
"""How often the run's folder is looked at."""
LOGS_PER_SECOND = 1.0
PLOT_SHARE = 0.25
"""Part of the time that drawing the curves may take: nothing else is done in the kernel meanwhile."""


class Superseded(Exception):  # noqa: N818 - not an error: a newer view of the run has taken over
    """This view follows its run no longer."""


class TrainingDashboard:
    """Where a run stands, with buttons to control it.

    Shown by itself it is a picture of one moment; `follow` keeps it up to date. When the run ends while it is
    followed, the widgets give way to HTML that a saved notebook keeps.

    Args:
        run: as from `tk.start` or `tk.attach`.
        plan: as from `tk.plan`, to show its memory beside what the run takes.

    Attributes:
        widget: None where nobody can click.
    """

    def __init__(self, run: WatchedRun, plan: tk.Plan | None = None) -> None:
        self.run = run
        self.reader = RunReader(run, plan)
        self._live = self._superseded = False
        self._handles: list[Any] = []
        self._view: DashboardView | None = None
        # Clicks come in another thread on some kernels.
        self._lock = threading.RLock()
        if headless():
            return
        self._view = DashboardView(self.reader, self._clicked)
        draw, draw_plot, draw_log = (
            guarded(action, self._view.fail) for action in (self._draw, self._view.draw_plot, self._view.draw_log)
        )
        # Not by the throttles: the first drawing takes long, for matplotlib is loaded, and they would rest accordingly.
        draw(self.reader.status)
        draw_plot()
        draw_log()
        self._show = Throttle(draw)
        self._show_plot = Throttle(draw_plot, share=PLOT_SHARE)
        self._show_log = Throttle(draw_log, per_second=LOGS_PER_SECOND)

    @property
    def widget(self) -> Any:
        return self._view.widget if self._view else None

    def static(self) -> str:
        """The state as it is now, as HTML that needs no widgets, no files and no addresses."""
        with self._lock:
            if not self._superseded:
                self.reader.read()
            reader = self.reader
            rows = [
                (fact.label, f"{fact.value} ({fact.details})" if fact.details else fact.value) for fact in facts(reader)
            ]
            words = [step_words(reader)]
            if reader.status.state in ENDED - BROKEN:
                words += closing_words(reader).splitlines()
            lines = "<br>".join(html.escape(line) for line in words)
            plot = ""
            if reader.history.losses or reader.history.evaluations:
                address = data_uri(loss_png(reader.history), "image/png")
                label = html.escape(text("dashboard.plot", line=progress_line(reader)), quote=True)
                plot = f"<img src='{address}' alt='{label}'>"
            videos = videos_html(reader.videos) if reader.videos else ""
            card = trouble_html(reader) + marked_html(reader.warnings)
            return f"<div>{chip_html(reader.status)}<p>{lines}</p>{card}{table_html(rows)}{plot}{videos}</div>"

    def __str__(self) -> str:
        if self.reader.status.state in ENDED:
            return f"{progress_line(self.reader)}\n{closing_words(self.reader)}"
        return progress_line(self.reader)

    def _ipython_display_(self) -> None:
        if self._view is None:
            show(self.static(), str(self))
            return
        self._handles.append(show_widget(self._view.widget, str(self)))

    # Following -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Show the dashboard, and be the only one of this kernel that follows the run."""
        key = Path(self.run.output_dir).resolve()
        earlier = _following.get(key)
        if earlier is not None and earlier is not self:
            earlier._supersede()
        _following[key] = self
        with self._lock:
            self._live = True
            self._ipython_display_()
            self._update()

    def tick(self, status: Status) -> None:
        """Take in and show what is new, not too often.

        Raises:
            Superseded: a newer view of the run has taken over.
        """
        with self._lock:
            if self._superseded:
                raise Superseded
            if self._view is None:
                return
            if status.state != self._shown_state:
                self._update(status)  # at once: a state may be the last news for a long time
            self._show(status)
            self._show_plot()
            self._show_log()

    def close(self) -> None:
        """Show the end of the run for good; or say how to follow it again, if it goes on."""
        with self._lock:
            if self._superseded:
                return
            self._live = False
            self._update()
            if self._view is not None and self.reader.status.state in ENDED:
                guarded(self._freeze, self._view.fail)()

    def _update(self, status: Status | None = None) -> None:
        """Read and show everything now."""
        if self._view is None:
            return
        self._show(status)
        self._show.flush()
        for throttle in (self._show_plot, self._show_log):
            throttle()
            throttle.flush()

    def _draw(self, status: Status | None) -> None:
        assert self._view is not None
        self.reader.read(status)
        self._shown_state = self.reader.status.state
        self._view.draw(self._note())

    def _clicked(self) -> None:
        with self._lock:
            if not self._superseded and self._view is not None:
                self._view.fail("")
                self._update()

    def _note(self) -> str:
        if self._live or self.reader.status.state in ENDED:
            return ""
        now = time.strftime("%H:%M:%S")
        return text("dashboard.not_live", time=now, attach=attach_words(self.run.output_dir))

    def _supersede(self) -> None:
        with self._lock:
            self._superseded, self._live = True, False
            if self._view is not None:
                self._view.supersede(text("dashboard.superseded"))

    def _freeze(self) -> None:
        """Put HTML in the place of the widgets, which a saved notebook would lose."""
        if self._view is None or not self._handles:
            return  # part of somebody's own layout
        final = {"text/html": self.static(), "text/plain": str(self)}
        for handle in self._handles:
            handle.update(final, raw=True)
        self._view.close()
        self._view = None


_following: weakref.WeakValueDictionary[Path, TrainingDashboard] = weakref.WeakValueDictionary()
"""By output folder: a cell that is run again must not leave its old view changing."""


class Follower(Protocol):
    """What is told of a run that is followed."""

    def open(self) -> None: ...
    def tick(self, status: Status) -> None: ...
    def close(self) -> None: ...


def _follower(run: WatchedRun, plan: tk.Plan | None) -> Follower:
    return PlainLines(run, plan=plan) if headless() else TrainingDashboard(run, plan)


async def follow(run: WatchedRun, plan: tk.Plan | None = None) -> None:
    """Show a run until it ends: `await tw.follow(run)` in a cell, where the buttons work meanwhile.

    An interrupt ends the view and not the training. Where nobody can click, plain lines are printed, then the curves
    and the last videos.

    Args:
        run: as from `tk.start` or `tk.attach`.
        plan: as from `tk.plan`, to show its memory beside what the run takes.

    Raises:
        RunFailedError: the training failed or its process died.
    """
    follower = _follower(run, plan)
    follower.open()
    try:
        await run.finished(on_change=follower.tick, every=EVERY_SECONDS)
    except Superseded:
        return
    except tk.RunFailedError as error:
        raise _shortened(error) from None
    finally:
        follower.close()


def follow_blocking(run: WatchedRun, plan: tk.Plan | None = None) -> None:
    """As `follow`, for programs and cells without `await`; there the buttons work only on some kernels.

    Raises:
        RunFailedError: the training failed or its process died.
    """
    follower = _follower(run, plan)
    follower.open()
    try:
        while (status := run.status).state not in ENDED:
            follower.tick(status)
            time.sleep(EVERY_SECONDS)
    except Superseded:
        return
    except KeyboardInterrupt as error:
        _show_instead_of_traceback(error, text("dashboard.detached", attach=attach_words(run.output_dir)))
        raise
    finally:
        follower.close()
    if status.state in BROKEN:
        raise _shortened(tk.RunFailedError(status, run.output_dir))  # type: ignore[arg-type] # or what does for it


def _shortened(error: tk.RunFailedError) -> tk.RunFailedError:
    """The error with its first line alone below the dashboard, whose card has the rest."""
    if not headless():
        _show_instead_of_traceback(error, str(error).partition("\n")[0])
    return error


def _show_instead_of_traceback(error: BaseException, message: str) -> None:
    """What IPython shows of an exception."""
    error._render_traceback_ = lambda: [message]  # type: ignore[attr-defined]
