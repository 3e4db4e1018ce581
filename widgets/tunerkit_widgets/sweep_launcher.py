"""Choosing what a sweep varies, and starting it."""

from __future__ import annotations

import contextlib
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tunerkit as tk
from tunerkit import batch
from tunerkit_widgets.guard import ERROR_COLOUR, GOOD_COLOUR, QUIET_COLOUR, guarded
from tunerkit_widgets.surroundings import headless, show
from tunerkit_widgets.sweep_table import SweepTable
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import text

OUTPUT = "output_dir"
NOT_VARIED = (OUTPUT, "language")
"""Parameters that every run has of its own, or that change nothing of it."""
MOST_PARALLEL = 64


class SweepLauncher:
    """A row per parameter of a notebook: tick it, and write the values that runs shall have.

    Args:
        notebook: a notebook with a cell tagged `parameters`.
        output_dir: the sweep's folder; `sweeps/<notebook>` when not given.

    Attributes:
        parameters: the notebook's parameters by name, without those of `NOT_VARIED`.
        fields: (tick box, values, message) of each.
        table: the results.
        widget: what is on the page; None where nobody can click.

    Raises:
        TunerkitError: the notebook cannot be read, or has no parameters.
    """

    def __init__(self, notebook: str | Path, output_dir: str | Path | None = None) -> None:
        self.notebook = Path(notebook)
        found = batch.notebook_parameters(self.notebook)
        self.parameters = {name: parameter for name, parameter in found.items() if name not in NOT_VARIED}
        self._folder = str(output_dir or Path("sweeps", self.notebook.stem))
        self.fields: dict[str, tuple[Any, Any, Any]] = {}
        self.table = SweepTable(self._folder)
        self.widget: Any = None
        if not headless():
            self._build()

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The ticked parameters and their values, unchecked."""
        return {name: values_of(values.value) for name, (tick, values, _) in self.fields.items() if tick.value}

    def check(self) -> Sequence[Any]:
        """Show what is wrong under each field, and how many runs there are; the problems."""
        problems: Sequence[Any] = ()
        runs = 0
        grid = self.grid
        if grid:
            try:
                runs = len(batch.plan_sweep(self.notebook, grid).runs)
            except tk.ConfigError as error:
                problems = error.problems
        for name, (_, _, message) in self.fields.items():
            wrong = [problem for problem in problems if problem.key == f"grid.{name}"]
            message.value = _complaint(wrong) if wrong else self._help(name)
        self._count(grid, runs)
        self.start_button.disabled = not runs
        return problems

    def static(self) -> str:
        """The parameters and their values in the notebook, and the results so far."""
        return f"{table_html(self._rows())}{self.table.static()}"

    def __str__(self) -> str:
        return f"{table_text(self._rows())}\n{self.table}"

    def _ipython_display_(self) -> None:
        if self.widget is None:
            show(self.static(), str(self))
            return
        from IPython.display import display

        display(self.widget)
        self.table.watch()

    def _build(self) -> None:
        import ipywidgets as widgets

        checked = guarded(lambda _: self.check(), self._fail)
        wide = widgets.Layout(width="320px", flex="0 0 auto")  # a long message must not squeeze it
        rows = []
        for name in self.parameters:
            tick = widgets.Checkbox(
                description=name, indent=False, layout=widgets.Layout(width="260px", flex="0 0 auto")
            )
            values = widgets.Text(placeholder=text("sweep.placeholder"), disabled=True, layout=wide)
            values.description = text("sweep.values", name=name)
            values.style.description_width = "0px"  # the label is for screen readers; the tick box shows the name
            message = widgets.HTML(self._help(name))
            self.fields[name] = (tick, values, message)
            tick.observe(guarded(self._ticked, self._fail), "value")
            values.observe(checked, "value")
            rows.append(widgets.HBox([tick, values, message]))
        self.parallel = widgets.BoundedIntText(
            value=1, min=1, max=MOST_PARALLEL, description=text("sweep.parallel"), layout=widgets.Layout(width="220px")
        )
        self.folder = widgets.Text(value=self._folder, description=text("sweep.folder"), layout=wide)
        for control in (self.parallel, self.folder):
            control.style.description_width = "initial"
        self.summary = widgets.HTML()
        self.start_button = widgets.Button(
            description=text("sweep.start"), tooltip=text("sweep.start_help"), icon="play", button_style="primary"
        )
        self.stop_button = widgets.Button(description=text("sweep.stop"), tooltip=text("sweep.stop_help"), icon="stop")
        self.start_button.on_click(guarded(self._start, self._fail))
        self.stop_button.on_click(guarded(self._stop, self._fail))
        self.folder.observe(guarded(self._moved, self._fail), "value")
        buttons = widgets.HBox([self.start_button, self.stop_button])
        self.place = widgets.VBox([self.table.widget])
        options = widgets.HBox([self.folder, self.parallel])
        self.widget = widgets.VBox([*rows, options, self.summary, buttons, self.place])
        self.check()

    def _ticked(self, _: Any) -> None:
        for tick, values, _message in self.fields.values():
            values.disabled = not tick.value
        self.check()

    def _moved(self, _: Any) -> None:
        self.table = SweepTable(self.folder.value)
        self.place.children = (self.table.widget,)

    def _start(self, _: Any) -> None:
        if self.check():
            return
        try:
            batch.start_sweep(self.notebook, self.grid, output_dir=self.table.output_dir, parallel=self.parallel.value)
        except tk.TunerkitError as error:
            self._say(str(error), ERROR_COLOUR)
            return
        self._say(text("sweep.started"), GOOD_COLOUR)
        self.table.watch()

    def _stop(self, _: Any) -> None:
        try:
            batch.stop_sweep(self.table.output_dir)
        except tk.TunerkitError as error:
            self._say(str(error), ERROR_COLOUR)
            return
        self._say(text("sweep.stopping"), QUIET_COLOUR)

    def _count(self, grid: dict[str, list[Any]], runs: int) -> None:
        if not grid:
            self._say(text("sweep.none"), QUIET_COLOUR)
        elif runs == 1:
            self._say(text("sweep.one"), GOOD_COLOUR)
        elif runs:
            product = " × ".join(str(len(values)) for values in grid.values())
            self._say(text("sweep.count", count=runs, product=product), GOOD_COLOUR)
        else:
            self._say("", QUIET_COLOUR)

    def _help(self, name: str) -> str:
        default = self.parameters[name].default
        words = text("sweep.default", value=json.dumps(default))
        return f"<small style='color:{QUIET_COLOUR}'>{html.escape(words)}</small>"

    def _rows(self) -> list[tuple[str, str]]:
        return [(name, json.dumps(parameter.default)) for name, parameter in self.parameters.items()]

    def _say(self, words: str, colour: str) -> None:
        self.summary.value = f"<span role='status' style='color:{colour}'>{html.escape(words)}</span>"

    def _fail(self, message: str) -> None:
        self.summary.value = message


def values_of(words: str) -> list[Any]:
    """The values in a text: `1e-4, 3e-4`, `lora, full`, or as JSON where a text holds commas: `"a cat, asleep"`."""
    with contextlib.suppress(ValueError):
        return json.loads(f"[{words}]")
    return [_value(word.strip()) for word in words.split(",") if word.strip()]


def _value(word: str) -> Any:
    known = {"true": True, "false": False, "none": None, "null": None}
    if word.casefold() in known:
        return known[word.casefold()]
    with contextlib.suppress(ValueError):
        return json.loads(word)
    with contextlib.suppress(ValueError):
        number = float(word)
        return number if math.isfinite(number) else word
    return word


def _complaint(problems: Sequence[Any]) -> str:
    words = " ".join(text("sweep.bad", message=problem.message, fix=problem.fix) for problem in problems[:2])
    return f"<span role='alert' style='color:{ERROR_COLOUR}'>✗ {html.escape(words)}</span>"
