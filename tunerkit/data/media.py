"""What was found in a media file, or why it cannot be used; the times of its frames are kept in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tunerkit.data.samples import Source
from tunerkit.errors import DatasetError


class UnreadableMedia(DatasetError):  # noqa: N818 - named for what it says about a file
    """A media file cannot be used.

    Args:
        file: the file.
        reason: what is wrong with it.
        fix: what to do about it.
        cause: the reason in a few words, shared by all files with the same trouble.
    """

    def __init__(self, file: Path, reason: str, fix: str, cause: str = "unreadable") -> None:
        self.file, self.reason, self.fix, self.cause = file, reason, fix, cause
        super().__init__(f"{file}: {reason}. Fix: {fix}")


@dataclass(frozen=True)
class Clock:
    """When each frame of a stream is shown, as whole ticks: a clip of constant rate takes four numbers.

    Attributes:
        tick: seconds per tick.
        start: tick of the first frame.
        runs: run lengths of the distances between frames: ticks, how often, ticks, how often, ...
    """

    tick: float
    start: int = 0
    runs: tuple[int, ...] = ()

    @classmethod
    def of(cls, ticks: Sequence[int], tick: float) -> Clock:
        """From the ascending ticks of the frames, at least one."""
        distances = np.diff(np.asarray(ticks, dtype=np.int64))
        if not len(distances):
            return cls(tick, ticks[0])
        first = np.flatnonzero(np.diff(distances, prepend=distances[0] - 1))
        lengths = np.diff(first, append=len(distances))
        return cls(tick, int(ticks[0]), tuple(np.stack([distances[first], lengths], axis=1).ravel().tolist()))

    @property
    def times(self) -> tuple[float, ...]:
        """Presentation time of each frame in seconds, ascending: tick number x `tick` in float64."""
        return _times(self)


@lru_cache(maxsize=256)
def _times(clock: Clock) -> tuple[float, ...]:
    distances = np.repeat(np.asarray(clock.runs[::2], np.int64), np.asarray(clock.runs[1::2], np.int64))
    ticks = np.concatenate([[clock.start], clock.start + np.cumsum(distances)])
    return tuple((ticks * clock.tick).tolist())


STILL = Clock(1.0)
"""An image: one frame at 0."""


class Media(NamedTuple):
    """A file that can be read.

    Attributes:
        source: its facts.
        clock: when each frame is shown.
        end: when the last frame leaves the screen, in seconds on the clock of `times`.
        timed: whether decoded frames carry `times`; without usable timestamps they are counted at a constant rate.
        remarks: what a person should know about the file.
        damaged: whether the file ends before its own end.
    """

    source: Source
    clock: Clock
    end: float
    timed: bool
    remarks: tuple[str, ...] = ()
    damaged: bool = False

    @property
    def times(self) -> tuple[float, ...]:
        """Presentation time of each frame in seconds, ascending; `(0.0,)` for an image."""
        return self.clock.times


class SoundTrack(NamedTuple):
    """The sound of a file.

    Attributes:
        begins: presentation time of its beginning, in seconds on the file's clock, which the picture shares.
        ends: the same of its end.
        digest: content hash of the file, hexadecimal.
    """

    begins: float
    ends: float
    digest: str

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.ends - self.begins
