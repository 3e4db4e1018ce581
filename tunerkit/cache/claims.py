"""Sharing the work of filling one cache between processes, on one machine or several, without locks.

Every process walks the missing entries from a place of its own and claims an entry before it works on it: a small
file that only one process can create. A claim saves double work and nothing else. Entries are written whole whoever
writes them, so a claim that is lost, stolen or left by a killed process can cost time but never a wrong entry.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from tunerkit.cache.store import machine
from tunerkit.cache.write_behind import cannot_write
from tunerkit.files import process_runs

FOLDER = ".claims"
"""Sub-folder of a store that holds its claims; gone when nobody works on the store."""
REFRESH_SECONDS = 15.0
SILENT_SECONDS = 120.0
"""A claim of another machine that was not refreshed for so long, as seen from here, is abandoned. No clock of another
machine is asked."""
NAMELESS_SECONDS = 5.0
"""The same for a claim that does not say whose it is: its process ended between making and signing it."""
LEFTOVER_SECONDS = 3600.0
"""Older claims are cleared without watching them first: no two clocks should differ by so much."""

Entry = TypeVar("Entry")


class Claims:
    """The claims of one process. Use as a context: all are given back at the end, however it comes."""

    def __init__(self, stores: Sequence[Path]) -> None:
        """`stores` are the folders to share; what dead processes left in them is cleared on entry and exit."""
        self._folders = [Path(store) / FOLDER for store in dict.fromkeys(stores)]
        self._held: set[Path] = set()
        self._seen: dict[Path, tuple[int, float]] = {}
        self._guard = threading.Lock()  # entries are given back by the thread that wrote them
        self._ended = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, name="tunerkit-claims", daemon=True)

    def __enter__(self) -> Claims:
        self._clear()
        self._refresher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._refresher.join()
        for path in list(self._held):
            self._give_back(path)
        self._clear()
        for folder in self._folders:
            with contextlib.suppress(OSError):  # not empty: others are still at work
                folder.rmdir()

    def take(self, store: Path, name: str) -> bool:
        """Claim the entry `name` of `store`; False while another living process has it.

        Raises:
            TunerkitError: the store cannot be written.
        """
        path = Path(store) / FOLDER / name
        try:
            if path in self._held or self._create(path):
                return True
            if not self._abandoned(path):
                return False
            path.unlink(missing_ok=True)
            return self._create(path)
        except OSError as error:
            raise cannot_write(store, error) from error

    def release(self, store: Path, name: str) -> None:
        """Give an entry back: it is written, or cannot be made."""
        self._give_back(Path(store) / FOLDER / name)

    def _create(self, path: Path) -> bool:
        signature = json.dumps({"machine": machine(), "process": os.getpid(), "time": round(time.time())}).encode()
        while True:
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                break
            except FileExistsError:
                return False
            except FileNotFoundError:  # the first claim, or the last process to leave has just removed the folder
                path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.write(descriptor, signature)
        finally:
            os.close(descriptor)
            with self._guard:
                self._held.add(path)
        return True

    def _give_back(self, path: Path) -> None:
        with self._guard:
            if path not in self._held:
                return
            self._held.discard(path)
        with contextlib.suppress(OSError):
            if _owner(path) in (None, (machine(), os.getpid())):  # else another process found us silent and took it
                path.unlink()

    def _abandoned(self, path: Path) -> bool:
        """Whether nobody works behind a claim any more; True as well when it is gone by now."""
        try:
            changed = path.stat().st_mtime_ns
            owner = _owner(path)
        except OSError:
            return True
        if owner is not None and owner[0] == machine():
            # A claim with our own number that we do not hold is that of a process that ended.
            return owner[1] == os.getpid() or not process_runs(owner[1])
        before, since = self._seen.get(path, (None, 0.0))
        if changed != before:
            self._seen[path] = (changed, time.monotonic())
            return time.time() - changed / 1e9 > LEFTOVER_SECONDS
        return time.monotonic() - since > (SILENT_SECONDS if owner else NAMELESS_SECONDS)

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            with self._guard:
                held = list(self._held)
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)

    def _clear(self) -> None:
        for folder in self._folders:
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    if path not in self._held and self._abandoned(path):
                        path.unlink(missing_ok=True)


def divided(
    entries: Sequence[Entry],
    claims: Claims,
    place: Callable[[Entry], tuple[Path, str]],
    is_there: Callable[[Entry], bool],
    found: Callable[[Entry], None],
) -> Iterator[Entry | None]:
    """The entries that this process is to make, each claimed; the caller releases them.

    Args:
        entries: what is missing.
        claims: of this process.
        place: store and name of an entry.
        is_there: whether an entry exists by now.
        found: called for every entry that another process has made meanwhile.

    Yields:
        An entry, or None when all that is left is being made by others: ask again a little later.
    """
    start = crc32(f"{machine()} {os.getpid()}".encode()) % max(1, len(entries))
    left = [*entries[start:], *entries[:start]]
    while left:
        foreign: list[Entry] = []
        for entry in left:
            if not is_there(entry) and not claims.take(*place(entry)):
                foreign.append(entry)
            elif is_there(entry):  # asked after claiming: another process may just have written it
                claims.release(*place(entry))
                found(entry)
            else:
                yield entry
        left = foreign
        if left:
            yield None


def _owner(path: Path) -> tuple[str, int] | None:
    """Machine and process behind a claim; None where it does not say (it is being written).

    Raises:
        OSError: the claim is gone.
    """
    try:
        content = json.loads(path.read_bytes())
        return str(content["machine"]), int(content["process"])
    except (ValueError, KeyError, TypeError):
        return None
