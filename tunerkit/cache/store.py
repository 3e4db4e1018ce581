"""A folder of safetensors files, each written whole or not at all, plain or compressed.

Plain files are read about three times faster than compressed ones (zstd, level 1) and are a tenth to a quarter larger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tunerkit import files
from tunerkit.errors import TunerkitError

if TYPE_CHECKING:
    import torch

PLAIN, COMPRESSED = ".safetensors", ".safetensors.zst"
ZSTD_LEVEL = 1
"""Higher levels take longer and win less than one percent on latents."""
ABANDONED_SECONDS = 3600.0
"""A temporary file of another machine that was not touched for so long is left from a killed process."""
LEAST_BYTES = 64
"""A smaller file is no entry of either form: a broken disk or copy left it empty, or cut it off in its header."""
KEPT_BYTES = 4 << 30
"""Entries that cannot be written are held in memory up to so many bytes."""

_HEADER = "tunerkit"
_MARK = f'"{_HEADER}":"crc32='.encode()
_NO_CHECKSUM = b"00000000"
_TEMPORARY = re.compile(r"^\.[0-9a-z]+\.safetensors(?:\.zst)?\.tmp-([0-9a-f]{12})-(\d+)-\d+$")
_OURS = re.compile(r"^([0-9a-f]{64})\.safetensors(?:\.zst)?$")


class CacheEntryError(TunerkitError):
    """A cache file is gone, truncated or was changed. Training makes it anew, and so does building the cache again."""


class NonFiniteEntryError(TunerkitError, ValueError):
    """NaN or infinite values were to be cached; nothing was written."""


@dataclass(frozen=True)
class Entry:
    """A file of a store: an entry, or with an empty `name` what a killed process left of one."""

    name: str
    path: Path
    size: int

    @property
    def torn(self) -> bool:
        """Whether it is too small to be an entry; `clear_torn` removes it, and it is made anew."""
        return self.size < LEAST_BYTES


class Store:
    """Entries by name under `folder`, spread over 256 sub-folders. Several processes may write to one store.

    The folders are listed once, when an entry is first asked for; what other processes add later is found on disk.
    An entry counts in either form, and there is no difference between them but their size. What is no file is no entry.

    Args:
        folder: made when the first entry is written.
        compress: how new entries are written.
    """

    def __init__(self, folder: Path, *, compress: bool = False) -> None:
        self.folder = Path(folder)
        self.compress = compress
        self._suffixes: dict[str, str] | None = None
        self._kept: dict[str, dict[str, torch.Tensor]] = {}

    def path(self, name: str) -> Path:
        """The file of an entry; where there is none, the one it would be written to."""
        return self._path(name, self._find(name) or self._own_suffix)

    def __contains__(self, name: str) -> bool:
        """Whether there is such an entry now; one that was listed is not looked for again."""
        return name in self._kept or self._find(name) is not None

    def listed(self, name: str) -> bool:
        """Whether there was such an entry when the folder was listed, or since: asks no file system."""
        return name in self._index()

    def refresh(self) -> None:
        """List the folder anew when it is next asked."""
        self._suffixes = None

    def put(self, name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write an entry; `facts` are kept in its header for people who look inside.

        Equal tensors and facts give equal bytes.

        Raises:
            NonFiniteEntryError: a tensor holds NaN or infinity.
            OSError: the folder cannot be written or the disk is full.
        """
        from safetensors.torch import save

        _refuse_non_finite(tensors, facts)
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        # One key only: safetensors writes several in random order.
        header = {_HEADER: f"crc32={_NO_CHECKSUM.decode()} {json.dumps(facts, default=str)}"}
        data = _sealed(save(plain, metadata=header))
        if self.compress:
            import zstandard

            data = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(data)
        self._write(self._path(name, self._own_suffix), data)
        # The other form, if there is one, stays: two processes that replaced each other's could delete both.
        self._index()[name] = self._own_suffix

    def keep(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Hold an entry that cannot be written in memory, for as long as this store lives; `get` returns it then."""
        held = sum(tensor.nbytes for entry in (*self._kept.values(), tensors) for tensor in entry.values())
        if held > KEPT_BYTES:
            self._kept.clear()
        self._kept[name] = dict(tensors)

    def get(self, name: str, needed: Iterable[str] = ()) -> dict[str, torch.Tensor]:
        """Read an entry that holds at least the tensors `needed`.

        Raises:
            CacheEntryError: the file is gone, or not what was written, or incomplete; then it is removed if possible,
                to be made anew.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if name in self._kept:
            return dict(self._kept[name])
        path, data = self._read(name)
        try:
            if path.name.endswith(COMPRESSED):
                data = _decompressed(data)
            if not _is_sealed(data):
                raise ValueError("its checksum does not match")
            tensors = load(data)
            missing = [key for key in needed if key not in tensors]
            if missing:
                raise ValueError(f"it holds no {' and no '.join(missing)}")
            return tensors
        except (SafetensorError, ValueError, KeyError, MemoryError) as error:
            self._forget(name)
            raise CacheEntryError(
                f"cache file {path} was damaged ({error or type(error).__name__}) and {_removed(path)}"
            ) from error

    def entries(self) -> Iterator[Entry]:
        """Every entry on disk, torn ones too, with a name that tunerkit gives: 64 hexadecimal digits in the sub-folder
        of the first two. Other files are passed over."""
        for sub in _sub_folders(self.folder):
            for found in _scan(sub):
                match = _OURS.match(found.name)
                if match and found.name[:2] == sub.name and found.is_file():
                    with contextlib.suppress(FileNotFoundError):
                        yield Entry(match[1], Path(found.path), found.stat().st_size)

    def leftovers(self) -> Iterator[Entry]:
        """What killed processes left: temporary files of an ended process of this machine, or old ones of others."""
        for found in _scan(self.folder):
            match = _TEMPORARY.match(found.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):  # it got its name, or was removed, in this moment
                status = found.stat(follow_symlinks=False)
                if _is_abandoned(match[1], int(match[2]), time.time() - status.st_mtime):
                    yield Entry("", Path(found.path), status.st_size)

    def clear_leftovers(self) -> None:
        """Remove what killed processes were writing, as far as that is allowed; one listing, since temporary files lie
        in the folder itself."""
        for leftover in list(self.leftovers()):
            with contextlib.suppress(OSError):  # another user's: it is in nobody's way
                leftover.path.unlink(missing_ok=True)

    def clear_torn(self) -> None:
        """Remove entries that are empty or cut off in their header, as far as that is allowed, to be made anew.

        Asks the disk for the size of every entry, 5 us each: for filling the cache, not for looking things up.
        """
        for entry in self.entries():
            if entry.torn:
                with contextlib.suppress(OSError):  # another user's: it is found when it is read
                    entry.path.unlink(missing_ok=True)
                    self._forget(entry.name)

    # Inner works -----------------------------------------------------------------------------------------------

    @property
    def _own_suffix(self) -> str:
        return COMPRESSED if self.compress else PLAIN

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / name[:2] / f"{name}{suffix}"

    def _index(self) -> dict[str, str]:
        """Suffix of every entry by its name."""
        index = self._suffixes
        if index is None:
            index = {}
            for sub in _sub_folders(self.folder):
                for found in _scan(sub):
                    name, dot, rest = found.name.partition(".")
                    if name and f"{dot}{rest}" in (PLAIN, COMPRESSED) and found.is_file():
                        index[name] = f"{dot}{rest}"
            self._suffixes = index
        return index

    def _find(self, name: str) -> str | None:
        """The suffix of an entry, or None; a miss is looked for on disk, as another process may have filled it."""
        suffix = self._index().get(name)
        return suffix or self._look(name)

    def _look(self, name: str) -> str | None:
        start = f"{self.folder}{os.sep}{name[:2]}{os.sep}{name}"  # a Path takes three times as long
        for suffix in (self._own_suffix, PLAIN if self.compress else COMPRESSED):
            if os.path.isfile(start + suffix):
                self._index()[name] = suffix
                return suffix
        self._forget(name)
        return None

    def _forget(self, name: str) -> None:
        self._index().pop(name, None)

    def _read(self, name: str) -> tuple[Path, bytes]:
        suffix = self._find(name) or self._own_suffix  # also tells what else has this name
        for _ in range(2):  # another process may just have changed its form
            if suffix is None:
                break
            path = self._path(name, suffix)
            try:
                return path, path.read_bytes()
            except FileNotFoundError:
                suffix = self._look(name)
            except IsADirectoryError as error:
                raise CacheEntryError(
                    f"a folder stands where cache file {path} should be; delete the folder"
                ) from error
            except OSError as error:
                raise CacheEntryError(
                    f"cache file {path} cannot be read ({error.strerror or error}); check the disk and its permissions"
                ) from error
        self._forget(name)
        raise CacheEntryError(f"cache file {self._path(name, self._own_suffix)} is gone; build_cache makes it anew")

    def _write(self, path: Path, data: bytes) -> None:
        """Temporary file, flush, rename: a reader sees the whole entry or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        process = f"{machine()}-{os.getpid()}-{threading.get_native_id()}"
        temporary = self.folder / f".{path.name}.tmp-{process}"
        try:
            temporary.write_bytes(data)
            files.flush_file(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        files.flush_folder(path.parent)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in the header of an entry of either form; only the head of the file is read, and not verified.

    Returns:
        The facts; nothing where the file cannot be understood.
    """
    import zstandard

    try:
        with path.open("rb") as file:
            source: BinaryIO = file
            if path.name.endswith(COMPRESSED):
                source = zstandard.ZstdDecompressor().stream_reader(file, read_size=1 << 16)  # pyright: ignore[reportAssignmentType]
            length = int.from_bytes(source.read(8), "little")
            if length > 1 << 24:
                return {}
            header = json.loads(source.read(length))
        facts = json.loads(header["__metadata__"][_HEADER].partition(" ")[2])
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zstandard.ZstdError):
        return {}


@cache
def machine() -> str:
    """Twelve hexadecimal digits for where process ids are unique: this start of this machine, and this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_abandoned(owner: str, process: int, age: float) -> bool:
    """Whether nobody writes a temporary file any more; `age` in seconds."""
    if owner == machine() and process != os.getpid():
        return not files.process_runs(process)
    # Of ourselves too: a container hands out the same few ids after every restart.
    return age > ABANDONED_SECONDS


def _sub_folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _scan(folder) if len(entry.name) == 2 and entry.is_dir()]


def _scan(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder; nothing where there is none.

    Raises:
        TunerkitError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TunerkitError(
            f"cache folder {os.fspath(folder)} cannot be listed ({error.strerror}). Fix: give yourself read and "
            "execute permission, or set cache_dir to another folder"
        ) from error


def _removed(path: Path) -> str:
    """Remove a damaged entry; returns what became of it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"cannot be removed ({error.strerror or error}); delete it, or set cache_dir to a folder of your own"
    return "has been removed; build_cache makes it anew"


def _refuse_non_finite(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    import torch

    for key, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # The 8-bit floating types have no isfinite of their own.
        if not torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all():
            told = ", ".join(f"{name} = {value}" for name, value in facts.items() if name != "frames")
            raise NonFiniteEntryError(
                f"{key} of {told or 'a cache entry'} holds NaN or infinite values and was not cached. Fix: encode in "
                "float32 (vae_dtype = fp32 for clips, mixed_precision = no for text)"
            )


def _sealed(data: bytes) -> bytes:
    """The file with the checksum of all of it (with zeros in the checksum's place) written into its header."""
    at = _checksum_place(data)
    return b"".join((data[:at], b"%08x" % zlib.crc32(data), data[at + 8 :]))


def _is_sealed(data: bytes) -> bool:
    at = _checksum_place(data)
    if at < 0:
        return False
    view = memoryview(data)
    value = zlib.crc32(view[at + 8 :], zlib.crc32(_NO_CHECKSUM, zlib.crc32(view[:at])))
    return data[at : at + 8] == b"%08x" % value


def _checksum_place(data: bytes) -> int:
    """Where the eight digits of the checksum stand; -1 if this is no entry."""
    at = data.find(_MARK, 8, 8 + int.from_bytes(data[:8], "little"))
    return at + len(_MARK) if at >= 0 else -1


def _decompressed(data: bytes) -> bytes:
    """
    Raises:
        ValueError: this is not one whole zstd frame.
    """
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
