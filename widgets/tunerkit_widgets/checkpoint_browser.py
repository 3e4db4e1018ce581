"""The checkpoints of a run: resume from one, export it, look at its videos, delete it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tunerkit as tk
from tunerkit_widgets.checkpoint_view import CheckpointView
from tunerkit_widgets.gallery import ValidationGallery
from tunerkit_widgets.list_rows import UNKNOWN, loss_words, size_words
from tunerkit_widgets.surroundings import headless, show_view
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import text


class Checkpoint(Protocol):
    """What is used of a checkpoint: bytes, and seconds since 1970; losses are None where they were not measured."""

    @property
    def path(self) -> Path: ...
    @property
    def step(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def evaluation(self) -> float | None: ...
    @property
    def is_final(self) -> bool: ...


class CheckpointRun(Protocol):
    """A run, as far as the browser of its checkpoints needs it."""

    @property
    def output_dir(self) -> Path: ...
    def checkpoints(self) -> Sequence[Checkpoint]: ...
    def export(self, path: Any, format: Any = ..., checkpoint: Any = ...) -> Path: ...
    def delete_checkpoint(self, step: int) -> int: ...


class CheckpointBrowser:
    """A table of checkpoints with what can be done with one.

    Args:
        run: a run, or the path of its `output_dir`.
        gallery: where two steps are compared; the browser shows one of its own when not given.
    """

    def __init__(self, run: CheckpointRun | str | Path, *, gallery: ValidationGallery | None = None) -> None:
        self.run: CheckpointRun = tk.attach(run) if isinstance(run, str | Path) else run
        self.gallery = gallery
        self.chosen: str | None = None
        """Value for `resume_from_checkpoint`, of the checkpoint that "Resume from" was pressed for."""
        self.checkpoints: list[Checkpoint] = []
        """As last read, by rising step."""
        self.read()
        self.view = None if headless() else CheckpointView(self)
        self.widget: Any = None if self.view is None else self.view.widget

    # What can be done ------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Look at the folder again."""
        self.checkpoints = sorted(self.run.checkpoints(), key=lambda one: one.step)

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, read anew.

        Raises:
            LookupError: it is not there any more.
        """
        self.read()
        for one in self.checkpoints:
            if one.step == step:
                return one
        raise LookupError(text("checkpoints.gone", step=step))

    def resume_from(self, step: int) -> str:
        """Set `chosen` to the checkpoint of a step, and return it.

        Raises:
            LookupError: it is not there any more.
        """
        self.chosen = str(self.at(step).path.absolute())
        return self.chosen

    def export(self, step: int, format: str = "diffusers") -> Path:
        """Write the weights of a checkpoint for other programs into `output_dir/export`, and return the path.

        Raises:
            LookupError: it is not there any more.
            TunerkitError: as `Run.export`.
        """
        found = self.at(step)
        target = self.run.output_dir / "export" / f"{found.path.name}-{format}.safetensors"
        return self.run.export(target, format=format, checkpoint=found.path.name)

    def delete(self, step: int) -> int:
        """Delete the checkpoint of a step; returns the bytes freed.

        Raises:
            LookupError: it is not there any more.
            TunerkitError: as `Run.delete_checkpoint`.
        """
        found = self.at(step)
        freed = self.run.delete_checkpoint(step)
        if self.chosen == str(found.path.absolute()):
            self.chosen = None
        self.read()
        return freed

    def compare(self, step: int, other: int) -> str:
        """Lay the videos of two steps over each other in the gallery; says which, or that there are none."""
        if self.gallery is None:
            self.gallery = ValidationGallery(self.run)
        columns = self.gallery.compare(*sorted((step, other)))
        if columns is None:
            return text("checkpoints.no_videos")
        return text("checkpoints.compared", left=columns[0].title, right=columns[1].title)

    # Static ----------------------------------------------------------------------------------------------------

    @property
    def best(self) -> int | None:
        """Step of the lowest evaluation loss; None where none was measured."""
        measured = [
            (one.evaluation, one.step)
            for one in self.checkpoints
            if one.evaluation is not None and math.isfinite(one.evaluation)
        ]
        return min(measured)[1] if measured else None

    def total_words(self) -> str:
        """How many checkpoints there are, and their size."""
        size = sum(one.size_bytes for one in self.checkpoints)
        return text("checkpoints.total", count=len(self.checkpoints), size=size_words(size))

    def head(self) -> tuple[str, ...]:
        return (
            text("checkpoints.step"),
            text("checkpoints.loss"),
            text("checkpoints.evaluation"),
            text("checkpoints.size"),
            text("checkpoints.time"),
            text("checkpoints.marks"),
        )

    def cells(self, one: Checkpoint) -> tuple[str, ...]:
        """Step, losses, size, time and marks of a checkpoint as text."""
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time))
        marks = ", ".join(self.marks(one)) or UNKNOWN
        size = size_words(one.size_bytes)
        return (str(one.step), loss_words(one.loss), loss_words(one.evaluation), size, written, marks)

    def marks(self, one: Checkpoint) -> list[str]:
        """ "best" and "final", where they are true."""
        best = [text("checkpoints.best")] if one.step == self.best else []
        return [*best, text("checkpoints.final")] if one.is_final else best

    def static(self) -> str:
        """The checkpoints as an HTML table."""
        if not self.checkpoints:
            return f"<p>{text('checkpoints.none')}</p>"
        return table_html([self.cells(one) for one in self.checkpoints], self.head()) + f"<p>{self.total_words()}</p>"

    def __str__(self) -> str:
        if not self.checkpoints:
            return text("checkpoints.none")
        return table_text([self.cells(one) for one in self.checkpoints], self.head()) + f"\n{self.total_words()}"

    def _ipython_display_(self) -> None:
        show_view(self)
