"""Offloaded weights in files that are mapped into memory: read when they are needed, gone when the run ends."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import weakref
from pathlib import Path

import torch

from tunerkit.errors import TunerkitError
from tunerkit.files import process_runs

SETTING = "group_offload_to_disk_path"
_SPARE = 1 << 30  # bytes that stay free on the disk


class OnDisk:
    """A store that keeps buffers in a new folder, each in a safetensors file of its own.

    The folder is deleted with the store, or when the process ends; what a killed process on this machine left is
    deleted by the next one. Files of another run are never read.

    Args:
        parent: where to make the folder; made when missing.
        component: whose weights these are, for the folder's name.

    Raises:
        TunerkitError: the folder cannot be made.
    """

    def __init__(self, parent: Path, component: str) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _clear(parent)
            self.folder = Path(tempfile.mkdtemp(prefix=f"offload-{component}-{_host()}-{os.getpid()}-", dir=parent))
        except OSError as error:
            raise _unusable(parent, error.strerror or str(error)) from error
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._count = 0

    def __call__(self, buffer: torch.Tensor) -> torch.Tensor:
        """The content of `buffer`, uint8 `[bytes]`, mapped from a file.

        Raises:
            TunerkitError: the disk is too full.
        """
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        free = shutil.disk_usage(self.folder).free
        if free < buffer.numel() + _SPARE:
            raise _unusable(self.folder.parent, f"the disk has {free / 1e9:.1f} GB left")
        path = self.folder / f"{self._count}.safetensors"
        self._count += 1
        try:
            save_file({"weights": buffer}, path)
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("weights")
        except (OSError, SafetensorError) as error:
            raise _unusable(self.folder.parent, str(error)) from error


def _clear(parent: Path) -> None:
    """Delete the folders of processes of this machine that ended without doing so."""
    for path in parent.glob(f"offload-*-{_host()}-*"):
        match = re.fullmatch(r"offload-\w+-.+-(\d+)-\w+", path.name)
        if match and path.is_dir() and not process_runs(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
    return re.sub(r"\W+", "_", socket.gethostname()) or "host"


def _unusable(folder: Path, reason: str) -> TunerkitError:
    return TunerkitError(
        f"{SETTING} = {str(folder)!r}: weights cannot be kept there ({reason}). Fix: name a folder on a larger disk "
        f"that you may write to, or leave {SETTING} out to keep them in RAM"
    )
