"""A run in plain lines, where nobody can click or the page is a file to keep."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import tunerkit as tk
from tunerkit_widgets.dashboard_run import ENDED, STARTING, RunReader, Status, WatchedRun
from tunerkit_widgets.dashboard_words import attach_words, closing_words, progress_line
from tunerkit_widgets.loss_plot import loss_png
from tunerkit_widgets.surroundings import show_png
from tunerkit_widgets.texts import text
from tunerkit_widgets.videos import show_videos

LINES = 10
SILENCE_SECONDS = 120.0
"""Lines of a whole run at least, and the longest silence between two."""


class PlainLines:
    """Prints the start, about ten lines on the way, each round of validation, and the end with a picture and players.

    Args:
        run: what to follow.
        clock: seconds, for tests.
        plan: as from `tk.plan`, to tell its memory beside what the run took.
    """

    def __init__(
        self, run: WatchedRun, clock: Callable[[], float] = time.monotonic, plan: tk.Plan | None = None
    ) -> None:
        self._run, self._clock, self._plan = run, clock, plan
        self._spoken = self._spoken_part = float("-inf")
        self._doing = ""
        self._warned = 0

    def open(self) -> None:
        """Say what is followed, and where it stands."""
        self._reader = RunReader(self._run, self._plan)
        self._rounds = self._shown_round()
        print(text("dashboard.following", folder=self._run.output_dir))
        self._say_progress()

    def tick(self, status: Status) -> None:
        """Print what is worth a line."""
        reader = self._reader
        reader.read(status)
        if status.state in ENDED:
            return
        self._say_videos()
        if status.state in STARTING:
            doing = re.sub(r"\d+", "", f"{status.state} {status.activity}")  # "3 of 8" is the same as "4 of 8"
            if doing != self._doing:
                self._say_progress()
            self._doing = doing
        elif self._part() != self._spoken_part or self._clock() - self._spoken >= SILENCE_SECONDS:
            self._say_progress()

    def close(self) -> None:
        """The end of the run, with its picture and players; or how to follow it again, if it goes on."""
        reader = self._reader
        reader.read()
        if reader.status.state not in ENDED:
            print(text("dashboard.detached", attach=attach_words(self._run.output_dir)))
            return
        self._say_videos()
        print(progress_line(reader))
        print(closing_words(reader))
        if reader.history.losses:
            show_png(loss_png(reader.history))
        if reader.videos:
            show_videos(reader.videos)

    def _say_progress(self) -> None:
        self._spoken, self._spoken_part = self._clock(), self._part()
        print(progress_line(self._reader))

    def _part(self) -> float:
        return LINES * self._reader.step // max(1, self._reader.status.total_steps)

    def _say_videos(self) -> None:
        """A round is told of when it is whole."""
        newest = self._shown_round()
        if newest == self._rounds or self._reader.status.state == "validating":
            return
        self._rounds = newest
        if newest:
            step, count = newest
            folder = self._reader.videos[0].path.parent
            print(text("dashboard.rendered", step=step, count=count, folder=folder))

    def _shown_round(self) -> tuple[int, int] | None:
        """(step, number of videos) of the newest round."""
        videos = self._reader.videos
        return (videos[0].step, len(videos)) if videos else None
