"""The moving average against a loop written by hand in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from tunerkit.errors import CheckpointError
from tunerkit.training.ema import EMA
from tunerkit.training.state_files import load_tensors, save_tensors


def make_parameters(dtype: torch.dtype = torch.float32) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": Parameter(torch.randn(5, 3, generator=generator).to(dtype)),
        "b.bias": Parameter(torch.randn(4, generator=generator).to(dtype)),
    }


def move(parameters: dict[str, Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("decay", "interval", "warmup"), [(0.5, 1, 0), (0.995, 1, 0), (0.8, 3, 4)])
def test_equals_the_formula_in_float64(dtype: torch.dtype, decay: float, interval: int, warmup: int):
    parameters = make_parameters(dtype)
    ema = EMA(parameters, decay, interval, warmup)
    expected = {name: value.detach().double() for name, value in parameters.items()}
    updates = 0
    for step in range(1, 41):
        move(parameters, step)
        ema.update(step)
        if step <= warmup:
            expected = {name: value.detach().double() for name, value in parameters.items()}
        elif step % interval == 0:
            rate = min((1 + updates) / (10 + updates), decay)
            for name, value in parameters.items():
                expected[name] = rate * expected[name] + (1 - rate) * value.detach().double()
            updates += 1
        for name in parameters:
            torch.testing.assert_close(ema.shadows[name].double(), expected[name], rtol=2e-6, atol=2e-6)
    assert ema.updates == updates


def test_first_decay_is_a_tenth_and_the_limit_holds():
    ema = EMA(make_parameters(), decay=0.2)
    decays = []
    for step in range(1, 5):
        decays.append(ema.current_decay())
        ema.update(step)
    assert decays == pytest.approx([1 / 10, 2 / 11, 0.2, 0.2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_swaps_and_restores_every_bit_even_after_an_error(dtype: torch.dtype):
    parameters = make_parameters(dtype)
    ema = EMA(parameters, decay=0.9)
    for step in range(1, 4):
        move(parameters, step)
        ema.update(step)
    integers = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    with torch.no_grad():
        parameters["b.bias"][0] = float("nan")
        parameters["b.bias"][1] = -0.0
    before = {name: value.detach().clone().view(integers) for name, value in parameters.items()}
    storage = {name: value.data_ptr() for name, value in parameters.items()}

    def look_inside_and_fail() -> None:
        with ema.applied():
            for name, value in parameters.items():
                assert torch.equal(value.detach(), ema.shadows[name].to(dtype))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        look_inside_and_fail()
    for name, value in parameters.items():
        assert torch.equal(value.detach().view(integers), before[name])
        assert value.data_ptr() == storage[name]
        assert value.requires_grad


def test_resume_is_bit_for_bit(tmp_path):
    straight = make_parameters()
    ema = EMA(straight, decay=0.99, update_interval=2)
    for step in range(1, 7):
        move(straight, step)
        ema.update(step)
    state = ema.state_dict()
    save_tensors(tmp_path / "ema.safetensors", state["shadows"])
    resumed = {name: Parameter(value.detach().clone()) for name, value in straight.items()}
    other = EMA(resumed, decay=0.99, update_interval=2)
    other.load_state_dict({"updates": state["updates"], "shadows": load_tensors(tmp_path / "ema.safetensors")})
    for step in range(7, 12):
        for parameters, average in ((straight, ema), (resumed, other)):
            move(parameters, step)
            average.update(step)
    for name in straight:
        assert torch.equal(ema.shadows[name], other.shadows[name])


def test_state_of_another_model_is_refused_whole():
    ema = EMA(make_parameters(), decay=0.9)
    state = ema.state_dict()
    wrong_shape = {**state["shadows"], "b.bias": torch.zeros(5)}
    with pytest.raises(CheckpointError, match=r"b\.bias has shape \[5\] in the checkpoint and \[4\]"):
        ema.load_state_dict({"updates": 3, "shadows": wrong_shape})
    with pytest.raises(CheckpointError, match=r"b\.bias is missing in the checkpoint"):
        ema.load_state_dict({"updates": 3, "shadows": {"a.weight": torch.zeros(5, 3)}})
    assert ema.updates == 0
    with pytest.raises(ValueError, match="decay"):
        EMA(make_parameters(), decay=1.0)
