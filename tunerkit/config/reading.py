"""From documents and overrides, as written, to one set of values that the settings can check.

The steps, in order: names (leading dashes, other names), merging, the dataset document, dotted overrides, meaning
(`tunerkit.config.translate`), paths (`tunerkit.config.paths`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunerkit.config.dataset_document import AudioSettings, DatasetConfig, VideoSettings
from tunerkit.config.fields import kind_of
from tunerkit.config.loading import dataset_list, parse_json, read_datasets
from tunerkit.config.names import (
    ALIASES,
    DATASET_ALIASES,
    DATASET_IRRELEVANT,
    IRRELEVANT,
    SILENT_ALIASES,
    VIDEO_ALIASES,
)
from tunerkit.config.paths import INPUT_FILES, Folders, not_found, place_paths
from tunerkit.config.problems import entry_key, nearest
from tunerkit.config.prompt_library import load_prompt_library
from tunerkit.config.translate import translate, translate_datasets
from tunerkit.errors import ConfigError, Note, Problem

DATASETS = "datasets"


@dataclass
class Understood:
    """Values ready for the type check, and what is to be said about them.

    Attributes:
        values: setting -> value; `datasets` is a list of objects.
        notes: what was understood differently from how it was written.
        problems: what is wrong so far.
        searched: for a missing data folder, every place it was looked for.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    searched: dict[Path, tuple[Path, ...]] = field(default_factory=dict)


def understand(
    documents: Sequence[Mapping[str, Any]], folders: Folders, model: type[BaseModel], *, foreign_schedule: bool = True
) -> Understood:
    """Read settings documents; a later one counts more.

    Args:
        documents: settings as written, least important first.
        folders: where relative paths are looked for.
        model: the settings class that the values are for.
        foreign_schedule: whether schedule numbers may have another trainer's meaning.
    """
    told = Understood()
    dotted: dict[str, Any] = {}
    for document in documents:
        for key, value in canonical(document, ALIASES, IRRELEVANT, "", told).items():
            (dotted if "." in key else told.values)[key] = value
    entries, folders = _entries(told.values.pop(DATASETS, None), folders, told)
    datasets = [_entry(entry, index, told) for index, entry in enumerate(entries)]
    for key, value in dotted.items():
        _override(datasets, key, value, told)
    told.notes += translate_datasets(told.values, datasets)
    told.notes += translate(told.values, foreign_schedule=foreign_schedule)
    placed = place_paths(told.values, datasets, folders)
    told.problems += placed.problems
    told.notes += placed.notes
    told.searched = placed.searched
    _check_prompt_library(told)
    told.values = {**without_unset(told.values, model), DATASETS: [_complete(entry) for entry in datasets]}
    return told


def canonical_key(key: str) -> str:
    """A key without leading dashes, with underscores; the path behind a dot stays as it is."""
    head, dot, rest = key.strip().lstrip("-").partition(".")
    return head.replace("-", "_") + dot + rest


def canonical(
    document: Mapping[str, Any],
    aliases: Mapping[str, str],
    irrelevant: Mapping[str, str],
    parent: str,
    told: Understood,
) -> dict[str, Any]:
    """The document under our names; what cannot matter is dropped with a note."""
    result: dict[str, Any] = {}
    written: dict[str, str] = {}
    for given, value in document.items():
        key = canonical_key(str(given))
        head, dot, rest = key.partition(".")
        name = aliases.get(head, head) + dot + rest
        place = f"{parent}.{head}" if parent else head
        if head in irrelevant:
            told.notes.append(Note(place, f"accepted; it has no effect here: {irrelevant[head]}"))
            continue
        if name in result and result[name] != value:
            told.problems.append(
                Problem(place, value, f"is the same setting as {written[name]}, with another value", "keep one of them")
            )
            continue
        if head in aliases and head not in SILENT_ALIASES:
            told.notes.append(Note(place, f"read as {aliases[head]}"))
        result[name], written[name] = value, str(given)
    return result


def _entries(value: Any, folders: Folders, told: Understood) -> tuple[list[Any], Folders]:
    """The dataset list that `data_backend_config` holds or names, and the folders with the project root it implies."""
    try:
        if value is None:
            return [], folders
        if isinstance(value, str) and value.lstrip().startswith("["):
            return dataset_list(parse_json(value, "data_backend_config", "data_backend_config"), "it"), folders
        if isinstance(value, (str, os.PathLike)):
            found = folders.find(value)
            if found is None:
                told.problems.append(not_found("data_backend_config", value, folders.tried(value)))
                return [], folders
            if doubt := folders.doubt("data_backend_config", value):
                told.notes.append(doubt)
            return read_datasets(found), folders.rooted_at(value)
        return dataset_list(list(value) if isinstance(value, tuple) else value, "it"), folders
    except ConfigError as error:
        told.problems += error.problems
        return [], folders


def _entry(entry: Any, index: int, told: Understood) -> Any:
    """One dataset under our names; what is no object is left to the type check."""
    if isinstance(entry, BaseModel):
        return entry.model_dump()
    if not isinstance(entry, Mapping):
        return entry
    parent = entry_key(DATASETS, index)
    result = canonical(copy.deepcopy(dict(entry)), DATASET_ALIASES, DATASET_IRRELEVANT, parent, told)
    if isinstance(result.get("video"), BaseModel):
        result["video"] = result["video"].model_dump()
    if isinstance(result.get("video"), Mapping):
        result["video"] = canonical(result["video"], VIDEO_ALIASES, {}, f"{parent}.video", told)
    return result


def _override(datasets: list[Any], key: str, value: Any, told: Understood) -> None:
    """Apply `datasets.<number or id>.<setting>[.<setting>]` = value."""
    head, _, path = key.partition(".")
    if head != DATASETS:
        fix = "write datasets.<number or id>.<setting>, or the whole setting"
        told.problems.append(Problem(key, value, "only settings of a dataset can be reached with dots", fix))
        return
    index, rest = _chosen(datasets, path)
    if index is None or not rest:
        ids = [str(entry.get("id")) for entry in datasets if isinstance(entry, Mapping)]
        near = nearest(path.partition(".")[0], ids)
        fix = f"did you mean {near[0]}? " if near else ""
        fix += f"Datasets: {', '.join(ids) or 'none'}; write datasets.<number or id>.<setting>"
        told.problems.append(Problem(key, value, "names no setting of a dataset", fix))
        return
    *groups, last = rest.split(".")
    target: MutableMapping[str, Any] = datasets[index]
    for group in groups:
        inner = target.get(group)
        if not isinstance(inner, MutableMapping):
            inner = target[group] = {}
        target = inner
    aliases = VIDEO_ALIASES if groups == ["video"] else DATASET_ALIASES if not groups else {}
    target[aliases.get(last, last)] = value


def _chosen(datasets: list[Any], path: str) -> tuple[int | None, str]:
    """The dataset that a dotted path begins with, by number or by id (which may hold dots), and the rest of it."""
    for index, entry in enumerate(datasets):
        name = entry.get("id") if isinstance(entry, MutableMapping) else None
        if name is not None and path.startswith(f"{name}."):
            return index, path[len(str(name)) + 1 :]
    number, _, rest = path.partition(".")
    if number.isdecimal() and int(number) < len(datasets) and isinstance(datasets[int(number)], MutableMapping):
        return int(number), rest
    return None, ""


def _check_prompt_library(told: Understood) -> None:
    """A library that cannot be read is said now, not at the first validation."""
    path = told.values.get(INPUT_FILES[0])
    if not isinstance(path, Path) or not path.is_file():
        return
    try:
        load_prompt_library(path)
    except ConfigError as error:
        told.problems += error.problems


def _complete(entry: Any) -> Any:
    """A dataset without settings that are left open, also in its groups."""
    if not isinstance(entry, Mapping):
        return entry
    result = without_unset(entry, DatasetConfig)
    for name, model in (("video", VideoSettings), ("audio", AudioSettings)):
        if isinstance(result.get(name), Mapping):
            result[name] = without_unset(result[name], model)
    return result


def without_unset(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`values` without null for settings that have a default and no meaning for null: null means "not set"."""

    def open_default(name: str, value: Any) -> bool:
        known = model.model_fields.get(name)
        return value is None and known is not None and not known.is_required() and not kind_of(known.annotation).none

    return {name: value for name, value in values.items() if not open_default(name, value)}
