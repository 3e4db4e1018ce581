"""A folder of nasty files: a true decision for each, and training on what is left."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nasty_files import Nasty, lay_out

import tunerkit as tk
from tunerkit.data.decode import decode

MakeConfig = Callable[..., tk.TrainConfig]


def config_for(make_config: MakeConfig, project: Path, folder: Path) -> tk.TrainConfig:
    """The demo project with its clips replaced by those of `folder`."""
    document = project / "multidatabackend.json"
    datasets = json.loads(document.read_text())
    media = next(entry for entry in datasets if entry.get("dataset_type", "video") == "video")
    media["instance_data_dir"] = str(folder)
    media["video"] = {**media.get("video", {}), "num_frames": 9, "min_frames": 9}
    document.write_text(json.dumps(datasets))
    return make_config(max_train_steps=2)


@pytest.fixture
def nasty(tmp_path: Path) -> tuple[Path, list[Nasty]]:
    folder = tmp_path / "nasty" / "clips"
    return folder, lay_out(folder)


def test_every_file_has_a_true_decision(nasty: tuple[Path, list[Nasty]], make_config: MakeConfig, project: Path):
    folder, files = nasty
    report = tk.inspect_dataset(config_for(make_config, project, folder))
    rows = {row.file.relative_to(folder).as_posix(): row for row in report.rows}
    expected = {file.name: file for file in files if file.word is not None}
    assert len(files) >= 60
    assert len(report.rows) == len(rows)
    assert sorted(rows) == sorted(expected)
    wrong = []
    for name, file in expected.items():
        row = rows[name]
        assert row.fix or row.decision == "used", name
        if row.decision != ("used" if file.used else "dropped") or str(file.word).lower() not in row.reason.lower():
            wrong.append(f"{name!r}: {row.decision}: {row.reason}")
    assert not wrong, "\n".join(wrong)
    assert "unexpectedly" not in " ".join(row.reason for row in report.rows)


def test_what_is_used_decodes(nasty: tuple[Path, list[Nasty]], make_config: MakeConfig, project: Path) -> None:
    folder, _ = nasty
    for sample in tk.inspect_dataset(config_for(make_config, project, folder)).require_samples():
        pixels = decode(sample)
        assert pixels.shape == (len(sample.frame_indices), sample.size[1], sample.size[0], 3), sample.name
        assert pixels.dtype == np.uint8


@pytest.mark.slow
def test_training_runs_on_what_is_left(nasty: tuple[Path, list[Nasty]], make_config: MakeConfig, project: Path):
    folder, _ = nasty
    config = config_for(make_config, project, folder)
    report = tk.inspect_dataset(config)
    result = tk.build_cache(config, report=report, progress=False)
    assert not result.failures
    trainer = tk.Trainer(config).prepare(progress=False)
    try:
        losses = [step.loss for step in trainer.steps(2)]
    finally:
        trainer.close()
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
