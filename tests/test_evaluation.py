"""The evaluation loss: equal to one worked out by hand, untouched by methods, and the same for every run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from method_models import MINIATURES, engine_of, trained

import tunerkit as tk
from tunerkit.draws import generator
from tunerkit.families.batch import Batch
from tunerkit.training import evaluation
from tunerkit.training.engine import Engine
from tunerkit.training.evaluation import Evaluation, chosen_samples, evaluate
from tunerkit.training.evaluation_plan import EvaluationPlan

MakeConfig = Callable[..., tk.TrainConfig]


class Clips:
    """Batches of one clip each, in the place of a `BatchSource`; a sample is known by its number."""

    def __init__(self, batch: Batch, heard: Sequence[bool]) -> None:
        self.batch, self.heard = batch, heard

    def single(self, sample: Any) -> Batch:
        source = torch.Generator().manual_seed(sample.number)
        one = self.batch
        latents = torch.randn(1, *one.latents.shape[1:], generator=source)
        mask = torch.rand(1, 1, *latents.shape[2:], generator=source)
        sound = one.audio
        if sound is not None:
            heard = torch.tensor([self.heard[sample.number]])
            sound = replace(sound, latents=torch.randn(1, 5, 4, generator=source), heard=heard, loss_weight=0.5)
        return replace(
            one,
            latents=latents,
            text={name: tensor[:1] for name, tensor in one.text.items()},
            fps=one.fps[:1],
            first_frame=torch.tensor([True]) if sample.number == 1 else None,
            loss_mask=mask if sample.number != 2 else None,
            audio=sound,
            names=(str(sample.number),),
        )


def samples(*datasets: str) -> list[Any]:
    return [SimpleNamespace(dataset=name, number=number) for number, name in enumerate(datasets)]


def filled(engine: Engine) -> Engine:
    """The adapter changes the output: its factors start from 0."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (one for one in engine.transformer.parameters() if one.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.1)
    return engine


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def by_hand(engine: Engine, batch: Batch, place: int, levels: int) -> list[tuple[float, float | None]]:
    """(picture, sound) of a clip at each noise level, in float64, position after position."""
    found = []
    for level in range(levels):
        source = generator(0, "evaluation", place, level)
        noise = torch.randn(batch.latents.shape, generator=source)
        sound_noise = torch.randn(batch.audio.latents.shape, generator=source) if batch.audio else None
        with torch.no_grad():
            made = engine.family.predict(
                engine.transformer, batch, sigma=torch.tensor([(2 * level + 1) / (2 * levels)]), noise=noise,
                audio_noise=sound_noise,
            )  # fmt: skip
        error = (made.video.velocity.double() - (noise.double() - batch.latents.double())) ** 2
        weight = torch.ones(error.shape, dtype=torch.float64)
        if batch.loss_mask is not None:
            weight = weight * batch.loss_mask.double()
        if batch.first_frame is not None:
            weight[:, :, 0] = 0
        sound = None
        if batch.audio and sound_noise is not None and made.audio is not None and bool(batch.audio.heard):
            target = sound_noise.double() - batch.audio.latents.double()
            sound = float(((made.audio.velocity.double() - target) ** 2).mean())
        found.append((float((weight * error).sum() / weight.sum()), sound))
    return found


@pytest.mark.parametrize("family", MINIATURES)
def test_it_is_what_the_formula_gives(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = engine_of(family, "fp32", eval_timesteps=3, num_eval_images=2)
    filled(engine)
    clips = Clips(MINIATURES[family]()[1], heard=(True, False, True, True))
    wanted = samples("b", "a", "b", "b")  # of "b", the first and the second are taken
    result = evaluate(engine, clips, wanted)  # pyright: ignore[reportArgumentType]

    engine.transformer.eval()
    hand = {at: by_hand(engine, clips.single(wanted[at]), place, 3) for at, place in ((0, 0), (2, 1), (1, 0))}
    engine.transformer.train()
    totals = {at: [video + 0.5 * (sound or 0.0) for video, sound in levels] for at, levels in hand.items()}
    assert result.loss == pytest.approx(mean([mean(one) for one in totals.values()]), rel=1e-5)
    assert result.datasets == pytest.approx({"b": mean(totals[0] + totals[2]), "a": mean(totals[1])}, rel=1e-5)
    keys = ("0.1667", "0.5", "0.8333")
    assert result.sigmas == pytest.approx(
        {key: mean([one[level] for one in totals.values()]) for level, key in enumerate(keys)}, rel=1e-5
    )
    if family == "ltxvideo2":
        video = mean([video for levels in hand.values() for video, _ in levels])
        sound = [sound for levels in hand.values() for _, sound in levels if sound is not None]
        assert len(sound) == 6  # silence in place of a missing sound has no share
        assert result.parts == pytest.approx({"video": video, "audio": mean(sound)}, rel=1e-5)
    else:
        assert result.parts == {}

    monkeypatch.setattr(evaluation, "TOGETHER", 1)  # each level by itself
    apart = evaluate(engine, clips, wanted)  # pyright: ignore[reportArgumentType]
    assert apart.loss == pytest.approx(result.loss, rel=1e-6)
    assert apart.sigmas == pytest.approx(result.sigmas, rel=1e-6)


ROUTE = {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -1}]}
ROLLOUT = {"scheduled_sampling_max_step_offset": 5, "scheduled_sampling_probability": 1.0}
ALIGNED = {
    "crepa_enabled": True,
    "crepa_block_index": 1,
    "crepa_feature_source": "backbone",
    "crepa_teacher_block_index": 3,
}
RANDOM: dict[str, Any] = {"lora_dropout": 0.5, "caption_dropout_probability": 0.9, "gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("family", "methods"),
    [
        ("sanavideo", {**RANDOM, **ROLLOUT}),
        ("sanavideo", {**RANDOM, **ALIGNED}),
        ("kandinsky5-video", {**RANDOM, **ROLLOUT, "tread_config": ROUTE}),
        ("ltxvideo2", {**RANDOM, "tread_config": ROUTE, "train_batch_size": 4, "seed": 9}),
    ],
)
def test_no_method_and_no_setting_of_the_training_has_a_part_in_it(family: str, methods: dict[str, Any]) -> None:
    clips, wanted = Clips(MINIATURES[family]()[1], heard=(True, True)), samples("a", "a")
    torch.manual_seed(0)
    clips.batch = MINIATURES[family]()[1]
    results = []
    for settings in ({}, methods):
        engine = filled(engine_of(family, "fp32", **settings)[0])
        state = torch.random.get_rng_state()
        results.append(evaluate(engine, clips, wanted))  # pyright: ignore[reportArgumentType]
        assert torch.equal(torch.random.get_rng_state(), state)
        assert engine.transformer.training
    assert results[0] == results[1]  # bit for bit


def test_measuring_changes_no_training() -> None:
    """Here the methods draw: dropout and routing."""
    settings = {"lora_dropout": 0.5, "tread_config": ROUTE}
    engine, batches = engine_of("kandinsky5-video", "fp32", **settings)
    plain = trained(engine, batches)
    engine, batches = engine_of("kandinsky5-video", "fp32", **settings)
    first = engine.step(batches, 0, 1e-2)
    evaluate(engine, Clips(MINIATURES["kandinsky5-video"]()[1], (True,)), samples("a"))  # pyright: ignore[reportArgumentType]
    second = engine.step(batches, 1, 1e-2)
    assert [first.loss, second.loss] == plain[0]


def test_which_clips_are_chosen() -> None:
    found = samples(*("a",) * 10, "b", *("c",) * 3)
    numbers = {
        name: [cast(Any, one).number for one in group]
        for name, group in chosen_samples(tk.TrainConfig(num_eval_images=4), found).items()
    }
    assert numbers == {"a": [0, 2, 5, 7], "b": [10], "c": [11, 12, 13]}
    pooled = chosen_samples(tk.TrainConfig(num_eval_images=4, eval_dataset_pooling=True), found)
    assert [cast(Any, one).number for one in pooled[""]] == [0, 3, 7, 10]


def test_a_row_tells_what_there_is() -> None:
    assert Evaluation(0.5).row() == {"loss": 0.5}
    assert set(Evaluation(0.5, {"a": 0.5}, {"0.5": 0.5}).row()) == {"loss", "datasets", "sigmas"}


# When -------------------------------------------------------------------------------------------------------------


def due_steps(plan: EvaluationPlan, total: int, seconds_per_step: float = 0.0, takes: float = 0.0) -> list[int]:
    found = []
    for step in range(total + 1):
        if plan.due(step, total, step * seconds_per_step):
            found.append(step)
            plan.took(takes)
    return found


def test_epochs_between_evaluations() -> None:
    plan = EvaluationPlan(None, 0.5)
    plan.steps_per_epoch = 6.0
    assert due_steps(plan, 10) == [0, 3, 6, 9, 10]
    plan = EvaluationPlan(4, 1.0)
    plan.steps_per_epoch = 2.5  # after which an epoch is complete: 3, 5, 8, 10
    assert due_steps(plan, 10) == [0, 3, 4, 5, 8, 10]
    plan = EvaluationPlan(0, 0.1)
    plan.steps_per_epoch = 30.0
    assert due_steps(plan, 9) == [0, 3, 6, 9]
    assert EvaluationPlan.of(tk.TrainConfig(eval_epoch_interval=1.0, eval_loss_disable=True)).due(10, 10, 0.0) is False


def test_evaluations_take_a_tenth_of_the_time_or_some_seconds() -> None:
    assert due_steps(EvaluationPlan(), 100, 0.05, takes=0.2) == list(range(0, 101, 5))  # 4 s in all
    demo = due_steps(EvaluationPlan(), 100, 0.1, takes=0.9)  # each takes as long as nine steps
    assert 10 <= len(demo) <= 12  # ten seconds in all
    assert max(later - step for step, later in pairwise(demo)) <= 20  # spread over the run
    slow = due_steps(EvaluationPlan(), 100, 10.0, takes=20.0)
    assert slow[:2] == [0, 40]  # before step 40, two would have taken more than a tenth of the time
    assert slow[-1] == 100
    assert 4 <= len(slow) <= 6
    assert len(due_steps(EvaluationPlan(5), 100, 0.0, takes=20.0)) == 21  # as asked


# Settings and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("hold", ["did you mean held", "held, clips"]), ("off", ["disabled"]), ("mask", ["no dataset"])],
)
def test_an_evaluation_dataset_that_there_is_not(wanted: str, words: list[str]) -> None:
    datasets = [
        {"id": "held", "dataset_type": "eval", "instance_data_dir": "."},
        {"id": "clips", "instance_data_dir": ".", "conditioning_data": "mask"},
        {"id": "off", "dataset_type": "eval", "disabled": True},
        {"id": "mask", "dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": "."},
    ]
    with pytest.raises(tk.ConfigError) as wrong:
        tk.TrainConfig(datasets=datasets, eval_dataset_id=wanted)
    assert "eval_dataset_id" in str(wrong.value)
    for word in words:
        assert word in str(wrong.value)


def test_a_run_logs_losses_by_dataset_and_noise_level(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    media = config.media_datasets[0]
    held = tmp_path / "held"
    held.mkdir()
    (clip, *_) = sorted(Path(str(media.instance_data_dir)).glob("*.mp4"))
    for file in clip.parent.glob(f"{clip.stem}.*"):  # with its caption
        shutil.copy(file, held)
    changes = {"dataset_type": "eval", "instance_data_dir": held}
    datasets = [
        media,
        *(
            media.model_copy(update={**changes, "id": f"held-{name}", "cache_dir_vae": tmp_path / name})
            for name in "ab"
        ),
    ]
    trainer = tk.Trainer(config.changed(datasets=datasets, max_train_steps=1, eval_timesteps=2, num_eval_images=1))
    try:
        trainer.prepare()
        loss = trainer.evaluation_loss()
        folder = trainer.loaded.folder.path
    finally:
        trainer.close()
    (row,) = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert row["loss"] == loss
    assert set(row["datasets"]) == {"held-a", "held-b"}
    assert set(row["sigmas"]) == {"0.25", "0.75"}
    with (folder / "evaluation.jsonl").open("a") as file:  # as older versions wrote it
        file.write(json.dumps({"step": 7, "loss": 0.5, "time": 1.0}) + "\n")
    assert [one["loss"] for one in tk.attach(folder).evaluations()] == [loss, 0.5]


# Shown ------------------------------------------------------------------------------------------------------------


ROWS: list[dict[str, Any]] = [
    {"step": 0, "loss": 1.0, "time": 1.0},  # as older versions wrote it
    {"step": 5, "loss": 0.8, "datasets": {"a": 0.9, "b": 0.7}, "sigmas": {"0.25": 1.0, "0.75": 0.6}},
    {
        "step": 10,
        "loss": 0.5,
        "datasets": {"a": 0.6, "b": 0.4},
        "sigmas": {"0.25": 0.7, "0.75": 0.3},
        "parts": {"video": 0.4, "audio": 0.1},
    },
]


def test_the_view_tells_first_and_last_losses(capsys: pytest.CaptureFixture[str]) -> None:
    import tunerkit_widgets as tw

    measured: Any = SimpleNamespace(evaluations=lambda: ROWS)
    tw.show_evaluation(measured)
    assert capsys.readouterr().out.splitlines() == [
        "All clips: 1.0000 (step 0) to 0.5000 (step 10), 50% of it",
        "a: 0.9000 (step 5) to 0.6000 (step 10), 67% of it",
        "b: 0.7000 (step 5) to 0.4000 (step 10), 57% of it",
        "Picture: 0.4000 (step 10)",
        "Sound: 0.1000 (step 10)",
    ]
    measured.evaluations = list
    tw.show_evaluation(measured)
    assert "No evaluation loss" in capsys.readouterr().out


def test_the_view_draws_every_dataset_and_both_ends() -> None:
    from matplotlib.figure import Figure

    from tunerkit_widgets import evaluation_view

    for rows in (ROWS, ROWS[:1], ROWS[1:2]):
        assert evaluation_view.evaluation_png(rows).startswith(b"\x89PNG")
    left, right = Figure().subplots(1, 2)
    evaluation_view._draw_datasets(left, ROWS)
    assert [line.get_label() for line in left.lines] == ["a", "b"]
    assert left.lines[0].get_xydata().tolist() == [[5.0, 0.9], [10.0, 0.6]]
    evaluation_view._draw_levels(right, ROWS[1:])
    assert [line.get_label() for line in right.lines] == ["after step 5", "after step 10"]
    assert right.lines[1].get_xydata().tolist() == [[0.25, 0.7], [0.75, 0.3]]
