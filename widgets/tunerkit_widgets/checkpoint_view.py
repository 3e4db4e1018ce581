"""The widgets of the checkpoint browser."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunerkit_widgets.guard import ERROR_COLOUR, GOOD_COLOUR
from tunerkit_widgets.list_rows import (
    CHOSEN_COLOUR,
    LINE_WIDTH,
    cells_html,
    click_handler,
    line_layout,
    mark_html,
    scrolling_layout,
    set_visible,
    size_words,
    status_html,
)
from tunerkit_widgets.texts import text

if TYPE_CHECKING:
    from tunerkit_widgets.checkpoint_browser import CheckpointBrowser

WIDTHS = "80px 120px 90px 130px minmax(110px, 1fr)"
NAME_WIDTH = "160px"
FORMATS = ("diffusers", "comfyui")


class CheckpointView:
    """A row per checkpoint, whose button chooses it, and below them what can be done with the chosen one.

    Args:
        browser: does it.
    """

    def __init__(self, browser: CheckpointBrowser) -> None:
        import ipywidgets as widgets

        self._browser, self._widgets = browser, widgets
        self.selected: int | None = None
        """Step of the chosen row."""
        self.choosers: dict[int, Any] = {}
        """The button of each row, by step."""
        self.list = widgets.VBox(layout=scrolling_layout())
        self.total = widgets.HTML()
        self.refresh_button = self._button("refresh", self._refresh, "refresh")
        self.title = widgets.HTML()
        self.resume_button = self._button("resume", self._resume, "play")
        self.value = widgets.Text(description=text("checkpoints.value"), layout=widgets.Layout(width=LINE_WIDTH))
        self.value.style.description_width = "200px"
        self.format = widgets.Dropdown(options=FORMATS, description=text("checkpoints.format"))
        self.export_button = self._button("export", self._export, "upload")
        self.other: Any = widgets.Dropdown(
            options=[(text("checkpoints.base"), 0)], description=text("checkpoints.with")
        )
        self.compare_button = self._button("compare", self._compare, "columns")
        self.delete_button = self._button("delete", self._ask, "trash")
        self.question = widgets.HTML()
        self.confirm_button = self._button("confirm", self._delete, "trash", button_style="danger")
        self.keep_button = self._button("keep", self._keep)
        self.message = widgets.HTML()
        self.gallery = widgets.VBox()
        self._asking = widgets.HBox([self.question, self.confirm_button, self.keep_button])
        self._actions = widgets.VBox(
            [
                self.title,
                self._row(self.resume_button, self.delete_button),
                self._row(self.export_button, self.format),
                self._row(self.compare_button, self.other),
                self._asking,
            ]
        )
        self.widget = widgets.VBox(
            [
                self.list,
                self._row(self.refresh_button, self.total),
                self._actions,
                self.value,
                self.message,
                self.gallery,
            ]
        )
        for dropdown in (self.format, self.other):
            dropdown.style.description_width = "70px"
            dropdown.layout.width = "240px"
        set_visible(self.value, False)
        self.draw()

    def draw(self) -> None:
        """Show the checkpoints as the browser last read them."""
        browser, widgets = self._browser, self._widgets
        found = {one.step: one for one in browser.checkpoints}
        if self.selected not in found:
            self.selected = None
        old = [*self.list.children, *self.choosers.values()]
        self.choosers = {}
        indent = widgets.HTML(layout=widgets.Layout(width=NAME_WIDTH, flex="none"))
        head = widgets.HTML(cells_html([html.escape(cell) for cell in browser.head()[1:]], WIDTHS, head=True))
        rows = [self._line(indent, head)] if found else [widgets.HTML(html.escape(text("checkpoints.none")))]
        rows += [self._checkpoint(one) for one in found.values()]
        self.list.children = rows
        for widget in old:
            widget.close()
        self.total.value = html.escape(browser.total_words())
        self._draw_actions()

    def say(self, words: str, colour: str = "inherit") -> None:
        self.message.value = status_html(words, colour)

    # Parts -----------------------------------------------------------------------------------------------------

    def _button(self, name: str, pressed: Callable[[], None], icon: str = "", **more: Any) -> Any:
        words = {
            "refresh": text("checkpoints.refresh"),
            "resume": text("checkpoints.resume"),
            "export": text("checkpoints.export"),
            "compare": text("checkpoints.compare"),
            "delete": text("checkpoints.delete"),
            "confirm": text("checkpoints.confirm"),
            "keep": text("checkpoints.keep"),
        }[name]
        button = self._widgets.Button(description=words, icon=icon, **more)
        button.layout.width = "auto"
        button.layout.min_width = "130px"
        button.on_click(click_handler(pressed, self._refused, self._fail))
        return button

    def _row(self, *parts: Any) -> Any:
        return self._widgets.HBox(list(parts), layout=self._widgets.Layout(flex_flow="row wrap", align_items="center"))

    def _line(self, first: Any, cells: Any) -> Any:
        cells.layout.flex = "1 1 auto"
        cells.layout.margin = "0 0 0 10px"
        return self._widgets.HBox([first, cells], layout=line_layout())

    def _checkpoint(self, one: Any) -> Any:
        browser, chosen = self._browser, one.step == self.selected
        button = self._widgets.Button(
            description=text("checkpoints.name", step=one.step),
            tooltip=text("checkpoints.choose", step=one.step),
            button_style="info" if chosen else "",
            icon="check" if chosen else "",
            layout=self._widgets.Layout(width=NAME_WIDTH, flex="none"),
        )
        button.on_click(click_handler(lambda: self._choose(one.step), self._refused, self._fail))
        self.choosers[one.step] = button
        cells = [html.escape(cell) for cell in browser.cells(one)[1:-1]]
        final, best = text("checkpoints.final"), text("checkpoints.best")
        colours = {best: GOOD_COLOUR, final: CHOSEN_COLOUR}
        marks = "".join(mark_html(mark, colours[mark]) for mark in browser.marks(one))
        return self._line(button, self._widgets.HTML(cells_html([*cells, marks], WIDTHS)))

    def _draw_actions(self) -> None:
        set_visible(self._actions, self.selected is not None)
        set_visible(self._asking, False)
        if self.selected is None:
            return
        self.title.value = f"<b>{html.escape(text('checkpoints.name', step=self.selected))}</b>"
        others = [(text("checkpoints.base"), 0)]
        others += [(str(one.step), one.step) for one in self._browser.checkpoints if one.step != self.selected]
        kept = self.other.value
        self.other.options = others
        if kept in {step for _, step in others}:
            self.other.value = kept

    # Clicks ----------------------------------------------------------------------------------------------------

    def _refused(self, message: str) -> None:
        self._browser.read()
        self.draw()
        self.say(message, ERROR_COLOUR)

    def _fail(self, message: str) -> None:
        self.message.value = message

    def _step(self) -> int:
        if self.selected is None:
            raise LookupError(text("checkpoints.choose_first"))
        return self.selected

    def _choose(self, step: int) -> None:
        self._browser.at(step)
        self.selected = step
        self.message.value = ""
        self.draw()

    def _refresh(self) -> None:
        self._browser.read()
        self.message.value = ""
        self.draw()

    def _resume(self) -> None:
        self.value.value = self._browser.resume_from(self._step())
        set_visible(self.value, True)
        self.say(text("checkpoints.resume_help"))

    def _export(self) -> None:
        step, format = self._step(), str(self.format.value)
        self.say(text("checkpoints.exporting", step=step))
        self.export_button.disabled = True
        try:
            path = self._browser.export(step, format)
        except Exception:
            self.message.value = ""
            raise
        finally:
            self.export_button.disabled = False
        self.say(text("checkpoints.exported", path=path), GOOD_COLOUR)

    def _compare(self) -> None:
        own = self._browser.gallery is None
        self.say(self._browser.compare(self._step(), self.other.value))
        gallery = self._browser.gallery
        if own and gallery is not None and gallery.widget is not None:
            self.gallery.children = [gallery.widget]

    def _ask(self) -> None:
        found = self._browser.at(self._step())
        self.question.value = html.escape(text("checkpoints.ask", step=found.step, size=size_words(found.size_bytes)))
        set_visible(self._asking, True)

    def _keep(self) -> None:
        set_visible(self._asking, False)

    def _delete(self) -> None:
        step = self._step()
        freed = self._browser.delete(step)
        self.value.value = self._browser.chosen or ""
        set_visible(self.value, bool(self._browser.chosen))
        self.draw()
        self.say(text("checkpoints.deleted", step=step, size=size_words(freed)), GOOD_COLOUR)
