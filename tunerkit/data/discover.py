"""Finds the media files of a dataset folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunerkit.data.samples import Kind
from tunerkit.errors import DatasetError

VIDEO_EXTENSIONS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"})
IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Found:
    """A media file by its name; nothing has been opened yet."""

    file: Path
    kind: Kind


@dataclass(frozen=True)
class Discovery:
    """The media files of a folder sorted by relative path, and the sub-folders that could not be listed."""

    files: tuple[Found, ...]
    unreadable_folders: tuple[Path, ...]


def kind_of(file: Path) -> Kind | None:
    """What a file name promises to hold; None for anything that is no media file."""
    suffix = file.suffix.lower()
    if suffix in VIDEO_EXTENSIONS:
        return "video"
    return "image" if suffix in IMAGE_EXTENSIONS else None


def discover(folder: Path, dataset_id: str) -> Discovery:
    """Look for media files in `folder` and everything below it.

    Names that start with a dot are skipped, files and folders alike. Links to folders are followed, each
    folder once, so a loop of links ends. Files that are no media (captions, notes) are passed over.

    Raises:
        DatasetError: the folder is missing, is no folder, cannot be listed or holds no media file.
    """
    where = f"dataset '{dataset_id}': instance_data_dir = {str(folder)!r}"
    fix = "Fix: set instance_data_dir to the folder that holds the clips"
    if not folder.exists():
        raise DatasetError(f"{where} does not exist. {fix}.")
    if not folder.is_dir():
        raise DatasetError(f"{where} is a file, not a folder. {fix}.")
    try:
        os.listdir(folder)
    except PermissionError:
        raise DatasetError(
            f"{where} cannot be listed: no read permission. Fix: give yourself read and execute permission "
            f"(chmod u+rx) or choose another folder."
        ) from None

    unreadable: list[Path] = []
    files = [Found(file, kind) for file in _walk(folder, unreadable) if (kind := kind_of(file))]
    if not files and not unreadable:
        listed = " ".join(sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
        raise DatasetError(f"{where} holds no video or image file ({listed}). {fix}, or put clips into it.")
    files.sort(key=lambda found: found.file.relative_to(folder).as_posix())
    return Discovery(tuple(files), tuple(sorted(unreadable)))


def _walk(folder: Path, unreadable: list[Path]) -> Iterator[Path]:
    """Every file below `folder` that is not hidden; folders that cannot be listed go to `unreadable`."""
    visited: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        unreadable.append(Path(error.filename))

    for current, folders, names in os.walk(folder, followlinks=True, onerror=note):
        facts = os.stat(current)
        identity = (facts.st_dev, facts.st_ino)
        if identity in visited:
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(current, name) for name in names if not name.startswith("."))
