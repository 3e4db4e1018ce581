"""Lists whose rows have buttons: cells of the same widths in every row, and the words for sizes and times."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import tunerkit as tk
from tunerkit_widgets.guard import QUIET_COLOUR, guarded
from tunerkit_widgets.texts import text

UNKNOWN = "–"
CHOSEN_COLOUR = "var(--jp-brand-color1, #1976d2)"
LINE_WIDTH = "calc(100% - 4px)"
"""Of a field as wide as the page: its margins are not part of its width."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def cells_html(cells: Sequence[str], widths: str, *, head: bool = False) -> str:
    """One row of cells, which are HTML; rows with the same `widths` (CSS grid columns) stand in line."""
    style = f"font-weight:600;color:{QUIET_COLOUR}" if head else ""
    inner = "".join(f"<div style='min-width:0;overflow-wrap:anywhere'>{cell}</div>" for cell in cells)
    return (
        f"<div style='display:grid;grid-template-columns:{widths};gap:0 12px;align-items:center;line-height:1.35;"
        f"min-height:30px;font-variant-numeric:tabular-nums;{style}'>{inner}</div>"
    )


def scrolling_layout() -> Any:
    """Of a list: on a narrow page its lines move sideways together."""
    import ipywidgets as widgets

    return widgets.Layout(overflow="auto")


def line_layout() -> Any:
    """Of a line in such a list: never narrower than what is in it."""
    import ipywidgets as widgets

    return widgets.Layout(align_items="center", min_width="min-content", overflow="visible")


def mark_html(words: str, colour: str) -> str:
    """A word in a frame of a colour; the letters keep the page's colour, so that they can be read."""
    return (
        f"<span style='border:1px solid {colour};border-radius:10px;padding:0 8px;margin-right:4px;"
        f"white-space:nowrap'>{html.escape(words)}</span>"
    )


def size_words(size: float) -> str:
    """Bytes with a unit, in three digits or so."""
    power = min(len(_UNITS) - 1, int(math.log2(size) // 10)) if size >= 1 else 0
    return f"{size / 2 ** (10 * power):.{1 if power > 1 else 0}f} {_UNITS[power]}"


def ago_words(then: float | None, now: float) -> str:
    """How long ago a moment was, in one unit; both are seconds since 1970."""
    if then is None:
        return UNKNOWN
    seconds = max(0, round(now - then))
    if seconds < 60:
        return text("rows.seconds", count=seconds)
    if seconds < 3600:
        return text("rows.minutes", count=seconds // 60)
    if seconds < 48 * 3600:
        return text("rows.hours", count=seconds // 3600)
    return text("rows.days", count=seconds // 86400)


def loss_words(loss: float | None) -> str:
    return UNKNOWN if loss is None else f"{loss:.4f}"


def click_handler(
    action: Callable[[], None], refused: Callable[[str], None], failed: Callable[[str], None]
) -> Callable[[Any], None]:
    """For `on_click`: `action`, whose errors are seen.

    Args:
        action: what a click does.
        refused: is given the message where something is gone (LookupError) or was refused (TunerkitError).
        failed: is given HTML of any other error, with its details.
    """

    def act(_: Any) -> None:
        try:
            action()
        except (LookupError, tk.TunerkitError) as error:
            refused(str(error.args[0]) if error.args else str(error))

    return guarded(act, failed)


def set_visible(widget: Any, visible: bool) -> None:
    """Show a widget, or take it off the page with its place."""
    widget.layout.display = "" if visible else "none"


def status_html(words: str, colour: str = "inherit") -> str:
    """What came of a click, in a line that screen readers say."""
    return f"<div role='status' style='color:{colour};line-height:1.5'>{html.escape(words)}</div>"
