"""What the tests of settings share: where the documents lie, a project to read, settings that resolve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunerkit.errors import ConfigError, Problem

FIXTURES = Path(__file__).parent / "fixtures"
QUICKSTARTS = FIXTURES / "quickstarts"


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def problems(error: pytest.ExceptionInfo[ConfigError]) -> dict[str, Problem]:
    return {problem.key: problem for problem in error.value.problems}


def lay_out_quickstart(project: Path) -> Path:
    """The Sana quickstart as a user lays it out, in the folder `project`, which is returned."""
    for name, target in (
        ("sana_video.hi.1.config.json", "config/config.json"),
        ("sana_video.hi.6.dataset.json", "config/sanavideo/multidatabackend.json"),
    ):
        (project / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(QUICKSTARTS / name, project / target)
    (project / "datasets/disney-black-and-white").mkdir(parents=True)
    return project


def settings_that_resolve(tmp_path: Path) -> dict[str, Any]:
    """The fewest settings that a run can start with."""
    (tmp_path / "clips").mkdir()
    return {
        "model_family": "sanavideo",
        "output_dir": tmp_path / "out",
        "max_train_steps": 10,
        "datasets": [{"id": "clips", "instance_data_dir": tmp_path / "clips", "video": {"num_frames": 17}}],
    }
