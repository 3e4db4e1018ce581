"""CREPA in training: the term and its gradient by hand, for every family; what it leaves alone; cached features."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import CPU, MINIATURES
from test_crepa_terms import tiny_teacher

import tunerkit as tk
from tunerkit.cache.entries import Cache
from tunerkit.config.crepa_rules import TEACHER_BLOCK
from tunerkit.data.decode import decode
from tunerkit.data.sampler import Draw
from tunerkit.errors import CheckpointError, ConfigError, ModelError
from tunerkit.memory.quantised_linear import quantise_layers
from tunerkit.methods import crepa_teacher
from tunerkit.methods.crepa_similarity import Neighbours, likeness
from tunerkit.training.batches import Drawn
from tunerkit.training.engine import Engine

FAMILIES = tuple(MINIATURES)
WIDTH = 24
"""Of the features of `dinov2_tiny`, which stands in for a published encoder."""
ON = {"crepa_enabled": True, "crepa_block_index": 1, "crepa_lambda": 0.7, "crepa_adjacent_tau": 0.8}
GRIDS = {"sanavideo": (2, 2, 3), "kandinsky5-video": (2, 2, 3), "ltxvideo2": (2, 4, 6)}
"""Tokens of the miniatures' latents along time, height, width."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(crepa_teacher, "published_width", lambda _: WIDTH)


def engine_of(family: str, *, quantised: bool = False, **settings: Any) -> tuple[Engine, Drawn]:
    """An engine on a miniature whose weights are all random, and a batch with features."""
    settings = {"mixed_precision": "no", **settings}
    torch.manual_seed(0)
    model, batch = MINIATURES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    if settings["mixed_precision"] == "bf16":
        kept = tuple(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():  # as from_pretrained loads it
            if not any(part in name for part in kept):
                parameter.data = parameter.data.to(torch.bfloat16)
    if quantised:
        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        quantise_layers(model, [name for name in names if "transformer_blocks" in name], "int8")
    config = tk.TrainConfig(
        lora_rank=2, lora_init_type="gaussian", lora_dropout=0.0,
        datasets=[{"id": "clips", "instance_data_dir": ".", **({"audio": {}} if batch.audio else {})}], **settings,
    )  # fmt: skip
    features = torch.randn(2, 2, 2, 3, WIDTH).half()
    drawn = Drawn(
        Draw(1, 0, (0, 1)), batch, torch.tensor([0.3, 0.6]), torch.randn_like(batch.latents),
        audio_noise=None if batch.audio is None else torch.randn_like(batch.audio.latents), features=features,
    )  # fmt: skip
    return Engine(config, tk.family(family), model, CPU), drawn


def stepped(engine: Engine, drawn: Drawn, steps: int = 2) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [engine.step([lambda: drawn], number, 1e-2).loss for number in range(steps)]
    return losses, {name: value.clone() for name, value in engine.weights.state().items()}


# The term ----------------------------------------------------------------------------------------------------------


def by_hand(engine: Engine, drawn: Drawn, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The family's loss, and the term worked out from the output of a block in a plain forward pass."""
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, made: Any) -> None:
        kept.append(made[0] if isinstance(made, tuple) else made)

    hook = engine.family.video_blocks(engine.transformer)[block].register_forward_hook(keep)
    engine.transformer.disable_gradient_checkpointing()
    main = drawn.losses(engine.family, engine.transformer, CPU).total
    hook.remove()
    [states] = kept
    frames, height, width = GRIDS[engine.family.name]
    assert engine.alignment is not None
    weights = {name.rpartition("projector.")[2]: one for name, one in engine.alignment.parameters.items()}
    normal = torch.nn.functional.layer_norm(states, states.shape[-1:], weights["norm.weight"], weights["norm.bias"])
    projected = normal @ weights["linear.weight"].T + weights["linear.bias"]
    grid = projected.view(2, frames, height, width, WIDTH)
    grid = grid.view(2, frames, 2, height // 2, 3, width // 3, WIDTH).mean((3, 5))
    features = drawn.features
    assert features is not None
    unit = [one / one.pow(2).sum(-1, keepdim=True).sqrt() for one in (grid, features.float())]
    own = (unit[0] * unit[1]).sum(-1).mean((2, 3))
    across = (unit[0] * unit[1].flip(1)).sum(-1).mean((2, 3))  # of two frames, each is the other's neighbour
    return main, -(own + math.exp(-1 / 0.8) * across).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_term_and_its_gradient_are_those_worked_out_by_hand(family: str) -> None:
    engine, drawn = engine_of(family, **ON, max_grad_norm=0.0)
    other, _ = engine_of(family, **ON)
    main, term = by_hand(other, drawn, 1)
    (main + 0.7 * term).backward()
    expected = {name: one.grad for name, one in other.weights.live.items()}
    assert engine.alignment is not None
    seen: dict[str, torch.Tensor | None] = {}
    gather = engine.weights.gather_gradients

    def look() -> None:
        seen.update({name: one.grad.clone() for name, one in engine.weights.live.items() if one.grad is not None})
        gather()

    engine.weights.gather_gradients = look
    update = engine.step([lambda: drawn, lambda: drawn], 0, 1e-2)  # accumulated: the mean of twice the same
    assert update.loss == pytest.approx(float(main + 0.7 * term), rel=1e-5)
    assert update.parts["crepa"] == pytest.approx(float(term), rel=1e-4)
    assert update.parts["crepa_weight"] == pytest.approx(0.7)
    assert -1 <= update.parts["crepa_similarity"] <= 1
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(seen[name], gradient, rtol=1e-3, atol=1e-6)
    assert any("crepa_projector" in name for name in seen)


def test_after_its_last_step_it_is_the_plain_run() -> None:
    plain, drawn = engine_of("sanavideo")
    losses, weights = stepped(plain, drawn)
    engine, _ = engine_of("sanavideo", **{**ON, "crepa_cutoff_step": 1, "crepa_warmup_steps": 5})
    again = stepped(engine, drawn)
    assert again[0] == losses
    assert all(torch.equal(again[1][name], one) for name, one in weights.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "bf16"},
        {"mixed_precision": "bf16", "quantised": True},
        {"mixed_precision": "bf16", "model_type": "full"},
        {"optimizer_cpu_offload_method": "cpu"},
        {"use_ema": True, "enable_group_offload": True},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_it_teaches_the_blocks_up_to_the_aligned_one_and_the_projector(settings: dict[str, Any]) -> None:
    ends = []
    for strength in (0.0, 0.7):
        engine, drawn = engine_of("sanavideo", **{**ON, "crepa_lambda": strength}, max_grad_norm=0.0, **settings)
        before = {name: one.detach().clone() for name, one in engine.weights.live.items()}
        parts = engine.step([lambda: drawn], 0, 1e-2).parts  # noqa: B023 - called at once
        assert math.isfinite(parts["crepa"])
        ends.append({name: one.detach().clone() for name, one in engine.weights.live.items()})
        moved = {name for name, one in ends[-1].items() if not torch.equal(one, before[name])}
        assert any("crepa_projector" in name for name in moved) == bool(strength)
        assert any("transformer_blocks.4." in name for name in moved)
    differ = {name for name, one in ends[0].items() if not torch.equal(one, ends[1][name])}
    assert any("transformer_blocks.1." in name for name in differ)
    assert not any("transformer_blocks.2." in name for name in differ)


def test_full_fine_tuning_trains_the_projector_beside_the_model(tmp_path: Path) -> None:
    engine, drawn = engine_of("sanavideo", **ON, model_type="full", use_ema=True)
    before = {name: one.clone() for name, one in engine.weights.state(beside=True).items()}
    assert set(before) == {
        f"crepa_projector.{name}" for name in ("norm.weight", "norm.bias", "linear.weight", "linear.bias")
    }
    stepped(engine, drawn)
    assert all(not torch.equal(one, before[name]) for name, one in engine.weights.state(beside=True).items())
    assert engine.ema is not None
    assert set(engine.ema.shadows) == set(engine.weights.state()) == set(dict(engine.transformer.named_parameters()))
    engine.transformer.save_pretrained(tmp_path)
    assert not any("crepa" in path.read_text(errors="ignore") for path in tmp_path.glob("*.json"))


def test_features_of_the_model_itself() -> None:
    engine, drawn = engine_of("ltxvideo2", **ON, crepa_feature_source="backbone", crepa_teacher_block_index=3)
    drawn = Drawn(drawn.draw, drawn.batch, drawn.sigma, drawn.noise, audio_noise=drawn.audio_noise)
    kept: dict[int, torch.Tensor] = {}

    def keep(place: int, made: Any) -> None:
        kept.setdefault(place, made[0].detach())

    hooks = [
        block.register_forward_hook(lambda _, __, made, place=place: keep(place, made))
        for place, block in enumerate(engine.family.video_blocks(engine.transformer))
    ]
    update = engine.step([lambda: drawn], 0, 0.0)
    for hook in hooks:
        hook.remove()
    assert engine.alignment is not None
    grids = {place: kept[place].view(2, 2, 4, 6, 24) for place in (1, 3)}
    expected = likeness(engine.alignment.projector(grids[1], 4, 6), grids[3], Neighbours(1, 0.8))
    assert update.parts["crepa"] == pytest.approx(-float(expected.score.mean()), rel=1e-5)
    assert engine.alignment.projector.linear.out_features == 24


def test_masked_places_are_not_aligned() -> None:
    engine, drawn = engine_of("sanavideo", **ON, crepa_adjacent_distance=0)
    mask = torch.ones(2, 1, *drawn.batch.latents.shape[2:])
    mask[..., :2, :] = 0.0  # the upper row of two rows of tokens
    from dataclasses import replace

    masked = replace(drawn, batch=replace(drawn.batch, loss_mask=mask))
    assert masked.features is not None
    changed = masked.features.clone()
    changed[:, :, 0] = torch.randn_like(changed[:, :, 0])
    parts = [
        engine.objective.losses(one, engine.transformer, 0).parts for one in (masked, replace(masked, features=changed))
    ]
    assert parts[0]["crepa"] == parts[1]["crepa"]
    changed[:, :, 1] *= -1
    assert (
        engine.objective.losses(replace(masked, features=changed), engine.transformer, 0).parts["crepa"]
        != parts[0]["crepa"]
    )


def test_tokens_in_tiles_are_put_back_in_order() -> None:
    from diffusers.models.transformers.transformer_kandinsky import fractal_flatten

    grid = torch.randn(1, 2, 16, 8, 4)
    tiles, _ = fractal_flatten(grid, grid, (1, 2, 16, 8), block_mask=True)
    model, _ = MINIATURES["kandinsky5-video"]()
    family = tk.family("kandinsky5-video")
    assert torch.equal(family.on_grid(model, grid.flatten(1, 3), (2, 16, 8)), grid)
    model.register_to_config(attention_type="nabla")
    assert torch.equal(family.on_grid(model, tiles, (2, 16, 8)), grid)


def test_a_high_similarity_ends_the_term_after_the_step() -> None:
    engine, drawn = engine_of("sanavideo", **ON, crepa_similarity_threshold=-1.0)
    first, second = (engine.step([lambda: drawn], number, 1e-3) for number in range(2))
    assert first.parts["crepa_weight"] == pytest.approx(0.7)
    assert second.parts["crepa_weight"] == 0.0
    assert "crepa" not in second.parts
    engine, drawn = engine_of("sanavideo", **ON, crepa_similarity_threshold=-1.0, crepa_threshold_mode="recoverable")
    first, second = (engine.step([lambda: drawn], number, 1e-3) for number in range(2))
    assert (second.parts["crepa_weight"], "crepa" in second.parts) == (0.0, True)
    assert second.loss == second.parts["video"]


def test_blocks_that_are_not_there_are_refused() -> None:
    for settings in ({"crepa_block_index": 5}, {"crepa_use_backbone_features": True, TEACHER_BLOCK: 7}):
        with pytest.raises(ConfigError, match="is no block of the transformer, which has 5"):
            engine_of("sanavideo", **{**ON, **settings})
    routes = {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 3}]}
    with pytest.raises(ConfigError, match="lies in a route"):
        engine_of("ltxvideo2", **ON, tread_config=routes)
    engine, drawn = engine_of("ltxvideo2", **{**ON, "crepa_block_index": 3}, tread_config=routes)
    assert "crepa" in engine.step([lambda: drawn], 0, 1e-3).parts


# A whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def aligned(project: Path, tmp_path: Path, make_config: Callable[..., tk.TrainConfig], monkeypatch: Any) -> Any:
    """The demo's settings with CREPA and a tiny DINOv2; keywords change them."""
    assert project
    monkeypatch.undo()  # the encoder's own width
    encoder = tiny_teacher(tmp_path / "dino")

    def make(**changes: Any) -> tk.TrainConfig:
        settings = {
            "crepa_enabled": True, "crepa_encoder": str(encoder), "crepa_encoder_image_size": 56,
            "crepa_feature_source": "encoder", "crepa_teacher_block_index": None,
            "crepa_block_index": 0, "validation_disable": True, "max_train_steps": 4, "lora_dropout": 0.0,
        }  # fmt: skip
        return tk.resolve(make_config(**{**settings, **changes}))

    return make


def test_features_are_cached_once_and_mended(aligned: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = aligned(mixed_precision="no")
    result = tk.build_cache(config, progress=False)
    samples = tk.inspect_dataset(config).samples
    assert (result.features_encoded, result.features_reused, result.failures) == (len(samples), 0, [])
    assert f"features: {len(samples)} encoded, 0 already cached" in str(result)
    assert tk.build_cache(config, progress=False).features_reused == len(samples)
    family = tk.family("sanavideo")
    cache, sample = Cache(config, family), samples[0]
    features = cache.features(sample)
    frames = torch.from_numpy(decode(sample))
    taken = frames[crepa_teacher.middle_frames(len(frames), 4)]
    assert len(taken) == cache.latents(sample).shape[1]
    teacher = crepa_teacher.load_teacher(config, CPU)
    expected = crepa_teacher.frame_features(teacher, taken, 56, 1)
    torch.testing.assert_close(features, expected, rtol=1e-2, atol=2e-3)
    names = {cache.namer.features(sample), cache.namer.latents(sample)}
    for changes in ({"crepa_encoder_image_size": 70}, {"mixed_precision": "bf16"}):
        names.add(Cache(config.changed(**changes), family).namer.features(sample))
    names.add(cache.namer.features(sample._replace(frame_indices=sample.frame_indices[1:], frame_times=())))
    assert len(names) == 5
    report = tk.cache_report(config)
    rows = {row.kind: (row.needed, row.stale, row.missing) for row in report.rows}
    assert rows["features"] == (len(samples), 0, 0)
    off = tk.cache_report(config.changed(crepa_enabled=False))
    assert sum(entry.kind == "features" for entry in off.stale) == len(samples)

    path = cache.latent_stores[sample.dataset].path(cache.namer.features(sample))
    path.write_bytes(path.read_bytes()[:-3] + b"...")
    from tunerkit.training.batches import BatchSource

    source = BatchSource(config, family, cache, [sample])
    with caplog.at_level(logging.WARNING, "tunerkit"):
        drawn = source.make(0)
    source.close()
    assert "features" in caplog.text
    assert drawn.features is not None
    assert torch.equal(drawn.features[0], features)
    assert torch.equal(Cache(config, family).features(sample), features)


def test_a_resumed_run_goes_on_bit_for_bit(aligned: Any, tmp_path: Path) -> None:
    stop = {"crepa_similarity_threshold": 0.9, "crepa_scheduler": "linear"}

    def run(folder: str, steps: int, **changes: Any) -> tuple[list[Any], dict[str, torch.Tensor], dict[str, Any]]:
        """What every step told, and at the end all trained weights and the state of the threshold."""
        with contextlib.closing(tk.Trainer(aligned(**stop, **changes, output_dir=tmp_path / folder))) as trainer:
            trainer.prepare(progress=False)
            told = [(result.loss, result.parts) for result in trainer.steps(steps)]
            trainer.save_checkpoint()
            engine = trainer.loaded.engine
            weights = {**engine.weights.state(), **engine.weights.state(beside=True)}
            assert engine.alignment is not None
            assert engine.alignment.total_steps == trainer.total_steps
            return told, {name: one.clone() for name, one in weights.items()}, engine.alignment.stop.state()

    whole, weights, state = run("whole", 4)
    first, _, _ = run("parted", 2)
    second, again, other = run("parted", 2)
    assert first + second == whole
    assert all(torch.equal(one, again[name]) for name, one in weights.items())
    assert state == other
    assert state["average"] is not None
    assert [parts["crepa_weight"] for _, parts in whole] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    from safetensors import safe_open

    with safe_open(tmp_path / "whole" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "crepa" in key]  # noqa: SIM118
    with pytest.raises(CheckpointError, match="crepa_enabled"):
        run("whole", 0, crepa_block_index=1)


def test_what_is_wrong_is_known_before_anything_is_encoded(aligned: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="crepa_block_index = 9: is no block"):
        tk.build_cache(aligned(crepa_block_index=9), progress=False)
    with pytest.raises(ModelError, match="crepa_encoder"):
        tk.build_cache(aligned(crepa_encoder=str(tmp_path)), progress=False)
    config = aligned(crepa_block_index=None)
    assert (config.crepa_block_index, config.crepa_lambda, config.crepa_adjacent_tau) == (10, 0.5, 1.0)
