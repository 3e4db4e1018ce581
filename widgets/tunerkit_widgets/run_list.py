"""All runs below a folder: what each does, attach to one, stop one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tunerkit as tk
from tunerkit_widgets.dashboard_run import ENDED, Status
from tunerkit_widgets.dashboard_words import STATES
from tunerkit_widgets.list_rows import UNKNOWN, ago_words, loss_words
from tunerkit_widgets.run_list_view import RunListView
from tunerkit_widgets.surroundings import headless, show_view
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import text

MOST_ROWS = 50
"""Runs shown at most, those that changed last."""


class ListedRun(Protocol):
    """A run, as far as the list needs it."""

    @property
    def output_dir(self) -> Path: ...
    @property
    def config(self) -> Any: ...
    @property
    def status(self) -> Status: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Listed:
    """One run as it was when the list was read.

    Attributes:
        name: its folder below that of the list.
        run: to act on it.
        family: model family; a dash where the settings cannot be read.
        status: what it did.
    """

    name: str
    run: ListedRun
    family: str
    status: Status

    @property
    def over(self) -> bool:
        return self.status.state in ENDED

    def cells(self, now: float) -> tuple[str, ...]:
        """Name, family, state, steps, loss and last change as text; `now` is seconds since 1970."""
        status = self.status
        state = text(STATES[status.state]) if status.state in STATES else status.state
        return (self.name, self.family, state, *self.numbers(now))

    def numbers(self, now: float) -> tuple[str, str, str]:
        """Steps, loss and last change."""
        status = self.status
        total = str(status.total_steps) if status.total_steps else UNKNOWN
        steps = text("runs.steps", step=status.step, total=total)
        return (steps, loss_words(status.loss), ago_words(status.heartbeat, now))


class RunList:
    """A table of runs, the one that changed last on top.

    Args:
        folder: runs at and below it are listed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.chosen: ListedRun | None = None
        """The run that "Attach" was pressed for."""
        self.runs: list[Listed] = []
        self.read()
        self.view = None if headless() else RunListView(self)
        self.widget: Any = None if self.view is None else self.view.widget

    def read(self) -> None:
        """Look at the folder again."""
        found: Sequence[ListedRun] = tk.runs(self.folder)
        listed = [Listed(self._name(run), run, _family(run), run.status) for run in found]
        self.runs = sorted(listed, key=lambda one: one.status.heartbeat or 0.0, reverse=True)

    def named(self, name: str) -> Listed:
        """The run of a name, read anew.

        Raises:
            LookupError: it is not there any more.
        """
        self.read()
        for one in self.runs:
            if one.name == name:
                return one
        raise LookupError(text("runs.gone", name=name))

    def attach(self, name: str) -> str:
        """Set `chosen` to a run, and return the line of code that gives it in a cell.

        Raises:
            LookupError: it is not there any more.
        """
        self.chosen = self.named(name).run
        return f"run = tk.attach({str(self.chosen.output_dir)!r})"

    def stop(self, name: str) -> None:
        """Ask a run to stop after its step.

        Raises:
            LookupError: it is not there any more.
            TunerkitError: as `Run.stop`.
        """
        self.named(name).run.stop()

    # Static ----------------------------------------------------------------------------------------------------

    def head(self) -> tuple[str, ...]:
        return (
            text("runs.name"),
            text("runs.family"),
            text("runs.state"),
            text("runs.step"),
            text("runs.loss"),
            text("runs.changed"),
        )

    def more_words(self) -> str:
        """That older runs are not shown; empty where all are."""
        left = len(self.runs) - MOST_ROWS
        return text("runs.more", count=left) if left > 0 else ""

    def static(self) -> str:
        """The runs as an HTML table."""
        if not self.runs:
            return f"<p>{text('runs.none')}</p>"
        return table_html(self._rows(), self.head()) + self.more_words()

    def __str__(self) -> str:
        if not self.runs:
            return text("runs.none")
        return "\n".join(filter(None, [table_text(self._rows(), self.head()), self.more_words()]))

    def _ipython_display_(self) -> None:
        show_view(self)

    def _rows(self) -> list[tuple[str, ...]]:
        now = time.time()
        return [one.cells(now) for one in self.runs[:MOST_ROWS]]

    def _name(self, run: ListedRun) -> str:
        folder, root = run.output_dir.absolute(), self.folder.absolute()
        inside = folder.is_relative_to(root) and folder != root
        return str(folder.relative_to(root)) if inside else folder.name


def _family(run: ListedRun) -> str:
    try:
        return str(run.config.model_family)
    except (OSError, ValueError, tk.TunerkitError):  # being written, damaged, or of another version
        return UNKNOWN
