"""Fewer updates than events: a notebook server drops messages that come too fast, silently and for good."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Throttle:
    """Calls `action` with the latest arguments, at most so often; `flush()` at the end shows the final state.

    Args:
        action: what to call.
        per_second: calls per second at most.
        share: part of the time that the calls may take at most, so that a slow drawing does not slow the work.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        action: Callable[..., Any],
        per_second: float = 4.0,
        share: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._action, self._clock = action, clock
        self._interval, self._share = 1.0 / per_second, share
        self._next = float("-inf")
        self._waiting: tuple[Any, ...] | None = None

    def __call__(self, *arguments: Any) -> None:
        """Remember the arguments, and act if it is time."""
        self._waiting = arguments
        if self._clock() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Act on the latest arguments, if they have not been acted on."""
        if self._waiting is None:
            return
        arguments, self._waiting = self._waiting, None
        started = self._clock()
        try:
            self._action(*arguments)
        finally:
            ended = self._clock()
            self._next = ended + max(self._interval, (ended - started) / self._share)
