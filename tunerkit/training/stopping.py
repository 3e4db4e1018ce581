"""Requests between two steps: Ctrl-C, a notebook's stop button and SIGTERM to stop there, control.json to wait."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from tunerkit.running.control import Orders

if TYPE_CHECKING:
    from tunerkit.training.run_folder import RunFolder

PAUSE_SECONDS = 0.5


class StopRequest:
    """While active, the first signal sets `requested`; a second one interrupts at once.

    Signal handlers can only be set in the main thread; elsewhere `requested` just stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def next_orders(folder: RunFolder, stop_asked: Callable[[], bool], step: int, total: int) -> Orders:
    """What is asked for now; waits while control.json asks for nothing but a pause.

    Args:
        folder: the run's.
        stop_asked: whether something else asks the run to stop.
        step, total: optimizer steps done, and of the whole run.
    """
    while True:
        orders = folder.orders()
        if stop_asked():
            return Orders("stop")
        if orders.mode != "pause" or orders.requests or orders.changes:
            return orders
        folder.status("paused", step, total)
        time.sleep(PAUSE_SECONDS)
