"""Runs a guided notebook as a batch job, and reads what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from browser.parameters import copy_with

ROOT = Path(__file__).resolve().parent.parent


def cells(notebook: Any, kind: str) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def papermill(notebook: Path, folder: Path, **parameters: object) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Execute a notebook in `folder` as a batch job."""
    output = folder / "executed.ipynb"
    options = [str(part) for name, value in parameters.items() for part in ("-p", name, value)]
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), *options, "--no-progress-bar"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "widgets")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, "-k", "python3"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    return done, output


def nbmake(notebook: Path, folder: Path, kernels: Path | None = None, **parameters: object) -> Any:
    """Execute a copy of a notebook in `folder` with pytest's nbmake: the copy with its outputs.

    Args:
        kernels: a `JUPYTER_PATH` with another kernel of the usual name.
        parameters: other values of its parameters cell.

    Raises:
        AssertionError: with what pytest had to say, if a cell failed.
    """
    copy = copy_with(notebook, folder / f"nbmake_{notebook.name}", **parameters)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "widgets")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-q", "-p", "no:cacheprovider", str(copy)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **({"JUPYTER_PATH": str(kernels)} if kernels else {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return nbformat.read(copy, as_version=4)


def outputs(notebook: Any, kind: str) -> list[str]:
    """All outputs of a media type, in order."""
    found = [output for cell in cells(notebook, "code") for output in cell.outputs]
    if kind == "stream":
        return [output.text for output in found if output.output_type == "stream"]
    return [output.data[kind] for output in found if kind in output.get("data", {})]
