"""Writes generated files into a folder that may also hold a person's own, without ever overwriting those.

`demo.json` in the folder records which files were generated, from what, and their digests. A file is the
project's own as long as its digest is the recorded one; edited or unknown files belong to the person.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerkit.errors import TunerkitError
from tunerkit.files import digest_file, process_runs, read_json, write_json

RECORD = "demo.json"
MAKER = "tunerkit.demo"
_STAGE = re.compile(r"^\.making-(\d+)$")

Record = dict[str, dict[str, Any]]
"""By part: {"made_from": ..., "files": {relative path: SHA-256}}."""


@dataclass(frozen=True)
class Part:
    """Files that are made together.

    `made_from` (plain JSON) decides whether files that exist are still right; `write(folder)` writes all of
    them, with the same bytes every time.
    """

    name: str
    made_from: Mapping[str, Any]
    write: Callable[[Path], object]


def write_parts(target: Path, parts: Sequence[Part]) -> None:
    """Brings `target` to the state that the parts describe.

    A part made from the same things keeps its files, edited or not, and only missing ones are written.
    Another part is replaced as a whole. When this is killed at any point, the next call completes the work.

    Raises:
        TunerkitError: a file would be overwritten that is not the folder's own generated one.
        OSError: the folder cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    record = _read_record(target)
    outdated = [part for part in parts if not _is_complete(target, part, record)]
    if not outdated:
        return
    stage = _new_stage(target)
    try:
        made: Record = {}
        for part in outdated:
            folder = stage / part.name
            folder.mkdir()
            part.write(folder)
            made[part.name] = {"made_from": part.made_from, "files": _digests(folder)}
        replaced = [part for part in outdated if not _same_origin(part, record)]
        _refuse_conflicts(target, {part.name: made[part.name] for part in replaced}, record)
        # In this order, a kill leaves files missing, never stale ones that the record takes for the new.
        for part in replaced:
            _remove_own(target, record.get(part.name, {"files": {}})["files"])
        write_json(target / RECORD, {"made_by": MAKER, "parts": {**record, **made}})
        for part in outdated:
            _place_missing(stage / part.name, target, made[part.name]["files"])
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _read_record(target: Path) -> Record:
    path = target / RECORD
    if not path.exists():
        return {}
    content = read_json(path)
    parts = content.get("parts") if isinstance(content, dict) and content.get("made_by") == MAKER else None
    if not isinstance(parts, dict):
        raise TunerkitError(f"{path} is not the record of a demo project. Fix: choose another folder, or move the file")
    return parts


def _same_origin(part: Part, record: Record) -> bool:
    return part.name in record and record[part.name]["made_from"] == part.made_from


def _is_complete(target: Path, part: Part, record: Record) -> bool:
    return _same_origin(part, record) and all((target / name).is_file() for name in record[part.name]["files"])


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def _refuse_conflicts(target: Path, new: Record, record: Record) -> None:
    own = {name: digest for entry in record.values() for name, digest in entry["files"].items()}
    foreign: set[str] = set()
    for entry in new.values():
        for name in entry["files"]:
            path = target / name
            if (path.exists() or path.is_symlink()) and not (path.is_file() and own.get(name) == digest_file(path)):
                foreign.add(name)
            # A folder we never wrote to may hold another model or other clips; ours must not be mixed in.
            top = Path(name).parts[0]
            if "/" in name and not any(known.startswith(f"{top}/") for known in own) and _is_occupied(target / top):
                foreign.add(top)
    if foreign:
        shown = ", ".join(sorted(foreign)[:6]) + (" and more" if len(foreign) > 6 else "")
        raise TunerkitError(
            f"{target}: the demo project would overwrite files there that are not its own, or were edited: "
            f"{shown}. Fix: choose another folder, or move these files away"
        )


def _is_occupied(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _remove_own(target: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        path = target / name
        if path.is_file() and digest_file(path) == digest:
            path.unlink()


def _place_missing(stage: Path, target: Path, files: Mapping[str, str]) -> None:
    for name in files:
        path = target / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / name, path)


def _new_stage(target: Path) -> Path:
    """An empty folder beside the files, so that placing them is a rename; those of dead processes are removed."""
    for path in target.iterdir():
        match = _STAGE.match(path.name)
        if match and (int(match[1]) == os.getpid() or not process_runs(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)
    stage = target / f".making-{os.getpid()}"
    stage.mkdir()
    return stage
