"""Edits come in bursts, and a check of all settings per letter is too much."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

REST = 0.15
"""Seconds without an edit after which the last one is acted on."""
LONGEST = 0.5
"""Seconds that an edit waits at most, however fast others follow it."""


def threads_reach_page() -> bool:
    """Whether the page shows what a thread changes while no cell runs; Colab's does not."""
    return "google.colab" not in sys.modules


class Debounced:
    """Calls `action` for edits: at once for the first after a rest, once for a burst that follows it.

    The call at the end of a burst comes from a thread, where its results would be seen; else every edit is acted on.

    Args:
        action: must not raise, and bears being called once too often and from any thread.
    """

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._edited = float("-inf")
        self._due = 0.0

    def __call__(self) -> None:
        """There was an edit."""
        with self._lock:
            now = time.monotonic()
            rested = self._timer is None and now - self._edited >= REST
            self._edited = now
            if not rested and threads_reach_page():
                self._wait(now)
                return
        self.flush()

    def flush(self) -> None:
        """Act now, and not again for the edits so far."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._action()

    def _wait(self, now: float) -> None:
        if self._timer is None:
            self._due = now + LONGEST
        else:
            self._timer.cancel()
        self._timer = threading.Timer(max(0.0, min(REST, self._due - now)), self.flush)
        self._timer.daemon = True
        self._timer.start()
