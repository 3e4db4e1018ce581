"""The browser: the system's Chromium, driven by Playwright, with no way out of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .lab_notebook import LabNotebook

if TYPE_CHECKING:
    from .lab_server import LabServer

VARIABLE = "TUNERKIT_CHROMIUM"
"""Environment variable with the browser's path."""
NAMES = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
SIZE = (1280, 1000)
"""Pixels of the page."""

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    # Only loopback has an address: a page that needs a CDN fails here as it would for somebody offline.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
)


def executable() -> str | None:
    """The browser's path; None where there is none."""
    names = [os.environ[VARIABLE]] if os.environ.get(VARIABLE) else NAMES
    return next((path for name in names if (path := shutil.which(name))), None)


def missing() -> str:
    """Why no browser can be driven here, with the fix; empty where one can."""
    if find_spec("playwright") is None:
        return "playwright is not installed. Fix: pip install -c constraints.txt -e '.[dev]'"
    if executable() is None:
        return f"no Chromium found. Fix: apt-get install chromium fonts-dejavu-core, or set {VARIABLE} to its path"
    return ""


class Browser:
    """A Chromium with a new profile. A context manager.

    Args:
        profile: folder for the profile.
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile

    def __enter__(self) -> Self:
        from playwright.sync_api import sync_playwright

        width, height = SIZE
        self._playwright = sync_playwright().start()
        try:
            self._context = self._playwright.chromium.launch_persistent_context(
                str(self._profile),
                executable_path=executable(),
                headless=True,
                args=list(ARGUMENTS),
                viewport={"width": width, "height": height},
            )
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # a crashed browser is closed already
            self._context.close()
        self._playwright.stop()

    @contextlib.contextmanager
    def open(self, server: LabServer, name: str) -> Iterator[LabNotebook]:
        """A notebook below the server's root in a tab of its own, its kernel ready; ended with its kernel."""
        page = self._context.new_page()
        try:
            notebook = LabNotebook(page, server, name)
            notebook.open()
            yield notebook
        finally:
            page.close(run_before_unload=False)
            server.end_kernels()
