"""Kill -9 at the worst moments, then the same run again: the losses of a run that was never killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tunerkit as tk
from tunerkit.training.checkpoints import verify
from tunerkit.training.run_folder import read_metrics

SETTINGS = {"max_train_steps": 8, "checkpoint_step_interval": 3, "validation_disable": True, "use_ema": True}


def killed_run(config: Path, output: Path, where: str, die_at: int = 0) -> None:
    script = Path(__file__).with_name("crash_run.py")
    environment = {**os.environ, "DIE_AT": str(die_at)}
    ended = subprocess.run(
        [sys.executable, str(script), str(config), str(output), where],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def finished_run(config: Path, output: Path) -> list[float]:
    trainer = tk.Trainer(tk.load_config(config, output_dir=str(output), validation_disable=True)).prepare()
    for _ in trainer.steps():
        pass
    trainer.close()
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    return [row["loss"] for row in rows]


@pytest.fixture
def config(project: Path) -> Path:
    path = project / "crash.json"
    tk.load_config(project / "config.json", **SETTINGS).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("where", "saved"), [("step", ["checkpoint-3"]), ("checkpoint", ["checkpoint-3"])])
def test_killed_while_training(config: Path, tmp_path: Path, where: str, saved: list[str]) -> None:
    expected = finished_run(config, tmp_path / "whole")
    output = tmp_path / "killed"
    killed_run(config, output, where)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == saved
    assert finished_run(config, output) == expected
    assert not list(output.glob(".checkpoint-*")), "the torn checkpoint was not cleared away"
    for path in output.glob("checkpoint-*"):
        assert verify(path) is None
    whole, again = (load_file(f / "pytorch_lora_weights.safetensors") for f in (tmp_path / "whole", output))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.slow
def test_killed_while_caching(config: Path, project: Path, tmp_path: Path) -> None:
    expected = finished_run(config, tmp_path / "whole")
    cache = project / "cache"
    entries = {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.safetensors")}
    latents = [path for path in entries if path.parts[0] == "vae"]
    assert latents, f"the demo's latents were expected under {cache}/vae"
    shutil.rmtree(cache)

    texts = len(entries) - len(latents)
    killed_run(config, tmp_path / "killed", "caching", die_at=texts + 2)
    left = {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.safetensors")}
    assert texts <= len(left) < len(entries)
    assert all(entries[path] == content for path, content in left.items())
    assert list(cache.rglob(".*tmp-*")), "the kill was expected to leave a temporary file"

    assert finished_run(config, tmp_path / "killed") == expected
    rebuilt = {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.safetensors")}
    assert rebuilt == {path: entries[path] for path in rebuilt}
    assert not list(cache.rglob(".*tmp-*"))
