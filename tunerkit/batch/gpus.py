"""Which GPUs there are, without torch, and one training at a time on each."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunerkit.running.locks import FileLock

VARIABLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Gpu:
    """A GPU that a run may use.

    Attributes:
        name: what `CUDA_VISIBLE_DEVICES` has to say for a process to see this one alone.
        key: the same for every process, whatever it sees; names the lock.
    """

    name: str
    key: str


def visible_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use; empty on a machine without any."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return chosen_gpus(chosen, _installed())
    return [Gpu(identity, identity) for identity in _installed()]


def chosen_gpus(chosen: str, installed: list[str]) -> list[Gpu]:
    """The GPUs that a value of `CUDA_VISIBLE_DEVICES` names; as in CUDA, nothing counts after a -1."""
    found = []
    for word in (part.strip() for part in chosen.split(",")):
        if not word or word.startswith("-") or not installed:
            break
        index = int(word) if word.isdigit() else len(installed)
        found.append(Gpu(word, installed[index] if index < len(installed) else word))
    return found


@contextlib.contextmanager
def one_gpu(gpus: list[Gpu], waiting: Callable[[], None]) -> Iterator[Gpu | None]:
    """Hold one of the GPUs for a block; None where there is none to hold.

    Args:
        gpus: any of them will do.
        waiting: called once if all are in use.
    """
    if not gpus:
        yield None
        return
    lock, gpu = _first_free(gpus, waiting)
    try:
        yield gpu
    finally:
        lock.release()


def _first_free(gpus: list[Gpu], waiting: Callable[[], None]) -> tuple[FileLock, Gpu]:
    told = False
    while True:
        for gpu in gpus:
            path = _lock_path(gpu)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            if lock.acquire():
                return lock, gpu
        if not told:
            told = True
            waiting()
        time.sleep(POLL_SECONDS)


def _lock_path(gpu: Gpu) -> Path:
    # In a folder of the user's own: another user's lock file could not be opened.
    folder = Path(tempfile.gettempdir()) / f"tunerkit-gpus-{re.sub(r'[^A-Za-z0-9]', '_', _user())}"
    return folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', gpu.key)}.lock"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())


def _installed() -> list[str]:
    """The identities of all GPUs in the order of their numbers."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("GPU-")]
