"""The folder protocol of training checkpoints: whole, or not there.

`checkpoint-<step>` is written as a hidden temporary folder, every file is flushed to disk, `manifest.json`
with the size and SHA-256 of every file is written last, and only then the folder gets its name. A process
killed at any moment leaves the earlier checkpoints as they were; a folder that was damaged later is
recognised by its manifest and passed over. What the files hold is not known here (see `state_files` for
tensors and optimizers), and torch is not needed.

Hidden names beside the checkpoints, each ending in the process id of its owner:

    .checkpoint-<step>.tmp-<pid>    being written
    .checkpoint-<step>.old-<pid>    the earlier folder of a step that is just being replaced
    .checkpoint-<step>.gone-<pid>   being deleted
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunerkit.errors import CheckpointError, TunerkitError
from tunerkit.files import digest_file, flush_file, flush_folder, process_runs, read_json, write_json

logger = logging.getLogger("tunerkit")
MANIFEST = "manifest.json"
FORMAT = 1
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_HIDDEN = re.compile(r"^\.(checkpoint-\d+)\.(tmp|old|gone)-(\d+)$")


def save_checkpoint(output_dir: str | os.PathLike[str], step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Write `checkpoint-<step>` into `output_dir`, then remove the oldest beyond `keep`.

    Args:
        output_dir: folder of the run; created when missing.
        step: optimizer steps done. A checkpoint of this step that exists already is replaced.
        write: puts all files into the folder it is given. What it raises stops the saving.
        keep: how many checkpoints to keep, the newest; 0 keeps all. The one just written always stays.

    Returns:
        The folder, whole and on disk.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
            Any other exception of `write` passes through, after the temporary folder was removed.
    """
    output_dir = Path(output_dir)
    final = output_dir / f"checkpoint-{step}"
    temporary = _hidden(final, "tmp")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        _delete(temporary)
        temporary.mkdir()
        write(temporary)
        _seal(temporary, step)
        _put_in_place(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _delete(temporary)
        if isinstance(error, OSError):
            raise CheckpointError(_explain(error, final)) from error
        raise
    _prune(output_dir, keep, final)
    return final


def verify(folder: str | os.PathLike[str]) -> str | None:
    """Why a checkpoint folder is not whole, or None when it is.

    Every file that the manifest names is read and hashed; files that it does not name are ignored.
    """
    return _reason(Path(folder), with_hashes=True)


def list_checkpoints(output_dir: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(step, folder) of every `checkpoint-<step>` folder, whole or not, by rising step."""
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        return []
    found = [
        (match, path) for path in output_dir.iterdir() if (match := _CHECKPOINT.match(path.name)) and path.is_dir()
    ]
    return sorted((int(match[1]), path) for match, path in found)


def find_checkpoint(output_dir: str | os.PathLike[str], which: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from.

    Args:
        output_dir: folder of the run.
        which: "latest" (the newest whole one), a folder name inside `output_dir`, or a path.

    Returns:
        The folder, and a warning for each newer one that is broken and was passed over. With "latest" the
        folder is None when no whole checkpoint exists.

    Raises:
        CheckpointError: `which` names a folder that is missing or broken.
    """
    output_dir = Path(output_dir)
    if os.fspath(which) == "latest":
        warnings: list[str] = []
        for _, folder in reversed(list_checkpoints(output_dir)):
            reason = verify(folder)
            if reason is None:
                return folder, warnings
            warnings.append(f"{folder.name} in {output_dir} is broken and was passed over: {reason}.")
        return None, warnings
    folder = next((path for path in (output_dir / which, Path(which)) if path.is_dir()), None)
    available = ", ".join(path.name for _, path in reversed(list_checkpoints(output_dir))) or "none"
    fix = f"Fix: name latest or another one (found in {output_dir}: {available})."
    if folder is None:
        raise CheckpointError(f"checkpoint {os.fspath(which)!r}: there is no such folder. {fix}")
    reason = verify(folder)
    if reason is not None:
        raise CheckpointError(f"checkpoint {os.fspath(which)!r} is broken: {reason}. {fix}")
    return folder, []


def whole_checkpoint(output_dir: str | os.PathLike[str], which: str | os.PathLike[str]) -> Path:
    """The checkpoint to use, as `find_checkpoint`; newer ones that are broken are told of in the log.

    Raises:
        CheckpointError: there is none, or `which` names a folder that is missing or broken.
    """
    found, warnings = find_checkpoint(output_dir, which)
    for warning in warnings:
        logger.warning("%s", warning)
    if found is None:
        raise CheckpointError(
            f"output_dir = {os.fspath(output_dir)!r} holds no whole checkpoint. Fix: train first, or name another one"
        )
    return found


def remove_temporary(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Clear what killed processes left in `output_dir`; not to be called while this process is saving there.

    Folders of other processes that still run stay. When a process died between moving an earlier checkpoint
    aside and putting its replacement in place, the earlier one gets its name back.

    Returns:
        The hidden folders that are gone now.
    """
    output_dir = Path(output_dir)
    removed: list[Path] = []
    for path in sorted(output_dir.iterdir()) if output_dir.is_dir() else []:
        match = _HIDDEN.match(path.name)
        if match is None or not path.is_dir():
            continue
        name, kind, owner = match[1], match[2], int(match[3])
        if owner != os.getpid() and process_runs(owner):
            continue
        final = output_dir / name
        with contextlib.suppress(OSError):
            if kind == "old" and not final.exists() and verify(path) is None:
                path.rename(final)
            else:
                _delete(path)
            removed.append(path)
    return removed


def _seal(folder: Path, step: int) -> None:
    """Flush every file and folder below `folder` to disk, and write the manifest last."""
    paths = sorted(folder.rglob("*"))
    files: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.is_file():
            flush_file(path)
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": digest_file(path)}
    for path in paths:
        if path.is_dir():
            flush_folder(path)
    write_json(folder / MANIFEST, {"format": FORMAT, "step": step, "files": files})


def _put_in_place(temporary: Path, final: Path) -> None:
    """Give a sealed folder its name; an earlier folder of that name is moved aside, then deleted."""
    earlier = _hidden(final, "old")
    _delete(earlier)
    try:
        if final.exists():
            final.rename(earlier)
        temporary.rename(final)
    except BaseException:
        if earlier.exists() and not final.exists():
            earlier.rename(final)
        raise
    flush_folder(final.parent)
    # The new one is in place: an earlier one that cannot be deleted now is cleared at the next start.
    with contextlib.suppress(OSError):
        _delete(earlier)


def _prune(output_dir: Path, keep: int, newest: Path) -> None:
    """Remove checkpoints beyond `keep`, first those that are visibly broken, then the oldest.

    A failure leaves one too many, which is no reason to stop a run.
    """
    others = [path for _, path in list_checkpoints(output_dir) if path != newest]
    others.sort(key=lambda path: _reason(path, with_hashes=False) is None)
    for path in others[: max(0, len(others) - keep + 1)] if keep > 0 else []:
        hidden = _hidden(path, "gone")
        with contextlib.suppress(OSError):
            _delete(hidden)
            # Renamed first: a process killed while deleting must not leave half a folder under this name.
            path.rename(hidden)
            _delete(hidden)


def _hidden(final: Path, kind: str) -> Path:
    return final.with_name(f".{final.name}.{kind}-{os.getpid()}")


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _reason(folder: Path, with_hashes: bool) -> str | None:
    """What `verify` says; without hashes only a look at the manifest and the sizes."""
    if not folder.is_dir():
        return "it is not a folder" if folder.exists() else "it does not exist"
    try:
        manifest = read_json(folder / MANIFEST)
        listed = _listed_files(manifest)
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so it was never finished"
    except (OSError, TunerkitError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, (size, digest) in listed.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if (found := path.stat().st_size) != size:
                return f"{name} has {found} bytes instead of {size}"
            if with_hashes and digest_file(path) != digest:
                return f"{name} was changed or damaged (its SHA-256 differs)"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def _listed_files(manifest: Any) -> dict[str, tuple[int, str]]:
    """The manifest's files as {relative name: (bytes, SHA-256)}.

    Raises:
        ValueError: the manifest has another form, or names a file outside its folder.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("it has no list of files")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"its format is {manifest.get('format')!r}, and this version reads {FORMAT}")
    listed: dict[str, tuple[int, str]] = {}
    for name, entry in manifest["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"it names {name}, which lies outside the checkpoint")
        if not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
            raise ValueError(f"its entry for {name} is incomplete")
        listed[name] = (entry["size"], entry["sha256"])
    return listed


def _explain(error: OSError, final: Path) -> str:
    """One message for a failed save: the folder, the reason, the free space and the fix."""
    folder = final.parent
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "make space there, lower checkpoints_total_limit, or set output_dir to a larger disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "allow writing there, or set output_dir to a folder you may write to"
    else:
        fix = "check the disk, or set output_dir to another one"
    reason = error.strerror or str(error)
    return (
        f"{final.name} could not be saved in {folder}: {reason} ({free:.2f} GiB free there). Fix: {fix}. "
        "Earlier checkpoints are whole and untouched."
    )
