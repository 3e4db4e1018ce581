"""Importing tunerkit is fast and loads nothing heavy; every public name is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tunerkit as tk

ROOT = Path(tk.__file__).parent.parent
SECONDS = 0.3
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "pydantic", "numpy", "av", "moviepy", "PIL")

MEASURE = """
import json, sys, time
started = time.perf_counter()
import {module}
print(json.dumps([time.perf_counter() - started, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def imported(module: str) -> tuple[float, set[str]]:
    """Seconds an import takes in a fresh interpreter, and the top-level modules it loads."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    seconds, modules = json.loads(result.stdout)
    return seconds, set(modules)


def test_import_is_fast_and_light() -> None:
    runs = [imported("tunerkit") for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < SECONDS
    assert not runs[0][1] & set(HEAVY)


def test_settings_and_command_line_load_no_model_library() -> None:
    for module in ("tunerkit.project", "tunerkit.config", "tunerkit.families", "tunerkit.demo", "tunerkit.cli"):
        _, modules = imported(module)
        assert not modules & {"torch", "diffusers", "transformers", "peft", "accelerate", "av", "moviepy"}, module


def test_help_is_fast() -> None:
    """The command line answers before anyone would wonder; a wrong command, too."""
    code = "import sys; from tunerkit.cli import main; sys.exit(main(sys.argv[1:]))"
    measure = f"import time; started = time.perf_counter()\ntry:\n    {code}\nfinally:\n    "
    measure += "print(time.perf_counter() - started, file=sys.stderr); assert 'torch' not in sys.modules"
    for words, status in ((["--help"], 0), (["trian"], 2)):
        seconds = []
        for _ in range(3):
            result = subprocess.run(
                [sys.executable, "-c", measure, *words],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert result.returncode == status, result.stderr
            seconds.append(float(result.stderr.splitlines()[-1]))
        assert min(seconds) < 0.5


def test_every_public_name_resolves() -> None:
    assert "Trainer" in tk.__all__
    for name in tk.__all__:
        assert getattr(tk, name) is not None
    assert set(tk.__all__) <= set(dir(tk))
    assert tk.family("sana-video").name == "sanavideo"


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(tk, "tarin")
