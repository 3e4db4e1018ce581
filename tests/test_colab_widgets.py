"""The tests of the widgets once more, with the versions that Colab has: ipywidgets 7, traitlets 5.7, IPython 7."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

pytest_plugins = ["browser.fixtures"]

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_they_pass_with_colabs_versions(colab_python: Path, tmp_path: Path) -> None:
    files = sorted(map(str, TESTS.glob("test_widgets*.py")))
    assert len(files) >= 9
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS.parent / "widgets")])
    done = subprocess.run(
        [
            str(colab_python),
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(tmp_path / "tests"),
            *files,
        ],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert not re.search(r"\d+ failed|\d+ error", done.stdout)
