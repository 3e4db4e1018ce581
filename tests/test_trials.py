"""What a trainer must survive: fresh caches, full disks, damaged files, bad captions, hostile input, no network."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunerkit as tk
from tunerkit.cache.store import Store
from tunerkit.training.run_folder import read_metrics

MakeConfig = Callable[..., tk.TrainConfig]


def train(config: tk.TrainConfig) -> Path:
    """Train to the end: the output folder."""
    trainer = tk.Trainer(config).prepare()
    try:
        for _ in trainer.steps():
            pass
        return trainer.loaded.folder.path
    finally:
        trainer.close()


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def test_same_seed_with_fresh_caches_gives_the_same_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        config = make_config(
            output_dir=str(tmp_path / name), cache_dir=str(tmp_path / f"cache-{name}"), max_train_steps=3
        )
        datasets = [d.model_copy(update={"cache_dir": None, "cache_dir_vae": None}) for d in config.datasets]
        runs.append(train(config.changed(datasets=datasets)))
        assert list((tmp_path / f"cache-{name}").rglob("*.safetensors"))
    first, second = (load_file(run / "pytorch_lora_weights.safetensors") for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_disk_full_while_saving_keeps_the_last_checkpoint(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tunerkit.training.state as state

    expected = losses(train(make_config(output_dir=str(tmp_path / "whole"), max_train_steps=4)))
    config = make_config(output_dir=str(tmp_path / "full"), max_train_steps=4, checkpoint_step_interval=2)
    original, calls = state.save_tensors, []

    def full_disk(path: Path, *arguments: Any, **named: Any) -> None:
        calls.append(path)
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, *arguments, **named)

    monkeypatch.setattr(state, "save_tensors", full_disk)
    with pytest.raises(tk.CheckpointError, match="checkpoint-4"):
        train(config)
    left = sorted(path.name for path in (tmp_path / "full").iterdir() if "checkpoint" in path.name)
    assert left == ["checkpoint-2"]
    monkeypatch.undo()
    assert losses(train(config)) == expected


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    config = make_config(output_dir=str(tmp_path / "o"), max_train_steps=4, checkpoint_step_interval=2)
    folder = train(config)
    expected = losses(folder)
    file = folder / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level("WARNING", logger="tunerkit"):
        train(config)
    assert "checkpoint-4" in caplog.text
    assert losses(folder) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"   \n", "empty"), (b"\xff\xfe\x00caf\xe9", "UTF-8")],
    ids=["zero", "blank", "latin"],
)
def test_unusable_caption_drops_its_clip_with_the_reason(make_config: MakeConfig, content: bytes, words: str) -> None:
    clip = tk.inspect_dataset(make_config()).samples[0].file
    clip.with_suffix(".txt").write_bytes(content)
    report = tk.inspect_dataset(make_config())
    row = next(row for row in report.rows if row.file == clip)
    assert row.decision == "dropped"
    assert words in row.reason
    assert clip.with_suffix(".txt").name in row.reason + row.fix
    trainer = tk.Trainer(make_config(max_train_steps=2)).prepare()
    used = [result.samples for result in trainer.steps()]
    trainer.close()
    assert used
    assert all(clip.name not in names for names in used)


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def test_pickles_are_never_read(make_config: MakeConfig, tmp_path: Path, project: Path) -> None:
    bomb = pickle.dumps(Bomb(str(tmp_path / "exploded")))
    config = make_config(output_dir=str(tmp_path / "o"), max_train_steps=2, checkpoint_step_interval=1)
    folder = train(config)
    for path in (folder / "checkpoint-2").iterdir():
        path.write_bytes(bomb)
    train(config)  # the newest checkpoint is damaged: the one before is used
    assert not (tmp_path / "exploded").exists()

    entry = next((project / "cache").rglob("*.safetensors"))
    entry.write_bytes(bomb)
    with pytest.raises(tk.TunerkitError, match=entry.name):
        Store(entry.parent.parent).get(entry.stem)
    assert not (tmp_path / "exploded").exists()
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(bomb)
    with pytest.raises(tk.CheckpointError, match="init_lora"):
        train(make_config(output_dir=str(tmp_path / "p"), init_lora=str(lora), max_train_steps=1))
    assert not (tmp_path / "exploded").exists()


def test_settings_are_data_and_never_code(project: Path, tmp_path: Path) -> None:
    evil = f"__import__('os').mkdir('{tmp_path}/exploded')"
    document = json.loads((project / "config.json").read_text())
    document |= {"validation_prompt": evil, "learning_rate": evil, "optimizer_config": evil}
    (project / "config.json").write_text(json.dumps(document))
    before = dict(os.environ)
    with pytest.raises(tk.ConfigError, match="learning_rate"):
        tk.load_config(project / "config.json")
    assert not (tmp_path / "exploded").exists()
    assert dict(os.environ) == before


def test_a_local_project_needs_no_network(
    make_config: MakeConfig, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project / "cache")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert losses(train(make_config(max_train_steps=1)))
