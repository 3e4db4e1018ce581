"""Rendered videos to compare: prompts by steps, all players on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tunerkit_widgets.gallery_board import Board, Column, Row, probe, read_board, spread
from tunerkit_widgets.gallery_static import board_html, board_text
from tunerkit_widgets.guard import guarded
from tunerkit_widgets.surroundings import headless, show_view
from tunerkit_widgets.texts import text

STATIC_BYTES = 2_000_000
"""Characters of HTML that a saved notebook gets at most."""
PAGE_WORDS = (
    "gallery.play",
    "gallery.pause",
    "gallery.back",
    "gallery.forward",
    "gallery.scrub",
    "gallery.frame",
    "gallery.speed",
    "gallery.refresh",
    "gallery.columns",
    "gallery.keys",
    "gallery.compare",
    "gallery.close",
    "gallery.left",
    "gallery.right",
    "gallery.wipe",
    "gallery.mute",
    "gallery.unmute",
    "gallery.download",
    "gallery.loading",
    "gallery.absent",
    "gallery.first_frame",
    "gallery.none",
    "gallery.unplayable",
)
"""Keys of the texts that the page needs; `gallery.frame` keeps its `{}` places, which are filled there."""


class HasFolder(Protocol):
    """A run, as far as the gallery needs it."""

    @property
    def output_dir(self) -> Path: ...


class ValidationGallery:
    """The videos of a run to play, step through and lay over each other; each is sent when it comes into sight.

    Args:
        run: a run, or the path of its `output_dir`.
        static_bytes: characters of `static()` at most, where that is possible.
    """

    def __init__(self, run: HasFolder | str | Path, *, static_bytes: int = STATIC_BYTES) -> None:
        self.output_dir = Path(run if isinstance(run, str | Path) else run.output_dir)
        self._static_bytes = static_bytes
        self._clips: dict[str, Path] = {}
        self.board = Board()
        self.widget: Any = None
        """The view on the page; None where nobody can click."""
        self.refresh()

    def refresh(self) -> None:
        """Look for videos again; new columns come into sight where the reader has not chosen any."""
        chosen = self.widget is not None and self.widget.shown != _ids(spread(self.board.columns))
        self.board = read_board(self.output_dir)
        if self.widget is None:
            self._build()
        if self.widget is None:
            return
        known = _ids(self.board.columns)
        kept = [one for one in self.widget.shown if one in known] if chosen else []
        self._clips = {}
        rows = [self._page_row(row) for row in self.board.rows]
        with self.widget.hold_sync():
            self.widget.shown = kept or _ids(spread(self.board.columns))
            columns = [{"id": one.id, "title": one.title, "ema": one.ema} for one in self.board.columns]
            self.widget.board = {"columns": columns, "rows": rows}

    def compare(self, left: int, right: int, row: int = 0) -> tuple[Column, Column] | None:
        """Lay two steps of a row over each other; each is the nearest that was rendered.

        None where both are the same, or there is no such row.

        Args:
            left, right: optimizer steps; 0 is the base model.
            row: number of the prompt, from 0.
        """
        self.refresh()
        if not 0 <= row < len(self.board.rows):
            return None
        shown = self.board.rows[row]
        columns = (shown.nearest(left), shown.nearest(right))
        if columns[0] == columns[1]:
            return None
        if self.widget is not None:
            with self.widget.hold_sync():
                self.widget.shown = _ids(sorted(columns))
                self.widget.wipe = {"row": shown.id, "left": columns[0].id, "right": columns[1].id}
        return columns

    # Static ----------------------------------------------------------------------------------------------------

    def static(self) -> str:
        """Poster frames over the steps, and players of the first and the last, as HTML that needs no file."""
        return board_html(self.board, self._static_bytes)

    def __str__(self) -> str:
        return board_text(self.board)

    def _ipython_display_(self) -> None:
        show_view(self)

    # Page ------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        if headless():
            return
        from tunerkit_widgets.gallery_view import GalleryView

        words = {key.partition(".")[2]: _raw(key) for key in PAGE_WORDS}
        self.widget = GalleryView(words=words)
        self.widget.on_msg(guarded(self._asked, self._fail))

    def _page_row(self, row: Row) -> dict[str, Any]:
        """What the page knows of a row before any video is sent."""
        cells = {}
        for column, path in row.videos.items():
            key = f"{row.id}/{column.id}/{_changed(path)}"
            cells[column.id] = key
            self._clips[key] = path
        return {
            "id": row.id,
            "size": row.size,
            "title": row.prompt or row.nickname,
            "name": row.nickname if row.prompt else "",
            "details": row.details(),
            "same": "" if row.different else text("gallery.same", seed=row.seed),
            "different": text("gallery.different", names=", ".join(row.different)) if row.different else "",
            "image": row.image is not None,
            "image_name": row.image_name,
            "cells": cells,
        }

    def _asked(self, _: Any, content: dict[str, Any], __: Any) -> None:
        match content:
            case {"ask": "clip", "key": str(key)}:
                self._send_clip(key)
            case {"ask": "image", "key": str(row)}:
                self._send_image(row)
            case {"ask": "refresh"}:
                self.widget.notice = ""
                self.refresh()

    def _send_clip(self, key: str) -> None:
        path = self._clips.get(key)
        found = None if path is None else probe(path)
        if path is None or found is None:
            message = text("gallery.gone", name=path.name if path else key)
            self.widget.send({"failed": key, "message": message})
            return
        about = {"clip": key, "name": f"{path.parent.name}-{path.name}"}
        about |= {"frames": found.frames, "fps": found.fps, "sound": found.sound}
        self.widget.send(about, [path.read_bytes()])

    def _send_image(self, row_id: str) -> None:
        image = next((row.image for row in self.board.rows if row.id == row_id), None)
        if image is not None:
            self.widget.send({"image": row_id}, [image.read_bytes()])

    def _fail(self, message: str) -> None:
        self.widget.notice = message


def _ids(columns: Sequence[Column]) -> list[str]:
    return [column.id for column in columns]


def _raw(key: str) -> str:
    """A text whose values are filled in by the page: it gets their names in braces."""
    return text(key, frame="{frame}", frames="{frames}", seconds="{seconds}")


def _changed(path: Path) -> int:
    """When a file was written, in nanoseconds: a video that was rendered again is another one. 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
