"""Waiting in a notebook cell while buttons go on working."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Pause = Callable[[float], Awaitable[None]]
_MESSAGES = 10
"""Waiting messages of widgets that are handled at each look."""


@contextlib.asynccontextmanager
async def breathing() -> AsyncIterator[Pause]:
    """A sleep during which the kernel handles the clicks on widgets.

    ipykernel 7 handles them while an asynchronous cell sleeps. Before it, they wait until the cell has ended, unless
    they are fetched: by the package jupyter_ui_poll, where it is installed. Outside of a kernel it is a plain sleep.
    """
    if kernel() is None or _kernel_version() >= 7 or importlib.util.find_spec("jupyter_ui_poll") is None:
        yield asyncio.sleep
        return
    from jupyter_ui_poll import ui_events  # pyright: ignore[reportMissingImports]

    with ui_events() as poll:

        async def pause(seconds: float) -> None:
            poll(_MESSAGES)
            time.sleep(seconds)

        yield pause


def kernel() -> Any:
    """The Jupyter kernel this runs in, or None; looks only at an IPython that is already loaded."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython(), "kernel", None) if ipython else None


def _kernel_version() -> int:
    import ipykernel

    return int(ipykernel.__version__.partition(".")[0])


def say_one_line(error: BaseException, message: str) -> None:
    """Let notebooks show `message` in place of a traceback, and terminals below it."""
    error.add_note(message)
    error._render_traceback_ = lambda: [message]  # type: ignore[attr-defined]
