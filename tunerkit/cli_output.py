"""What the command line prints, and where: results to stdout, notes, warnings and errors to stderr.

Of several processes that train together, only the first prints results.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.devices import is_out_of_memory

if TYPE_CHECKING:
    from tunerkit.running.run import Run

_NOISY = ("accelerate", "diffusers", "huggingface_hub", "imageio", "imageio_ffmpeg", "peft", "torch", "transformers")


def process_rank() -> int:
    """Number of this process among those that `accelerate launch` or torchrun started together; 0 when alone."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def say(text: str = "") -> None:
    """Print a line of the result, at once, from the first process only."""
    if process_rank() == 0:
        print(text, flush=True)


def warn(message: str) -> None:
    """Print a line to stderr, with the number of the process if it is not the first."""
    rank = process_rank()
    where = f"process {rank}: " if rank else ""
    print(f"{where}{message}", file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """Print the one message of a failed command."""
    warn(f"error: {message}")


def explain(error: Exception) -> None:
    """Print an unexpected error: its traceback, then one line with what is known about it."""
    traceback.print_exception(error, file=sys.stderr)
    reason = next(iter(str(error).splitlines()), "").rstrip(".")
    message = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    if is_out_of_memory(error):
        message += (
            ". Out of memory. Fix: gradient_checkpointing = true, train_batch_size = 1, fewer frames "
            "(video.num_frames) or a lower resolution"
        )
    fail(message)


class _PlainFormatter(logging.Formatter):
    """`note: ...` and `warning: ...`, without names and times."""

    def format(self, record: logging.LogRecord) -> str:
        word = {logging.INFO: "note", logging.WARNING: "warning"}.get(record.levelno, record.levelname.lower())
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return f"{word}: {text}"


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Show tunerkit's own messages plainly and nobody else's warnings, while a command runs."""
    for stream in (sys.stdout, sys.stderr):
        # File names may hold bytes that are no text; they must not stop a table.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    logger = logging.getLogger("tunerkit")
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if process_rank() == 0 else logging.ERROR)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def quiet_libraries() -> None:
    """Keep the model libraries from logging and from drawing bars for every file they load. Downloads keep theirs."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


class EncodingLines:
    """Progress of the caching phase as lines, a few a minute, for where a bar cannot redraw itself.

    Args:
        seconds: shortest time between two lines of one phase; its last line always comes.
        clock: seconds; only differences count.
    """

    def __init__(self, seconds: float = 15.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._phase = ""
        self._started = self._printed = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = self._clock()
        if phase != self._phase:
            self._phase, self._started, self._printed = phase, now, now
        if done < total and now - self._printed < self._seconds:
            return
        self._printed = now
        left = duration((now - self._started) / max(1, done - 1) * (total - done))
        say(f"encoding {phase}: {done}/{total}" + (f", {left} left" if done < total else ""))


def encoding_progress() -> EncodingLines | bool:
    """How to show the caching phase: a bar on a terminal, lines in a log file."""
    return sys.stderr.isatty() or EncodingLines()


def duration(seconds: float) -> str:
    """`"42 s"`, `"3 min 05 s"`, `"2 h 07 min"`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def runs_table(runs: Sequence[Run], top: Path) -> list[str]:
    """A line per run: its folder, state, step, loss, and how long ago it wrote last.

    Args:
        runs: in the order to show.
        top: folder that the runs' folders are named from.
    """
    if not runs:
        return [f"no run at or below {top}"]
    rows = [("folder", "state", "step", "loss", "when")]
    for run in runs:
        status = run.status
        step = f"{status.step}/{status.total_steps}" if status.total_steps else str(status.step)
        loss = "" if status.loss is None else f"{status.loss:.5f}"
        when = "" if status.heartbeat is None else f"{duration(max(0.0, time.time() - status.heartbeat))} ago"
        rows.append((os.path.relpath(run.output_dir, top), status.state, step, loss, when))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
