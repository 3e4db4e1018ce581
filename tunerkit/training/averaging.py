"""The weights to keep of an optimizer that averages them while it trains.

A schedule-free optimizer (A. Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682) holds three courses:

    z   the steps of AdamW         x   their average, weighted by the squared rate
    y = (1 - b1) z + b1 x          where gradients are taken: the weights that are trained

x is what a decaying rate would have led to: what is rendered, evaluated and exported. It is not stored; from y and z,
x = y + (1 - 1 / b1) (z - y). y is what training goes on from, so checkpoints hold y and z.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer


def averages(optimizer: Optimizer) -> bool:
    """Whether the weights to keep are not those that are trained."""
    return "train_mode" in optimizer.param_groups[0]


@contextlib.contextmanager
def averaged_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the parameters of the optimizer hold the average; afterwards, also when the block raises, their own bits.

    The way back is a copy, which waits in RAM, and no calculation: rendering must not change the training.
    """
    originals: dict[Tensor, Tensor] = {}
    try:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    steps = optimizer.state[parameter].get("z") if parameter in optimizer.state else None
                    if steps is not None:  # None: without a gradient so far
                        originals[parameter] = parameter.detach().to("cpu", copy=True)
                        parameter.lerp_(steps, 1.0 - 1.0 / group["betas"][0])
        yield
    finally:
        with torch.no_grad():
            for parameter, original in originals.items():
                parameter.copy_(original)
