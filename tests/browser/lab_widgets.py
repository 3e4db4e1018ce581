"""The widgets on a page, each with what can be done with it there and what its folder must show afterwards."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tunerkit as tk

from .lab_notebook import LabNotebook

if TYPE_CHECKING:
    from playwright.sync_api import Locator

STILL_SECONDS = 0.7
"""How long a paused training is watched; a step takes less than a tenth of it."""

UNNAMED = re.compile(
    r"^\s*- (?:button|slider|combobox|textbox|searchbox|checkbox|spinbutton|option)(?! \")", re.MULTILINE
)


class Widget:
    """What a code cell shows.

    Args:
        notebook: open.
        cell: number of the code cell.
    """

    def __init__(self, notebook: LabNotebook, cell: int) -> None:
        self.notebook, self.cell = notebook, cell
        self.box: Locator = notebook.code_cell(cell).locator(".jp-Cell-outputArea")

    def role(self, role: Any, name: str) -> Locator:
        """The first control with this role and name, as a screen reader finds it; an icon is a sign before the name."""
        return self.box.get_by_role(role, name=re.compile(rf"^\W*{re.escape(name)}$")).first

    def click(self, name: str) -> None:
        """Click the button of this name as soon as it is enabled."""
        self.role("button", name).click()

    def unnamed(self) -> list[str]:
        """The controls that a screen reader has no name for."""
        return UNNAMED.findall(self.box.aria_snapshot())

    def unreached(self, root: str) -> list[str]:
        """The controls in the element `root` that Tab does not come to, beginning from the first."""
        box = self.box.locator(root)
        reached = box.evaluate(MARK_CONTROLS)
        for _ in range(reached + 5):
            if not box.evaluate(MARK_FOCUSED):
                break
            self.notebook.page.keyboard.press("Tab")
        return box.evaluate(UNMARKED)


CONTROLS = "button, input, select, textarea, summary, [tabindex]"
MARK_CONTROLS = f"""root => {{
  const all = [...root.querySelectorAll('{CONTROLS}')].filter(one =>
    one.checkVisibility({{ visibilityProperty: true }}) && !one.disabled && one.tabIndex >= 0);
  all.forEach(one => {{ one.dataset.tab = 'unreached'; }});
  all[0].focus();
  return all.length;
}}"""
MARK_FOCUSED = """root => {
  const focused = document.activeElement;
  if (!root.contains(focused)) return false;
  focused.dataset.tab = 'reached';
  return true;
}"""
UNMARKED = "root => [...root.querySelectorAll('[data-tab=unreached]')].map(one => one.outerHTML.slice(0, 160))"


class Dashboard(Widget):
    """The dashboard, and its run as its folder shows it.

    Args:
        notebook: open.
        cell: number of the code cell.
        run: attached by the test itself.
    """

    def __init__(self, notebook: LabNotebook, cell: int, run: tk.Run) -> None:
        super().__init__(notebook, cell)
        self.run = run

    @property
    def busy(self) -> bool:
        """Whether the cell goes on."""
        return self.notebook.cells()[self.cell]["count"] is None

    def steps(self) -> int:
        """Steps that the run has done."""
        return max((row["step"] for row in self.run.metrics()), default=0)

    def wait_state(self, words: str, seconds: float = 30) -> None:
        """Wait until the state chip says so."""
        chip = self.box.get_by_role("status").filter(has_text=re.compile(rf"^\s*{words}\s*$"))
        chip.first.wait_for(timeout=1000 * seconds)

    def wait_live(self, seconds: float = 60) -> None:
        """Wait until the page shows the training, and more steps of it than at first."""
        words = self.box.get_by_text(re.compile(r"step \d+ of \d+")).first
        words.wait_for(timeout=1000 * seconds)
        first = words.inner_text()
        wait_until(lambda: words.inner_text() != first, seconds)

    def pause_and_resume(self) -> None:
        """By clicks in the cell that is busy: the steps stand still, then go on."""
        self.click("Pause")
        self.wait_state("paused")
        steps = self.steps()
        time.sleep(STILL_SECONDS)
        assert self.steps() == steps
        assert self.busy
        self.click("Resume")
        self.wait_state("training")
        wait_until(lambda: self.steps() > steps)
        assert self.busy

    def stop(self) -> None:
        """By a click and its confirmation; waits until the cell is done."""
        self.click("Stop")
        self.click("Stop training")
        self.wait_state("stopped")
        wait_until(lambda: not self.busy)
        assert self.run.status.state == "stopped"


class Gallery(Widget):
    """A gallery whose videos all have the same length and are in sight."""

    def wait_ready(self, players: int, seconds: float = 30) -> None:
        """Wait until so many players have a picture."""
        wait_until(lambda: len(self.times()) == players, seconds)

    def states(self) -> list[dict[str, Any]]:
        """Of each player that has a picture: time in seconds, muted, width, height; all at one moment."""
        return [state for state in self.box.evaluate(PLAYERS) if state["ready"] >= 2 and not state["seeking"]]

    def times(self) -> list[float]:
        return [state["time"] for state in self.states()]

    def scrub(self, frame: int) -> None:
        """Move the slider of all players; `frame` from 0."""
        self.role("slider", "Frame of all players").fill(str(frame))

    def wait_at(self, seconds: float, within: float, players: int) -> None:
        """Wait until all players stand at this time.

        Raises:
            TimeoutError: with where they are.
        """
        there = lambda: [abs(time - seconds) <= within for time in self.times()] == [True] * players  # noqa: E731
        wait_until(there, 10, self.times)

    def heard(self) -> int:
        """Players whose sound is on."""
        return sum(not state["muted"] for state in self.states())


PLAYERS = """box => [...box.querySelectorAll('video')].map(video => ({
  time: video.currentTime, muted: video.muted, width: video.videoWidth, height: video.videoHeight,
  ready: video.readyState, seeking: video.seeking,
}))"""


def wait_until(true: Callable[[], bool], seconds: float = 30, what: Callable[[], object] | None = None) -> None:
    """Wait for something that the page does not tell of.

    Args:
        true: asked again and again.
        seconds: at most.
        what: for the message, what is there instead.

    Raises:
        TimeoutError: it did not come true.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not in {seconds} s; instead: {what() if what else 'nothing'}")
        time.sleep(0.05)
