"""The trainer: exact resumption, precision, EMA, clipping, conditioning, and what ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.training.run_folder import read_metrics, send_command

MakeConfig = Callable[..., tk.TrainConfig]


def losses(trainer: tk.Trainer, count: int | None = None) -> list[float]:
    return [result.loss for result in trainer.steps(count)]


def trained(trainer: tk.Trainer) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in trainer.loaded.engine.weights.state().items()}


def run(config: tk.TrainConfig, count: int | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train and close: losses and final weights."""
    trainer = tk.Trainer(config).prepare()
    try:
        return losses(trainer, count), trained(trainer)
    finally:
        trainer.close()


SETTINGS: list[dict[str, Any]] = [
    {},
    {"gradient_accumulation_steps": 2, "lora_dropout": 0.2, "gradient_checkpointing": True, "use_ema": True},
    {"mixed_precision": "bf16", "optimizer": "adamw_bf16", "model_type": "full", "learning_rate": 1e-4},
    {"mixed_precision": "bf16", "model_type": "full", "learning_rate": 1e-4, "use_ema": True},
    {"mixed_precision": "bf16", "use_dora": True, "optimizer": "optimi-adamw"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["lora", "lora-all", "full-bf16", "full-masters", "dora-bf16"])
def test_resumed_run_is_the_uninterrupted_run(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """3 + 3 steps give the losses, weights and EMA of 6, bit for bit; so do two runs with one seed."""
    common = {"max_train_steps": 6, "checkpoint_step_interval": 3, "lr_scheduler": "cosine", **settings}
    straight_losses, straight = run(make_config(output_dir=str(tmp_path / "straight"), **common))
    again_losses, again = run(make_config(output_dir=str(tmp_path / "again"), **common))
    split = make_config(output_dir=str(tmp_path / "split"), **common)
    first, _ = run(split, 3)
    second, resumed = run(split)

    assert straight_losses == again_losses
    assert straight_losses == first + second
    assert [row["loss"] for row in read_metrics(tmp_path / "split" / "metrics.jsonl")] == straight_losses
    for name, weight in straight.items():
        assert torch.equal(weight, again[name])
        assert torch.equal(weight, resumed[name])
    if common.get("use_ema"):
        shadows = [
            (tmp_path / which / "checkpoint-6" / "ema.safetensors").read_bytes() for which in ("straight", "split")
        ]
        assert shadows[0] == shadows[1]


def test_two_seeds_differ(make_config: MakeConfig, tmp_path: Path) -> None:
    runs = [run(make_config(output_dir=str(tmp_path / str(s)), seed=s, max_train_steps=2))[0] for s in (1, 2)]
    assert runs[0] != runs[1]


def test_lora_weights_are_float32_over_a_16_bit_base(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(mixed_precision="bf16", max_train_steps=1)).prepare()
    transformer = trainer.loaded.engine.transformer
    trained_dtypes = {p.dtype for p in transformer.parameters() if p.requires_grad}
    frozen_dtypes = {p.dtype for p in transformer.parameters() if not p.requires_grad}
    result = trainer.step()
    trainer.close()
    assert trained_dtypes == {torch.float32}
    assert frozen_dtypes == {torch.bfloat16}
    assert result.grad_norm > 0


def test_fp16_trains_with_loss_scaling(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(mixed_precision="fp16", max_train_steps=2, train_batch_size=1)).prepare()
    before = trained(trainer)
    results = [trainer.step() for _ in range(2)]
    after = trained(trainer)
    trainer.close()
    assert all(torch.isfinite(torch.tensor(result.loss)) for result in results)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_accumulation_is_the_mean_gradient_of_its_batches(make_config: MakeConfig, tmp_path: Path) -> None:
    """One accumulated step equals the hand-made step on the mean of its micro-batch losses."""
    config = make_config(
        output_dir=str(tmp_path / "o"), gradient_accumulation_steps=3, train_batch_size=1, max_train_steps=1,
        optimizer="torch-sgd", optimizer_config={"momentum": 0.0}, weight_decay=0.0, max_grad_norm=0.0,
        learning_rate=0.5,
    )  # fmt: skip
    trainer = tk.Trainer(config).prepare()
    engine, source = trainer.loaded.engine, trainer.loaded.source
    total = torch.zeros(())
    for number in range(3):
        drawn = source.make(number)
        total = total + engine.family.loss(engine.transformer, drawn.batch, sigma=drawn.sigma, noise=drawn.noise)
    (total / 3).backward()
    expected = {
        name: (p - 0.5 * p.grad).detach().clone() for name, p in engine.weights.live.items() if p.grad is not None
    }
    result = trainer.step()
    trainer.close()
    assert result.loss == pytest.approx(float(total.detach()) / 3, rel=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(engine.weights.live[name].detach(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("method", "limit"), [("norm", 1e-3), ("value", 1e-5)])
def test_clipping(make_config: MakeConfig, method: str, limit: float) -> None:
    trainer = tk.Trainer(
        make_config(max_grad_norm=limit, grad_clip_method=method, max_train_steps=1, optimizer="torch-sgd")
    ).prepare()
    result = trainer.step()
    gradients = [p.grad for p in trainer.loaded.engine.weights.live.values() if p.grad is not None]
    trainer.close()
    assert result.grad_norm > limit  # reported before clipping
    if method == "norm":
        assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(limit, rel=1e-3)
    else:
        assert max(float(g.abs().max()) for g in gradients) <= limit


def test_caption_dropout_uses_embedding_and_mask_of_the_empty_prompt(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(caption_dropout_probability=1.0, max_train_steps=1)).prepare()
    source = trainer.loaded.source
    batch = source.make(0).batch
    empty = source.cache.text("", "negative")
    trainer.close()
    for place in range(len(batch.latents)):
        for key, value in empty.items():
            assert torch.equal(batch.text[key][place], value)


def test_caption_dropout_happens_as_often_as_asked(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(caption_dropout_probability=0.25, max_train_steps=1)).prepare()
    source = trainer.loaded.source
    empty = source.cache.text("", "negative")["prompt_embeds"]
    dropped = [
        torch.equal(text, empty) for number in range(150) for text in source.make(number).batch.text["prompt_embeds"]
    ]
    trainer.close()
    assert sum(dropped) / len(dropped) == pytest.approx(0.25, abs=0.09)  # three standard deviations


def test_image_to_video_datasets_condition_on_the_first_frame_by_chance(make_config: MakeConfig) -> None:
    config = make_config(max_train_steps=2, first_frame_conditioning_probability=0.5)
    datasets = [d.model_copy(deep=True) for d in config.datasets]
    for dataset in datasets:
        dataset.video.is_i2v = True
    config = config.changed(datasets=datasets)
    trainer = tk.Trainer(config).prepare()
    flags = [trainer.loaded.source.make(number).batch.first_frame for number in range(60)]
    result = trainer.step()
    trainer.close()
    clips = config.train_batch_size * len(flags)
    share = sum(int(flag.sum()) for flag in flags if flag is not None) / clips
    assert 0.35 < share < 0.65
    assert any(flag is None for flag in flags)
    assert all(flag is None or flag.any() for flag in flags)
    assert result.loss > 0


def test_non_finite_loss_names_the_samples_and_changes_nothing(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(max_train_steps=4, checkpoint_step_interval=1)).prepare()
    list(trainer.steps(1))
    before = trained(trainer)
    with torch.no_grad():
        trainer.loaded.engine.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(tk.NonFiniteLossError) as caught:
        list(trainer.steps(1))
    after = trained(trainer)
    folder = trainer.loaded.folder.path
    trainer.close()
    names = {sample.name for sample in trainer.report.samples} if trainer.report else set()
    assert any(name in str(caught.value) for name in names)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    from tunerkit.training.checkpoints import verify

    assert verify(folder / "checkpoint-1") is None
    assert len(read_metrics(folder / "metrics.jsonl")) == 1


def test_loss_falls_at_fixed_noise(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(max_train_steps=40)).prepare()
    before = trainer.evaluation_loss()
    assert trainer.evaluation_loss() == before
    list(trainer.steps())
    after = trainer.evaluation_loss()
    trainer.close()
    assert after < 0.95 * before


def test_two_trainers_cannot_share_an_output_folder(make_config: MakeConfig) -> None:
    config = make_config(max_train_steps=1)
    first = tk.Trainer(config).prepare()
    with pytest.raises(tk.TunerkitError, match="in use by process"):
        tk.Trainer(config).prepare()
    first.close()
    tk.Trainer(config).prepare().close()


def test_checkpoint_of_another_model_is_refused(make_config: MakeConfig, project: Path) -> None:
    run(make_config(max_train_steps=1, checkpoint_step_interval=1))
    weights = next((project / "model" / "transformer").glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    save_file({key: value + 0.01 for key, value in state.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(tk.CheckpointError, match="base model"):
        tk.Trainer(make_config(max_train_steps=2)).prepare()


def test_changed_rank_is_refused_by_name(make_config: MakeConfig) -> None:
    run(make_config(max_train_steps=1, checkpoint_step_interval=1, lora_rank=4))
    with pytest.raises(tk.CheckpointError, match=r"lora_rank 4.*lora_rank 8"):
        tk.Trainer(make_config(max_train_steps=2, lora_rank=8)).prepare()


def test_control_file_stops_and_saves(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(max_train_steps=50, checkpoint_step_interval=100)).prepare()
    folder = trainer.loaded.folder.path
    for result in trainer.steps():
        if result.step == 2:
            send_command(folder, "save")
        if result.step == 4:
            send_command(folder, "stop")
    status = json.loads((folder / "status.json").read_text())
    trainer.close()
    assert trainer.global_step == 4
    assert status["state"] == "stopped"
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_interrupt_saves_and_raises(make_config: MakeConfig) -> None:
    import os
    import signal

    trainer = tk.Trainer(make_config(max_train_steps=50, checkpoint_step_interval=100)).prepare()
    folder, before = trainer.loaded.folder.path, signal.getsignal(signal.SIGINT)

    def interrupted() -> None:
        for result in trainer.steps():
            if result.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    trainer.close()
    assert (folder / "checkpoint-3" / "manifest.json").is_file()
    assert signal.getsignal(signal.SIGINT) is before


def test_epochs_set_the_length(make_config: MakeConfig) -> None:
    config = make_config(max_train_steps=0, num_train_epochs=2, train_batch_size=3, gradient_accumulation_steps=2)
    trainer = tk.Trainer(config).prepare()
    samples = len(trainer.loaded.source.samples)
    trainer_steps = trainer.total_steps
    trainer.close()
    batches = -(-samples // 3)
    assert trainer_steps == -(-2 * batches // 2)
