"""Which frames of a clip are used: resampling by timestamps, then the frame rule of the model's VAE.

Output frame `k` is shown `k / target_fps` seconds after the clip's first frame and takes the source frame
whose presentation time is nearest; of two equally near ones the earlier. This holds for variable frame rates
too, keeps the speed of motion right, and repeats frames where the clip is slower than the target. An output
frame fits when at least half of the time it is on screen lies inside the clip, so that timestamps rounded by
a container do not cost a frame. Sampling is from the head: the first frames that fit are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TIE_SECONDS = 1e-6
"""Distances that differ by less are equal; far below the tick of any container (1/90,000 s)."""

DEFAULT_SECONDS = 5.0
"""Longest sample where `video.num_frames` is not set."""


@dataclass(frozen=True)
class FrameRules:
    """The frame settings of a dataset: `video.num_frames`, `video.min_frames`, `video.max_frames`.

    None means: `num_frames` what the clip has, up to five seconds; `min_frames` as many as `num_frames`, or
    1 where that is not set either; `max_frames` no limit.
    """

    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None


@dataclass(frozen=True)
class FramePlan:
    """The frames of one clip.

    Attributes:
        indices: source frames in presentation order, one per output frame; empty when the clip cannot be used.
        reason: what was found and what is taken of it, or why nothing is.
        fix: the setting that would change a refusal; empty when the clip is used.
        cause: the refusal in two words; empty when the clip is used.
    """

    indices: tuple[int, ...]
    reason: str
    fix: str = ""
    cause: str = ""


def plan_frames(
    timestamps: Sequence[float],
    target_fps: float,
    num_frames: int,
    legal_frames: Callable[[int], int],
    *,
    end: float | None = None,
) -> tuple[int, ...]:
    """Source frame of each output frame.

    Args:
        timestamps: presentation times in seconds, ascending, at least one.
        target_fps: frames per second of the output, above 0.
        num_frames: largest number of output frames.
        legal_frames: the largest count that the model takes and that is not above its argument.
        end: when the last frame leaves the screen, in seconds; by default it stays as long as a frame usually does.
    """
    stop = clip_end(timestamps) if end is None else end
    available = frames_that_fit(timestamps[0], stop, target_fps)
    count = legal_frames(max(1, min(available, num_frames)))
    return nearest_frames(timestamps, target_fps, count)


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
    return tuple(int(index) for index in np.where(later_is_nearer, later, earlier))


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
    """
    available = frames_that_fit(timestamps[0], end, target_fps)
    asked = rules.num_frames or max(1, round(DEFAULT_SECONDS * target_fps))
    minimum_asked = rules.min_frames or rules.num_frames or 1
    minimum = legal_frames(minimum_asked)
    found = (
        f"{number(source_fps)} fps, {_frames(len(timestamps))} ({end - timestamps[0]:.2f} s) "
        f"-> {available} at {number(target_fps)} fps"
    )
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
    indices = plan_frames(timestamps, target_fps, asked, legal_frames, end=end)
    used = f"{found} -> uses {len(indices)} ({len(indices) / target_fps:.2f} s)"
    if legal_frames(asked) != asked and len(indices) == legal_frames(asked):
        used += f"; the model takes {len(indices)} where {asked} were asked"
    if len(set(indices)) < len(indices):
        used += "; some frames are shown more than once"
    return FramePlan(indices, used)


def number(value: float) -> str:
    """A frame rate for people: `30`, `23.976`."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"
