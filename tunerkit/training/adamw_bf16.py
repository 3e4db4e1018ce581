"""AdamW that learns in bfloat16.

A bfloat16 number has 8 significant bits: an update smaller than about 1/512 of a weight is lost when it is
added, and an average that moves by 0.1 % a step stands still. Two devices repair that without float32 copies:

* Each bfloat16 parameter carries a bfloat16 compensation: the true weight is `parameter + compensation`.
  What the rounding of the parameter loses stays in the compensation (W. Kahan, "Further remarks on reducing
  truncation errors", 1965), so the parameter is always the bfloat16 number nearest to the true weight.
* The compensation and both moments are rounded stochastically: up or down with the probabilities that leave
  the mean unchanged (S. Gupta et al., "Deep Learning with Limited Numerical Precision", 2015). Small updates
  then count in the long run, however small they are.

Memory: 8 bytes per bfloat16 weight (2 itself, 6 of state), against 12 for float32 weights under plain AdamW.

All arithmetic is float32. The update is AdamW (I. Loshchilov and F. Hutter, "Decoupled Weight Decay
Regularization", 2019), with both bias corrections and the decay applied at every step:

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    w = w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) - lr * weight_decay * w
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, _utils
from torch.optim.optimizer import Optimizer, ParamsT

from tunerkit.draws import derived_seed
from tunerkit.errors import ConfigError, Problem

CHUNK = 1 << 21
"""Elements worked on at once: bounds the float32 scratch space to some 80 MiB."""


_STATE = ("exp_avg", "exp_avg_sq", "compensation")


class AdamWBF16(Optimizer):
    """AdamW: compensated and stochastically rounded for bfloat16 parameters, plain for float32 ones.

    The random bits of a step come from a generator seeded with (seed, parameter group, step), so the same run
    gives the same bits and a resumed one continues them; no generator state needs saving.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, >= 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of learning rate, >= 0.
        seed: of the stochastic rounding.

    Raises:
        ValueError: a number is out of its range.
        ConfigError: a parameter is neither bfloat16 nor float32.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        if lr < 0.0 or eps < 0.0 or weight_decay < 0.0:
            raise ValueError(f"lr {lr}, eps {eps} and weight_decay {weight_decay} must not be negative")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas {betas} must each be in [0, 1)")
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**numbers, "seed": seed, "step": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            ConfigError: a parameter is neither bfloat16 nor float32.
        """
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype not in (torch.bfloat16, torch.float32):
                name = str(parameter.dtype).removeprefix("torch.")
                message = f"trains bfloat16 and float32 weights, and these are {name}"
                fix = "set mixed_precision to bf16, or optimizer to torch-adamw"
                raise ConfigError([Problem("optimizer", "adamw_bf16", message, fix)])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            group["step"] += 1
            generators: dict[torch.device, torch.Generator] = {}
            for (device, dtype, count), parameters in self._alike(group["params"]).items():
                if dtype == torch.float32:
                    self._step_float32(parameters, group, count)
                    continue
                if device not in generators:
                    seed = derived_seed(group["seed"], "stochastic rounding", index, group["step"])
                    generators[device] = torch.Generator(device).manual_seed(seed)
                for chunk in self._chunks(parameters):
                    _step_bfloat16(chunk, group, count, generators[device])
        return loss

    def _alike(self, parameters: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype, int], list[Tensor]]:
        """Parameters with a gradient by (device, dtype, updates); makes their state and counts it up."""
        alike: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is None or parameter.numel() == 0:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
                if parameter.dtype == torch.bfloat16:
                    state["compensation"] = torch.zeros_like(parameter)
            state["step"] += 1
            alike[parameter.device, parameter.dtype, state["step"]].append(parameter)
        return alike

    def _step_float32(self, parameters: list[Tensor], group: dict[str, Any], count: int) -> None:
        """Plain AdamW on float32 parameters and states."""
        beta1, beta2 = group["betas"]
        gradients = [_gradient(parameter) for parameter in parameters]
        first = [self.state[parameter]["exp_avg"] for parameter in parameters]
        second = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, (1.0 - beta2**count) ** 0.5)
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, first, denominator, -group["lr"] / (1.0 - beta1**count))

    def _chunks(self, parameters: list[Tensor]) -> Iterable[list[tuple[Tensor, ...]]]:
        """Rows of (weight, gradient, *`_STATE`), about `CHUNK` elements at a time.

        Small tensors travel together, so that thousands of adapter matrices cost a handful of kernels; a
        large one is cut up, so that the scratch space stays small.
        """
        chunk: list[tuple[Tensor, ...]] = []
        size = 0
        for parameter in parameters:
            state = self.state[parameter]
            row = (parameter.detach(), _gradient(parameter), *(state[key] for key in _STATE))
            if parameter.numel() > CHUNK and all(tensor.is_contiguous() for tensor in row):
                yield from ([piece] for piece in zip(*(tensor.view(-1).split(CHUNK) for tensor in row), strict=True))
                continue
            chunk.append(row)
            size += parameter.numel()
            if size >= CHUNK:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk


def _step_bfloat16(rows: list[tuple[Tensor, ...]], group: dict[str, Any], count: int, random: torch.Generator) -> None:
    """AdamW on bfloat16 rows of (weight, gradient, first moment, second moment, compensation), in place."""
    beta1, beta2 = group["betas"]
    weights, gradients, firsts, seconds, compensations = ([row[k] for row in rows] for k in range(5))
    weight, gradient, first, second, compensation = (
        _utils._flatten_dense_tensors(column).float() for column in (weights, gradients, firsts, seconds, compensations)
    )
    # One draw per element holds the 16 random bits of each of the three roundings.
    bits = torch.empty(weight.numel(), dtype=torch.int64, device=weight.device).random_(generator=random)

    first.lerp_(gradient, 1.0 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    denominator = second.sqrt().div_((1.0 - beta2**count) ** 0.5).add_(group["eps"])
    # Kept apart from the rounded weight: in a float32 sum with it the smallest updates would vanish.
    change = compensation.sub(weight + compensation, alpha=group["lr"] * group["weight_decay"])
    change.addcdiv_(first, denominator, value=-group["lr"] / (1.0 - beta1**count))
    rounded = (weight + change).bfloat16()
    left_over = change.sub_(rounded.float().sub_(weight))

    for targets, values in (
        (weights, rounded),
        (firsts, round_stochastically(first, bits)),
        (seconds, round_stochastically(second, bits >> 16)),
        (compensations, round_stochastically(left_over, bits >> 32)),
    ):
        torch._foreach_copy_(targets, list(_utils._unflatten_dense_tensors(values, targets)))


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """Round float32 to one of the two bfloat16 neighbours, each as likely as the value is near to it.

    Args:
        values: float32, any shape.
        bits: integers of the same shape whose low 16 bits are uniformly random.

    Returns:
        bfloat16 whose mean over the random bits is `values`. A number that bfloat16 holds stays as it is;
        infinities and NaN too.
    """
    # Bfloat16 is the upper half of float32: adding a random lower half carries with the right probability.
    raised = values.view(torch.int32) + bits.bitwise_and(0xFFFF).to(torch.int32)
    rounded = raised.bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
