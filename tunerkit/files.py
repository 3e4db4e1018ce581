"""Files that are either whole or not there: atomic writes, JSON, digests, and the clearing of leftovers.

Every writer in the project goes through here, so that a process killed at any moment never leaves a torn file
under its final name. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunerkit.errors import TunerkitError

_TEMPORARY = re.compile(r"^\..+\.tmp-(\d+)$")
_PROCESS_STARTED = time.time()
# Some network and FUSE file systems cannot flush a folder; the files in it are flushed all the same.
_FOLDER_FLUSH_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF}


def temporary_path(path: Path) -> Path:
    """Where this process writes before `path` gets its content: `.<name>.tmp-<pid>` in the same folder."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write a file to; it becomes `path` when the block ends without an error.

    For writers that want a path (a video encoder, say). The folder is created when it is missing.
    When the block raises, the temporary file is removed and an existing `path` stays as it was.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        # Some writers (safetensors) make files that only their owner can read, whatever the umask says.
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        temporary.unlink()
        yield temporary
        with contextlib.suppress(PermissionError):  # file systems without modes
            temporary.chmod(mode)
        flush_file(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write `content` (text as UTF-8) to `path`; a reader sees the old file or the new one, never a part.

    It is on disk when this returns. The folder is created when it is missing.

    Raises:
        OSError: the folder cannot be written or the disk is full; an existing file stays as it was.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON, atomically.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON has no word for.
        TypeError: `value` holds something JSON cannot express.
    """
    return write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a UTF-8 JSON file (a leading byte order mark is accepted).

    Raises:
        FileNotFoundError: there is no such file.
        TunerkitError: the file is not UTF-8 or not JSON; the message names the file and the line.
    """
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise TunerkitError(f"{path}: not UTF-8 text (byte {error.start}). Fix: save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise TunerkitError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}. Fix: correct that line."
        ) from error


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file's content, as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporary files in `folder` (not below it) that a killed process left behind.

    Files of a process that still runs stay. A file with our own process id goes only when it is older than
    this process: containers hand out the same few ids after every restart.

    Returns:
        The deleted paths.
    """
    folder = Path(folder)
    removed: list[Path] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _TEMPORARY.match(path.name)
        if match is None or not path.is_file():
            continue
        owner = int(match[1])
        with contextlib.suppress(OSError):
            ours_but_older = owner == os.getpid() and path.stat().st_mtime < _PROCESS_STARTED
            if ours_but_older or not process_runs(owner):
                path.unlink()
                removed.append(path)
    return removed


def process_runs(pid: int) -> bool:
    """Whether a process with this id exists on this machine; True where that cannot be told."""
    if os.name == "nt":  # there, signal 0 would end the process instead of asking about it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def flush_file(path: Path) -> None:
    """Make a file's content survive a power cut (fsync).

    Raises:
        OSError: the file is missing, or the disk could not take it.
    """
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Make a folder's names (created, renamed, deleted) survive a power cut, where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in _FOLDER_FLUSH_UNSUPPORTED:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FOLDER_FLUSH_UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
