"""Trackers: what they are told, that a resumed run goes on there, and that none of them ends a training."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import accelerate.tracking
import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image

import tunerkit as tk
from tunerkit.config import reporting_rules
from tunerkit.config.reporting_rules import trackers_of
from tunerkit.files import write_json
from tunerkit.reporting.listening import Listener
from tunerkit.reporting.shared_settings import flat_settings, shared_settings
from tunerkit.reporting.trackers import MEMORY_FILE, TrackerListener, run_name, scalars
from tunerkit.training.run_folder import RunFolder, read_metrics
from tunerkit.validation.video_files import write_mp4

MakeConfig = Callable[..., tk.TrainConfig]
TENSORBOARD = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
VALIDATION = {
    "validation_disable": False, "validation_resolution": "64x64", "validation_num_video_frames": 5,
    "validation_num_inference_steps": 1, "validation_prompt": "a fox", "user_prompt_library": None,
    "validation_step_interval": 4,
}  # fmt: skip


class FakeWandb(accelerate.tracking.GeneralTracker):
    """Accelerate's tracker as the trainer sees it; keeps what it is told, in `runs`."""

    runs: list[FakeWandb] = []
    broken: str = ""
    name = "wandb"
    requires_logging_directory = False

    def __init__(self, project: str, **settings: Any) -> None:
        self.project, self.settings = project, settings
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[str] = []
        self.finished = 0

    def start(self) -> None:
        if self.broken == "start":
            raise ConnectionError("nobody there")
        FakeWandb.runs.append(self)

    @property
    def tracker(self) -> Any:
        return SimpleNamespace(define_metric=lambda name, **_: self.metrics.append(name))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        assert step is None  # wandb drops what comes with a lower step than before
        assert not more
        if self.broken == "log" and values["step"] == 2:
            raise ConnectionError("nobody there")
        self.rows.append(values)

    def finish(self) -> None:
        self.finished += 1
        if self.broken == "finish":
            raise ConnectionError("nobody there")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> type[FakeWandb]:
    """wandb as if it were installed and logged in."""
    module = ModuleType("wandb")
    vars(module).update(
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")),
        login=lambda **_: True,
        Video=lambda path, **facts: {"path": path, **facts},
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(reporting_rules, "find_spec", lambda name: name == "wandb" or None)
    monkeypatch.setattr(accelerate.tracking, "WandBTracker", FakeWandb)
    monkeypatch.setattr(FakeWandb, "runs", [])
    monkeypatch.setattr(FakeWandb, "broken", "")
    return FakeWandb


def test_a_run_is_reported_and_goes_on_where_it_was(wandb: type[FakeWandb], make_config: MakeConfig) -> None:
    config = make_config(
        report_to="wandb", tracker_project_name="styles", tracker_run_name="fox", max_train_steps=4,
        checkpoint_step_interval=2, **VALIDATION,
    )  # fmt: skip
    for count in (2, None):
        trainer = tk.Trainer(config).prepare()
        list(trainer.steps(count, evaluate=True))
        trainer.close()

    first, second = wandb.runs
    assert [one.finished for one in wandb.runs] == [1, 1]
    assert {one.project for one in wandb.runs} == {"styles"}
    assert first.settings == second.settings  # the same id: the same run
    assert first.settings["name"] == "fox"
    assert first.settings["resume"] == "allow"
    assert set(first.metrics) == {"step", "*"}
    assert first.config["learning_rate"] == config.learning_rate
    assert json.loads((config.output_path / MEMORY_FILE).read_text()) == {"wandb": first.settings["id"]}

    rows = first.rows + second.rows
    logged = {row["step"]: row for row in rows if "train/loss" in row}
    written = {row["step"]: row for row in read_metrics(config.output_path / "metrics.jsonl")}
    assert set(logged) == set(written) == {1, 2, 3, 4}
    for step, row in written.items():
        assert logged[step]["train/loss"] == row["loss"]
        assert logged[step]["train/lr"] == row["lr"]
        assert logged[step]["train/grad_norm"] == row["grad_norm"]
        assert logged[step]["train/seconds"] == row["seconds"]
        assert {key.removeprefix("train/parts/") for key in logged[step] if "/parts/" in key} == set(row["parts"])
    measured = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert measured == {row["step"]: row["loss"] for row in read_metrics(config.output_path / "evaluation.jsonl")}
    videos = {row["step"]: value for row in rows for key, value in row.items() if key.startswith("validation/")}
    assert sorted(videos) == [0, 4]  # the base model's, too
    assert all(Path(video["path"]).is_file() and video["caption"] == "a fox" for video in videos.values())
    names = {key for row in rows for key in row if key.startswith("validation/")}
    assert names == {f"validation/validation-64x64-{config.seed}"}


@pytest.mark.parametrize("what", ["start", "log", "finish"])
def test_a_tracker_that_fails_costs_one_warning(
    wandb: type[FakeWandb], make_config: MakeConfig, what: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(wandb, "broken", what)
    config = make_config(report_to=["wandb"], max_train_steps=4)
    trainer = tk.Trainer(config).prepare()
    results = list(trainer.steps())
    trainer.close()
    assert [row["step"] for row in read_metrics(config.output_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert trainer.global_step == len(results) == 4
    told = [record.message for record in caplog.records if "report_to" in record.message]
    assert told == [
        "report_to = wandb failed and is told no more (ConnectionError: nobody there); the training goes on"
    ]


def test_a_run_that_begins_anew_is_a_new_one(wandb: type[FakeWandb], tmp_path: Path) -> None:
    config = tk.TrainConfig(output_dir=tmp_path, report_to="wandb")
    for step in (1, 5, 1):
        listener = TrackerListener("wandb", config)
        listener.step({"step": step, "loss": 1.0}, 10)
        listener.close()
    first, resumed, again = (one.settings["id"] for one in wandb.runs)
    assert first == resumed != again
    listener = TrackerListener("wandb", config)
    listener.close()  # nothing was reported: no page is opened
    assert len(wandb.runs) == 3


@TENSORBOARD
def test_tensorboard_files_hold_the_run_without_what_was_given_up(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    PartialState(cpu=True)
    config = tk.TrainConfig(output_dir=tmp_path, report_to="tensorboard", tracker_run_name="run")
    rendered = tmp_path / "validation" / "step-0" / "fox-600x64-7.mp4"
    rendered.parent.mkdir(parents=True)
    frames = np.linspace(0, 255, 41 * 64 * 600 * 3).reshape(41, 64, 600, 3).astype(np.uint8)
    write_mp4(rendered, frames, 16)
    facts = {"prompt": "a fox", "seed": 7, "frames": 41, "fps": 16, "size": [600, 64]}
    write_json(rendered.with_name("renderings.json"), {rendered.name: facts})
    for steps in (range(1, 6), range(3, 5)):
        listener = TrackerListener("tensorboard", config)
        if steps[0] == 1:
            listener.event({"kind": "video", "step": 0, "path": "validation/step-0/fox-600x64-7.mp4"})
            listener.evaluation({"step": 0, "loss": 9.0, "time": 1.0})
        for step in steps:
            listener.step({"step": step, "loss": float(steps[0] + step)}, 9)
        listener.close()
    found = EventAccumulator(str(tmp_path / "tensorboard" / "run")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 2), (2, 3), (3, 6), (4, 7)]
    assert [(event.step, event.value) for event in found.Scalars("eval/loss")] == [(0, 9)]
    assert "learning_rate" in found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    (image,) = found.Images("validation/fox-600x64-7")
    assert (image.step, image.width, image.height) == (0, 256, 27)
    with cast(Any, Image.open(io.BytesIO(image.encoded_image_string))) as picture:
        seconds = sum(picture.seek(n) or picture.info["duration"] for n in range(picture.n_frames)) / 1000
        assert (picture.format, picture.size, picture.n_frames) == ("GIF", (256, 27), 32)
    assert abs(seconds - 41 / 16) < 0.2


def test_numbers_of_a_line() -> None:
    row = {
        "step": 3, "time": 1.0, "loss": 0.5, "parts": {"video": 0.25, "audio": 0.25}, "grad_norm": None, "epoch": 0,
        "samples": ["a.mp4"], "datasets": {"held": 0.5}, "sigmas": {"0.0625": 0.5}, "flag": True,
    }  # fmt: skip
    assert scalars(row, "eval") == {
        "eval/loss": 0.5, "eval/parts/video": 0.25, "eval/parts/audio": 0.25, "eval/epoch": 0,
        "eval/datasets/held": 0.5,
    }  # fmt: skip


def test_which_trackers_are_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def meant(given: Any) -> list[str]:
        return trackers_of(tk.TrainConfig(report_to=given))

    assert meant("none") == meant("") == meant(["none"]) == meant([]) == []
    assert meant("WandB") == ["wandb"]
    assert meant("tensorboard, wandb") == meant(["wandb", "tensorboard"]) == ["wandb", "tensorboard"]
    monkeypatch.setattr(reporting_rules, "find_spec", lambda name: name == "trackio" or None)
    assert meant("all") == ["trackio"]
    with pytest.raises(tk.ConfigError, match=r"report_to = 'wandbb'.*wandb, tensorboard, trackio, all"):
        tk.TrainConfig(report_to="wandbb")
    monkeypatch.setattr(reporting_rules, "find_spec", lambda _: None)
    assert [note.key for note in tk.TrainConfig(report_to="all").notes] == ["report_to"]
    names = {note.key for note in tk.TrainConfig(tracker_project_name="x", tracker_run_name="y").notes}
    assert names == {"tracker_project_name", "tracker_run_name"}
    assert run_name(tk.TrainConfig(output_dir=tmp_path / "fox")) == "fox"
    assert run_name(tk.TrainConfig(output_dir=tmp_path / "3-rank-8" / "output")) == "3-rank-8"


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_loaded(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting_rules, "find_spec", lambda _: None)
    config = make_config(report_to="trackio,wandb")
    assert not (config.output_path / "status.json").exists()
    for refused in (tk.Trainer, tk.start):
        with pytest.raises(tk.ConfigError) as raised:
            refused(config)
        assert "pip install 'tunerkit[trackio]'" in str(raised.value)
        assert "pip install 'tunerkit[wandb]'" in str(raised.value)
    assert not (config.output_path / "status.json").exists()


def test_nobody_is_logged_in(wandb: type[FakeWandb], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    del wandb
    monkeypatch.setattr(sys.modules["wandb"], "login", lambda **_: False)
    with pytest.raises(tk.ConfigError, match="wandb login"):
        tk.Trainer(make_config(report_to="wandb"))
    settings = SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    monkeypatch.setattr(sys.modules["wandb"], "setup", lambda: settings)
    tk.Trainer(make_config(report_to="wandb"))


def test_settings_are_shown_without_folders_and_secrets(make_config: MakeConfig) -> None:
    config = make_config(webhook_config="https://example.org/secret", validation_prompt="a fox", report_to="none")
    told = json.dumps(shared_settings(config))
    for hidden in ("example.org", str(config.output_path.parent), str(Path.home())):
        assert hidden not in told
    assert shared_settings(config)["datasets"][0]["id"] == config.datasets[0].id
    flat = flat_settings(config)
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())
    assert flat["validation_prompt"] == "a fox"


def test_listeners_hear_everything_and_one_that_fails_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[Any, ...]] = []

    class Good(Listener):
        def step(self, row: dict[str, Any], total: int) -> None:
            heard.append(("step", row["step"], total))

        def event(self, row: dict[str, Any]) -> None:
            heard.append(("event", row["kind"], row["number"]))

        def evaluation(self, row: dict[str, Any]) -> None:
            heard.append(("evaluation", row["loss"]))

        def activity(self, words: str) -> None:
            heard.append(("activity", words))

        def close(self) -> None:
            heard.append(("close",))

    class Bad(Listener):
        name = "bad"

        def event(self, row: dict[str, Any]) -> None:
            raise RuntimeError(f"no {row['kind']}")

    folder = RunFolder(tmp_path)
    folder.lock()
    for listener in (Bad(), Good()):
        folder.listeners.add(listener)
    folder.activity("looking")
    folder.log({"step": 1, "loss": 1.0, "lr": 1e-4, "seconds": 0.1}, 9)
    folder.log_evaluation({"step": 1, "loss": 2.0, "time": 0.0})
    folder.event("checkpoint", 1, "saved", path="checkpoint-1")
    folder.close()
    assert [record.message for record in caplog.records] == [
        "bad failed and is told no more (RuntimeError: no state); the training goes on"
    ]
    kinds = [what[1] for what in heard if what[0] == "event"]
    assert kinds == ["warning", "state", "evaluation", "checkpoint"]
    assert [what for what in heard if what[0] != "event"] == [
        ("activity", "looking"), ("step", 1, 9), ("evaluation", 2.0), ("close",)
    ]  # fmt: skip
    numbers = [row["number"] for row in tk.Run(tmp_path).events()]
    assert numbers == sorted(set(numbers))
