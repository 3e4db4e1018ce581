"""Which frames of a clip are used: resampling by timestamps, then the frame rule of the model's VAE.

Output frame `k` is shown `k / target_fps` seconds after the clip's first frame and takes the source frame
whose presentation time is nearest; of two equally near ones the earlier. This holds for variable frame rates
too, keeps the speed of motion right, and repeats frames where the clip is slower than the target. An output
frame fits when at least half of the time it is on screen lies inside the clip, so that timestamps rounded by
a container do not cost a frame.

Of the output frames that fit, a window of consecutive ones is used. `video.frame_sampling` says where it lies:
`head`, the first ones; `middle`, the middle ones; `uniform` and `random`, several windows spread evenly from the
first frame to the last, all of which are visited, or one drawn at each visit. A window never leaves the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

FrameSampling = Literal["head", "middle", "uniform", "random"]

TIE_SECONDS = 1e-6
"""Distances that differ by less are equal; far below the tick of any container (1/90,000 s)."""

DEFAULT_SECONDS = 5.0
"""Longest sample where `video.num_frames` is not set."""

REMEMBERED_FRAMES = 4096
"""Decisions about clips with more source frames are not remembered: few clips share them, and they are large."""


@dataclass(frozen=True)
class FrameRules:
    """The frame settings of a dataset, named as in its `video` block.

    None means: `num_frames` what the clip has, up to five seconds; `min_frames` as many as `num_frames`, or
    1 where that is not set either; `max_frames` no limit. `num_windows` counts for `uniform` and `random` only.
    With `frame_interval`, counts are lowered to `k * frame_interval + 1` before the model's own rule.
    """

    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    frame_sampling: FrameSampling = "head"
    num_windows: int = 4
    frame_interval: int | None = None

    def lowered(self, count: int) -> int:
        """The largest count that `frame_interval` leaves of `count`, at least 1."""
        count = max(1, count)
        return count if self.frame_interval is None else (count - 1) // self.frame_interval * self.frame_interval + 1


@dataclass(frozen=True)
class FramePlan:
    """The frames of one clip.

    Attributes:
        windows: of each window the source frames in presentation order, one per output frame. All windows have
            the same number of frames; there are none when the clip cannot be used.
        reason: what was found and what is taken of it, or why nothing is.
        fix: the setting that would change a refusal; empty when the clip is used.
        cause: the refusal in two words; empty when the clip is used.
    """

    windows: tuple[tuple[int, ...], ...]
    reason: str
    fix: str = ""
    cause: str = ""

    @property
    def indices(self) -> tuple[int, ...]:
        """The first window; empty when the clip cannot be used."""
        return self.windows[0] if self.windows else ()


def plan_frames(
    timestamps: Sequence[float],
    target_fps: float,
    num_frames: int,
    legal_frames: Callable[[int], int],
    *,
    end: float | None = None,
) -> tuple[int, ...]:
    """Source frame of each output frame of the window at the head.

    Args:
        timestamps: presentation times in seconds, ascending, at least one.
        target_fps: frames per second of the output, above 0.
        num_frames: largest number of output frames.
        legal_frames: the largest count that the model takes and that is not above its argument.
        end: when the last frame leaves the screen, in seconds; by default it stays as long as a frame usually does.
    """
    stop = clip_end(timestamps) if end is None else end
    available = frames_that_fit(timestamps[0], stop, target_fps)
    return nearest_frames(timestamps, target_fps, legal_frames(max(1, min(available, num_frames))))


def window_starts(available: int, count: int, sampling: FrameSampling, num_windows: int) -> tuple[int, ...]:
    """Output frames at which windows of `count` frames begin, ascending, no two alike.

    Args:
        available: output frames that the clip has; at least `count`.
        num_windows: for `uniform` and `random`: windows from the first frame to the last at equal distances, to the
            nearest frame. A clip with fewer places gives fewer windows; a single window lies in the middle.
    """
    spare = available - count
    if sampling == "head":
        return (0,)
    windows = 1 if sampling == "middle" else min(num_windows, spare + 1)
    if windows == 1:
        return (spare // 2,)
    gaps = windows - 1  # not more than `spare`, so rounding brings no two windows together
    return tuple((2 * place * spare + gaps) // (2 * gaps) for place in range(windows))


def frames_that_fit(start: float, end: float, target_fps: float) -> int:
    """Output frames between `start` and `end` (seconds); the last is inside for at least half its time."""
    return max(1, int(np.floor((end - start) * target_fps + 0.5 + TIE_SECONDS)))


def nearest_frames(timestamps: Sequence[float], target_fps: float, count: int) -> tuple[int, ...]:
    """Index of the source frame nearest in time to each of `count` output frames; on a tie the earlier."""
    times = np.asarray(timestamps, dtype=np.float64)
    wanted = times[0] + np.arange(count, dtype=np.float64) / target_fps
    later = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    earlier = (later - 1).clip(0)
    later_is_nearer = np.abs(times[later] - wanted) < np.abs(wanted - times[earlier]) - TIE_SECONDS
    return tuple(np.where(later_is_nearer, later, earlier).tolist())


def clip_end(timestamps: Sequence[float], last_duration: float | None = None) -> float:
    """When the last frame leaves the screen, in seconds.

    Args:
        timestamps: presentation times in seconds, ascending, at least one.
        last_duration: how long the last frame stays; where the file does not say, the median distance of frames.
    """
    if not last_duration:
        last_duration = float(np.median(np.diff(timestamps))) if len(timestamps) > 1 else 0.0
    return float(timestamps[-1]) + last_duration


def decide_frames(
    timestamps: Sequence[float],
    *,
    end: float,
    source_fps: float,
    target_fps: float,
    rules: FrameRules,
    legal_frames: Callable[[int], int],
) -> FramePlan:
    """Which frames of a clip are used under a dataset's frame settings, and why.

    `min_frames` is compared after resampling and, like `num_frames`, floored to a count that the model takes.
    Clips of a dataset often share their timestamps, so decisions are remembered: one for `timestamps` already seen
    costs a look at each of them.

    Args:
        timestamps: presentation times in seconds, ascending, at least one; a tuple is quickest.
        end: when the last frame leaves the screen, in seconds.
        source_fps: frames per second of the clip, for the reason only.
        target_fps: frames per second of the output, above 0.
        legal_frames: the largest count that the model takes and that is not above its argument; the same answer
            for the same count every time.
    """
    times = tuple(timestamps)
    decide = _decide if len(times) <= REMEMBERED_FRAMES else _decide.__wrapped__
    return decide(times, end, source_fps, target_fps, rules, legal_frames)


@lru_cache(maxsize=1024)
def _decide(
    times: tuple[float, ...],
    end: float,
    source_fps: float,
    target_fps: float,
    rules: FrameRules,
    legal_frames: Callable[[int], int],
) -> FramePlan:
    available = frames_that_fit(times[0], end, target_fps)
    asked = rules.num_frames or max(1, round(DEFAULT_SECONDS * target_fps))
    found = (
        f"{number(source_fps)} fps, {_frames(len(times))} ({end - times[0]:.2f} s) "
        f"-> {available} at {number(target_fps)} fps"
    )
    refusal = _refuse(found, available, target_fps, rules, legal_frames)
    if refusal is not None:
        return refusal
    count = legal_frames(rules.lowered(min(available, asked)))
    minimum = legal_frames(rules.min_frames or rules.num_frames or 1)
    if count < min(minimum, legal_frames(min(available, asked))):
        return FramePlan(
            (),
            f"{found}: video.frame_interval = {rules.frame_interval} lowers it to {_frames(count)}, fewer than "
            f"video.min_frames = {minimum}",
            f"remove video.frame_interval, set it to a divisor of {minimum - 1}, or lower video.min_frames",
            "frame_interval",
        )
    starts = window_starts(available, count, rules.frame_sampling, rules.num_windows)
    grid = nearest_frames(times, target_fps, starts[-1] + count)
    windows = tuple(grid[start : start + count] for start in starts)
    used = f"{found} -> uses {_taken(count, starts, target_fps, rules)}"
    if legal_frames(asked) != asked and count == legal_frames(asked):
        used += f"; the model takes {count} where {asked} were asked"
    elif count < legal_frames(min(available, asked)):
        used += f"; video.frame_interval = {rules.frame_interval} leaves {count}"
    if any(len(set(window)) < count for window in windows):
        used += "; some frames are shown more than once"
    return FramePlan(windows, used)


def _refuse(
    found: str, available: int, target_fps: float, rules: FrameRules, legal_frames: Callable[[int], int]
) -> FramePlan | None:
    """The refusal of a clip with too many or too few output frames; None when the clip is used."""
    minimum_asked = rules.min_frames or rules.num_frames or 1
    minimum = legal_frames(minimum_asked)
    if rules.max_frames is not None and available > rules.max_frames:
        return FramePlan(
            (),
            f"too long: {found}, more than video.max_frames = {rules.max_frames}",
            f"set video.max_frames to {available} or more, remove it, or cut the clip",
            "too long",
        )
    if available < minimum:
        floored = "" if minimum == minimum_asked else f" (the model takes {minimum})"
        return FramePlan(
            (),
            f"too short: {found}, fewer than video.min_frames = {minimum_asked}{floored}",
            f"set video.min_frames to {legal_frames(available)} or less, or use a clip of at least "
            f"{minimum / target_fps:.2f} s",
            "too short",
        )
    return None


def _taken(count: int, starts: Sequence[int], target_fps: float, rules: FrameRules) -> str:
    """What is used of a clip: `81 (5.06 s)`, `4 windows of 81 (5.06 s)`."""
    taken = f"{count} ({count / target_fps:.2f} s)"
    if rules.frame_sampling == "head":
        return taken
    if len(starts) == 1:
        return f"{taken} from {starts[0] / target_fps:.2f} s to {(starts[0] + count) / target_fps:.2f} s"
    windows = f"{len(starts)} windows of {taken}"
    return windows if rules.frame_sampling == "uniform" else f"at each visit one of {windows}"


def number(value: float) -> str:
    """A frame rate for people: `30`, `23.976`."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"
