"""Linear layers and convolutions of a frozen base model whose weight is kept in few bits.

Every product is computed in the precision of the layer's input: the weight is unpacked for it and dropped again, in
the forward and once more in the backward pass. Only the packed weight is kept for backward; a layer that left the
unpacked one to autograd would keep a full copy of every weight alive until then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.grad import conv2d_input

from tunerkit.memory.quantised_formats import FORMATS


class _Product(torch.autograd.Function):
    """What a layer makes of its input with a packed, frozen weight; differentiable in the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantised, *packed: Tensor) -> Tensor:
        ctx.layer, ctx.like = layer, layer._like(x)
        ctx.save_for_backward(*packed)
        return layer._product(x, layer._unpack(packed, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        packed: Sequence[Tensor] = ctx.saved_tensors
        weight = ctx.layer._unpack(packed, gradient.dtype)
        return ctx.layer._gradient(gradient, weight, ctx.like), None, *[None] * len(packed)


class Quantised(torch.nn.Module):
    """A frozen layer with a packed weight.

    It is what it stands for, for whatever looks for layers to adapt, but `weight` holds its codes; see `unpacked`.

    Args:
        layer: the layer whose place it takes, with its weight or on the meta device. Its bias stays the same object.
        precision: a name of `FORMATS` that fits the layer.
    """

    bias: Any

    def __init__(self, layer: torch.nn.Linear | torch.nn.Conv2d, precision: str) -> None:
        torch.nn.Module.__init__(self)
        self.precision = precision
        self.form = FORMATS[precision]
        self.shape = layer.weight.shape
        self.bias = layer.bias
        self._keep(self.form.pack(layer.weight.detach().flatten(1)))

    def fill(self, weight: Tensor, device: torch.device | str | None = None) -> None:
        """Take `weight`, floating point of the layer's `shape`; packed where it is, and kept on `device`."""
        self._keep([part.to(device) for part in self.form.pack(weight.flatten(1))])

    def unpacked(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the layer computes with, of its `shape`."""
        return self._unpack(self._packed, dtype)

    def forward(self, input: Tensor) -> Tensor:
        output = _Product.apply(input, self, *self._packed)
        assert isinstance(output, Tensor)
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, precision={self.precision}"

    @abstractmethod
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output."""

    @abstractmethod
    def _like(self, x: Tensor) -> Any:
        """What `_gradient` has to know of the input."""

    @abstractmethod
    def _gradient(self, gradient: Tensor, weight: Tensor, like: Any) -> Tensor:
        """The gradient of an input, from that of the output."""

    def _keep(self, packed: Sequence[Tensor]) -> None:
        """The codes have as many dimensions as the weight, which is what tells a convolution's kind."""
        codes = packed[0].view(*packed[0].shape, *[1] * (len(self.shape) - 2))
        for name, part in zip(("weight", *self.form.parts), (codes, *packed[1:]), strict=True):
            self.register_parameter(name, Parameter(part, requires_grad=False))

    @property
    def _packed(self) -> list[Tensor]:
        return [getattr(self, name) for name in ("weight", *self.form.parts)]

    def _unpack(self, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return self.form.unpack([packed[0].flatten(1), *packed[1:]], dtype).view(self.shape)


class QuantisedLinear(Quantised, torch.nn.Linear):
    """`x W^T + b` with a packed W `[N, K]`."""

    def __init__(self, linear: torch.nn.Linear, precision: str) -> None:
        super().__init__(linear, precision)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight, self.bias)

    def _like(self, x: Tensor) -> torch.Size:
        return x.shape

    def _gradient(self, gradient: Tensor, weight: Tensor, like: torch.Size) -> Tensor:
        return (gradient @ weight).view(like)


class QuantisedConv2d(Quantised, torch.nn.Conv2d):
    """A convolution over all channels with a packed weight `[N, C, H, W]`; a row of the format is one output's."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        # peft makes both parts of an adapter of the class of the layer that it adapts, from numbers of channels.
        if arguments and not isinstance(arguments[0], torch.nn.Module):
            return torch.nn.Conv2d(*arguments, **named)
        return super().__new__(cls)

    def __init__(self, convolution: torch.nn.Conv2d, precision: str) -> None:
        super().__init__(convolution, precision)
        for name in (*self.__constants__, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(convolution, name))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)

    def _like(self, x: Tensor) -> tuple[torch.Size, bool]:
        """Its shape, and whether its channels come last in memory."""
        return x.shape, x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()

    def _gradient(self, gradient: Tensor, weight: Tensor, like: tuple[torch.Size, bool]) -> Tensor:
        shape, channels_last = like
        if channels_last:
            # The input is not there to tell it, so the weight does; else the gradients would be laid out anew.
            _, c, h, w = self.shape
            weight = weight.contiguous(memory_format=torch.channels_last)
            weight = weight.as_strided(self.shape, (c * h * w, 1, c * w, c))
        sizes: Any = (self.stride, self.padding, self.dilation)
        return conv2d_input(shape, weight, gradient, *sizes)


def quantisable(layer: torch.nn.Module) -> bool:
    """Whether there is a quantised kind of `layer`.

    Not of a convolution of each channel by itself: its few weights would hardly become smaller, and a wrong one
    spoils a whole channel. Not of one that pads with anything but zeros either.
    """
    if isinstance(layer, torch.nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, torch.nn.Linear)


def quantise_layers(
    model: torch.nn.Module, names: Iterable[str], precision: str, on: torch.device | str | None = None
) -> None:
    """Replace the layers called `names` by quantised ones that stay where they were.

    Layers that are not `quantisable`, or whose width does not fit the format, are left as they are.

    Args:
        model: with its weights, or on the meta device to be filled later.
        precision: a name of `FORMATS`.
        on: where to compute; None = where each layer is.
    """
    for name in names:
        layer: Any = model.get_submodule(name)
        if not quantisable(layer) or layer.weight[0].numel() % FORMATS[precision].multiple:
            continue
        device = layer.weight.device
        if on is not None:
            layer.weight.data = layer.weight.data.to(on)
        kind: Any = QuantisedConv2d if isinstance(layer, torch.nn.Conv2d) else QuantisedLinear
        quantised = kind(layer, precision).to(device)
        quantised.train(layer.training)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, quantised)
