"""The buttons that tell a run what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunerkit_widgets.dashboard_run import ENDED, STARTING, RunReader, WatchedRun
from tunerkit_widgets.guard import guarded
from tunerkit_widgets.texts import text

WORKING = frozenset({"running", "validating", "saving"})


@dataclass(frozen=True)
class Command:
    """One button: the keys of its texts, its icon, and the states in which it makes sense."""

    label: str
    help: str
    asked: str
    icon: str
    states: frozenset[str]


COMMANDS = {
    "pause": Command("dashboard.pause", "dashboard.pause_help", "dashboard.pause_asked", "pause", WORKING),
    "resume": Command(
        "dashboard.resume", "dashboard.resume_help", "dashboard.resume_asked", "play", frozenset({"paused"})
    ),
    "stop": Command(
        "dashboard.stop", "dashboard.stop_help", "dashboard.stop_asked", "stop", WORKING | STARTING | {"paused"}
    ),
    "save_now": Command(
        "dashboard.save", "dashboard.save_help", "dashboard.save_asked", "save", frozenset({"running", "paused"})
    ),
    "validate_now": Command(
        "dashboard.validate",
        "dashboard.validate_help",
        "dashboard.validate_asked",
        "film",
        frozenset({"running", "paused"}),
    ),
}
"""By the method of the run."""


class Controls:
    """Pause, Resume, Stop, Save now and Validate now; Stop asks once more, in the place of the buttons.

    Args:
        run: what the buttons act on. They only write its control file.
        report: puts the HTML of an error where the user looks.
        changed: called after a click, to draw what came of it.
    """

    def __init__(self, run: WatchedRun, report: Callable[[str], None], changed: Callable[[], None]) -> None:
        import ipywidgets as widgets

        self._run, self._changed = run, changed
        self._asked: tuple[str, int] | None = None  # the last command, and the newest event when it was given
        self._event = 0
        self._sure = False
        self.buttons = {
            name: widgets.Button(description=text(command.label), tooltip=text(command.help), icon=command.icon)
            for name, command in COMMANDS.items()
        }
        for button in self.buttons.values():
            button.layout.width = "auto"
        self.question = widgets.HTML(f"<span role='alert'>{text('dashboard.sure')}</span>")
        self.confirm = widgets.Button(description=text("dashboard.confirm"), icon="stop", button_style="danger")
        self.keep = widgets.Button(description=text("dashboard.keep"), tooltip=text("dashboard.keep_help"))
        self.confirm.tooltip = text("dashboard.stop_help")
        self.confirm.layout.width = self.keep.layout.width = "auto"
        wrapping = widgets.Layout(flex_flow="row wrap", align_items="center")
        self._usual = tuple(self.buttons.values())
        self._doubt = (self.question, self.confirm, self.keep)
        self.widget = widgets.HBox(self._usual, layout=wrapping)

        for name, button in self.buttons.items():
            ask = self._ask if name == "stop" else self._send
            button.on_click(guarded(self._clicked(ask, name), report))
        self.confirm.on_click(guarded(self._clicked(self._send, "stop"), report))
        self.keep.on_click(guarded(self._clicked(self._turn_back, ""), report))

    @property
    def all_widgets(self) -> tuple[Any, ...]:
        """Every widget, those that are not shown at present too."""
        return (self.widget, *self._usual, *self._doubt)

    def update(self, reader: RunReader) -> None:
        """Enable the buttons that make sense in the run's state."""
        state = self.state = reader.status.state
        self._event = reader.event
        if self._asked and self._answered(*self._asked):
            self._asked = None
        if state in ENDED:
            self._sure = False
        for name, button in self.buttons.items():
            waiting = self._asked is not None and self._asked[0] == name
            button.disabled = waiting or state not in COMMANDS[name].states
        self.buttons["validate_now"].layout.display = None if reader.renders else "none"
        shown = self._doubt if self._sure else self._usual
        if self.widget.children != shown:
            self.widget.children = shown

    @property
    def waiting(self) -> str:
        """What was asked for and has not happened yet; empty if nothing."""
        return text(COMMANDS[self._asked[0]].asked) if self._asked else ""

    def disable(self) -> None:
        """For good: the run is controlled from elsewhere."""
        self.widget.children = self._usual
        for button in self.buttons.values():
            button.disabled = True

    def _clicked(self, action: Callable[[str], None], name: str) -> Callable[[Any], None]:
        def clicked(_: Any) -> None:
            action(name)
            self._changed()

        return clicked

    def _ask(self, _: str) -> None:
        self._sure = True

    def _turn_back(self, _: str) -> None:
        self._sure = False

    def _send(self, name: str) -> None:
        self._sure = False
        getattr(self._run, name)()
        self._asked = (name, self._event)

    def _answered(self, name: str, event: int) -> bool:
        if name == "pause":
            return self.state in ENDED | {"paused"}
        if name == "resume":
            return self.state != "paused"
        return self.state in ENDED or (name != "stop" and self._event > event)
