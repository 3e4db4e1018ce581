"""What the page sends to widgets, and how to wait for what they do then; for tests without a page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def edit(widget: Any, value: Any) -> None:
    """Somebody edits a field, or chooses from a list, of which the page sends the place."""
    choices = getattr(widget, "_options_values", None)
    state = {"value": value} if choices is None else {"index": choices.index(value)}
    data = {"method": "update", "state": state, "buffer_paths": []}
    widget._handle_msg({"content": {"data": data}, "buffers": []})


def click(button: Any) -> None:
    """Somebody clicks a button."""
    data = {"method": "custom", "content": {"event": "click"}}
    button._handle_msg({"content": {"data": data}, "buffers": []})


def wait(condition: Callable[[], object], seconds: float = 20) -> None:
    """Until something that a thread does is done."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
