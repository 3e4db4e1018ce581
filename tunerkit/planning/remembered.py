"""Plans that were made before, on disk: the same question is answered without torch and the model libraries.

A file for each question lies in `$TUNERKIT_CACHE/plans`; without that variable, in the user's cache folder. Its name is
a digest of all that an answer depends on, the program and its libraries included, so a file is never stale. Whatever is
wrong with a file or the folder, the plan is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import tunerkit
from tunerkit.files import write_atomically
from tunerkit.planning.result import DiskPlan, PhasePlan
from tunerkit.planning.seconds import Work

MOST = 1000
"""Files that are kept, some 3 kB each."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "torchao", "bitsandbytes", "safetensors")
READ = 8 << 20
"""Bytes of a model's JSON file, or of a single file with everything, that are looked at; other weights are told by
their names and sizes."""


@dataclass(frozen=True)
class Figures:
    """What is remembered of a plan.

    Attributes:
        phases, disk: as in `Plan`.
        blocks: how many blocks that are alike the transformer has.
    """

    phases: tuple[PhasePlan, ...]
    disk: DiskPlan
    blocks: int


def question(parts: Mapping[str, Any]) -> str:
    """The name of what is asked: a digest of all that the answer depends on, which is `parts` and the program.

    Args:
        parts: values of which `repr` says everything.
    """
    said = repr((sorted(parts.items()), _program()))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def model_identity(model: str) -> str | None:
    """What a local model is: a digest of the names and sizes of its files and of what its JSON files say, so that a
    copy in another folder is the same; None where nothing is there.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(model)
    if not path.exists():
        return None
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        size = file.stat().st_size
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        found.update(f"{name} {size}\n".encode())
        if file.suffix == ".json" or path.is_file():  # a single file says what it is at its beginning
            with file.open("rb") as opened:
                found.update(opened.read(READ))
    return found.hexdigest()


def recall(name: str) -> Figures | None:
    """The answer to a question; None where it is not known."""
    try:
        file = _folder() / f"{name}.json"
        found = json.loads(file.read_bytes())
        figures = Figures(tuple(_phase(one) for one in found["phases"]), DiskPlan(**found["disk"]), found["blocks"])
        if not figures.phases or not all(isinstance(one.peak + one.ram, int) for one in figures.phases):
            return None
        os.utime(file)  # those that are asked for stay
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return figures


def remember(name: str, figures: Figures) -> None:
    """Keep the answer to a question, if the folder can be written, and not many more than `MOST` in all."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        folder = _folder()
        write_atomically(folder / f"{name}.json", json.dumps(asdict(figures)))
        files = sorted(folder.glob("*.json"), key=_age, reverse=True)
        for old in files[: max(0, len(files) - MOST)]:
            old.unlink(missing_ok=True)


def _phase(found: Mapping[str, Any]) -> PhasePlan:
    return PhasePlan(**{**found, "work": Work(**found["work"])})


def _age(file: Path) -> float:
    """Negative time of last use; a file that another process has deleted is the youngest."""
    try:
        return -file.stat().st_mtime
    except OSError:
        return float("-inf")


def _folder() -> Path:
    if own := os.environ.get("TUNERKIT_CACHE"):
        return Path(own) / "plans"
    usual = Path.home() / ".cache"
    if sys.platform == "darwin":
        usual = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        usual = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "tunerkit" / "plans"


@cache
def _program() -> Sequence[Any]:
    """What figures: this package, file by file, and the libraries that a trace goes through."""
    folder = Path(tunerkit.__file__).parent
    files = sorted((one.relative_to(folder).as_posix(), *_stamp(one)) for one in folder.rglob("*.py"))
    return tunerkit.__version__, sys.version, [*_versions()], files


def _stamp(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
