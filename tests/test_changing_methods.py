"""Settings that change between two steps: as if resumed there with them, and nothing where they are refused."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import Batches, Size, same, trained
from method_models import engine_of as any_engine_of
from widget_messages import wait

import tunerkit as tk
from tunerkit.errors import CheckpointError, ConfigError
from tunerkit.training.checking import CHANGEABLE, changed_settings
from tunerkit.training.engine import Engine
from tunerkit.training.evaluation_plan import EvaluationPlan
from tunerkit.training.state import Fingerprint, read_state, write_state

MakeConfig = Callable[..., tk.TrainConfig]
ROUTES: dict[str, Any] = {
    "tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 3}]}
}
ALIGNED: dict[str, Any] = {
    "crepa_enabled": True, "crepa_feature_source": "backbone", "crepa_block_index": 0, "crepa_teacher_block_index": 1,
    "crepa_lambda": 0.5, "crepa_scheduler": "linear", "max_train_steps": 10,
}  # fmt: skip
ROLLED: dict[str, Any] = {"scheduled_sampling_max_step_offset": 25, "scheduled_sampling_probability": 1.0}
OFF: dict[str, Any] = {"crepa_enabled": False, "tread_config": None, "scheduled_sampling_max_step_offset": 0}


# The engine --------------------------------------------------------------------------------------------------------


def engine_of(family: str, **settings: Any) -> tuple[Engine, Batches]:
    """Small: four or five blocks, one clip, one micro-batch."""
    return any_engine_of(family, size=Size(clips=1), micro_batches=1, **settings)


def steps(engine: Engine, batches: Batches, first: int, count: int = 2) -> list[Any]:
    """What some steps told, and all weights that they left."""
    told: list[Any] = []
    for number in range(first, first + count):
        update = engine.step(batches, number, 1e-2)
        told.append((update.loss, update.grad_norm, update.parts))
    state = {**engine.weights.state(), **engine.weights.state(beside=True)}
    return [told, {name: value.tolist() for name, value in state.items()}]


def change(engine: Engine, **settings: Any) -> None:
    config = engine.config.changed(**settings)
    engine.change(config, engine.objective_for(config))
    if engine.alignment is not None:
        engine.alignment.total_steps = config.max_train_steps or 0


def fingerprint() -> Fingerprint:
    """Of nothing: what the run is does not matter here."""
    from tunerkit.training import state

    return Fingerprint(dict.fromkeys((*state._MUST_MATCH, *state._SHOULD_MATCH)))


@pytest.mark.parametrize(
    ("family", "before", "settings"),
    [
        ("ltxvideo2", {**ALIGNED, **ROUTES, "crepa_teacher_block_index": 4}, OFF),
        ("kandinsky5-video", ALIGNED, {
            "crepa_lambda": 0.2, "crepa_cutoff_step": 2, "crepa_adjacent_distance": 0, "crepa_spatial_align": False,
            "crepa_similarity_threshold": -1.0, "crepa_threshold_mode": "recoverable", "max_train_steps": 20,
        }),
        ("kandinsky5-video", {**ALIGNED, "crepa_similarity_threshold": -1.0}, {
            "crepa_similarity_ema_decay": 0.5, **ROLLED,
        }),
        ("kandinsky5-video", {"optimizer": "adamw_bf16", "model_type": "full", **ALIGNED}, {
            "crepa_enabled": False, **ROUTES, "max_grad_norm": 0.01, "grad_clip_method": "value",
        }),
        ("sanavideo", {"optimizer": "muon", **ALIGNED, **ROLLED}, OFF),
        ("kandinsky5-video", {**ROUTES, **ROLLED}, {"tread_config": None, "scheduled_sampling_reflexflow": False}),
    ],
    ids=["all off", "weight", "stopped for good", "full to routes", "muon", "routes off"],
)  # fmt: skip
def test_changed_between_steps_is_resumed_with_the_change(
    family: str, before: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    engine, batches = engine_of(family, **before)
    steps(engine, batches, 0, 1)
    write_state(tmp_path, engine, 1, fingerprint())
    change(engine, **settings)
    found = steps(engine, batches, 1)
    resumed, _ = engine_of(family, **{**before, **settings})
    if resumed.alignment is not None:
        resumed.alignment.total_steps = resumed.config.max_train_steps or 0
    step, warnings = read_state(tmp_path, resumed, fingerprint())
    expected = steps(resumed, batches, step)
    assert (step, warnings) == (1, [])
    assert found[0] == expected[0]
    assert {name: found[1][name] for name in expected[1]} == expected[1]
    kept = {name for name in found[1] if name not in expected[1]}
    assert all("crepa_projector" in name for name in kept)
    same_as_before, _ = engine_of(family, **before)
    read_state(tmp_path, same_as_before, fingerprint())
    assert steps(same_as_before, batches, 1, 1)[0] != found[0][:1]


def test_all_switched_off_is_the_plain_run_and_on_again_is_what_it_was() -> None:
    everything = {**ALIGNED, **ROUTES, **ROLLED, "crepa_teacher_block_index": 3}
    engine, batches = engine_of("kandinsky5-video", **everything)
    change(engine, **OFF)
    plain, _ = engine_of("kandinsky5-video")
    assert same(trained(engine, batches), trained(plain, batches))
    engine, _ = engine_of("kandinsky5-video", **everything)
    change(engine, **OFF)
    change(engine, **everything)
    other, _ = engine_of("kandinsky5-video", **everything)
    assert same(trained(engine, batches), trained(other, batches))


def test_a_checkpoint_without_a_projector_starts_one_anew(tmp_path: Path) -> None:
    plain, batches = engine_of("sanavideo")
    steps(plain, batches, 0)
    write_state(tmp_path, plain, 2, fingerprint())
    engine, _ = engine_of("sanavideo", **ALIGNED, crepa_cutoff_step=2)  # from there on, the plain run
    assert engine.alignment is not None
    projector = {name: value.clone() for name, value in engine.alignment.parameters.items()}
    step, warnings = read_state(tmp_path, engine, fingerprint())
    assert warnings == [f"{tmp_path.name} holds no projector of crepa_enabled; it starts anew"]
    assert all(torch.equal(value, projector[name]) for name, value in engine.alignment.parameters.items())
    found, expected = steps(engine, batches, step), steps(plain, batches, step)
    assert [told[:2] for told in found[0]] == [told[:2] for told in expected[0]]
    change(engine, crepa_cutoff_step=0)
    before = {name: value.clone() for name, value in engine.alignment.parameters.items()}
    steps(engine, batches, 4)
    assert all(not torch.equal(value, before[name]) for name, value in engine.alignment.parameters.items())


# Settings ----------------------------------------------------------------------------------------------------------


def test_what_cannot_change_is_refused_with_all_other_problems(make_config: MakeConfig) -> None:
    config = tk.resolve(make_config())
    family = tk.family("sanavideo")
    with pytest.raises(ConfigError) as refused:
        changed_settings(
            config,
            family,
            {"seed": 3, "adam_beta1": 0.8, "--train-batch-size": 2, "datasets.demo.video.num_frames": 9,
             "crepa_enabled": True, "lerning_rate": 1.0, "crepa_lambda": -1},
            has_projector=False,
        )  # fmt: skip
    problems = {problem.key: problem.message for problem in refused.value.problems}
    fixed = {key for key, message in problems.items() if message == "cannot change while the run is loaded"}
    assert fixed == {"seed", "adam_beta1", "--train-batch-size", "datasets.demo.video.num_frames"}
    assert "from 0 to 10000" in problems["crepa_lambda"]
    assert "no such setting" in problems["lerning_rate"]
    for settings, key, message in (
        (ALIGNED, "crepa_block_index", "cannot change"),
        ({"crepa_enabled": True}, "crepa_enabled", "prepared without"),
        (ROUTES, "tread_config", "convolutions over the whole grid"),
        ({"scheduled_sampling_max_step_offset": 2000}, "scheduled_sampling_max_step_offset", "longer than"),
    ):
        with pytest.raises(ConfigError) as refused:
            changed_settings(config, family, settings, has_projector=False)
        assert message in {problem.key: problem.message for problem in refused.value.problems}[key]


def test_only_what_is_different_is_new(make_config: MakeConfig) -> None:
    config, family = tk.resolve(make_config()), tk.family("sanavideo")
    result, new = changed_settings(
        config, family, {"learning_rate": "3e-5", "max_grad_norm": config.max_grad_norm}, has_projector=True
    )
    assert new == {"learning_rate": 3e-5}
    assert result == config.changed(learning_rate=3e-5)
    with_weight, _ = changed_settings(config, family, {"crepa_lambda": 0.1}, has_projector=True)
    again, new = changed_settings(with_weight, family, {"crepa_lambda": None}, has_projector=True)
    assert new == {"crepa_lambda": 0.5}  # the family's own
    assert again == config
    assert set(tk.TrainConfig.model_fields) >= CHANGEABLE


def test_a_checkpoint_tells_of_other_routes_and_rollouts(make_config: MakeConfig, tmp_path: Path) -> None:
    plain = Fingerprint.of(tk.resolve(make_config()), [], 1)
    old = {key: value for key, value in plain.facts.items() if key not in ("routing", "rollout")}
    assert plain.compare(old, tmp_path) == []  # of before there were any
    other = Fingerprint.of(tk.resolve(make_config(eval_timesteps=3)), [], 1)
    [warning] = other.compare(plain.facts, tmp_path)
    assert "evaluation settings changed" in warning
    assert "cannot be compared" in warning
    assert other.compare({key: value for key, value in plain.facts.items() if key != "evaluation"}, tmp_path) == []
    routed = plain.changed(tk.TrainConfig(**ROUTES))
    [warning] = [line for line in routed.compare(plain.facts, tmp_path) if "tread_config" in line]
    assert "tread_config changed (null then, [[1, 3, 0.5]] now)" in warning
    rolled = plain.changed(tk.TrainConfig(**ROLLED))
    assert [line for line in rolled.compare(plain.facts, tmp_path) if "scheduled_sampling changed (null then" in line]
    later = tk.TrainConfig(**ROLLED, scheduled_sampling_prob_end=0.1)  # of a ramp that there is not
    assert plain.changed(later).facts == rolled.facts

    aligned = plain.changed(tk.TrainConfig(**ALIGNED))
    assert any("crepa_enabled" in line for line in plain.compare(aligned.facts, tmp_path))
    assert aligned.changed(tk.TrainConfig()).facts["alignment"] == aligned.facts["alignment"]  # the projector is there
    other = plain.changed(tk.TrainConfig(**{**ALIGNED, "crepa_teacher_block_index": 3}))
    with pytest.raises(CheckpointError, match="crepa_block_index"):
        other.compare(aligned.facts, tmp_path)


def test_evaluations_are_asked_for_anew() -> None:
    plan = EvaluationPlan(5)
    plan.took(1e6)
    plan.change(tk.TrainConfig(eval_steps_interval=3))
    assert [step for step in range(1, 10) if plan.due(step, 100, 0.0)] == [3, 6, 9]
    plan.change(tk.TrainConfig())
    assert not plan.due(5, 100, 0.0)  # what they took still counts
    plan.change(tk.TrainConfig(eval_loss_disable=True))
    assert not plan.due(100, 100, 0.0)


# A run -------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_other_settings(
    kandinsky5_projects: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kandinsky5_projects("t2v-lite-sft-5s")
    config = tk.load_config(
        path, **ALIGNED, output_dir=tmp_path / "whole", cache_dir=path.parent / "output" / "cache",
        validation_disable=True, checkpoint_step_interval=100,
    )  # fmt: skip
    routes = {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 0, "end_layer_idx": 1}]}
    phases: list[dict[str, Any]] = [
        {"crepa_enabled": False, "tread_config": routes, "learning_rate": 3e-4},
        {"crepa_enabled": True, "tread_config": None, "crepa_lambda": 0.2, "max_train_steps": 7, **ROLLED},
    ]
    refused: list[dict[str, Any]] = [
        {"tread_config": routes, "crepa_enabled": True}, {"seed": 1}, {"learning_rate": "fast"}, {"lora_rank": 3},
    ]  # fmt: skip

    def told(trainer: tk.Trainer, count: int) -> list[Any]:
        return [(one.loss, one.grad_norm, one.lr, one.parts) for one in trainer.steps(count)]

    with contextlib.closing(tk.Trainer(config)) as trainer:
        with pytest.raises(tk.TunerkitError, match="not prepared"):
            trainer.change(crepa_lambda=0.1)
        trainer.prepare(progress=False)
        told(trainer, 2)
        whole = []
        for number, settings in enumerate(phases):
            checkpoint = trainer.save_checkpoint()
            shutil.copytree(checkpoint, tmp_path / f"parted-{number}" / checkpoint.name)
            assert trainer.change(**settings).keys() == settings.keys()
            assert trainer.change(**settings) == {}
            shutil.copy(tmp_path / "whole" / "config.json", tmp_path / f"{number}.json")
            whole.append(told(trainer, 2))
        assert trainer.total_steps == 7
    events = [json.loads(line) for line in (tmp_path / "whole" / "events.jsonl").read_text().splitlines()]
    assert [(row["step"], row["settings"]) for row in events if row["kind"] == "change"] == [
        (2, phases[0]), (4, phases[1]),
    ]  # fmt: skip

    for number in range(len(phases)):
        with caplog.at_level(logging.WARNING, "tunerkit"):
            saved = tk.load_config(tmp_path / f"{number}.json", output_dir=tmp_path / f"parted-{number}")
            with contextlib.closing(tk.Trainer(saved).prepare(progress=False)) as trainer:
                assert trainer.global_step == 2 + 2 * number
                for bad in refused:
                    with pytest.raises(ConfigError):
                        trainer.change(**bad)
                assert tk.load_config(trainer.config.output_path).model_dump() == trainer.config.model_dump()
                if number == 0:
                    with pytest.raises(ConfigError, match=r"crepa_enabled = True: .*prepared without"):
                        trainer.change(crepa_enabled=True, tread_config=None)
                assert told(trainer, 2) == whole[number]
        assert ("tread_config changed" in caplog.text, "learning rate settings changed" in caplog.text) == (
            True, number == 0,
        )  # fmt: skip
        caplog.clear()


def test_the_length_of_a_run_changes_while_it_is_stepped(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"num_eval_images": 1, "eval_timesteps": 1, "eval_loss_disable": True}
    config = make_config(max_train_steps=3, checkpoint_step_interval=100, **few)
    with contextlib.closing(tk.Trainer(config).prepare(progress=False)) as trainer:
        # What is read ahead goes by the new settings too.
        source = trainer.loaded.source
        monkeypatch.setattr(source, "make", lambda number: (number, source._config.learning_rate))
        assert source.get(0, following=1) == (0, config.learning_rate)
        trainer.change(learning_rate=2e-5)
        assert source.get(1) == (1, 2e-5)
        monkeypatch.undo()

        seen: dict[int, tk.StepResult] = {}
        for result in trainer.steps(evaluate=True):
            seen[result.step] = result
            if result.step == 2:
                longer = {"max_train_steps": 6, "checkpoint_step_interval": 2}
                trainer.change(**longer, eval_loss_disable=False, eval_steps_interval=4)
            if result.step == 4:
                trainer.change(max_train_steps=5, learning_rate=1e-5)
        assert list(seen) == [1, 2, 3, 4, 5]
        assert [step for step, one in seen.items() if one.checkpoint] == [4, 5]
        assert [one.lr for one in seen.values()] == [2e-5] * 4 + [1e-5]
        assert trainer.loaded.folder.evaluated_steps() == {4, 5}
        assert trainer.done
        folder = trainer.loaded.folder.path
        assert (folder / "pytorch_lora_weights.safetensors").is_file()
        # A folder that cannot be written: nothing changes.
        before = trainer.config
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        with pytest.raises(OSError):
            trainer.change(learning_rate=1.0)
        assert trainer.config is before
        assert trainer.loaded.engine.config is before


def test_a_run_goes_on_with_settings_that_another_program_asks_for(make_config: MakeConfig) -> None:
    aligned = {"crepa_feature_source": "backbone", "crepa_block_index": 0, "crepa_teacher_block_index": 1}
    trainer = tk.Trainer(make_config(max_train_steps=50, **aligned)).prepare()
    run = tk.attach(trainer.config.output_path)
    run.pause()
    refused: list[str] = []

    def person() -> None:
        try:
            change()
        finally:
            run.resume()

    def change() -> None:
        wait(lambda: run.status.state == "paused")
        with pytest.raises(tk.ConfigError, match=r"lora_rank = 3: cannot change(.|\n)*learning_rate = -1"):
            run.change(lora_rank=3, learning_rate=-1)
        assert run.change(learning_rate=3e-4) == {"learning_rate": 3e-4}
        wait(lambda: run.config.learning_rate == 3e-4)
        run.change(crepa_enabled=True)  # which needs what is not loaded
        run.change(max_train_steps=2)
        wait(lambda: run.config.max_train_steps == 2)
        refused.extend(event["text"] for event in run.events() if event["kind"] == "warning")

    thread = threading.Thread(target=person)
    thread.start()
    results = list(trainer.steps())
    thread.join()
    trainer.close()
    assert [result.lr for result in results] == [3e-4, 3e-4]
    assert [event["settings"] for event in run.events() if event["kind"] == "change"] == [
        {"learning_rate": 3e-4}, {"max_train_steps": 2},
    ]  # fmt: skip
    assert len(refused) == 1
    assert "crepa_enabled = True: needs a projector" in refused[0]
    with pytest.raises(tk.TunerkitError, match="no training is running"):
        run.change(learning_rate=1e-4)
