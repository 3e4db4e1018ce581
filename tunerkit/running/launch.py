"""Starting trainings in processes of their own, and finding those that there are."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunerkit
from tunerkit.errors import ConfigError, TunerkitError
from tunerkit.running.json_files import replace_object
from tunerkit.running.locks import FileLock
from tunerkit.running.processes import remember_child
from tunerkit.running.run import REQUEST_FILE, Run
from tunerkit.running.status import OUTPUT_FILE, STATUS_FILE, RunStatus, starting_row
from tunerkit.training.run_folder import LOCK_FILE, RunFolder

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

logger = logging.getLogger("tunerkit")
START_LOCK_FILE = ".start-lock"
START_SECONDS = 60
"""How long another start of the same run, or the first sign of life of the process, is waited for."""
LEAVE_SECONDS = 20.0
"""How long a run that has just ended may take to leave its folder."""
_RETRY_SECONDS = 0.05
_SKIPPED = ("cache", "validation")
"""Folders of a run in which no other run is looked for."""


def start(config: TrainConfig) -> Run:
    """Train in a process of its own, which outlives this one; or attach to the run that `output_dir` holds.

    A run that is alive is attached to if its settings are these; so is one that has done all its steps. One that was
    stopped, failed or died goes on from its latest checkpoint, and one that is to do more steps from its last.

    Args:
        config: settings as from `load_config`.

    Raises:
        ConfigError: all problems of the settings at once, before anything is started.
        TunerkitError: if the folder cannot be written or is in use, if the run in it has other settings (`tk.attach`
            watches it as it is), or the process ended at once.
    """
    config = _checked(config)
    folder = RunFolder(config.output_path).path
    with FileLock(folder / START_LOCK_FILE).waiting(START_SECONDS):
        run = Run(folder)
        status = run.status if (folder / STATUS_FILE).is_file() else None
        if status is not None and _is_to_be_attached(status, config):
            _say_attached(run, status, config)
            return run
        _wait_for_lock(folder)
        _launch(run, config)
    return run


def attach(output_dir: str | os.PathLike[str]) -> Run:
    """The run in a folder, alive or over.

    Raises:
        TunerkitError: if there is none.
    """
    folder = Path(output_dir).expanduser().absolute()
    if not (folder / STATUS_FILE).is_file():
        raise TunerkitError(f"{folder} holds no run (no {STATUS_FILE}). Fix: give the output_dir of a started run")
    return Run(folder)


def runs(folder: str | os.PathLike[str] = ".") -> list[Run]:
    """All runs at or below a folder, those that began last first.

    Raises:
        TunerkitError: if there is no such folder.
    """
    top = Path(folder).expanduser().absolute()
    if not top.is_dir():
        raise TunerkitError(f"{top} is no folder. Fix: name the folder that holds the output folders of the runs")
    found = [Run(path) for path in _run_folders(top)]
    return sorted(found, key=lambda run: run.status.started or 0.0, reverse=True)


def _run_folders(top: Path) -> Iterator[Path]:
    for name, below, files in os.walk(top):
        is_run = STATUS_FILE in files
        if is_run:
            yield Path(name)
        below[:] = sorted(
            folder
            for folder in below
            if not folder.startswith((".", "checkpoint-")) and not (is_run and folder in _SKIPPED)
        )


def run_command(*words: str) -> str:
    """Run `python -m tunerkit` with `words` to its end: what it printed.

    Raises:
        TunerkitError: with its message, if it did not succeed.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "tunerkit", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if ended.returncode != 0:
        raise TunerkitError(_message(ended.stderr.splitlines()))
    return ended.stdout


# Before the start ----------------------------------------------------------------------------------------------


def _checked(config: TrainConfig) -> TrainConfig:
    """The resolved settings, with everything found that can be without loading a model or looking at clips."""
    from tunerkit import families
    from tunerkit.project import resolve
    from tunerkit.reporting.starting import check_reporting
    from tunerkit.training.optimizers import check_optimizer
    from tunerkit.validation.render import check_rendering

    config = resolve(config)
    problems = [*check_optimizer(config), *check_reporting(config)]
    if not config.validation_disable:
        problems += check_rendering(config, families.get(str(config.model_family)))
    if problems:
        raise ConfigError(problems)
    return config


def _is_to_be_attached(status: RunStatus, config: TrainConfig) -> bool:
    """Whether nothing is to be started: the run goes on, or has done all that is asked for.

    Raises:
        TunerkitError: if it goes on inside this very process.
    """
    if status.alive and not status.ended:
        if status.pid == os.getpid():
            raise TunerkitError(
                f"output_dir = {str(config.output_path)!r} is in use by a Trainer of this notebook. Fix: call its "
                "close(), or choose another output_dir"
            )
        return True
    return status.state == "done" and bool(config.max_train_steps) and status.step >= int(config.max_train_steps or 0)


def _say_attached(run: Run, status: RunStatus, config: TrainConfig) -> None:
    """Tell what is attached to.

    Raises:
        TunerkitError: its settings are others: its result would be taken for that of these.
    """
    try:
        running = run.config.model_dump()
    except TunerkitError:  # another program's folder, or one that is being prepared
        return
    asked = config.model_dump()
    if status.state == "done":  # fewer steps than it has done are asked for
        asked["max_train_steps"] = running["max_train_steps"]
    different = sorted(_differences(running, asked))
    if different:
        going = "goes on" if status.state != "done" else "is done"
        stop = "" if status.state == "done" else "stop it first, or "
        raise TunerkitError(
            f"the run in {run.output_dir} {going} with other settings: {'; '.join(different)}. Fix: {stop}choose "
            "another output_dir; tk.attach(output_dir) shows it as it is"
        )
    if status.state == "done":
        logger.warning(
            "all %d steps in %s are done; nothing is trained. To train further: max_train_steps = %d. To train anew: "
            "another output_dir",
            status.step,
            run.output_dir,
            2 * status.step,
        )


def _differences(running: Any, asked: Any, key: str = "") -> Iterator[str]:
    """Settings that differ, each as "key: <value of the run>, not <value asked for>"."""
    if isinstance(running, dict) and isinstance(asked, dict):
        for name in running.keys() | asked.keys():
            yield from _differences(running.get(name), asked.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(running, list) and isinstance(asked, list) and len(running) == len(asked):
        for place, (one, other) in enumerate(zip(running, asked, strict=True)):
            yield from _differences(one, other, f"{key}[{place}]")
    elif running != asked:
        yield f"{key}: {running}, not {asked}"


def _wait_for_lock(folder: Path) -> None:
    """Wait until the process that trained here last has left.

    Raises:
        TunerkitError: if somebody stays.
    """
    lock = FileLock(folder / LOCK_FILE)
    deadline = time.monotonic() + LEAVE_SECONDS
    while not lock.acquire():
        if time.monotonic() > deadline:
            raise TunerkitError(
                f"output_dir = {str(folder)!r} is in use by {lock.owner()}. Fix: wait for it, stop it, or choose "
                "another output_dir"
            )
        time.sleep(_RETRY_SECONDS)
    lock.release()


# The process ---------------------------------------------------------------------------------------------------


def _launch(run: Run, config: TrainConfig) -> None:
    """Start the process and wait for its first sign of life."""
    folder = run.output_dir
    settings, output = folder / REQUEST_FILE, folder / OUTPUT_FILE
    config.save(settings)
    printed = output.stat().st_size if output.exists() else 0
    with output.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "tunerkit", "train", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals to a notebook's process group do not reach it
            env=_environment(),
        )
    remember_child(child)
    replace_object(folder / STATUS_FILE, starting_row(child.pid))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        status = run.status
        if status.pid == child.pid and status.state not in ("starting", "died"):
            return
        if child.poll() is not None:
            raise TunerkitError(_message(_printed_since(output, printed)))
        time.sleep(_RETRY_SECONDS)
    logger.warning(
        "the process %d has not shown a sign of life for %d s; it is left to start", child.pid, START_SECONDS
    )


def _environment() -> dict[str, str]:
    """This process's environment, for a child that finds the same tunerkit and prints at once."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("MPLBACKEND", None)  # that of the notebook draws into a notebook
    home = Path(tunerkit.__file__).parents[1]
    if home.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH", "")]))
    return environment


def _printed_since(output: Path, place: int) -> list[str]:
    with output.open("rb") as file:
        file.seek(place)
        return file.read().decode("utf-8", errors="replace").splitlines()


def _message(lines: list[str]) -> str:
    """The one message of a command that failed, else the last lines it printed."""
    for place in range(len(lines) - 1, -1, -1):
        if lines[place].startswith("error: "):
            return "\n".join([lines[place].removeprefix("error: "), *lines[place + 1 :]])
    return "the process ended without a message:\n" + "\n".join(lines[-20:])
