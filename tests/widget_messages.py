"""What the page sends to widgets, for tests without a page."""

from __future__ import annotations

from typing import Any


def edit(widget: Any, value: Any) -> None:
    """Somebody edits a field."""
    data = {"method": "update", "state": {"value": value}, "buffer_paths": []}
    widget._handle_msg({"content": {"data": data}, "buffers": []})


def click(button: Any) -> None:
    """Somebody clicks a button."""
    data = {"method": "custom", "content": {"event": "click"}}
    button._handle_msg({"content": {"data": data}, "buffers": []})
