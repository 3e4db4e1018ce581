"""Runs the runs of a sweep, several at a time, and keeps its results up to date."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunerkit.batch.folders import ENDED, KILLED, LOCK, LOG, RunFolder, SweepFolder
from tunerkit.batch.gpus import visible_gpus
from tunerkit.batch.plan import plan_sweep
from tunerkit.batch.results import REPORT, TABLE, SweepResult, SweepRow, read_row, read_sweep
from tunerkit.cli_output import say, warn
from tunerkit.errors import TunerkitError
from tunerkit.running.locks import held

POLL_SECONDS = 0.1
CHECKPOINT_SECONDS = 120.0
"""How long an interrupted run may take to save its checkpoint before it is told again."""
CLEANUP_SECONDS = 20.0
"""And after that, before it is killed."""


def sweep(
    notebook: str | os.PathLike[str],
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    runs: Sequence[Mapping[str, Any]] | None = None,
    output_dir: str | os.PathLike[str],
    parallel: int = 1,
    base: Mapping[str, Any] | None = None,
    resume: bool = True,
    on_change: Callable[[SweepRow], None] | None = None,
) -> SweepResult:
    """Run a notebook once for each combination of parameters, each in a kernel of its own.

    Names and values are checked before anything runs. A run that fails does not stop the others. `results.csv` and
    `report.html` in `output_dir` are kept up to date.

    Args:
        notebook: a notebook with a cell tagged `parameters`.
        grid: parameter -> its values; every combination is a run.
        runs: or the runs one by one, each as parameter -> value.
        output_dir: gets a folder `<number>-<label>` for each run; the notebook's own `output_dir` lies in it.
        parallel: runs at a time; on a machine with GPUs not more than it has, each run with one of its own.
        base: parameters that are the same in every run.
        resume: keep what earlier calls with this `output_dir` have finished, and run again what failed or was
            interrupted; a run that is still going on is waited for.
        on_change: called with each run that begins or ends; prints a line if not given.

    Raises:
        ConfigError: every wrong name and value at once.
        TunerkitError: the notebook or `output_dir` cannot be used, or another sweep works in it.
        MissingExtraError: papermill is not installed.
        KeyboardInterrupt: after an interrupt, when all runs have ended.
    """
    plan = plan_sweep(notebook, grid, runs=runs, base=base)
    if isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1:
        raise TunerkitError(f"parallel = {parallel!r} is not a number of runs. Fix: write 1 or more")
    folder = SweepFolder(Path(output_dir).expanduser().absolute())
    if not resume and folder.runs():
        raise TunerkitError(
            f"output_dir = {str(folder.path)!r} holds runs already. Fix: choose another folder, or leave resume on"
        )
    request = {"grid": grid, "runs": runs, "base": base, "parallel": parallel, "pid": os.getpid()}
    request = {name: value for name, value in request.items() if value is not None}
    with _claimed(folder.path):
        folders = folder.prepare(plan, request)
        _Runner(folder, folders, parallel, on_change or (lambda row: say(str(row)))).run()
    return read_sweep(folder.path)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Hold the sweep's folder for a block.

    Raises:
        TunerkitError: it cannot be written, or another sweep holds it.
    """
    try:
        with held(path / LOCK) as taken:
            if not taken:
                raise TunerkitError(
                    f"output_dir = {str(path)!r} is in use by another sweep. Fix: wait for it, stop it, or choose "
                    "another folder"
                )
            yield
    except OSError as error:
        raise TunerkitError(
            f"output_dir = {str(path)!r} cannot be written ({error.strerror}). Fix: choose a folder you may write to"
        ) from error


class _Child:
    """The process of a run.

    Args:
        run: the run.
        process: None for a run that an earlier, killed sweep has started, and that still goes on.
    """

    def __init__(self, run: RunFolder, process: subprocess.Popen[bytes] | None) -> None:
        self.run, self._process = run, process
        self.told = "queued"
        self._ending = False

    @classmethod
    def start(cls, run: RunFolder) -> _Child:
        """Begin a run."""
        command = [sys.executable, "-m", "tunerkit.batch.run_one", str(run.path)]
        with (run.path / LOG).open("ab") as log:
            # In a session of its own: Ctrl-C in a terminal goes to everybody, and only the sweep shall pass it on.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return cls(run, process)

    @property
    def ended(self) -> bool:
        """Whether nothing of it goes on."""
        return not self.run.alive if self._process is None else self._process.poll() is not None

    def settle(self) -> None:
        """Write down the end of a process that could not do it itself."""
        state = self.run.state()
        cut_short = state.get("error") == KILLED
        if not cut_short and (self._process is None or state["state"] in ENDED):
            return
        status = 0 if self._process is None else self._process.returncode
        error = f"{KILLED} (signal {-status})" if status < 0 else KILLED
        if status > 0:
            error = f"its process ended with status {status}; {LOG} says more"
        self.run.write_state(**{**state, "state": "interrupted" if self._ending else "failed", "error": error})

    def signal(self, number: int) -> None:
        """Send a signal that is to end the run."""
        pid = self.run.state().get("pid") if self._process is None else self._process.pid
        self._ending = True
        if isinstance(pid, int) and not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class _Runner:
    """Starts processes, and looks after them.

    Args:
        sweep: the sweep's folder.
        runs: all runs that are asked for.
        parallel: at a time.
        on_change: called with a run that begins or ends.
    """

    def __init__(
        self, sweep: SweepFolder, runs: Sequence[RunFolder], parallel: int, on_change: Callable[[SweepRow], None]
    ) -> None:
        self._sweep, self._runs, self._on_change = sweep, runs, on_change
        gpus = len(visible_gpus())
        self._limit = min(parallel, gpus) if gpus else parallel
        self._active: list[_Child] = []

    def run(self) -> None:
        """Run everything that is not done.

        Raises:
            KeyboardInterrupt: when all runs have ended after an interrupt.
        """
        queue = [run for run in self._runs if run.state()["state"] != "done"]
        self._active = [_Child(run, None) for run in queue if run.alive]
        queue = [run for run in queue if all(child.run is not run for child in self._active)]
        for run in queue:
            run.write_state(state="queued")
        self._publish()
        try:
            while queue or self._active:
                while queue and len(self._active) < self._limit:
                    self._active.append(_Child.start(queue.pop(0)))
                time.sleep(POLL_SECONDS)
                self._look()
        except KeyboardInterrupt:
            say("interrupted: the runs save their checkpoints and end; interrupt again to end them at once")
            self._end_all()
            done = sum(run.state()["state"] == "done" for run in self._runs)
            say(f"{done} of {len(self._runs)} runs are done. The same call with the same output_dir goes on from there")
            raise

    def _look(self) -> None:
        """Take note of the runs whose state is another now."""
        changed = []
        for child in list(self._active):
            if child.ended:
                child.settle()
                self._active.remove(child)
            state = child.run.state()["state"]
            if state != child.told:
                child.told = state
                changed.append(child.run)
        if changed:
            self._publish()
        for run in changed:
            self._on_change(read_row(run))

    def _end_all(self) -> None:
        """End all processes: first with a checkpoint, then without, then by force."""
        for number, seconds in (
            (signal.SIGINT, CHECKPOINT_SECONDS),
            (signal.SIGTERM, CLEANUP_SECONDS),
            (signal.SIGKILL, CLEANUP_SECONDS),
        ):
            with contextlib.suppress(KeyboardInterrupt):  # another interrupt: to the next, harder signal
                for child in self._active:
                    child.signal(number)
                until = time.monotonic() + seconds
                while self._active and time.monotonic() < until:
                    time.sleep(POLL_SECONDS)
                    self._look()

    def _publish(self) -> None:
        """Write the table and the report; what hinders that does not hinder the runs."""
        try:
            result = read_sweep(self._sweep.path)
            result.save_csv(self._sweep.path / TABLE)
            result.report(self._sweep.path / REPORT)
        except TunerkitError as error:
            warn(f"warning: {error}")
