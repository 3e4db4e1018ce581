"""Linear layers of a frozen base model whose weight is kept in few bits.

Every product is computed in the precision of the layer's input: the weight is unpacked for it and dropped again, in
the forward and once more in the backward pass. Only the packed weight is kept for backward; a layer that left the
unpacked one to autograd would keep a full copy of every weight alive until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tunerkit.memory.quantised_formats import FORMATS, Format


class _PackedLinear(torch.autograd.Function):
    """`x W^T + b` with a packed, frozen W; differentiable in x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: Format, bias: Tensor | None, *packed: Tensor) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(*packed)
        return torch.nn.functional.linear(x, form.unpack(packed, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        packed: Sequence[Tensor] = ctx.saved_tensors
        return gradient @ ctx.form.unpack(packed, gradient.dtype), None, None, *[None] * len(packed)


class QuantisedLinear(torch.nn.Linear):
    """A frozen linear layer with a packed weight.

    It is a `torch.nn.Linear` for whatever looks for layers to adapt, but `weight` holds its codes; see `unpacked`.

    Args:
        linear: the layer whose place it takes, with its weight or on the meta device. Its bias stays the same object.
        precision: a name of `FORMATS` that fits the layer.
    """

    def __init__(self, linear: torch.nn.Linear, precision: str) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.precision = precision
        self.form = FORMATS[precision]
        self.bias = linear.bias
        self._keep(self.form.pack(linear.weight.detach()))

    def fill(self, weight: Tensor, device: torch.device | str | None = None) -> None:
        """Take `weight`, floating point `[out_features, in_features]`; packed where it is, and kept on `device`."""
        self._keep([part.to(device) for part in self.form.pack(weight)])

    def _keep(self, packed: Sequence[Tensor]) -> None:
        for name, part in zip(("weight", *self.form.parts), packed, strict=True):
            self.register_parameter(name, Parameter(part, requires_grad=False))

    @property
    def _packed(self) -> list[Tensor]:
        return [getattr(self, name) for name in ("weight", *self.form.parts)]

    def unpacked(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the layer computes with, `[out_features, in_features]`."""
        return self.form.unpack(self._packed, dtype)

    def forward(self, input: Tensor) -> Tensor:
        output = _PackedLinear.apply(input, self.form, self.bias, *self._packed)
        assert isinstance(output, Tensor)
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, precision={self.precision}"


def quantise_layers(
    model: torch.nn.Module, names: Iterable[str], precision: str, on: torch.device | str | None = None
) -> None:
    """Replace the linear layers called `names` by quantised ones that stay where they were.

    Layers whose width does not fit the format are left as they are.

    Args:
        model: with its weights, or on the meta device to be filled later.
        precision: a name of `FORMATS`.
        on: where to compute; None = where each layer is.
    """
    for name in names:
        linear = model.get_submodule(name)
        if not isinstance(linear, torch.nn.Linear) or linear.in_features % FORMATS[precision].multiple:
            continue
        device = linear.weight.device
        if on is not None:
            linear.weight.data = linear.weight.data.to(on)
        quantised = QuantisedLinear(linear, precision).to(device)
        quantised.train(linear.training)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, quantised)
