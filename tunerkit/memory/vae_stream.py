"""Networks over time that are run a few frames at a time, exactly: what a layer needs of the frames before is kept.

A causal convolution of three frames needs two frames of the past, whatever the length of the clip; one that also looks
ahead gives each frame when the next one is there. So a whole network can be fed with parts of the clip: every part runs
through all layers before the next one enters, and no layer ever holds more than a part and its few frames of history.
Peak memory does not grow with the clip, and the result is that of the whole clip up to the rounding of the convolution.

Tensors are `[B, C, T, H, W]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

Compute = Callable[[torch.Tensor], torch.Tensor]


class Stage(ABC):
    """A layer that is given the frames of a clip in order, one or more at a time."""

    @abstractmethod
    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        """What is complete once the frames `x` are there; None where nothing is."""

    def finish(self) -> torch.Tensor | None:
        """What was held back for frames that never came; called once, after the last one."""
        return None


class EachFrame(Stage):
    """Works on every frame alone.

    Args:
        compute: `[B, C, n, H, W]` -> `[B, C', n, H', W']`.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    def push(self, x: torch.Tensor) -> torch.Tensor:
        return self._compute(x)


class Convolution(Stage):
    """A convolution over time.

    Args:
        compute: convolves `[B, C, n, H, W]` with no padding in time.
        kernel, stride: in time.
        before: copies of the first frame that stand before it; zeros with `from_zero`.
        after: copies of the last frame that stand behind it, at most `kernel - 1`.
        prepare: what is done to each frame first (a norm, an activation).
    """

    def __init__(
        self,
        compute: Compute,
        *,
        kernel: int,
        stride: int = 1,
        before: int = 0,
        after: int = 0,
        from_zero: bool = False,
        prepare: Compute | None = None,
    ) -> None:
        self._compute, self._kernel, self._stride, self._before, self._after = compute, kernel, stride, before, after
        self._from_zero, self._prepare = from_zero, prepare
        self._past: torch.Tensor | None = None

    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        if self._prepare is not None:
            x = self._prepare(x)
        if self._past is None:
            first = x[:, :, :1]
            self._past = repeated(torch.zeros_like(first) if self._from_zero else first, self._before)
        x = torch.cat([self._past, x], dim=2)
        return self._convolved(x)

    def finish(self) -> torch.Tensor | None:
        past = self._past
        if self._after == 0 or past is None:
            return None
        return self._convolved(torch.cat([past, repeated(past[:, :, -1:], self._after)], dim=2))

    def _convolved(self, x: torch.Tensor) -> torch.Tensor | None:
        self._past = None  # part of x
        count = (x.shape[2] - self._kernel) // self._stride + 1
        if count < 1:
            self._past = x
            return None
        used = (count - 1) * self._stride + self._kernel
        made = self._compute(x[:, :, :used])
        self._past = x[:, :, count * self._stride :].clone()  # without the rest of its storage
        return made


class Grouped(Stage):
    """Holds frames back until there are a multiple of `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: torch.Tensor | None = None

    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        x = x if self._held is None else torch.cat([self._held, x], dim=2)
        whole = x.shape[2] // self._size * self._size
        self._held = x[:, :, whole:].clone() if whole < x.shape[2] else None
        return x[:, :, :whole] if whole else None

    def finish(self) -> torch.Tensor | None:
        """Raises ValueError where frames are left over."""
        if self._held is not None:
            raise ValueError(f"{self._held.shape[2]} frames are left over, of which {self._size} are needed")
        return None


class Beside(Stage):
    """A shortcut beside other stages, whose frames wait for those of the other stages.

    Args:
        stages: the longer way; it has to give as many frames as it takes.
        combine: what the longer way made, and as many frames of the input, into one.
    """

    def __init__(self, stages: Sequence[Stage], combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self._stages, self._combine = stages, combine
        self._waiting: torch.Tensor | None = None

    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        self._waiting = x if self._waiting is None else torch.cat([self._waiting, x], dim=2)
        return self._combined(_through(self._stages, [x]))

    def finish(self) -> torch.Tensor | None:
        last = [made for place in range(len(self._stages)) if (made := self._last_of(place)) is not None]
        return self._combined(torch.cat(last, dim=2)) if last else None

    def _last_of(self, place: int) -> torch.Tensor | None:
        made = self._stages[place].finish()
        return None if made is None else _through(self._stages[place + 1 :], [made])

    def _combined(self, made: torch.Tensor | None) -> torch.Tensor | None:
        waiting = self._waiting
        if made is None or waiting is None:
            return None
        count = made.shape[2]
        self._waiting = waiting[:, :, count:].clone() if count < waiting.shape[2] else None
        return self._combine(made, waiting[:, :, :count])


class RepeatFirst(Stage):
    """Puts `count` copies of the first frame before it."""

    def __init__(self, count: int) -> None:
        self._count = count

    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        count, self._count = self._count, 0
        return torch.cat([repeated(x[:, :, :1], count), x], dim=2) if count else x


class DropFirst(Stage):
    """Leaves the first `count` frames out."""

    def __init__(self, count: int) -> None:
        self._count = count

    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        dropped = min(self._count, x.shape[2])
        self._count -= dropped
        return x[:, :, dropped:] if dropped < x.shape[2] else None


def repeated(frame: torch.Tensor, count: int) -> torch.Tensor:
    """`count` times the frame `[B, C, 1, H, W]`; without a copy."""
    return frame.expand(-1, -1, count, -1, -1)


def pushed(stages: Sequence[Stage], x: torch.Tensor, limit: int) -> Iterator[torch.Tensor]:
    """What comes out of the last stage for the frames `x`, no stage being given more than `limit` frames at a time."""
    return _run(stages, [(0, x)], limit)


def finished(stages: Sequence[Stage], limit: int) -> Iterator[torch.Tensor]:
    """What comes out when no more frames follow."""
    for place, stage in enumerate(stages):
        made = stage.finish()
        if made is not None:
            waiting = [(place + 1, made)]
            del made
            yield from _run(stages, waiting, limit)


def collected(parts: Iterable[torch.Tensor], frames: int, whole: torch.Tensor | None = None) -> torch.Tensor:
    """Parts that follow each other, as one tensor of so many `frames`; they are never there twice.

    Args:
        parts: as they are made.
        frames: of all parts.
        whole: where they are written to; a new tensor when not given.
    """
    place = 0
    for part in parts:
        if whole is None:
            shape = list(part.shape)
            shape[2] = frames
            whole = part.new_empty(shape)
        whole[:, :, place : place + part.shape[2]] = part
        place += part.shape[2]
    if whole is None or place != frames:
        raise ValueError(f"{place} frames came out where {frames} were expected")
    return whole


def _run(stages: Sequence[Stage], waiting: list[tuple[int, torch.Tensor]], limit: int) -> Iterator[torch.Tensor]:
    """Depth first: of `waiting` (place of the next stage, frames) the last go on at once, as far as they come."""
    while waiting:
        place, x = waiting.pop()
        if x.shape[2] > limit:
            waiting.append((place, x[:, :, limit:]))
            x = x[:, :, :limit]
        if place == len(stages):
            yield x
            continue
        held = [x]
        del x
        made = _through(stages[place : place + 1], held)
        if made is not None:
            waiting.append((place + 1, made))
            del made


def _through(stages: Sequence[Stage], held: list[torch.Tensor]) -> torch.Tensor | None:
    """The one tensor in `held` through all stages; taken out, so that nobody keeps what a stage is done with."""
    for stage in stages:
        made = stage.push(held.pop())
        if made is None:
            return None
        held.append(made)
        del made
    return held.pop()
