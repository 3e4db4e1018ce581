"""Exponential moving average of the trained weights.

Formula (the ramp of Polyak averaging as TensorFlow's ExponentialMovingAverage introduced it), with t the
number of averaging updates already made:

    decay_t = min((1 + t) / (10 + t), decay)
    shadow  = shadow + (1 - decay_t) * (weight - shadow)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tunerkit.errors import CheckpointError


class EMA:
    """Float32 shadows of named parameters.

    Args:
        parameters: the trained parameters by name, of any floating-point dtype and shape.
        decay: upper limit of the decay, 0 <= decay < 1.
        update_interval: average at every so-many-th optimizer step, at least 1.
        warmup_steps: up to and including this optimizer step the shadows are plain copies of the weights.
        device: where the shadows live: "accelerator" means beside each parameter; otherwise a torch device.

    Raises:
        ValueError: `decay`, `update_interval` or `warmup_steps` is out of range.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        decay: float,
        update_interval: int = 1,
        warmup_steps: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        if update_interval < 1 or warmup_steps < 0:
            raise ValueError(f"update_interval {update_interval} must be >= 1, warmup_steps {warmup_steps} >= 0")
        self.parameters = dict(parameters)
        self.decay = decay
        self.update_interval = update_interval
        self.warmup_steps = warmup_steps
        self.updates = 0
        self.shadows: dict[str, Tensor] = {
            name: parameter.detach().to(
                device=parameter.device if device == "accelerator" else device, dtype=torch.float32, copy=True
            )
            for name, parameter in self.parameters.items()
        }

    def current_decay(self) -> float:
        """The decay of the next averaging update."""
        return min((1 + self.updates) / (10 + self.updates), self.decay)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after an optimizer step.

        Args:
            step: optimizer steps done, the one just made included (1 after the first).
        """
        if step <= self.warmup_steps:
            for name, parameter in self.parameters.items():
                self.shadows[name].copy_(parameter)
            return
        if step % self.update_interval:
            return
        weight = 1.0 - self.current_decay()
        together: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, parameter in self.parameters.items():
            shadow, live = self.shadows[name], parameter.detach()
            if live.dtype == shadow.dtype and live.device == shadow.device:
                together[0].append(shadow)
                together[1].append(live)
            else:  # one at a time: converting all at once would cost a second float32 copy of the model
                shadow.lerp_(live.to(shadow), weight)
        if together[0]:
            torch._foreach_lerp_(together[0], together[1], weight)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the live parameters hold the shadows (rounded to their own dtype).

        Afterwards, also when the block raises, they hold their original bits again. The originals wait on the
        device of the shadows, so that with shadows on the CPU no accelerator memory is taken.
        """
        originals: dict[str, Tensor] = {}
        try:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    originals[name] = parameter.detach().to(self.shadows[name].device, copy=True)
                    parameter.copy_(self.shadows[name])
            yield
        finally:
            with torch.no_grad():
                for name, original in originals.items():
                    self.parameters[name].copy_(original)

    def state_dict(self) -> dict[str, Any]:
        """`{"updates": int, "shadows": {name: float32 tensor}}` with the live shadows, not copies."""
        return {"updates": self.updates, "shadows": dict(self.shadows)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: a name or a shape differs from the parameters; nothing was changed.
        """
        saved: Mapping[str, Tensor] = state["shadows"]
        for name in [*self.shadows, *saved]:
            if name not in saved or name not in self.shadows:
                where = "the checkpoint" if name not in saved else "this model"
                raise CheckpointError(
                    f"EMA weights: {name} is missing in {where}. Fix: resume with the model and adapter "
                    "settings of the saved run, or set use_ema to false."
                )
            if saved[name].shape != self.shadows[name].shape:
                raise CheckpointError(
                    f"EMA weights: {name} has shape {list(saved[name].shape)} in the checkpoint and "
                    f"{list(self.shadows[name].shape)} in this model. Fix: resume with the settings of the "
                    "saved run (lora_rank, for one), or set use_ema to false."
                )
        for name, shadow in self.shadows.items():
            shadow.copy_(saved[name])
        self.updates = int(state["updates"])
