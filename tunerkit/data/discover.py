"""Finds the media files of a dataset folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

from tunerkit.data.samples import Kind
from tunerkit.errors import DatasetError

VIDEO_EXTENSIONS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"})
IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
SOUND_EXTENSIONS = frozenset({".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus"})

Stamp = tuple[int, int]
"""Size in bytes and time of last change in nanoseconds: what tells that a file has not changed."""


class Found(NamedTuple):
    """A media file by its name; nothing has been opened yet.

    Attributes:
        file: its path.
        kind: what its name promises.
        name: path relative to the folder that was searched, with `/`.
        stamp: None where the file cannot be asked (a broken link, no permission).
        caption: stamp of the text file beside it; None where there is none that can be asked.
    """

    file: Path
    kind: Kind
    name: str = ""
    stamp: Stamp | None = None
    caption: Stamp | None = None


class FoundSound(NamedTuple):
    """A sound file by its name: `file`, `name` and `stamp` as in `Found`."""

    file: Path
    name: str = ""
    stamp: Stamp | None = None


AnyFound = TypeVar("AnyFound", Found, FoundSound)
Taking = Callable[[Path, str, list[os.DirEntry[str]], frozenset[str]], Iterator[AnyFound]]
"""What is taken of a folder: its path, the prefix of its names, its entries, and the names of its folders."""


@dataclass(frozen=True)
class Discovery:
    """The media files of a folder sorted by relative path, and the sub-folders that could not be listed."""

    files: tuple[Found, ...]
    unreadable_folders: tuple[Path, ...]


def kind_of(file: str | Path) -> Kind | None:
    """What a file name promises to hold; None for anything that is no media file."""
    _, dot, extension = os.fspath(file).rpartition(".")
    suffix = dot + extension.lower()
    if suffix in VIDEO_EXTENSIONS:
        return "video"
    return "image" if suffix in IMAGE_EXTENSIONS else None


def caption_name(name: str) -> str:
    """Name or path of the text file that belongs to a media file; `name` has an extension."""
    return name.rpartition(".")[0] + ".txt"


def discover(folder: Path, dataset_id: str) -> Discovery:
    """Look for media files in `folder` and everything below it.

    Names that start with a dot are skipped, files and folders alike. Links to folders are followed, each
    folder once, so a loop of links ends. Files that are no media (captions, notes) are passed over.

    Raises:
        DatasetError: the folder is missing, is no folder, cannot be listed or holds no media file.
    """
    files, unreadable = _search(
        folder, dataset_id, _media, "clips", "video or image", VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    )
    return Discovery(files, unreadable)


def discover_sounds(folder: Path, dataset_id: str) -> tuple[tuple[FoundSound, ...], tuple[Path, ...]]:
    """Look for sound files as `discover` looks for media: the files, and the sub-folders that could not be listed.

    Raises:
        DatasetError: as `discover`.
    """
    return _search(folder, dataset_id, _sounds, "sound files", "sound", SOUND_EXTENSIONS)


def _search(
    folder: Path, dataset_id: str, take: Taking[AnyFound], what: str, kind: str, extensions: Iterable[str]
) -> tuple[tuple[AnyFound, ...], tuple[Path, ...]]:
    where = f"dataset '{dataset_id}': instance_data_dir = {str(folder)!r}"
    fix = f"Fix: set instance_data_dir to the folder that holds the {what}"
    if not folder.exists():
        raise DatasetError(f"{where} does not exist. {fix}.")
    if not folder.is_dir():
        raise DatasetError(f"{where} is a file, not a folder. {fix}.")
    try:
        os.scandir(folder).close()
    except PermissionError:
        raise DatasetError(
            f"{where} cannot be listed: no read permission. Fix: give yourself read and execute permission "
            f"(chmod u+rx) or choose another folder."
        ) from None

    unreadable: list[Path] = []
    files = sorted(_walk(folder, unreadable, take), key=attrgetter("name"))
    if not files and not unreadable:
        listed = " ".join(sorted(extensions))
        raise DatasetError(f"{where} holds no {kind} file ({listed}). {fix}, or put {what} into it.")
    return tuple(files), tuple(sorted(unreadable))


def _walk(folder: Path, unreadable: list[Path], take: Taking[AnyFound]) -> Iterator[AnyFound]:
    """What `take` takes below `folder`, hidden files aside; folders that cannot be listed go to `unreadable`."""
    visited: set[tuple[int, int]] = set()
    waiting = [(folder, "")]
    while waiting:
        current, prefix = waiting.pop()
        try:
            facts = os.stat(current)
            if (facts.st_dev, facts.st_ino) in visited:
                continue
            visited.add((facts.st_dev, facts.st_ino))
            with os.scandir(current) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError:
            unreadable.append(current)
            continue
        below = sorted(entry.name for entry in entries if _is_folder(entry))
        # The last one added is looked at first: the first in the alphabet, so a folder with two names keeps that one.
        waiting += [(current / name, f"{prefix}{name}/") for name in reversed(below)]
        yield from take(current, prefix, entries, frozenset(below))


def _media(folder: Path, prefix: str, entries: list[os.DirEntry[str]], folders: frozenset[str]) -> Iterator[Found]:
    texts: dict[str, os.DirEntry[str]] = {}
    media: list[tuple[os.DirEntry[str], str, Kind]] = []
    for entry in entries:
        name = entry.name
        if name.endswith(".txt"):
            texts[name] = entry
        elif (kind := kind_of(name)) and name not in folders:
            media.append((entry, name, kind))
    for entry, name, kind in media:
        text = texts.get(caption_name(name))
        yield Found(folder / name, kind, prefix + name, _stamp(entry), _stamp(text) if text else None)


def _sounds(
    folder: Path, prefix: str, entries: list[os.DirEntry[str]], folders: frozenset[str]
) -> Iterator[FoundSound]:
    for entry in entries:
        name = entry.name
        if os.path.splitext(name)[1].lower() in SOUND_EXTENSIONS and name not in folders:
            yield FoundSound(folder / name, prefix + name, _stamp(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stamp(entry: os.DirEntry[str]) -> Stamp | None:
    try:
        facts = entry.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns
