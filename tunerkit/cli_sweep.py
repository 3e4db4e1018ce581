"""`sweep`: run a notebook once for each combination of parameters in a file."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tunerkit.cli_output import say
from tunerkit.errors import TunerkitError

KEYS = ("grid", "runs", "base", "output_dir", "parallel")
HELP = "run a notebook once for each combination of parameters"


def add_sweep(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        add: takes the name and the description of a command, and returns its parser.
    """
    parser = add("sweep", HELP)
    parser.add_argument("notebook", metavar="NOTEBOOK", help="a notebook with a cell tagged parameters")
    parser.add_argument(
        "sweep",
        metavar="SWEEP.json",
        help='{"grid": {name: [values]}} or {"runs": [{name: value}]}, and if wanted "base" (the same in every run), '
        '"output_dir" and "parallel"',
    )
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="runs at a time, at most one on each GPU (default: 1)"
    )
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the sweep (default: that of SWEEP.json)")


def run_sweep(arguments: argparse.Namespace) -> int:
    """Run the sweep; 0 when all runs are done, 1 when some are not."""
    from tunerkit.batch import sweep

    asked = read_request(Path(arguments.sweep))
    if arguments.parallel is not None:
        asked["parallel"] = arguments.parallel
    if arguments.output_dir:
        asked["output_dir"] = arguments.output_dir
    if not asked.get("output_dir"):
        raise TunerkitError('the sweep has no folder. Fix: add --output-dir DIR, or "output_dir" to the file')
    with _interruptible():
        result = sweep(arguments.notebook, **asked)
    done = sum(row.state == "done" for row in result)
    say(f"{done} of {len(result)} runs are done; table and report: {result.output_dir / 'report.html'}")
    return 0 if done == len(result) else 1


def read_request(path: Path) -> dict[str, Any]:
    """What a sweep's file asks for, its keys checked.

    Raises:
        TunerkitError: there is no such file, it is not JSON, or it has a key that a sweep does not.
    """
    from tunerkit.config.problems import nearest
    from tunerkit.files import read_json

    try:
        asked = read_json(path)
    except OSError as error:
        raise TunerkitError(f"{path} cannot be read ({error.strerror}). Fix: name a JSON file") from error
    if not isinstance(asked, dict):
        raise TunerkitError(f'{path} holds no object. Fix: write {{"grid": {{"learning_rate": [1e-4, 3e-4]}}}}')
    for key in asked:
        if key not in KEYS:
            near = nearest(key, KEYS)
            fix = f"did you mean {near[0]}?" if near else f"use {', '.join(KEYS)}"
            raise TunerkitError(f"{path}: a sweep has no {key!r}. Fix: {fix}")
    return asked


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM interrupt: started in the background, a process may have been told to ignore them."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
