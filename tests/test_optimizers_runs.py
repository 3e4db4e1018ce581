"""Optimizers in the engine: each learns, is planned for, and goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import Size, engine_of
from test_optimizers import HERE, Settings, make_parameters, take_steps
from test_plan import LARGEST, TRANSFORMERS, described, stand_of, tiny_config
from torch import Tensor

import tunerkit as tk
from tunerkit.errors import ConfigError
from tunerkit.planning.stand_ins import as_on
from tunerkit.planning.tracker import StorageTracker
from tunerkit.planning.training import training_step
from tunerkit.training import adamw_8bit
from tunerkit.training.averaging import averaged_weights
from tunerkit.training.engine import Engine
from tunerkit.training.export import export_lora
from tunerkit.training.optimizers import build_optimizer, step_rate
from tunerkit.training.state import _MUST_MATCH, _SHOULD_MATCH, Fingerprint, read_state, write_state
from tunerkit.training.state_files import load_tensors

RATES = {"torch-sgd": 0.3, "torch-asgd": 0.3, "torch-adadelta": 3.0, "torch-adafactor": 0.3, "torch-radam": 0.1}
RATES |= {"optimi-sgd": 0.3, "optimi-radam": 0.1, "optimi-ranger": 0.1, "prodigy": 1.0, "muon": 0.03}
"""Where not `RATE`."""
RATE = 1e-2
STEPS = 12
SMALL = Size(blocks=1)
NEW = [name for name in ("muon", "adamw_8bit", "adamw_schedulefree", "prodigy") if name in HERE]
FREE = pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="schedulefree is not installed")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(adamw_8bit, "SMALL", 0)  # none of the miniatures' weights is large


def run(engine: Engine, batches: Any, steps: range, rate: float = RATE) -> list[float]:
    return [engine.step(batches, number, rate).loss for number in steps]


@pytest.mark.parametrize("name", HERE)
def test_each_learns(name: str) -> None:
    """All weights of a small transformer, always the same batch: the loss falls by a quarter or more."""
    options = {"d0": 1e-2} if name == "prodigy" else {}
    engine, batches = engine_of(
        "sanavideo", "no", size=SMALL, micro_batches=1, model_type="full", optimizer=name, optimizer_config=options,
        max_grad_norm=0, gradient_checkpointing=False,
    )  # fmt: skip
    losses = run(engine, batches, range(STEPS), RATES.get(name, RATE))
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", HERE)
def test_the_state_is_planned_byte_by_byte(name: str) -> None:
    def state_bytes(optimizer: torch.optim.Optimizer) -> int:
        tensors = [one for state in optimizer.state.values() for one in state.values() if isinstance(one, Tensor)]
        return sum(one.nbytes for one in tensors if one.numel() > 1)

    real = [*make_parameters(torch.float32), torch.nn.Parameter(torch.ones(70, 71))]
    optimizer = build_optimizer(Settings(name), real)
    take_steps(optimizer, real, range(1))
    with as_on("cuda"), StorageTracker():
        planned = [torch.nn.Parameter(torch.empty_like(one, device="meta")) for one in real]
        meta = build_optimizer(Settings(name), planned)
        for one in planned:
            one.grad = torch.empty_like(one)
        meta.step()
        meta.step()
    assert state_bytes(meta) == state_bytes(optimizer)


@pytest.mark.parametrize("model_type", ["lora", "full"])
@pytest.mark.parametrize("name", NEW)
def test_a_checkpoint_goes_on_bit_for_bit(name: str, model_type: str, tmp_path: Path) -> None:
    def make() -> tuple[Engine, Any]:
        # In float32 there are no masters, whose file would hold what is trained beside an average.
        precision = "no" if name == "adamw_schedulefree" else "bf16"
        return engine_of("sanavideo", precision, size=SMALL, micro_batches=1, optimizer=name, model_type=model_type)

    facts = Fingerprint(dict.fromkeys((*_MUST_MATCH, *_SHOULD_MATCH)))
    straight, batches = make()
    run(straight, batches, range(2))
    write_state(tmp_path, straight, 2, facts)
    resumed, others = make()
    assert read_state(tmp_path, resumed, facts) == (2, [])
    assert run(straight, batches, range(2, 4)) == run(resumed, others, range(2, 4))
    for key, value in straight.weights.state().items():
        assert torch.equal(value, resumed.weights.state()[key]), key


@pytest.mark.parametrize("model_type", ["lora", "full"])
def test_gradients_go_to_ram_one_by_one(model_type: str) -> None:
    """The same training bit for bit in float32, and never two gradients at one time where the model is."""
    results = []
    for moves in (False, True):
        settings = {"optimizer_cpu_offload_method": "cpu", "optimizer_offload_gradients": moves}
        engine, batches = engine_of("sanavideo", "no", size=SMALL, model_type=model_type, **settings)
        live, most = list(engine.weights.live.values()), [0]
        for one in live:
            one.register_post_accumulate_grad_hook(
                lambda _, live=live, most=most: most.append(sum(other.grad is not None for other in live))
            )
        losses = run(engine, batches, range(2))
        results.append((losses, {key: value.clone() for key, value in engine.weights.state().items()}))
        assert (max(most) == 0) is moves
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][key]) for key, value in results[0][1].items())


def test_gradients_that_go_to_ram_are_not_planned_for_on_the_gpu() -> None:
    made = described(TRANSFORMERS["sanavideo"]())

    def peak(moves: bool) -> int:
        in_ram: dict[str, Any] = {"optimizer_cpu_offload_method": "cpu", "optimizer_offload_gradients": moves}
        config = tiny_config("sanavideo", model_type="full", **in_ram).changed(device=None)
        family = tk.family("sanavideo")
        return training_step(config, family, made, stand_of(config, made), LARGEST["sanavideo"]).largest.peak

    live = sum(parameter.numel() * 2 for parameter in TRANSFORMERS["sanavideo"]().parameters())
    assert peak(False) - peak(True) > 0.5 * live


@FREE
def test_the_average_of_a_schedule_free_optimizer_is_what_is_kept(tmp_path: Path) -> None:
    engine, batches = engine_of("sanavideo", "no", size=SMALL, optimizer="adamw_schedulefree")
    run(engine, batches, range(3))
    trained = {key: value.clone() for key, value in engine.weights.state().items()}
    with engine.rendering(ema=False) as transformer:
        shown = {key: value.detach().clone() for key, value in transformer.named_parameters() if key in trained}
    write_state(tmp_path, engine, 3, Fingerprint({}))
    export_lora(engine, tmp_path / "adapter.safetensors")
    assert all(torch.equal(value, trained[key]) for key, value in engine.weights.state().items())
    saved = load_tensors(tmp_path / "trained.safetensors")
    assert all(torch.equal(value, trained[key]) for key, value in saved.items())
    engine.optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue] - the package's own way to the average
    average = engine.weights.state()
    assert max((trained[key] - value).abs().max().item() for key, value in average.items()) > 1e-3
    for name in ("adapter.safetensors", "pytorch_lora_weights.safetensors"):
        exported = load_tensors(tmp_path / name)
        for key, value in average.items():
            assert torch.equal(value, shown[key])
            assert torch.equal(value, exported[f"transformer.{key.replace('.default', '')}"])


@FREE
def test_looking_at_the_average_does_not_change_the_training() -> None:
    losses = []
    for looks in (False, True):
        engine, batches = engine_of("sanavideo", size=SMALL, optimizer="adamw_schedulefree", model_type="full")
        seen = []
        for number in range(3):
            seen += run(engine, batches, range(number, number + 1))
            if looks:
                with engine.rendering(ema=False):
                    pass
        losses.append(seen)
    assert losses[0] == losses[1]


@FREE
def test_the_average_is_that_of_the_steps() -> None:
    """x by hand, in float64: z are the steps of AdamW's direction at y, and x their mean weighted by the squared rate
    (the largest so far)."""
    curvature = torch.logspace(-1, 1, 64, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.ones(64))
    optimizer = build_optimizer(Settings("adamw_schedulefree", weight_decay=0.0), [parameter])
    steps = average = torch.ones(64, dtype=torch.float64)
    second, total, largest = torch.zeros(64, dtype=torch.float64), 0.0, 0.0
    for count in range(1, 101):
        rate = 0.02 * min(1.0, count / 10)
        y = 0.1 * steps + 0.9 * average
        gradient = curvature * y
        second = 0.999 * second + 0.001 * gradient**2
        steps = steps - rate * gradient / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        largest = max(largest, rate)
        total += largest**2
        average = average + largest**2 / total * (steps - average)
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = (curvature * parameter.detach()).float()
        optimizer.step()
    with averaged_weights(optimizer):
        torch.testing.assert_close(parameter.detach().double(), average, rtol=0, atol=1e-4)
    assert average.abs().max() < 0.5


@FREE
def test_what_schedule_free_training_cannot_be_combined_with() -> None:
    with pytest.raises(ConfigError, match=r"(?s)lr_scheduler = 'cosine'.*constant_with_warmup.*use_ema"):
        tk.TrainConfig(optimizer="adamw_schedulefree", lr_scheduler="cosine", use_ema=True)
    with pytest.raises(ConfigError, match=r"optimizer_beta1.*average.*above 0"):
        build_optimizer(Settings("adamw_schedulefree", optimizer_beta1=0.0), make_parameters(torch.float32))
    config = Settings("adamw_schedulefree", optimizer_config={"warmup_steps": 5})
    with pytest.raises(ConfigError, match=r"warmup_steps.*lr_warmup_steps"):
        build_optimizer(config, make_parameters(torch.float32))


@pytest.mark.skipif("prodigy" not in HERE, reason="prodigyopt is not installed")
def test_prodigy_finds_its_rate_and_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    parameter = torch.nn.Parameter(torch.full((50,), 3.0))
    config = Settings("prodigy", learning_rate=1.0, weight_decay=0.01)
    optimizer = build_optimizer(config, [parameter])
    assert capsys.readouterr().out == ""
    assert step_rate(optimizer, 0.5) == 0.5e-6
    for _ in range(60):
        parameter.grad = parameter.detach().clone()
        optimizer.step()
    assert optimizer.param_groups[0]["d"] > 1e-4
    assert step_rate(optimizer, 0.5) == 0.5 * optimizer.param_groups[0]["d"]
    assert step_rate(build_optimizer(Settings("torch-adamw"), [parameter]), 0.5) == 0.5
