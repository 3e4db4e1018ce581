"""Plans that are kept on disk: when they answer, when they do not, and that they need no model library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tunerkit as tk
from tunerkit.planning import planner, remembered
from tunerkit.planning.remembered import Figures
from tunerkit.planning.result import DiskPlan, PhasePlan
from tunerkit.planning.seconds import Work

FIGURES = Figures(
    (
        PhasePlan("training step", 3 * 2**30, {"weights": 2**31, "activations": 2**30}, 5, Work(1.5e14, kernels=7)),
        PhasePlan("checkpoint", 2**31, {"weights": 2**31}, 0, Work()),
    ),
    DiskPlan(10**9, None, 10**6, 2),
    20,
)


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tk.TrainConfig]:
    """The settings that were really planned, in place of a trace; what is kept lies in a folder of the test's own."""
    seen: list[tk.TrainConfig] = []

    def figures(config: tk.TrainConfig, *_: Any) -> Figures:
        seen.append(config)
        return FIGURES

    monkeypatch.setattr(planner, "_figures", figures)
    monkeypatch.setenv("TUNERKIT_CACHE", str(tmp_path / "cache"))
    return seen


def config_in(folder: Path, **settings: Any) -> tk.TrainConfig:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    dataset = {"id": "clips", "instance_data_dir": str(folder / "clips"), "resolution": 480, "video": {"num_frames": 9}}
    usual = {"model_family": "sanavideo", "max_train_steps": 10, "validation_prompt": "a cat"}
    return tk.TrainConfig(output_dir=str(folder / "out"), datasets=[dataset], **{**usual, **settings})


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "plans").glob("*"))


def test_what_was_planned_once_is_not_traced_again(tmp_path: Path, traced: list[tk.TrainConfig]) -> None:
    first = tk.plan(config_in(tmp_path), 24, gpu="4090")
    again = tk.plan(config_in(tmp_path / "elsewhere", learning_rate=1e-6, validation_prompt="a dog"), 24, gpu="3090")
    assert len(traced) == 1
    assert (again.phases, again.disk, again.blocks, again.largest) == (
        first.phases, first.disk, first.blocks, first.largest)  # fmt: skip
    assert list(again.phases[0].parts) == ["weights", "activations"]
    assert (first.fits, again.fits, again.gpu and again.gpu.name) == (True, True, "RTX 3090")
    assert again.config.validation_prompt == "a dog"


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_rank": 8},
        {"max_train_steps": 2000},
        {"validation_disable": True},
        {"validation_num_video_frames": 33},
        {"datasets.clips.video.num_frames": 17},
        {"datasets.clips.resolution": 640},
        {"use_ema": True},
        {"vae_enable_tiling": True},
        {"mixed_precision": "no"},
    ],
)
def test_another_question_is_traced(tmp_path: Path, traced: list[tk.TrainConfig], settings: dict[str, Any]) -> None:
    tk.plan(config_in(tmp_path))
    tk.plan(config_in(tmp_path).changed(**settings))
    assert len(traced) == 2


def test_another_gpu_or_program_is_traced(
    tmp_path: Path, traced: list[tk.TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path)
    tk.plan(config, 24)
    tk.plan(config, 12)
    assert len(traced) == 2
    before = remembered._program()
    assert any("planning/planner.py" in str(one) for one in before[-1])
    assert dict(before[2])["torch"]
    monkeypatch.setattr(remembered, "_program", lambda: (*before[:-1], [*before[-1], ("new.py", 1, 1)]))
    tk.plan(config, 24)
    assert len(traced) == 3


def test_a_repository_that_may_change_is_never_answered_from_disk(tmp_path: Path, traced: list[tk.TrainConfig]) -> None:
    config = config_in(tmp_path, pretrained_model_name_or_path="somebody/sana-of-their-own")
    tk.plan(config)
    tk.plan(config)
    assert len(traced) == 2
    assert kept(tmp_path) == []


def test_a_model_is_known_by_its_content(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "transformer").mkdir(parents=True)
    (model / "transformer" / "config.json").write_text('{"num_layers": 2}')
    (model / "transformer" / "weights.safetensors").write_bytes(bytes(100))
    shutil.copytree(model, tmp_path / "copy")
    identity = remembered.model_identity(str(model))
    assert remembered.model_identity(str(tmp_path / "copy")) == identity is not None
    (model / "transformer" / "config.json").write_text('{"num_layers": 3}')
    assert remembered.model_identity(str(model)) != identity
    single = tmp_path / "all.safetensors"
    single.write_bytes(b"header 1" + bytes(100))
    identity = remembered.model_identity(str(single))
    single.write_bytes(b"header 2" + bytes(100))
    assert remembered.model_identity(str(single)) != identity
    assert remembered.model_identity("Efficient-Large-Model/nowhere") is None


DISK = '"disk": {"download": 1, "cache": null, "checkpoint": 1, "checkpoints": 1}, "blocks": 1'


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"phases": [], "disk": {}}', '{"phases": [1]}', "null", "\x00", f'{{"phases": [], {DISK}}}'],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, traced: list[tk.TrainConfig], content: str) -> None:
    tk.plan(config_in(tmp_path))
    [file] = kept(tmp_path)
    file.write_text(content)
    assert tk.plan(config_in(tmp_path)).phases == FIGURES.phases
    assert len(traced) == 2
    assert json.loads(file.read_text())["blocks"] == 20


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, traced: list[tk.TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNERKIT_CACHE", str(tmp_path / "file"))
    assert tk.plan(config_in(tmp_path)).phases == FIGURES.phases
    assert len(traced) == 1


def test_those_that_were_not_asked_for_longest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "MOST", 3)
    for number, name in enumerate("abc"):
        remembered.remember(name, FIGURES)
        os.utime(tmp_path / "cache" / "plans" / f"{name}.json", (number, number))
    assert remembered.recall("a") == FIGURES  # and so it is the youngest
    remembered.remember("d", FIGURES)
    assert [file.stem for file in kept(tmp_path)] == ["a", "c", "d"]


def test_files_lie_where_the_system_keeps_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNERKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remembered._folder() == tmp_path / "tunerkit" / "plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    assert remembered._folder() == Path.home() / ".cache" / "tunerkit" / "plans"


def test_no_model_library_is_loaded_for_an_answer(tmp_path: Path, traced: list[tk.TrainConfig]) -> None:
    """Nor for the changes that make it fit, once they were planned."""
    config = config_in(tmp_path, device="cpu")
    path = tmp_path / "config.json"
    config.save(path)
    known = tk.plan(config, 2).changes  # the trace in place takes the same whatever is changed: nothing is worth it
    assert known == ()
    assert len(traced) > 5
    code = (
        "import sys, tunerkit as tk\n"
        "found = tk.plan(tk.load_config(sys.argv[1]), 2)\n"
        "print(found.peak, found.fits, len(found.changes), 'torch' in sys.modules, str(found)[:0])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(3 * 2**30), "False", "0", "False"]
