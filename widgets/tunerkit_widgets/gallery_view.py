"""The part of the gallery that lives in the page."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

_HERE = Path(__file__).parent


class GalleryView(anywidget.AnyWidget):
    """Shows a board and asks for the bytes of a video when its player comes into sight.

    Messages from the page: `{"ask": "clip", "key": key}`, `{"ask": "image", "key": row}`, `{"ask": "refresh"}`.
    Messages to it: `{"clip": key, "name", "frames", "fps", "sound"}` or `{"image": row}` with the bytes as the only
    buffer, or `{"failed": key, "message": words}`.

    Attributes:
        board: columns (id, title, ema) and rows (id, size, words, cells: column id -> key of a clip).
        shown: ids of the columns in sight.
        wipe: the row and the two columns that lie over each other, `{"row", "left", "right"}`; empty for none.
        words: every text of the page.
        notice: a message for the reader.
    """

    # Two files, one module: what a page gets from Python has no address from which it could import another.
    _esm = "".join((_HERE / f"{name}.js").read_text(encoding="utf-8") for name in ("gallery_clock", "gallery"))
    _css = (_HERE / "gallery").with_suffix(".css").read_text(encoding="utf-8")
    board = traitlets.Dict().tag(sync=True)
    shown = traitlets.List(traitlets.Unicode()).tag(sync=True)
    wipe = traitlets.Dict().tag(sync=True)
    words = traitlets.Dict().tag(sync=True)
    notice = traitlets.Unicode().tag(sync=True)
