"""A sweep in a process of its own, which goes on when the notebook that started it is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunerkit.batch.folders import ASKED, SweepFolder
from tunerkit.batch.plan import plan_sweep
from tunerkit.errors import TunerkitError
from tunerkit.files import write_json

REQUEST, OUTPUT_LOG = "request.json", "sweep.log"
START_SECONDS = 10.0
"""How long its beginning is waited for, to tell what hinders it."""


def start_sweep(
    notebook: str | os.PathLike[str],
    grid: Mapping[str, Sequence[Any]],
    *,
    output_dir: str | os.PathLike[str],
    parallel: int = 1,
    base: Mapping[str, Any] | None = None,
) -> int:
    """Start `python -m tunerkit sweep` detached; what it prints goes to `sweep.log` in `output_dir`.

    Returns:
        the id of its process.

    Raises:
        ConfigError, TunerkitError: as `sweep`; also if one works in `output_dir` already, or the process ends at once.
    """
    plan_sweep(notebook, grid, base=base)
    folder = Path(output_dir).expanduser().absolute()
    if sweep_goes_on(folder):
        raise TunerkitError(f"a sweep works in {folder} already. Fix: stop it, wait for it, or choose another folder")
    try:
        write_json(folder / REQUEST, {"grid": grid, "base": base or {}, "parallel": parallel})
        log = (folder / OUTPUT_LOG).open("wb")
    except OSError as error:
        raise TunerkitError(f"{folder} cannot be written ({error.strerror}). Fix: choose another folder") from error
    command = [sys.executable, "-m", "tunerkit", "sweep", str(notebook), str(folder / REQUEST), "--output-dir"]
    with log:
        process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and SweepFolder(folder).pid() != process.pid:
        if process.poll() is not None:
            if process.returncode == 0:  # everything was done already
                break
            words = (folder / OUTPUT_LOG).read_text(encoding="utf-8", errors="replace").strip()
            raise TunerkitError(f"the sweep ended at once: {words or f'status {process.returncode}'}")
        time.sleep(0.1)
    return process.pid


def stop_sweep(output_dir: str | os.PathLike[str]) -> None:
    """Let a sweep's runs save their checkpoints and end; starting it again goes on from there.

    Raises:
        TunerkitError: no sweep works in the folder.
    """
    folder = Path(output_dir).expanduser().absolute()
    pid = SweepFolder(folder).pid()
    if pid is None:
        raise TunerkitError(f"no sweep works in {folder}. Fix: give the output_dir of one that runs ({ASKED} is in it)")
    os.kill(pid, signal.SIGINT)


def sweep_goes_on(output_dir: str | os.PathLike[str]) -> bool:
    """Whether a process works through the sweep in this folder."""
    return SweepFolder(Path(output_dir).expanduser().absolute()).pid() is not None
