"""The file that a form's settings come from and go to: its path, Load, Save, and whether they are saved."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from tunerkit_widgets.guard import ERROR_COLOUR, GOOD_COLOUR, QUIET_COLOUR
from tunerkit_widgets.setting_field import LABEL_WIDTH
from tunerkit_widgets.texts import text


class FilesRow:
    """A path field with two buttons, and a line for what became of them."""

    def __init__(self, path: str) -> None:
        self.path: Any = widgets.Text(
            value=path,
            description=text("form.file"),
            placeholder="my-project/config.json",
            style={"description_width": LABEL_WIDTH},
            layout=widgets.Layout(flex="1 1 300px", width="auto"),
        )
        self.load_button: Any = widgets.Button(
            description=text("form.load"), icon="folder-open", tooltip=text("form.load_help")
        )
        self.save_button: Any = widgets.Button(
            description=text("form.save"), icon="save", tooltip=text("form.save_help")
        )
        self.unsaved = widgets.HTML()
        self.said = widgets.HTML()
        row = widgets.HBox([self.path, self.load_button, self.save_button], layout=widgets.Layout(flex_flow="row wrap"))
        self.box: Any = widgets.VBox([row, self.unsaved, self.said])

    def show_unsaved(self, saved: bool, known: bool) -> None:
        """Say whether the settings stand in the file; `known` = there is a file to compare with."""
        words = "" if saved else text("form.unsaved") if known else text("form.never_saved")
        self.unsaved.value = words and f"<span style='color:{QUIET_COLOUR}'>● {html.escape(words)}</span>"

    def done(self, words: str) -> None:
        """Say what went well; an empty text takes the last message away."""
        self.said.value = words and f"<span style='color:{GOOD_COLOUR}'>✓ {html.escape(words)}</span>"

    def failed(self, words: str) -> None:
        """Say what went wrong."""
        lines = html.escape(words).replace("\n", "<br>")
        self.said.value = f"<div role='alert' style='color:{ERROR_COLOUR};line-height:1.4'>✗ {lines}</div>"


def content_of(path: Path | None) -> bytes | None:
    """What a file holds; None where there is none."""
    try:
        return None if path is None else path.read_bytes()
    except OSError:
        return None


def document_of(path: str | Path | None) -> Path | None:
    """The settings document that a project means."""
    if path is None or not str(path).strip():
        return None
    given = os.path.abspath(os.path.expanduser(path))  # unlike pathlib's, never raises: somebody may be typing it
    is_file = os.path.isfile(given) or (given.endswith(".json") and not os.path.isdir(given))
    return Path(given) if is_file else Path(given, "config.json")
