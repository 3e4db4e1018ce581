"""The video that a run is rendering, as it looks so far."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunerkit_widgets.list_rows import LINE_WIDTH
from tunerkit_widgets.texts import text

WIDTH = "256px"


class PreviewPicture:
    """A picture that is there while a video is being rendered; it changes in place.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        import ipywidgets as widgets

        self._folder = folder
        self._shown: int | None = None
        self.picture = widgets.Image(format="webp", layout=widgets.Layout(width=WIDTH, max_width=LINE_WIDTH))
        self.words = widgets.HTML()
        self.widget = widgets.VBox([self.picture, self.words], layout=widgets.Layout(display="none"))

    @property
    def all_widgets(self) -> tuple[Any, ...]:
        return (self.widget, self.picture, self.words)

    def draw(self, event: Mapping[str, Any] | None) -> None:
        """Show the preview that an event of the run tells of; nothing where there is None, or its file is gone."""
        number = None if event is None else event["number"]
        if number == self._shown:
            return
        self._shown = number
        picture = b"" if event is None else self._read(event["path"])
        self.widget.layout.display = None if picture else "none"
        if event is not None and picture:
            self.picture.value = picture
            words = text("dashboard.preview", name=event["name"], done=event["denoised"], steps=event["steps"])
            self.words.value = f"<small>{html.escape(words)}</small>"

    def _read(self, path: str) -> bytes:
        try:
            return (self._folder / path).read_bytes()
        except OSError:  # deleted in the meantime
            return b""
