"""Who hears what a run writes down, while it is written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

logger = logging.getLogger("tunerkit")


class Listener:
    """Hears of a run. Each method may be left as it is; whatever one raises ends the listening, never the training.

    Attributes:
        name: for messages.
    """

    name = "a listener"

    def step(self, row: dict[str, Any], total: int) -> None:
        """A step is done.

        Args:
            row: its line of metrics.jsonl.
            total: steps of the whole run.
        """

    def evaluation(self, row: dict[str, Any]) -> None:
        """A loss was measured: its line of evaluation.jsonl."""

    def event(self, row: dict[str, Any]) -> None:
        """Something happened: its line of events.jsonl. May be called by any thread."""

    def activity(self, words: str) -> None:
        """What is done now, within the present state."""

    def preview(self, row: dict[str, Any], picture: bytes, media_type: str) -> None:
        """An unfinished video.

        Args:
            row: facts of it; `step` among them.
            picture: an encoded image.
            media_type: of the image, for example "image/gif".
        """

    def settings(self, config: TrainConfig) -> None:
        """The run goes on with other settings."""

    def result(self, path: Path) -> None:
        """The final weights are written, and everything else that the run leaves."""

    def close(self) -> None:
        """Nothing more comes. May take a few seconds."""


class Listeners:
    """All listeners of a run."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        """From now on, tell this one too."""
        self._listeners.append(listener)

    def tell(self, what: str, *facts: Any) -> None:
        """Call the method `what` of every listener; one that fails is warned about once and left out."""
        for listener in list(self._listeners):
            try:
                getattr(listener, what)(*facts)
            except Exception as error:  # whatever a service's package raises
                if listener in self._listeners:
                    self._listeners.remove(listener)  # first: the warning is an event itself
                logger.warning("%s failed and is told no more (%s); the training goes on", listener.name, _line(error))

    def close(self) -> None:
        """Tell everyone that nothing more comes, and forget them."""
        self.tell("close")
        self._listeners.clear()


def _line(error: Exception) -> str:
    """An error in one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
