"""The widgets of the list of runs."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tunerkit as tk
from tunerkit_widgets.dashboard_words import chip_html
from tunerkit_widgets.guard import ERROR_COLOUR
from tunerkit_widgets.list_rows import (
    LINE_WIDTH,
    cells_html,
    click_handler,
    line_layout,
    scrolling_layout,
    set_visible,
    status_html,
)
from tunerkit_widgets.texts import text

if TYPE_CHECKING:
    from tunerkit_widgets.run_list import Listed, RunList

WIDTHS = "minmax(110px, 2fr) minmax(90px, 1fr) minmax(110px, 1.3fr) 100px 70px 90px"
BUTTONS_WIDTH = "184px"


class RunListView:
    """A row per run with its buttons; below them the question before a stop, and the line of code after "Attach".

    Args:
        runs: the list that is shown, and that acts.
    """

    def __init__(self, runs: RunList) -> None:
        import ipywidgets as widgets

        self._runs, self._widgets = runs, widgets
        self.buttons: dict[str, tuple[Any, Any]] = {}
        """The buttons "Attach" and "Stop" of each run, by its name."""
        self._asked = ""
        self.list = widgets.VBox(layout=scrolling_layout())
        self.more = widgets.HTML()
        self.refresh_button = self._button(text("runs.refresh"), self._refresh, icon="refresh", width="130px")
        self.question = widgets.HTML()
        self.confirm_button = self._button(text("runs.confirm"), self._stop, button_style="danger", width="130px")
        self.keep_button = self._button(text("runs.keep"), self._keep, width="130px")
        self._asking = widgets.HBox([self.question, self.confirm_button, self.keep_button])
        self.code = widgets.Text(description=text("runs.code"), layout=widgets.Layout(width=LINE_WIDTH))
        self.message = widgets.HTML()
        bottom = widgets.HBox([self.refresh_button, self.more], layout=widgets.Layout(align_items="center"))
        self.widget = widgets.VBox([self.list, bottom, self._asking, self.code, self.message])
        set_visible(self._asking, False)
        set_visible(self.code, False)
        self.draw()

    def draw(self) -> None:
        """Show the runs as they were last read."""
        from tunerkit_widgets.run_list import MOST_ROWS

        old = [*self.list.children, *(button for pair in self.buttons.values() for button in pair)]
        self.buttons = {}
        head = self._widgets.HTML(cells_html([html.escape(cell) for cell in self._runs.head()], WIDTHS, head=True))
        indent = self._widgets.HTML(layout=self._widgets.Layout(width=BUTTONS_WIDTH, flex="none"))
        none = self._widgets.HTML(html.escape(text("runs.none")))
        rows = [self._line(head, indent)] if self._runs.runs else [none]
        self.list.children = rows + [self._run(one) for one in self._runs.runs[:MOST_ROWS]]
        for widget in old:
            widget.close()
        self.more.value = html.escape(self._runs.more_words())

    def say(self, words: str, colour: str = "inherit") -> None:
        self.message.value = status_html(words, colour)

    # Parts -----------------------------------------------------------------------------------------------------

    def _button(self, words: str, pressed: Callable[[], None], *, width: str = "90px", **more: Any) -> Any:
        button = self._widgets.Button(description=words, layout=self._widgets.Layout(width=width, flex="none"), **more)
        button.on_click(click_handler(pressed, self._refused, self._fail))
        return button

    def _line(self, cells: Any, *rest: Any) -> Any:
        cells.layout.flex = "1 1 auto"
        return self._widgets.HBox([cells, *rest], layout=line_layout())

    def _run(self, one: Listed) -> Any:
        name = f"<b>{html.escape(one.name)}</b>"
        numbers = [html.escape(cell) for cell in one.numbers(time.time())]
        cells = cells_html([name, html.escape(one.family), chip_html(one.status), *numbers], WIDTHS)
        attach = self._button(
            text("runs.attach"), lambda: self._attach(one.name), tooltip=text("runs.attach_help", name=one.name)
        )
        stop = self._button(
            text("runs.stop"), lambda: self._ask(one.name), tooltip=text("runs.stop_help", name=one.name)
        )
        stop.disabled = one.over
        self.buttons[one.name] = (attach, stop)
        return self._line(self._widgets.HTML(cells), attach, stop)

    # Clicks ----------------------------------------------------------------------------------------------------

    def _refused(self, message: str) -> None:
        try:
            self._runs.read()
        except tk.TunerkitError:  # the folder itself is gone, which the message says
            self._runs.runs = []
        self.draw()
        self.say(message, ERROR_COLOUR)

    def _fail(self, message: str) -> None:
        self.message.value = message

    def _refresh(self) -> None:
        self._runs.read()
        self.message.value = ""
        self.draw()

    def _attach(self, name: str) -> None:
        self.code.value = self._runs.attach(name)
        set_visible(self.code, True)
        self.say(text("runs.attached"))

    def _ask(self, name: str) -> None:
        self._asked = name
        self.question.value = html.escape(text("runs.ask", name=name))
        set_visible(self._asking, True)

    def _keep(self) -> None:
        set_visible(self._asking, False)

    def _stop(self) -> None:
        set_visible(self._asking, False)
        self._runs.stop(self._asked)
        self._refresh()
        self.say(text("runs.stopping", name=self._asked))
