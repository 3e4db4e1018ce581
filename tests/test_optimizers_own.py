"""Muon and 8-bit AdamW against their formulas in float64, and what they keep."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from tunerkit.training import adamw_8bit
from tunerkit.training.adamw_8bit import BLOCK, AdamW8bit, levels, nearest_levels
from tunerkit.training.muon import Muon, orthogonalised


def gradients(shape: tuple[int, ...], count: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield torch.randn(shape, generator=random) + 0.3


def follow(optimizer: torch.optim.Optimizer, parameter: Parameter, steps: int) -> Tensor:
    for gradient in gradients(tuple(parameter.shape), steps):
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach().double()


def adamw_by_hand(
    weight: Tensor, steps: int, lr: float, betas: tuple[float, float], eps: float, decay: float
) -> Tensor:
    weight = weight.double().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for count, gradient in enumerate(gradients(tuple(weight.shape), steps), start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient.double()
        second = betas[1] * second + (1 - betas[1]) * gradient.double() ** 2
        root = (second / (1 - betas[1] ** count)).sqrt()
        weight = weight - lr * (first / (1 - betas[0] ** count)) / (root + eps) - lr * decay * weight
    return weight


# Muon --------------------------------------------------------------------------------------------------------------


def muon_by_hand(weight: Tensor, steps: int, lr: float, momentum: float, nesterov: bool, decay: float) -> Tensor:
    """For a matrix, on the singular values: each Newton-Schulz step maps s to a s + b s^3 + c s^5."""
    weight, average = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients(tuple(weight.shape), steps):
        average = momentum * average + (1 - momentum) * gradient.double()
        update = (1 - momentum) * gradient.double() + momentum * average if nesterov else average
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        values = values / values.square().sum().sqrt()
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        size = 0.2 * math.sqrt(max(weight.shape))
        weight = (1 - lr * decay) * weight - lr * size * left @ torch.diag(values) @ right
    return weight


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(24, 9), (9, 24), (2, 40)])
def test_matrices_follow_muon_in_float64(shape: tuple[int, int], nesterov: bool) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    parameter = Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.3)
    expected = muon_by_hand(start, 6, 0.02, 0.9, nesterov, 0.3)
    torch.testing.assert_close(follow(optimizer, parameter, 6), expected, rtol=0, atol=2e-5)
    assert (expected - start.double()).abs().mean() > 1e-2


def test_what_is_no_matrix_follows_adamw() -> None:
    start = torch.randn(1, 7, generator=torch.Generator().manual_seed(1))
    for shape in ((7,), (1, 7), (7, 1)):
        parameter = Parameter(start.reshape(shape).clone())
        optimizer = Muon([parameter], lr=0.02, weight_decay=0.3)
        expected = adamw_by_hand(start.reshape(shape), 6, 0.02, (0.9, 0.95), 1e-8, 0.3)
        torch.testing.assert_close(follow(optimizer, parameter, 6), expected, rtol=0, atol=1e-6)
        assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}


def test_matrices_of_one_shape_are_updated_together_as_if_alone() -> None:
    starts = [torch.randn(6, 10, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    together = [Parameter(one.clone()) for one in starts]
    optimizer = Muon(together, lr=0.1)
    for one, gradient in zip(together, gradients((6, 10), 3), strict=True):
        one.grad = gradient
    optimizer.step()
    for start, one in zip(starts, together, strict=True):
        alone = Parameter(start.clone())
        alone.grad = one.grad
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(one.detach(), alone.detach(), rtol=0, atol=1e-6)


def test_a_kernel_is_the_matrix_of_its_output_channels() -> None:
    start = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    kernel = Parameter(start.clone().to(memory_format=torch.channels_last))
    flat = Parameter(start.reshape(4, 12).clone())
    kernel.grad = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    flat.grad = kernel.grad.reshape(4, 12)
    for one in (kernel, flat):
        Muon([one], lr=0.1).step()
    torch.testing.assert_close(kernel.detach().reshape(4, 12), flat.detach(), rtol=0, atol=1e-6)


def test_singular_values_come_near_one_and_vanishing_gradients_stay_so() -> None:
    random = torch.Generator().manual_seed(1)
    matrices = torch.randn(2, 64, 16, generator=random)
    values = torch.linalg.svdvals(orthogonalised(matrices, 5))
    assert 0.6 < values.min() < values.max() < 1.25
    assert not orthogonalised(torch.zeros(1, 3, 4), 5).any()


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"ns_steps": 0}, {"betas": (0.9, 1.0)}])
def test_muon_refuses_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Muon([Parameter(torch.zeros(2, 2))], **wrong)  # pyright: ignore[reportArgumentType]


# 8-bit AdamW ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64 * 128, 5000])
def test_eight_bits_follow_adamw_within_eight_percent(size: int) -> None:
    """Of the way gone: in the mean within 1 %, and a weight within 8 % (root mean square; 6.2 % were measured)."""
    start = torch.randn(size, generator=torch.Generator().manual_seed(2))
    parameter = Parameter(start.clone())
    way = follow(AdamW8bit([parameter], lr=1e-2, weight_decay=0.1), parameter, 200) - start.double()
    expected = adamw_by_hand(start, 200, 1e-2, (0.9, 0.999), 1e-8, 0.1) - start.double()
    assert abs((way - expected).mean()) < 0.01 * abs(expected.mean())
    assert (way - expected).square().mean().sqrt() < 0.08 * expected.square().mean().sqrt()


def test_a_second_moment_of_eight_bits_does_not_stand_still() -> None:
    """b2 = 0.999 moves it by a hundredth of a level: rounded to the nearest, it would keep its first value."""
    parameter = Parameter(torch.zeros(4096))
    optimizer = AdamW8bit([parameter], lr=0.0)
    random = torch.Generator().manual_seed(3)
    strong = torch.rand(4096, generator=random) < 0.5
    for step in range(1500):  # first one half has the large gradients, then the other
        parameter.grad = torch.where(strong ^ (step >= 500), 1.0, 0.1)
        optimizer.step()
    state = optimizer.state[parameter]
    second = (levels("second")[state["second"].int()].view(-1, BLOCK) * state["second_scale"][:, None]).view(-1)
    kept, earlier = 0.999**1000, 1 - 0.999**500
    for chosen, before, after in ((strong, 1.0, 0.01), (~strong, 0.01, 1.0)):
        exact = kept * earlier * before + (1 - kept) * after
        assert second[chosen].double().mean().item() == pytest.approx(exact, rel=0.02)


def test_small_parameters_follow_adamw_exactly() -> None:
    start = torch.randn(63, 64, generator=torch.Generator().manual_seed(2))
    parameter = Parameter(start.clone())
    way = follow(AdamW8bit([parameter], lr=1e-2, weight_decay=0.1), parameter, 20)
    torch.testing.assert_close(way, adamw_by_hand(start, 20, 1e-2, (0.9, 0.999), 1e-8, 0.1), rtol=1e-6, atol=1e-6)


def test_the_state_takes_two_bytes_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw_8bit, "CHUNK", 4 * BLOCK)  # several pieces, the last one not full
    parameter = Parameter(torch.ones(100, 101))
    before = parameter.detach().clone()
    optimizer = AdamW8bit([parameter], lr=1e-3, weight_decay=0.0)
    parameter.grad = torch.randn(100, 101, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    state = [one for one in optimizer.state[parameter].values() if isinstance(one, Tensor)]
    assert sum(one.nbytes for one in state) == 2 * (10240 + 40 * 4)
    # The first step of AdamW is the sign of the gradient.
    torch.testing.assert_close(parameter.detach(), before - 1e-3 * parameter.grad.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["first", "second"])
def test_levels_are_drawn_without_bias(name: str) -> None:
    table = levels(name)
    assert len(table) in (255, 256)
    assert table[-1] == 1.0
    random = torch.Generator().manual_seed(4)
    exact = nearest_levels(table, table, torch.rand(len(table), generator=random))
    assert torch.equal(exact.int(), torch.arange(len(table)).int())
    values = torch.tensor([0.731, 0.02, 3e-6 if name == "first" else 3e-9])
    draws = torch.rand(40_000, 3, generator=random)
    drawn = table[nearest_levels(values.expand(40_000, 3).contiguous(), table, draws).int()]
    assert all(len(column.unique()) == 2 for column in drawn.T)
    torch.testing.assert_close(drawn.double().mean(0), values.double(), rtol=5e-2 if name == "first" else 2e-3, atol=0)
    lowest = nearest_levels(torch.tensor([-2.0, 1e-30]), levels("second"), torch.tensor([0.0, 0.0]))
    assert lowest.tolist() == [0, 0]
