"""Remembers what was found in media, sound and caption files, so that an unchanged file is opened once and never again.

One file per dataset: a line that names the format and the checksum of the rest, then JSON. An entry holds as long as
path, size and time of last change do. A file that is damaged, or was written by another version of this module or of
the libraries that read media, counts as empty. Several processes may write: each joins what is there with what it
knows and replaces the file as a whole, so at worst an entry is lost and found again.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import av
import PIL

from tunerkit.data.discover import Stamp
from tunerkit.data.media import Clock, Media, SoundTrack, UnreadableMedia
from tunerkit.data.samples import Source
from tunerkit.files import write_atomically

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig

log = logging.getLogger("tunerkit")

FORMAT = 2
"""Raised when probing finds other things in the same file, or the entries change."""

FORGOTTEN_CAUSES = frozenset({"no permission", "missing", "broken link"})
"""Failures that end without a change of size or time."""

LONGEST_CAPTION = 64 * 1024
"""Characters; longer texts are read again each time."""

SETTLED_NS, COARSE_SETTLED_NS = 50_000_000, 2_000_000_000
"""A file changed less long ago could change again without a new time: file systems keep it in steps of some
milliseconds, or of up to two seconds where it is a whole number of seconds."""

_warned: set[str] = set()


@contextlib.contextmanager
def garbage_collection(on: bool) -> Iterator[None]:
    """With or without Python's search for garbage among the objects that exist.

    It is a third of the time wherever very many objects are made that all stay, and finds nothing there.
    """
    before = gc.isenabled()
    _collect_garbage(on)
    try:
        yield
    finally:
        _collect_garbage(before)


def _collect_garbage(on: bool) -> None:
    if on:
        gc.enable()
    else:
        gc.disable()


class MediaMemory:
    """What is known about the files of one dataset folder. Not for use by several threads at a time.

    Args:
        path: the file of the memory; None = remember nothing.
        root: the folder whose files are remembered; a memory of another folder counts as empty.
    """

    def __init__(self, path: Path | None, root: str) -> None:
        self.path = path
        self._header = [FORMAT, root, av.__version__, PIL.__version__]
        self._clocks: dict[Clock, int] = {}
        self._clock_list: list[Clock] = []
        self._media: dict[str, list[Any]] = {}
        self._sounds: dict[str, list[Any]] = {}
        self._captions: dict[str, list[Any]] = {}
        self._changed = False
        self._seen: tuple[int, int, int] | None = None
        self._join()

    @classmethod
    def of(cls, dataset: DatasetConfig, folder: Path, config: TrainConfig) -> MediaMemory:
        """The memory of a dataset in the run's cache folder; a run without one remembers nothing."""
        if config.cache_dir is None and config.output_dir is None:
            return cls(None, "")
        return cls(config.cache_path / "media" / f"{dataset.id}.json", os.path.abspath(folder))

    def media(self, name: str, stamp: Stamp | None, file: Path) -> Media | UnreadableMedia | None:
        """What probing `file` gave when it had this stamp; None where it has to be probed."""
        entry = self._media.get(name)
        if entry is None or stamp is None or (entry[0], entry[1]) != stamp:
            return None
        if len(entry) == 5:
            return UnreadableMedia(file, entry[2], entry[3], entry[4])
        _, _, clock, end, timed, damaged, remarks, *facts = entry
        width, height, fps, frames, duration, rotation, has_audio, codec, digest = facts
        source = Source(width, height, fps, frames, duration, rotation, has_audio, codec, *stamp, digest)
        return Media(source, self._clock_list[clock], end, timed, tuple(remarks), damaged)

    def sound(self, name: str, stamp: Stamp | None, file: Path) -> SoundTrack | UnreadableMedia | None:
        """What looking for sound in `file` gave when it had this stamp; None where it has to be looked for."""
        entry = self._sounds.get(name)
        if entry is None or stamp is None or (entry[0], entry[1]) != stamp:
            return None
        return UnreadableMedia(file, *entry[2:]) if isinstance(entry[2], str) else SoundTrack(*entry[2:])

    def caption(self, name: str, stamp: Stamp | None) -> str | None:
        """Text of a caption file when it had this stamp; None where it has to be read."""
        entry = self._captions.get(name)
        return entry[2] if entry is not None and (entry[0], entry[1]) == stamp else None

    def remember(self, name: str, stamp: Stamp | None, found: Media | UnreadableMedia) -> None:
        """Keep what probing a file gave; nothing that may change while the file's size and time do not."""
        if not self._keeps(stamp, found):
            return
        if isinstance(found, UnreadableMedia):
            entry = [*stamp, found.reason, found.fix, found.cause]
        else:
            source = found.source
            if (source.size_bytes, source.mtime_ns) != stamp:
                return  # it changed between listing the folder and reading it
            facts = (
                source.width, source.height, source.fps, source.frames, source.duration, source.rotation,
                source.has_audio, source.codec, source.digest,
            )  # fmt: skip
            clock = self._number(found.clock)
            entry = [*stamp, clock, found.end, found.timed, found.damaged, list(found.remarks), *facts]
        self._media[name] = entry
        self._changed = True

    def remember_sound(self, name: str, stamp: Stamp | None, found: SoundTrack | UnreadableMedia) -> None:
        """Keep what looking for sound in a file gave, as `remember` does."""
        if self._keeps(stamp, found):
            told = (found.reason, found.fix, found.cause) if isinstance(found, UnreadableMedia) else found
            self._sounds[name] = [*stamp, *told]
            self._changed = True

    def remember_caption(self, name: str, stamp: Stamp | None, text: str) -> None:
        """Keep the text of a caption file."""
        if self.path is not None and stamp is not None and len(text) <= LONGEST_CAPTION and _settled(stamp):
            self._captions[name] = [*stamp, text]
            self._changed = True

    def retain(self, media: Set[str], captions: Set[str]) -> None:
        """Forget all files but these; what is known of the sound of `media` stays too."""
        for known, names in ((self._media, media), (self._sounds, media), (self._captions, captions)):
            for name in known.keys() - names:
                del known[name]
                self._changed = True

    def save(self) -> None:
        """Write what is new, joined with what another process wrote meanwhile. Never raises: it only costs time."""
        if self.path is None or not self._changed:
            return
        try:
            self._join()
            write_atomically(self.path, self._content())
            self._seen = self._state()
            self._changed = False
        except OSError as error:
            if str(self.path.parent) not in _warned:
                _warned.add(str(self.path.parent))
                log.warning(
                    "What was found in the media files cannot be kept in %s (%s); they are read again next time. "
                    "Fix: make the folder writable, or set cache_dir to one that is.",
                    self.path.parent, (error.strerror or str(error)).lower(),
                )  # fmt: skip

    def _keeps(self, stamp: Stamp | None, found: object) -> TypeGuard[Stamp]:
        """Whether what was found in a file of this stamp holds as long as the stamp does."""
        if self.path is None or stamp is None or not _settled(stamp):
            return False
        return not (isinstance(found, UnreadableMedia) and found.cause in FORGOTTEN_CAUSES)

    def _number(self, clock: Clock) -> int:
        number = self._clocks.setdefault(clock, len(self._clock_list))
        if number == len(self._clock_list):
            self._clock_list.append(clock)
        return number

    def _content(self) -> bytes:
        """What is written; the same whichever file was probed first."""
        media: dict[str, list[Any]] = {}
        numbers: dict[int, int] = {}
        for name, entry in sorted(self._media.items()):
            if len(entry) > 5:
                entry = [*entry[:2], numbers.setdefault(entry[2], len(numbers)), *entry[3:]]
            media[name] = entry
        clocks = [(clock.tick, clock.start, clock.runs) for clock in map(self._clock_list.__getitem__, numbers)]
        value = {
            "header": self._header,
            "clocks": clocks,
            "media": media,
            "sounds": self._sounds,
            "captions": self._captions,
        }
        body = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
        return _first_line(body) + body

    def _state(self) -> tuple[int, int, int] | None:
        """Tells whether the file is still the one that was read or written last."""
        assert self.path is not None
        try:
            facts = os.stat(self.path)
        except OSError:
            return None
        return facts.st_ino, facts.st_size, facts.st_mtime_ns

    def _join(self) -> None:
        """Take over what stands in the file and is not known yet."""
        if self.path is None or (state := self._state()) is None or state == self._seen:
            return
        with garbage_collection(False):
            value = _read(self.path)
        self._seen = state
        if value is None or value["header"] != self._header:
            return
        numbers = [self._number(Clock(tick, start, tuple(runs))) for tick, start, runs in value["clocks"]]
        same = numbers == list(range(len(numbers)))
        for name, entry in value["media"].items():
            if name not in self._media:
                if len(entry) > 5 and not same:
                    entry[2] = numbers[entry[2]]
                self._media[name] = entry
        self._sounds = value["sounds"] | self._sounds
        self._captions = value["captions"] | self._captions


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a memory file; None where it is damaged or cannot be read."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return json.loads(body) if line + b"\n" == _first_line(body) else None


def _first_line(body: bytes) -> bytes:
    return f"tunerkit media {FORMAT} {zlib.crc32(body):08x}\n".encode()


def _settled(stamp: Stamp) -> bool:
    """Whether the next change of a file would give it another time."""
    settled = SETTLED_NS if stamp[1] % 1_000_000_000 else COARSE_SETTLED_NS
    return not 0 <= time.time_ns() - stamp[1] < settled
