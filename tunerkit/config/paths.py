"""Where the relative paths of a configuration point to.

Inputs are looked for from the current folder, then from the configuration file's folder, then from its parent.
Outputs go under the project root, the folder among those from which the dataset document was found, whatever else
exists. Afterwards every path is absolute, and the current folder no longer matters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from tunerkit.config.fields import NONE_WORDS
from tunerkit.config.problems import entry_key
from tunerkit.errors import Note, Problem

INPUT_FILES = ("user_prompt_library", "validation_input")
OUTPUT_FOLDERS = ("output_dir", "cache_dir", "group_offload_to_disk_path")
DATASET_OUTPUT_FOLDERS = ("cache_dir", "cache_dir_vae")
MODELS = (
    "pretrained_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_transformer_model_name_or_path",
    "init_lora",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Folders:
    """The folders that relative paths are tried from, in order.

    Attributes:
        candidates: absolute folders, each once.
        root: where new outputs go; one of the candidates.
    """

    candidates: tuple[Path, ...]
    root: Path

    @classmethod
    def of(cls, documents: Iterable[Path] = ()) -> Folders:
        """The current folder, then the folder and its parent of each configuration file."""
        here = Path.cwd()
        candidates = [here]
        for document in documents:
            folder = Path(os.path.abspath(document)).parent
            candidates += [folder, folder.parent]
        return cls(tuple(dict.fromkeys(candidates)), here)

    def tried(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """The absolute paths that `path` may mean, in the order in which they count."""
        given = os.path.expanduser(os.fspath(path))
        return tuple(dict.fromkeys(Path(os.path.abspath(folder / given)) for folder in self.candidates))

    def find(self, path: str | os.PathLike[str]) -> Path | None:
        """The first of those that exists."""
        return next((candidate for candidate in self.tried(path) if _exists(candidate)), None)

    def rooted_at(self, path: str | os.PathLike[str]) -> Folders:
        """The same, with the project root where the relative `path` was found."""
        given = os.path.expanduser(os.fspath(path))
        if os.path.isabs(given):
            return self
        root = next((folder for folder in self.candidates if _exists(folder / given)), self.root)
        return Folders(self.candidates, root)

    def place(self, path: str | os.PathLike[str]) -> Path:
        """Where an output goes: under the project root. A folder of that name elsewhere may be another project's."""
        return Path(os.path.abspath(self.root / os.path.expanduser(os.fspath(path))))

    def doubt(self, key: str, path: str | os.PathLike[str]) -> Note | None:
        """What to say of an input that exists in several of the places: another project's may have been found."""
        found = [candidate for candidate in self.tried(path) if _exists(candidate)]
        if len({os.path.realpath(place) for place in found}) < 2:
            return None
        others = ", ".join(map(str, found[1:]))
        return Note(key, f"{os.fspath(path)} is {found[0]}, and not {others}; write an absolute path to mean another")


@dataclass
class Placed:
    """What came of placing the paths of one configuration.

    Attributes:
        problems: inputs that do not exist and names that cannot be a model.
        notes: inputs that exist in several places.
        searched: for an input folder that was not found: its absolute path -> all places looked at.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    searched: dict[Path, tuple[Path, ...]] = field(default_factory=dict)


def place_paths(settings: MutableMapping[str, Any], datasets: list[Any], folders: Folders) -> Placed:
    """Make every path of the settings absolute, in place. Values that are no text are left to the type check."""
    placed = Placed()
    for key in (*MODELS, "resume_from_checkpoint"):
        if isinstance(settings.get(key), (int, float)) and not isinstance(settings[key], bool):
            settings[key] = str(settings[key])  # JSON may hold a folder called 2024 as a number
    for key in INPUT_FILES:
        if _is_path(settings.get(key)):
            settings[key] = _input_file(key, settings[key], folders, placed)
    for key in OUTPUT_FOLDERS:
        if _is_path(settings.get(key)):
            settings[key] = folders.place(settings[key])
    for key in MODELS:
        if _is_path(settings.get(key)):
            settings[key] = _model(key, str(settings[key]).strip(), folders, placed)
    if _is_path(settings.get("crepa_encoder")) and (found := folders.find(settings["crepa_encoder"])) is not None:
        settings["crepa_encoder"] = str(found)  # else a name of DINOv2 or a repository
    checkpoint = settings.get("resume_from_checkpoint")
    if _is_path(checkpoint) and str(checkpoint) != "latest":
        settings["resume_from_checkpoint"] = _checkpoint(str(checkpoint), settings.get("output_dir"), folders)
    for index, entry in enumerate(datasets):
        if isinstance(entry, MutableMapping):
            _place_dataset(entry, index, folders, placed)
    return placed


def portable(value: Any, folder: Path) -> Any:
    """A JSON value whose absolute paths below `folder` are written from there."""
    if isinstance(value, dict):
        return {key: portable(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner, folder) for inner in value]
    if isinstance(value, str) and value.startswith(f"{folder}{os.sep}"):
        return Path(os.path.relpath(value, folder)).as_posix()
    return value


def not_found(key: str, given: Any, tried: Iterable[Path]) -> Problem:
    """The problem of an input that exists nowhere, naming every place that was looked at."""
    places = ", ".join(str(path) for path in tried)
    return Problem(key, str(given), f"not found; looked for {places}", "correct the path, or put it at one of those")


def _place_dataset(entry: MutableMapping[str, Any], index: int, folders: Folders, placed: Placed) -> None:
    for key in DATASET_OUTPUT_FOLDERS:
        if _is_path(entry.get(key)):
            entry[key] = folders.place(entry[key])
    name = entry.get("dataset_name")
    if _is_path(name) and (found := folders.find(name)) is not None:  # a repository that lies on this machine
        entry["dataset_name"] = str(found)
    given = entry.get("instance_data_dir")
    if not _is_path(given):
        return
    found = folders.find(given)
    if doubt := folders.doubt(dataset_path_key(index, "instance_data_dir"), given):
        placed.notes.append(doubt)
    # A missing folder is a problem of the run, not of the document: it may be downloaded later.
    entry["instance_data_dir"] = path = found or folders.place(given)
    if found is None:
        placed.searched[path] = folders.tried(given)


def _input_file(key: str, given: str | os.PathLike[str], folders: Folders, placed: Placed) -> Path:
    found = folders.find(given)
    if found is None:
        placed.problems.append(not_found(key, given, folders.tried(given)))
    if doubt := folders.doubt(key, given):
        placed.notes.append(doubt)
    return found or folders.place(given)


def _model(key: str, given: str, folders: Folders, placed: Placed) -> str:
    """An existing folder or file as an absolute path, else a hub id as it stands."""
    found = folders.find(given)
    if doubt := folders.doubt(key, given):
        placed.notes.append(doubt)
    if found is not None:
        return str(found)
    if not _HUB_ID.fullmatch(given):
        tried = ", ".join(str(path) for path in folders.tried(given))
        placed.problems.append(
            Problem(
                key,
                given,
                f"is neither an existing folder (looked for {tried}) nor a hub id",
                "write an existing folder, or owner/name as on the hub",
            )
        )
    return given


def _checkpoint(given: str, output_dir: Any, folders: Folders) -> str:
    """A checkpoint folder by the path rule, or by its name inside the output folder."""
    found = folders.find(given)
    if found is None and _is_path(output_dir):
        inside = Path(os.path.abspath(Path(output_dir) / given))
        found = inside if _exists(inside) else None
    return str(found or folders.place(given))


def _is_path(value: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a raw value names a path: any text but the words for nothing."""
    if isinstance(value, os.PathLike):
        return True
    return isinstance(value, str) and value.strip().casefold() not in NONE_WORDS


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name the file system cannot hold
        return False


def dataset_path_key(index: int, name: str) -> str:
    """`(0, "instance_data_dir")` -> `"datasets[0].instance_data_dir"`."""
    return f"{entry_key('datasets', index)}.{name}"
