"""Muon for matrices, AdamW for all else, as one optimizer.

Muon (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) takes the average of the
gradients of a weight matrix and sets its singular values to about 1, so that every direction of the matrix learns at
the same speed:

    M = mu M + (1 - mu) G        U = G + mu (M - G) with Nesterov's momentum, else M
    W = W - lr * weight_decay * W - lr * 0.2 * sqrt(max(A, B)) * NS(U)         W is A x B

NS is a few Newton-Schulz steps, `X = a X + (b X X' + c (X X')^2) X` from `X = U / |U|`, with Jordan's coefficients:
they bring singular values near 1 fast, most to 0.7 to 1.2 rather than to 1. The factor 0.2 sqrt(max(A, B)) gives the
update the size that AdamW's usually has (J. Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv 2502.16982,
section 2.2), so `learning_rate` and weight decay mean what they mean for AdamW.

A matrix is any weight with two or more dimensions and more than one row and column; the kernel of a convolution counts
as its output channels by all the rest. An adapter's two factors are matrices of their own. What is no matrix (biases,
norms, magnitudes of DoRA) is updated by AdamW with the same rate and decay.

Memory: 4 bytes of state per float32 weight of a matrix, 8 of any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TOGETHER = 1 << 24
"""Elements of equal matrices that are worked on at once: bounds the scratch space."""
_SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Muon for matrices, AdamW for all other parameters; the formulas stand at the top of this module.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, >= 0, of both.
        momentum: decay of the average of the gradients of matrices, in [0, 1).
        nesterov: whether the newest gradient is added to that average once more.
        ns_steps: Newton-Schulz steps, 1 to 99.
        weight_decay: decoupled decay per unit of learning rate, >= 0, of both.
        betas: decay of AdamW's first and second moment, each in [0, 1).
        eps: added to the root of AdamW's second moment, >= 0.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0.0 or eps < 0.0 or weight_decay < 0.0:
            raise ValueError(f"lr {lr}, eps {eps} and weight_decay {weight_decay} must not be negative")
        if not all(0.0 <= decay < 1.0 for decay in (momentum, *betas)):
            raise ValueError(f"momentum {momentum} and betas {betas} must each be in [0, 1)")
        if not 1 <= ns_steps < 100:
            raise ValueError(f"ns_steps {ns_steps} must be 1 to 99")
        numbers = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        super().__init__(params, {**numbers, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            present = [one for one in group["params"] if one.grad is not None and one.numel()]
            self._step_matrices([one for one in present if is_matrix(one)], group)
            self._step_others([one for one in present if not is_matrix(one)], group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameters_alike in _alike(parameters):
            gradients = [_gradient(one) for one in parameters_alike]
            averages = [self._average(one) for one in parameters_alike]
            torch._foreach_lerp_(averages, gradients, 1.0 - group["momentum"])
            updates = torch._foreach_lerp(gradients, averages, group["momentum"]) if group["nesterov"] else averages
            stacked = torch.stack([one.reshape(one.shape[0], -1) for one in updates])
            size = 0.2 * max(stacked.shape[1:]) ** 0.5
            orthogonal = orthogonalised(stacked, group["ns_steps"])
            torch._foreach_mul_(parameters_alike, 1.0 - group["lr"] * group["weight_decay"])
            for parameter, update in zip(parameters_alike, orthogonal, strict=True):
                parameter.add_(update.reshape(parameter.shape).to(parameter), alpha=-group["lr"] * size)

    def _average(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device="cpu")
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [_gradient(one) for one in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_matrix(parameter: Tensor) -> bool:
    """Whether a weight has rows and columns."""
    return parameter.dim() >= 2 and 1 < parameter.shape[0] < parameter.numel()


def orthogonalised(matrices: Tensor, steps: int) -> Tensor:
    """Matrices with the singular vectors of those given and singular values near 1.

    Args:
        matrices: `[N, A, B]`.
        steps: Newton-Schulz steps, from 1.

    Returns:
        `[N, A, B]`, in bfloat16, or in float32 on the CPU, which is not faster in bfloat16.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _alike(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Those of one shape, dtype and device, at most `TOGETHER` elements at a time: an adapter's hundreds of small
    matrices cost a handful of kernels."""
    kinds: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        kinds[parameter.shape, parameter.dtype, parameter.device].append(parameter)
    for kind in kinds.values():
        count = max(1, TOGETHER // kind[0].numel())
        for start in range(0, len(kind), count):
            yield kind[start : start + count]


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
