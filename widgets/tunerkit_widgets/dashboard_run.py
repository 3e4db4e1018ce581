"""What a dashboard reads of a run, and keeps: only what is new is read again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tunerkit as tk
from tunerkit_widgets.history import TrainingHistory, smoothed

ENDED = frozenset({"done", "stopped", "failed", "died"})
BROKEN = frozenset({"failed", "died"})
STARTING = frozenset({"starting", "preparing"})
LOG_LINES = 20
WARNINGS = 3
"""The latest of them are shown."""


class Status(Protocol):
    """What is used of `tk.RunStatus`: seconds, bytes, and times as seconds since 1970; None where it is not known."""

    @property
    def state(self) -> str: ...
    @property
    def activity(self) -> str | None: ...
    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def seconds_per_step(self) -> float | None: ...
    @property
    def seconds_left(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def lr(self) -> float | None: ...
    @property
    def memory_used(self) -> int | None: ...
    @property
    def memory_peak(self) -> int | None: ...
    @property
    def memory_total(self) -> int | None: ...
    @property
    def device(self) -> str | None: ...
    @property
    def disk_free(self) -> int | None: ...
    @property
    def started(self) -> float | None: ...
    @property
    def heartbeat(self) -> float | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def hint(self) -> str | None: ...


class WatchedRun(Protocol):
    """What is used of `tk.Run`."""

    @property
    def output_dir(self) -> Path: ...
    @property
    def config(self) -> tk.TrainConfig: ...
    @property
    def status(self) -> Status: ...
    def pause(self) -> object: ...
    def resume(self) -> object: ...
    def stop(self) -> object: ...
    def save_now(self) -> object: ...
    def validate_now(self) -> object: ...
    def finished(self, on_change: Callable[[Any], object] | None = None, every: float = 0.25) -> Awaitable[Any]: ...
    def metrics(self, after: int = 0) -> list[dict[str, Any]]: ...
    def evaluations(self) -> list[dict[str, Any]]: ...
    def events(self, after: int = 0) -> list[dict[str, Any]]: ...
    def videos(self, step: int | None = None) -> list[tk.Rendering]: ...
    def log(self, lines: int = LOG_LINES) -> list[str]: ...


class RunReader:
    """The state of a run and everything that it has logged, read a little at a time.

    Attributes:
        status: as of the last `read`.
        history: both loss curves.
        row: the newest line of the metrics; empty before the first step.
        videos: the newest round of validation; a new list where there is a new round.
        preview: the event of the newest preview in this round of validation; None before.
        warnings: texts of the latest warnings of this process.
        event: number of the newest event.
        saved_step: step of the newest checkpoint that was reported; None before.
        planned: most bytes of the GPU's memory that a plan of the run says; None = there is no plan.
    """

    def __init__(self, run: WatchedRun, plan: tk.Plan | None = None) -> None:
        self.run = run
        self.planned = plan and plan.peak
        self._session: tuple[object, ...] | None = None
        self.read()

    def read(self, status: Status | None = None) -> None:
        """Take in what is new since the last time.

        Args:
            status: the run's state, where it was read just now. What it tells of is in the files by then.
        """
        self.status = self.run.status if status is None else status
        # A process that resumes from a checkpoint drops the lines after it, before its first step.
        session = (self.status.pid, self.status.started, self.status.state in STARTING)
        if session != self._session:
            self._session = session
            self._forget()
        for row in self.run.metrics(after=self.row.get("step", 0)):
            self._take(row)
        events = self.run.events(after=self.event)
        for event in events:
            self._note(event)
        kinds = {event.get("kind") for event in events}
        ended = self.status.state in ENDED and not self._ended
        if self._fresh or ended or "evaluation" in kinds:
            self.history.evaluated(self.run.evaluations())
        if self._fresh or ended or "video" in kinds:
            self.videos = self._newest_videos()
        self._fresh, self._ended = False, self._ended or ended

    @property
    def step(self) -> int:
        """Steps done. The metrics are written at once, the state every other second."""
        return max(self.status.step, self.row.get("step", 0))

    @property
    def loss(self) -> float | None:
        return self.row.get("loss", self.status.loss)

    @property
    def smooth_loss(self) -> float | None:
        return smoothed(self.history.losses)[-1][1] if self.history.losses else None

    @property
    def lr(self) -> float | None:
        return self.row.get("lr", self.status.lr)

    @property
    def parts(self) -> Mapping[str, float]:
        """The last step's terms of the loss, where there is more than one."""
        parts = self.row.get("parts") or {}
        return parts if len(parts) > 1 else {}

    @property
    def renders(self) -> bool:
        """Whether the run renders validation videos at all; also true as long as its settings cannot be read."""
        try:
            return not self.run.config.validation_disable
        except (OSError, ValueError, tk.TunerkitError):  # being written, damaged, or of another version
            return True

    @property
    def log(self) -> Sequence[str]:
        """The last lines that the process has printed."""
        return self.run.log(lines=LOG_LINES)

    def _newest_videos(self) -> list[tk.Rendering]:
        """The newest round; the files of all rounds are only looked at where no event tells which it is."""
        videos = self.run.videos(self._round) or self.run.videos()
        newest = max((video.step for video in videos), default=0)
        return [video for video in videos if video.step == newest]

    def _forget(self) -> None:
        self.history = TrainingHistory()
        self.row: dict[str, Any] = {}
        self.videos: list[tk.Rendering] = []
        self.preview: Mapping[str, Any] | None = None
        self.warnings: list[str] = []
        self.event = 0
        self.saved_step: int | None = None
        self._round: int | None = None
        self._fresh, self._ended = True, False

    def _take(self, row: dict[str, Any]) -> None:
        self.row = row
        self.history.add(row)

    def _note(self, event: Mapping[str, Any]) -> None:
        self.event = max(self.event, int(event["number"]))
        if event.get("kind") == "checkpoint":
            self.saved_step = event.get("step")
        if event.get("kind") == "video":
            self._round = event.get("step")
        if event.get("kind") in ("preview", "state"):  # a round of validation begins and ends with another state
            self.preview = event if event.get("kind") == "preview" else None
        of_this_process = float(event.get("time") or 0.0) >= (self.status.started or 0.0)
        if event.get("kind") == "warning" and of_this_process:
            self.warnings = [*self.warnings, str(event.get("text", ""))][-WARNINGS:]
