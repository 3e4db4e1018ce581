"""A browser and a server for all tests of a file; name this module in the file's `pytest_plugins`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import colab_bed
from .chromium import Browser, missing
from .lab_server import LabServer

DEMAND = "TUNERKIT_BROWSER"
"""Environment variable: 1 = a test that lacks browser or bed fails instead of being skipped."""
PICTURES = "TUNERKIT_PICTURES"
"""Environment variable: folder to keep the pictures of pages in."""


def require(lack: str) -> None:
    """Skip the test where something is lacking, or fail it where it was asked for."""
    if lack and os.environ.get(DEMAND) == "1":
        pytest.fail(f"{DEMAND}=1, but {lack}", pytrace=False)
    if lack:
        pytest.skip(lack)


# Not for the whole session: as long as it drives a browser, Playwright keeps an event loop running in this thread, and
# tests of other files call asyncio.run().
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    require(missing())
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with LabServer(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def colab_python() -> Path:
    """The interpreter of the bed with Colab's versions."""
    require(colab_bed.missing())
    return colab_bed.python()


@pytest.fixture(scope="module")
def colab_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A `JUPYTER_PATH` whose `python3` kernel is the one that Colab has; None where there is no such bed."""
    lack = colab_bed.missing()
    if lack and os.environ.get(DEMAND) == "1":
        require(lack)
    return None if lack else kernel_folder(colab_bed.python(), tmp_path_factory.mktemp("jupyter"))


def kernel_folder(python: Path, folder: Path) -> Path:
    """Write a kernel of the usual name that runs in `python`; as `JUPYTER_PATH`, the folder puts it first."""
    kernel = folder / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))
    return folder


@pytest.fixture(scope="module")
def colab_lab(colab_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with LabServer(tmp_path_factory.mktemp("colab"), python=colab_python) as server:
        yield server


@pytest.fixture
def pictures() -> Path | None:
    """Where a test puts the pictures it takes; None where nobody asks for any."""
    folder = os.environ.get(PICTURES)
    return Path(folder).absolute() if folder else None
