"""Callbacks whose errors are seen: a notebook shows nothing of an exception inside a click or an edit."""

from __future__ import annotations

import functools
import html
import traceback
from collections.abc import Callable
from typing import Any

from tunerkit_widgets.texts import text


def guarded(function: Callable[..., Any], report: Callable[[str], None]) -> Callable[..., Any]:
    """`function`, but an exception is given to `report` as HTML instead of being lost.

    Args:
        function: a click or edit handler, or something that only shows.
        report: puts HTML where the user looks.
    """

    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            report(error_html(error))
            return None

    return wrapper


def error_html(error: BaseException) -> str:
    """The message, with the traceback folded away."""
    lines = "".join(traceback.format_exception(error))
    message = text("error.unexpected", kind=type(error).__name__, message=str(error) or "-")
    return (
        f"<div style='color:{ERROR_COLOUR}' role='alert'>{html.escape(message)}</div>"
        f"<details><summary>{html.escape(text('error.details'))}</summary><pre>{html.escape(lines)}</pre></details>"
    )


ERROR_COLOUR = "var(--jp-error-color1, #c62828)"
"""Colours are JupyterLab's own variables, so that they can be read on dark themes too."""
GOOD_COLOUR = "var(--jp-success-color1, #2e7d32)"
QUIET_COLOUR = "var(--jp-ui-font-color2, #757575)"
