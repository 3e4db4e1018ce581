"""Optimizers: the registry, the exact resume of each, and bfloat16 AdamW against float64."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from tunerkit.errors import CheckpointError, ConfigError, MissingExtraError
from tunerkit.training.adamw_bf16 import CHUNK, AdamWBF16, round_stochastically
from tunerkit.training.optimizers import build_optimizer, check_optimizer, optimizer_names
from tunerkit.training.state_files import load_tensors, optimizer_from_files, optimizer_to_files


@dataclass
class Settings:
    optimizer: str
    learning_rate: float = 1e-2
    optimizer_config: dict[str, Any] = field(default_factory=dict)
    optimizer_beta1: float | None = None
    optimizer_beta2: float | None = None
    weight_decay: float | None = None
    seed: int | None = 7


PACKAGES = {"optimi": "optimi", "prodigy": "prodigyopt", "adamw_schedulefree": "schedulefree"}
HERE = [
    name
    for name in optimizer_names()
    if not name.startswith("bnb-") and importlib.util.find_spec(PACKAGES.get(name.partition("-")[0], "torch"))
]
NAMES = ["block.a.weight", "block.b.weight", "block.b.bias", "scale"]


def make_parameters(dtype: torch.dtype) -> list[Parameter]:
    """A matrix, a convolution kernel in channels-last strides, a vector and a scalar."""
    random = torch.Generator().manual_seed(1)
    kernel = torch.randn(4, 3, 2, 2, generator=random).to(dtype).to(memory_format=torch.channels_last)
    shapes: list[Tensor] = [
        torch.randn(6, 5, generator=random),
        kernel,
        torch.randn(7, generator=random),
        torch.ones(()),
    ]
    return [Parameter(value.to(dtype)) for value in shapes]


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[Parameter], steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(1000 + step)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(torch.randn(parameter.shape, generator=random))
        for group in optimizer.param_groups:
            group["lr"] = 0.5 / (1 + step)
        optimizer.step()


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", HERE)
def test_three_steps_saved_and_three_more_equal_six(name: str, dtype: torch.dtype, tmp_path):
    straight = make_parameters(dtype)
    settings = Settings(name, optimizer_config={"d0": 0.1} if name == "prodigy" else {})
    optimizer = build_optimizer(settings, straight)
    take_steps(optimizer, straight, range(3))
    optimizer_to_files(optimizer, NAMES, tmp_path)
    resumed = make_parameters(dtype)
    with torch.no_grad():
        for target, source in zip(resumed, straight, strict=True):
            target.copy_(source)
    other = build_optimizer(settings, resumed)
    assert optimizer_from_files(other, NAMES, tmp_path) == []
    take_steps(optimizer, straight, range(3, 6))
    take_steps(other, resumed, range(3, 6))
    for one, two in zip(straight, resumed, strict=True):
        assert torch.equal(bits(one), bits(two))
        assert optimizer.state[one].keys() == other.state[two].keys()
    start = make_parameters(dtype)
    assert not all(torch.equal(bits(one), bits(two)) for one, two in zip(straight, start, strict=True))
    assert {path.name for path in tmp_path.iterdir()} == {"optimizer.safetensors", "optimizer.json"}


def test_a_state_before_the_first_step_round_trips(tmp_path):
    parameters = make_parameters(torch.float32)
    optimizer_to_files(build_optimizer(Settings("torch-adamw"), parameters), NAMES, tmp_path)
    other = build_optimizer(Settings("torch-adamw"), parameters)
    optimizer_from_files(other, NAMES, tmp_path)
    assert not other.state


def test_settings_changed_between_runs_hold_and_are_named(tmp_path):
    parameters = make_parameters(torch.float32)
    optimizer = build_optimizer(Settings("adamw_bf16"), parameters)
    take_steps(optimizer, parameters, range(2))
    optimizer_to_files(optimizer, NAMES, tmp_path)
    other = build_optimizer(Settings("adamw_bf16", weight_decay=0.1, optimizer_beta2=0.95), parameters)
    notes = optimizer_from_files(other, NAMES, tmp_path)
    assert sorted(note.split()[0] for note in notes) == ["betas", "weight_decay"]
    assert other.param_groups[0]["weight_decay"] == 0.1
    assert other.param_groups[0]["betas"] == (0.9, 0.95)
    assert other.param_groups[0]["step"] == 2


def test_a_state_of_other_parameters_is_refused_by_the_first_difference(tmp_path):
    parameters = make_parameters(torch.float32)
    optimizer = build_optimizer(Settings("torch-adamw"), parameters)
    take_steps(optimizer, parameters, range(1))
    optimizer_to_files(optimizer, NAMES, tmp_path)

    def load(parameters: list[Parameter], names: list[str], optimizer_name: str = "torch-adamw") -> None:
        other = build_optimizer(Settings(optimizer_name), parameters)
        optimizer_from_files(other, names, tmp_path)

    wider = [Parameter(torch.zeros(6, 8)), *parameters[1:]]
    with pytest.raises(CheckpointError, match=r"block\.a\.weight is float32 \[6, 8\] now and was float32 \[6, 5\]"):
        load(wider, NAMES)
    with pytest.raises(CheckpointError, match=r"block\.c\.bias is trained now"):
        load(parameters, [*NAMES[:2], "block.c.bias", "scale"])
    with pytest.raises(CheckpointError, match="scale was trained in the saved run"):
        load(parameters[:3], NAMES[:3])
    with pytest.raises(CheckpointError, match="bfloat16"):
        load(make_parameters(torch.bfloat16), NAMES)
    with pytest.raises(CheckpointError, match=r"torch\.AdamW.*torch\.SGD"):
        load(parameters, NAMES, "torch-sgd")
    data = (tmp_path / "optimizer.safetensors").read_bytes()
    (tmp_path / "optimizer.safetensors").write_bytes(data[:-8])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors cannot be read"):
        load(parameters, NAMES)


def test_state_tensors_are_readable_by_name(tmp_path):
    parameters = make_parameters(torch.bfloat16)
    optimizer = build_optimizer(Settings("adamw_bf16"), parameters)
    take_steps(optimizer, parameters, range(2))
    optimizer_to_files(optimizer, NAMES, tmp_path)
    tensors = load_tensors(tmp_path / "optimizer.safetensors")
    assert set(tensors) == {f"{name}/{key}" for name in NAMES for key in ("exp_avg", "exp_avg_sq", "compensation")}
    assert torch.equal(tensors["block.b.weight/exp_avg"], optimizer.state[parameters[1]]["exp_avg"])


# The registry


def test_settings_reach_the_optimizer_in_order():
    parameters = make_parameters(torch.float32)
    group = build_optimizer(Settings("torch-adamw"), parameters).param_groups[0]
    assert (group["lr"], group["betas"], group["fused"]) == (1e-2, (0.9, 0.999), True)
    config = Settings("torch-adamw", weight_decay=0.3, optimizer_beta2=0.97, optimizer_config={"eps": 1e-4})
    group = build_optimizer(config, parameters).param_groups[0]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.97), 0.3, 1e-4)
    config = Settings("torch-adamw", optimizer_beta1=0.5, optimizer_config={"betas": [0.8, 0.9], "foreach": True})
    group = build_optimizer(config, parameters).param_groups[0]
    assert (group["betas"], group["foreach"]) == ((0.8, 0.9), True)
    assert build_optimizer(Settings("adamw_bf16"), parameters).param_groups[0]["seed"] == 7


@pytest.mark.skipif(importlib.util.find_spec("optimi") is None, reason="torch-optimi is not installed")
def test_the_third_beta_of_adan_stays():
    optimizer = build_optimizer(Settings("optimi-adan", optimizer_beta1=0.9), make_parameters(torch.float32))
    group = optimizer.param_groups[0]
    assert (group["beta1"], group["beta2"], group["beta3"]) == (0.9, 0.92, 0.99)


def test_all_wrong_options_are_reported_at_once_with_the_legal_ones():
    config = Settings("torch-sgd", optimizer_beta1=0.9, optimizer_config={"momentun": 0.9, "lr": 1.0})
    problems = {problem.key: problem for problem in check_optimizer(config)}
    assert set(problems) == {"optimizer_beta1", "optimizer_config.momentun", "optimizer_config.lr"}
    assert "momentum" in problems["optimizer_config.momentun"].fix
    assert "learning_rate" in problems["optimizer_config.lr"].fix
    with pytest.raises(ConfigError, match="momentun"):
        build_optimizer(config, make_parameters(torch.float32))


@pytest.mark.parametrize(
    ("given", "advised"),
    [
        ("adamw8bit", "bnb-adamw8bit"),
        ("adamw-bf16", "adamw_bf16"),
        ("ADAMW", "torch-adamw"),
        ("ao-adamw8bit", "adamw_8bit"),
        ("dadaptation", "prodigy"),
        ("soap", "muon"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(given: str, advised: str):
    with pytest.raises(ConfigError, match=f"optimizer = '{given}'.*Fix: {advised}"):
        build_optimizer(Settings(given), make_parameters(torch.float32))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("torch-adamw", {"eps": "x"}), ("prodigy", {"d_coef": "x"}), ("prodigy", {"slice_p": 0}),
     ("adamw_schedulefree", {"r": "x"}), ("adamw_bf16", {"eps": "x"})],
)  # fmt: skip
def test_values_that_fail_in_the_first_update_are_refused_before(name: str, wrong: dict[str, Any]) -> None:
    pytest.importorskip({"prodigy": "prodigyopt", "adamw_schedulefree": "schedulefree"}.get(name, "torch"))
    (problem,) = check_optimizer(Settings(name, optimizer_config=wrong))
    assert str(problem).startswith(f"optimizer = {name!r}: refuses {wrong}: ")
    assert check_optimizer(Settings(name, optimizer_config={"eps": 1e-8})) == []


def test_a_value_out_of_range_names_the_setting():
    with pytest.raises(ConfigError, match=r"refuses.*eps.*Fix: correct the value in optimizer_config"):
        build_optimizer(Settings("torch-adamw", optimizer_config={"eps": -1.0}), make_parameters(torch.float32))


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "tunerkit[optimi]" in check_optimizer(Settings("optimi-lion"))[0].fix
    with pytest.raises(MissingExtraError, match=r"optimizer = 'bnb-adamw8bit'.*tunerkit\[bitsandbytes\]"):
        build_optimizer(Settings("bnb-adamw8bit"), make_parameters(torch.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_bitsandbytes_without_cuda(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(ConfigError, match=r"bnb-adamw8bit-paged.*CUDA.*Fix: optimizer = torch-adamw"):
        build_optimizer(Settings("bnb-adamw8bit-paged"), make_parameters(torch.float32))


# AdamW in bfloat16


def reference_adamw(
    weight: Tensor,
    gradients: Iterator[Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> Tensor:
    """AdamW written out in float64."""
    weight = weight.double().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for count, gradient in enumerate(gradients, start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient.double()
        second = betas[1] * second + (1 - betas[1]) * gradient.double() ** 2
        root = (second / (1 - betas[1] ** count)).sqrt()
        weight = weight - lr * (first / (1 - betas[0] ** count)) / (root + eps) - lr * decay * weight
    return weight


def true_weight(optimizer: torch.optim.Optimizer, parameter: Parameter) -> Tensor:
    return parameter.detach().double() + optimizer.state[parameter]["compensation"].double()


def gradients_like(weight: Tensor, count: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield (torch.randn(weight.shape, generator=random) + 0.3).to(weight.dtype)


def test_float32_parameters_follow_plain_adamw():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    parameter = Parameter(weight.clone())
    optimizer = AdamWBF16([parameter], lr=1e-2, weight_decay=0.1)
    for gradient in gradients_like(weight, 30):
        parameter.grad = gradient
        optimizer.step()
    expected = reference_adamw(weight, gradients_like(weight, 30), 1e-2, (0.9, 0.999), 1e-6, 0.1)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lr", [1e-2, 1e-4, 1e-6])
def test_bfloat16_parameters_follow_float64_adamw_at_any_rate(lr: float):
    """At 1e-6 a plain bfloat16 weight near 1 never moves: half the distance to its neighbour is 2e-3."""
    weight = (1 + torch.rand(4096, generator=torch.Generator().manual_seed(3))).bfloat16()
    parameter = Parameter(weight.clone())
    optimizer = AdamWBF16([parameter], lr=lr, weight_decay=0.1)
    for gradient in gradients_like(weight, 200):
        parameter.grad = gradient
        optimizer.step()
    expected = reference_adamw(weight, gradients_like(weight, 200), lr, (0.9, 0.999), 1e-6, 0.1)
    moved = expected - weight.double()
    error = true_weight(optimizer, parameter) - expected
    # Unbiased: the mean over all weights follows to 1 %. Each weight follows up to the noise of the
    # roundings.
    assert abs(error.mean()) < 0.01 * abs(moved.mean())
    assert error.square().mean().sqrt() < max(0.02 * moved.square().mean().sqrt().item(), 4e-5)
    # The parameter is the bfloat16 number nearest to the true weight, but for the last bit of the
    # compensation.
    distance = (parameter.detach().double() - true_weight(optimizer, parameter)).abs()
    nearest = true_weight(optimizer, parameter).bfloat16().double()
    assert (distance <= (nearest - true_weight(optimizer, parameter)).abs() * (1 + 2.0**-6)).all()


def test_bfloat16_reaches_the_minimum_of_a_quadratic_like_float64():
    """0.5 * k * (w - target)^2 with curvatures from 0.1 to 10, cosine learning rate, no decay."""
    curvature = torch.logspace(-1, 1, 256, dtype=torch.float64)
    target = torch.linspace(-2, 2, 256, dtype=torch.float64) + 0.013
    parameter = Parameter(torch.zeros(256, dtype=torch.bfloat16))
    optimizer = AdamWBF16([parameter], lr=0.0, weight_decay=0.0)
    exact = Parameter(torch.zeros(256, dtype=torch.float64))
    reference = torch.optim.AdamW([exact], lr=0.0, eps=1e-6, weight_decay=0.0)
    for step in range(600):
        lr = 0.02 * (1 + math.cos(math.pi * step / 600)) / 2
        for kind, weight in ((optimizer, parameter), (reference, exact)):
            kind.param_groups[0]["lr"] = lr
            weight.grad = (curvature * (weight.detach().double() - target)).to(weight.dtype)
            kind.step()
    assert (exact.detach() - target).abs().max() < 1e-3
    # The gradient is taken at the rounded weight. Bfloat16 numbers near 2 lie 2^-6 apart, so the gradient
    # changes its sign where the true weight is between two of them: up to half that distance from the
    # minimum.
    assert (true_weight(optimizer, parameter) - target).abs().max() < 2.0**-7 + 1e-3
    assert (parameter.detach().double() - target).abs().max() <= 2.0**-6


def test_second_moment_in_bfloat16_does_not_stand_still():
    """b2 = 0.999 moves it by less than half a bfloat16 step: rounded to the nearest, it would stop early."""
    parameter = Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    optimizer = AdamWBF16([parameter], lr=0.0)
    for _ in range(1500):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    mean = optimizer.state[parameter]["exp_avg_sq"].double().mean().item()
    assert mean == pytest.approx(1 - 0.999**1500, rel=5e-3)


def test_stochastic_rounding_is_unbiased_and_picks_neighbours():
    random = torch.Generator().manual_seed(11)
    values = torch.cat([torch.randn(50, generator=random) * 10.0**k for k in (-30, -4, 0, 5)]).float()
    draws = 20_000
    drawn = torch.empty(draws, values.numel(), dtype=torch.int64).random_(generator=random)
    rounded = round_stochastically(values.expand(draws, -1).contiguous(), drawn)
    assert rounded.dtype == torch.bfloat16
    mean, deviation = rounded.double().mean(0), rounded.double().std(0)
    standard_error = deviation / math.sqrt(draws)
    assert ((mean - values.double()).abs() <= 5 * standard_error + 1e-45).all()
    scale = values.abs().double()
    assert ((rounded.double() - values.double()).abs() < scale * 2.0**-7).all()
    assert all(len(column.unique()) <= 2 for column in rounded.T)


def test_stochastic_rounding_keeps_what_bfloat16_holds():
    special = torch.tensor([0.0, -0.0, 1.0, -3.5, float("inf"), -float("inf"), float("nan")])
    all_bits_nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([special, all_bits_nan])
    for bit in (0, 1, 0x8000, 0xFFFF, -1):
        rounded = round_stochastically(values, torch.full(values.shape, bit, dtype=torch.int64))
        assert torch.equal(bits(rounded)[:6], bits(special.bfloat16())[:6])
        assert rounded[6:].isnan().all()


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def run(seed: int) -> Tensor:
        torch.manual_seed(99)  # the global generator must not matter
        parameters = make_parameters(torch.bfloat16)
        optimizer = AdamWBF16(parameters, lr=1e-3, seed=seed)
        for step in range(4):
            torch.randn(step + 1)
            take_steps(optimizer, parameters, range(step, step + 1))
        return bits(optimizer.state[parameters[0]]["compensation"])

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_state_dict_round_trip_continues_bit_for_bit():
    straight = [*make_parameters(torch.bfloat16), *make_parameters(torch.float32)]
    optimizer = AdamWBF16(straight, lr=1e-3, seed=3)
    take_steps(optimizer, straight, range(3))
    resumed = [Parameter(value.detach().clone()) for value in straight]
    other = AdamWBF16(resumed, lr=1e-3, seed=3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors
    take_steps(optimizer, straight, range(3, 6))
    take_steps(other, resumed, range(3, 6))
    for one, two in zip(straight, resumed, strict=True):
        assert torch.equal(bits(one), bits(two))


def test_large_tensors_are_cut_and_parameters_without_gradient_stay():
    big = Parameter(torch.ones(CHUNK + 1000, dtype=torch.bfloat16))
    idle = Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = AdamWBF16([big, idle], lr=1e-3, weight_decay=0.0)
    big.grad = torch.ones_like(big)
    optimizer.step()
    moved = true_weight(optimizer, big) - 1
    assert moved.mean().item() == pytest.approx(-1e-3, rel=1e-3)
    assert moved.max().item() < -0.9e-3
    assert idle not in optimizer.state
    assert torch.equal(idle.detach(), torch.ones(3, dtype=torch.bfloat16))


def test_half_precision_parameters_are_refused():
    with pytest.raises(ConfigError, match=r"adamw_bf16.*float16.*mixed_precision"):
        build_optimizer(Settings("adamw_bf16"), [Parameter(torch.zeros(2, dtype=torch.float16))])
