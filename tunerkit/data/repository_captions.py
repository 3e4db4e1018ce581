"""Captions that a datasets repository keeps in lists of its own, instead of in a text file beside each clip.

Two layouts are common. A table (`metadata.jsonl`, `metadata.csv`, ...) has a row per clip with its path, from the
table's folder, and its caption. Or two text files of as many lines each name the clips (`videos.txt`) and hold
their captions (`prompt.txt`).
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunerkit.errors import DatasetError

TABLES = tuple(f"{stem}.{kind}" for stem in ("metadata", "dataset") for kind in ("jsonl", "csv", "json"))
MEDIA_LISTS = ("videos.txt", "video.txt", "images.txt", "image.txt")
CAPTION_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")

FILE_COLUMNS = (
    "file_name", "video_file", "video_path", "video", "image_file", "image_path", "image", "media_path", "file_path",
    "path", "file", "filename",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "prompts", "long_caption", "short_prompt", "description")
"""Names of columns, in the order in which they count."""

logger = logging.getLogger("tunerkit")


def repository_captions(folder: Path, media: Iterable[Path]) -> dict[Path, str]:
    """The captions of the media files of a repository by its tables and lists, ready to stand in a text file.

    One line per caption: line breaks within a caption become spaces, since lines would count as captions of their own.
    Files that no list names are not in the result.

    Args:
        folder: the repository.
        media: its media files, below `folder`.

    Raises:
        DatasetError: a list cannot be read, or the two text files do not have as many lines.
    """
    known = set(media)
    captions: dict[Path, str] = {}
    unknown: list[str] = []
    for place in sorted({folder, *(parent for file in known for parent in file.parents if folder in parent.parents)}):
        for name, caption in _listed(place):
            file = next((f for f in _places(name, place, folder) if f in known), None)
            if file is None:
                unknown.append(name)
            elif caption:
                captions.setdefault(file, caption)
    if unknown:
        logger.warning(
            "%s: %d files that the captions are for are not there, the first is %s", folder, len(unknown), unknown[0]
        )
    return captions


def _places(name: str, place: Path, folder: Path) -> Iterator[Path]:
    """Where a listed file may lie: from the list's folder, or from that of the whole repository."""
    for base in (place, folder):
        yield Path(os.path.normpath(base / name))


def _listed(place: Path) -> Iterator[tuple[str, str]]:
    """(file, caption) of every list in a folder; the caption is empty where there is none."""
    for name in TABLES:
        table = place / name
        if table.is_file():
            yield from _of_table(table)
    files = next((place / name for name in MEDIA_LISTS if (place / name).is_file()), None)
    texts = next((place / name for name in CAPTION_LISTS if (place / name).is_file()), None)
    if files and texts:
        yield from _of_lines(files, texts)


def _of_lines(files: Path, texts: Path) -> Iterator[tuple[str, str]]:
    names, captions = _lines(files), _lines(texts)
    if len(names) != len(captions):
        raise DatasetError(
            f"{files} has {len(names)} lines and {texts} has {len(captions)}: a caption cannot be told from the next "
            "one's. Fix: give both files one line per clip, in the same order."
        )
    return ((name.strip(), _one_line(caption)) for name, caption in zip(names, captions, strict=True) if name.strip())


def _of_table(table: Path) -> Iterator[tuple[str, str]]:
    rows = _rows(table)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file_column = next((name for name in FILE_COLUMNS if name in columns), None)
    caption_columns = [name for name in CAPTION_COLUMNS if name in columns]
    if file_column is None or not caption_columns:
        logger.warning(
            "%s is not used: it has no column for the %s (columns: %s; known: %s)",
            table,
            "captions" if file_column else "files",
            ", ".join(map(str, columns)),
            ", ".join(CAPTION_COLUMNS if file_column else FILE_COLUMNS),
        )
        return
    for row in rows:
        name = row.get(file_column)
        if isinstance(name, str) and name.strip():
            yield name.strip(), next((text for key in caption_columns if (text := _text(row.get(key)))), "")


def _rows(table: Path) -> list[dict[str, Any]]:
    text = _read(table)
    line = 0
    rows: list[Any] = []
    try:
        if table.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        elif table.suffix == ".json":
            rows = json.loads(text)
        else:
            for line, entry in enumerate(text.split("\n"), start=1):  # noqa: B007 - the message below names it
                if entry.strip():
                    rows.append(json.loads(entry))
    except (csv.Error, json.JSONDecodeError) as error:
        where = line or getattr(error, "lineno", 0)
        raise DatasetError(
            f"{table} cannot be read{f' at line {where}' if where else ''}: {error}. Fix: correct that file, or "
            "write a text file with the caption beside each clip."
        ) from None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _text(value: Any) -> str:
    """A caption, or several of a list, one per line."""
    texts = value if isinstance(value, list) else [value]
    return "\n".join(line for text in texts if isinstance(text, str) and (line := _one_line(text)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _lines(file: Path) -> list[str]:
    """Lines of a text file; blank ones at the end do not count."""
    text = _read(file).rstrip()
    return text.split("\n") if text else []


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise DatasetError(f"{file} cannot be read: {why}. Fix: save it as plain UTF-8 text.") from None
