"""The page's side of the dataset browser: one widget model, whatever the number of clips."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

from tunerkit_widgets.texts import language, texts_of

_FILES = Path(__file__).parent
SCRIPTS = (
    "dataset_browser_parts.js",
    "dataset_browser_editor.js",
    "dataset_browser_tools.js",
    "dataset_browser.js",
)
"""One module of the page, in this order: a notebook's page can load no file beside another."""

WORDS = (
    "dataset.label", "dataset.search", "dataset.search_hint", "dataset.show", "dataset.all", "dataset.used",
    "dataset.dropped", "dataset.uncaptioned", "dataset.several", "dataset.dataset", "dataset.every_dataset",
    "dataset.bucket", "dataset.every_bucket", "dataset.sort", "dataset.by_name", "dataset.by_bucket",
    "dataset.by_length", "dataset.shown", "dataset.none_shown", "dataset.no_picture", "dataset.badge_still",
    "dataset.badge_mask", "dataset.badge_sound", "dataset.badge_silent", "dataset.badge_i", "dataset.badge_captions",
    "dataset.badge_uncaptioned", "dataset.choose", "dataset.found_head", "dataset.taken",
    "dataset.taken_frames", "dataset.taken_windows", "dataset.taken_still", "dataset.box", "dataset.span",
    "dataset.reason", "dataset.fix", "dataset.caption", "dataset.caption_help", "dataset.caption_joined",
    "dataset.fixed",
    "dataset.unsaved", "dataset.saved", "dataset.caption_count", "dataset.conflict", "dataset.take_disk",
    "dataset.overwrite", "dataset.undo", "dataset.undo_count", "dataset.undone", "dataset.undo_kept", "dataset.many",
    "dataset.find", "dataset.replacement", "dataset.match_case", "dataset.replace", "dataset.prefix",
    "dataset.add_prefix", "dataset.would_change", "dataset.nothing_changes", "dataset.did_change", "dataset.changed",
    "dataset.buckets", "dataset.close", "dataset.preview",
)  # fmt: skip
"""Texts that the page fills in itself."""


def words() -> dict[str, str]:
    """The page's texts by the second part of their key, in the language of the reader."""
    texts = texts_of(language())
    return {key.partition(".")[2]: texts[key] for key in WORDS}


class DatasetView(anywidget.AnyWidget):
    """Draws the grid, the editor and the tools; asks for pictures, videos and edits by messages."""

    _esm = "\n".join((_FILES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    _css = _FILES / "dataset_browser.css"

    words = traitlets.Dict().tag(sync=True)
    table = traitlets.Dict().tag(sync=True)
    """`rows` as the page shows them, `buckets` with their heading, `summary`, `editable`, `edits`, and `turn`, which
    changes whenever the numbers of the rows may.
    """
    first = traitlets.List(traitlets.Bytes()).tag(sync=True)
    """The pictures of the first rows, so that they are there while the kernel is busy with the next cell."""
    selected = traitlets.Int(-1).tag(sync=True)
    """Number of the chosen row; -1 = none."""
