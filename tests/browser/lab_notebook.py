"""One notebook in the browser: run it, look at it, click and type in it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from . import page_scripts as scripts

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Error, Locator, Page, Request, Response

    from .lab_server import LabServer

SETTLE_SECONDS = 0.5
MARGIN = 150
"""Pixels around the notebook: menu, tabs, status."""
TALLEST = 12_000
"""Pixels of a picture; Chromium draws nothing beyond about 16,000."""

HARMLESS = (
    r"favicon",
    r"ResizeObserver loop",
    r"net::ERR_ABORTED",
    r"Canceled future for \w+ message",  # a restart of a kernel that is busy
    r"Failed to load resource.*40[34].*/(api/me|workspaces|lsp/status|custom\.css)",
)
"""Complaints of JupyterLab itself with any notebook, as patterns."""


@dataclass(frozen=True)
class Video:
    """A `<video>` of the page, after it was played.

    Attributes:
        source: how its address begins.
        label: what a screen reader says.
        width, height: pixels of the film; 0 where nothing was decoded.
        seconds: length; 0 where it is not known.
        ready: HTMLMediaElement.readyState; from 2 on there is a picture.
        moves: its time went on.
        error: the browser's words; empty where there was none.
    """

    source: str
    label: str
    width: int
    height: int
    seconds: float
    ready: int
    moves: bool
    error: str

    @property
    def plays(self) -> bool:
        return self.moves and self.ready >= 2 and self.width > 0 and not self.error


class LabNotebook:
    """A notebook in a tab.

    Fields are found by their label as a screen reader finds them, and Playwright clicks neither what is covered nor
    what is disabled: a field without a name, or a button under another element, fails a test.

    Args:
        page: an empty tab.
        server: serves the notebook.
        name: its path below the server's root.

    Attributes:
        errors: what the page complained of since it was opened: uncaught errors, console errors, answers from 500 on.
        outside: addresses that the page asked for and that are not the server's.
    """

    def __init__(self, page: Page, server: LabServer, name: str) -> None:
        self.page, self.name = page, name
        self.errors: list[str] = []
        self.outside: list[str] = []
        self._server = server
        page.on("console", self._on_console)
        page.on("pageerror", self._on_error)
        page.on("response", self._on_response)
        page.on("request", self._on_request)
        page.on("dialog", lambda dialog: dialog.accept())  # leaving a page that is not saved

    # Open, run, restart ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Load the page and wait until its kernel takes requests."""
        address = f"{self._server.url}/lab/tree/{quote(self.name)}?reset&token={self._server.token}"
        self.page.goto(address)
        self._wait_loaded()

    def reload(self, *, busy: bool = False) -> None:
        """Load the page again, as with F5; what was not saved is lost, the kernel goes on.

        Args:
            busy: the kernel works, and is not waited for.
        """
        self.page.reload()
        self._wait_loaded(busy)

    def run_all(self, seconds: float = 120) -> None:
        """Run all cells and wait for the end of the last.

        Raises:
            TimeoutError: they were not done in time.
        """
        self.start_all()
        self.wait_done(seconds)

    def start_all(self) -> None:
        """Run all cells; returns at once."""
        self._start("notebook:run-all-cells")

    def wait_done(self, seconds: float = 120) -> None:
        """Wait until the cells that were started are done and the kernel rests."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

        try:
            self.page.wait_for_function(scripts.COMMAND_DONE, timeout=1000 * seconds, polling=100)
            self._wait_ready()
        except PlaywrightTimeoutError:
            running = [number for number, cell in enumerate(self.cells()) if cell["count"] is None]
            raise TimeoutError(f"not done after {seconds} s; code cells not done: {running}") from None

    def restart_kernel(self) -> None:
        """A new kernel, by the menu's command and its question."""
        self._start("kernelmenu:restart")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.wait_done(60)

    def save(self) -> Path:
        """Save it; the file."""
        self._start("docmanager:save")
        self.page.wait_for_function(scripts.COMMAND_DONE)
        self.page.wait_for_function(scripts.IS_SAVED)
        return self._server.root / self.name

    # Look ------------------------------------------------------------------------------------------------------

    def cells(self) -> list[dict[str, Any]]:
        """Code cells in order: `count` (None while not done) and `outputs`, each with `kind` and `text`."""
        return self.page.evaluate(scripts.CELLS)

    def failed_cells(self) -> dict[int, str]:
        """Number of the code cell -> error with traceback; a cell that did not run counts as failed."""
        failed = {}
        for number, cell in enumerate(self.cells()):
            errors = [output["text"] for output in cell["outputs"] if output["kind"] == "error"]
            if errors or cell["count"] is None:
                failed[number] = "\n".join(errors) or "was not run"
        return failed

    def text(self) -> str:
        """All that the outputs show."""
        with self._unskipped():
            return "\n".join(self.page.locator(".jp-Notebook .jp-OutputArea-output").all_inner_texts())

    def videos(self, seconds: float = 15) -> list[Video]:
        """Play every video; each has so many seconds to show that it moves."""
        return [Video(**state) for state in self.page.evaluate(scripts.VIDEO_STATES, seconds)]

    def picture(self, path: Path, *, dark: bool = False, cell: int | None = None) -> Path:
        """Save a picture of the whole notebook, or of one code cell, in the light or the dark theme."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        assert size is not None
        self._theme(dark)
        with self._unskipped():
            height = min(TALLEST, self.page.evaluate(scripts.HEIGHT) + MARGIN)
            self.page.set_viewport_size({"width": size["width"], "height": height})
            self.page.wait_for_timeout(300)
            self.page.evaluate(scripts.HEIGHT)
            shown = self.page if cell is None else self.code_cell(cell)
            shown.screenshot(path=path)
        self.page.set_viewport_size(size)
        self._theme(False)
        return path

    # Do --------------------------------------------------------------------------------------------------------

    def code_cell(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def field(self, label: str) -> Locator:
        """The control with this label, in an output."""
        return self.page.locator(".jp-Notebook .jp-OutputArea").get_by_label(label, exact=True).first

    def field_text(self, label: str) -> str:
        """Label, value and message: all that is written in the box around a field."""
        field = self.field(label)
        field.scroll_into_view_if_needed()
        return field.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][1]").inner_text()

    def set(self, label: str, value: object) -> None:
        """Type into a field and leave it, choose the entry of a list by its name, or tick a box (True or False)."""
        field = self.field(label)
        field.scroll_into_view_if_needed()
        if isinstance(value, bool):
            field.set_checked(value)
        elif field.evaluate("element => element.tagName") == "SELECT":
            field.select_option(label=str(value))
        else:
            field.fill(str(value))
            field.press("Tab")

    def value(self, label: str) -> str:
        """What stands in a field; of a list, the name of the chosen entry."""
        script = "field => field.tagName === 'SELECT' ? field.selectedOptions[0].label : field.value"
        return self.field(label).evaluate(script)

    def button(self, description: str) -> Locator:
        """The button with these words on it, or with this name for screen readers."""
        words = re.compile(rf"^\s*{re.escape(description)}\s*$")
        buttons = self.page.locator(".jp-Notebook .jp-OutputArea button")
        named = self.page.locator(f'.jp-Notebook .jp-OutputArea button[aria-label="{description}"]')
        return buttons.filter(has_text=words).or_(named).first

    def click(self, description: str) -> None:
        """Click a button as soon as it is there, in sight and enabled."""
        self.button(description).click()

    def wait_enabled(self, description: str, enabled: bool = True) -> None:
        """Wait until a button can be clicked, or no longer can."""
        from playwright.sync_api import expect

        expect(self.button(description)).to_be_enabled(enabled=enabled)

    def unfold(self, title: str) -> None:
        """Click the heading of a folded group."""
        self.page.locator(".jp-Notebook [class*=Collapse-header]", has_text=title).first.click()

    def wait_text(self, words: str | re.Pattern[str], seconds: float = 30) -> None:
        """Wait until an output shows these words."""
        outputs = self.page.locator(".jp-Notebook .jp-OutputArea-output")
        outputs.filter(has_text=words).first.wait_for(state="attached", timeout=1000 * seconds)

    def wait_field_text(self, label: str, words: str, *, gone: bool = False, seconds: float = 10) -> None:
        """Wait until the box around a field shows these words, or no longer does.

        Raises:
            TimeoutError: with what it shows instead.
        """
        end = time.monotonic() + seconds
        while (words in self.field_text(label)) is gone:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{label!r} {'still' if gone else 'never'} says {words!r}: {self.field_text(label)!r}"
                )
            self.page.wait_for_timeout(50)

    # Inside ----------------------------------------------------------------------------------------------------

    def _start(self, command: str, **options: object) -> None:
        self.page.evaluate(scripts.START_COMMAND, [command, options])

    def _wait_loaded(self, busy: bool = False) -> None:
        self.page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=60_000)
        self.page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=60_000)
        self.page.evaluate(scripts.ROOM)
        if not busy:
            self._wait_ready()

    def _wait_ready(self) -> None:
        """Twice: a kernel is idle for a moment between its requests, and before the page is connected to it."""
        for _ in range(2):
            self.page.wait_for_function(scripts.KERNEL_READY, timeout=60_000, polling=50)
            self.page.wait_for_timeout(500 * SETTLE_SECONDS)

    @contextlib.contextmanager
    def _unskipped(self) -> Iterator[None]:
        """All cells laid out, as if the window were as tall as the notebook."""
        style = self.page.add_style_tag(content=scripts.UNSKIPPED)
        try:
            yield
        finally:
            style.evaluate("style => style.remove()")

    def _theme(self, dark: bool) -> None:
        name = "JupyterLab Dark" if dark else "JupyterLab Light"
        self._start("apputils:change-theme", theme=name)
        light = "false" if dark else "true"
        self.page.locator(f"body[data-jp-theme-light={light}]").wait_for(state="attached")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._complain(f"console: {message.text} ({message.location.get('url', '')})")

    def _on_error(self, error: Error) -> None:
        self._complain(f"uncaught: {error}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 500:
            self._complain(f"answer {response.status}: {response.url}")

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        ours = urlsplit(self._server.url).netloc
        if address.scheme in {"http", "https", "ws", "wss"} and address.netloc != ours:
            self.outside.append(request.url)

    def _complain(self, words: str) -> None:
        if not any(re.search(pattern, words) for pattern in HARMLESS):
            self.errors.append(words[:500])
