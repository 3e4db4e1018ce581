"""Number formats of a frozen weight: what is kept of it in memory, and the weight back from that.

    int8      8 bits a weight: whole numbers from -127 to 127, and a step for each row
    fp8       8: float8 (e4m3), and a scale for each row
    fp8-cast  8: float8 (e4m3) and nothing else, as diffusers' layerwise casting stores a layer
    int4      4.5: one of 16 even steps between the least and the greatest of each group of 64
    nf4       4.25: one of 16 quantiles of a normal distribution, times the greatest magnitude of each group of 64
              (Dettmers et al. 2023, arXiv 2305.14314)

A row is all weights of one output, a group neighbours in it. What is kept is a few plain tensors, none of a
floating-point dtype that a library would take for the precision of the layer (float8 is kept as bytes).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

GROUPS = (64, 32, 16)
"""Sizes of a group; the first that divides the width of a layer is taken."""
_AT_ONCE = 1 << 18  # weights
LARGEST_INT8 = 127
LARGEST_FP8 = 448.0
"""The greatest finite number of e4m3."""
LEVELS = 15
"""The greatest code of four bits."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Values of the 16 codes, from appendix E of the paper."""


class Format(ABC):
    """How a weight is kept.

    Attributes:
        parts: names of what `pack` gives, beside the codes.
        values: of the codes, where they are looked up in a table.
        multiple: what the number of weights in a row must be a multiple of.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    values: ClassVar[tuple[float, ...]] = ()
    multiple: ClassVar[int] = 1

    def pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The codes and the parts of `weight`, floating point `[N, K]`, on its device.

        Some rows at a time: what is computed on the way takes little memory, and none between what stays.
        """
        rows = len(weight) if weight.is_meta else max(1, _AT_ONCE // weight.shape[1])
        values = torch.tensor(self.values, dtype=torch.float32, device=weight.device)
        table = [torch.cartesian_prod(values, values)] if self.values else []
        if rows >= len(weight):
            return (*self._pack(weight), *table)
        whole: list[Tensor] = []
        for first in range(0, len(weight), rows):
            some = self._pack(weight[first : first + rows])
            whole = whole or [part.new_empty((len(weight), *part.shape[1:])) for part in some]
            for target, part in zip(whole, some, strict=True):
                target[first : first + rows] = part
        return (*whole, *table)

    @abstractmethod
    def _pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The codes and the parts, but for the table."""

    @abstractmethod
    def unpack(self, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The weight `[N, K]` in `dtype`, from what `pack` gave."""


class Int8(Format):
    parts = ("scale",)

    def _pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Codes int8 `[N, K]`, scale float32 `[N, 1]`."""
        weight = weight.float()
        scale = _magnitude(weight) / LARGEST_INT8
        return (weight / scale).round_().to(torch.int8), scale

    def unpack(self, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Every code is exact in 16 bits, and the product is rounded once."""
        codes, scale = packed
        return codes.to(dtype).mul_(scale)


class Float8(Format):
    parts = ("scale",)

    def _pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Codes uint8 `[N, K]`, scale float32 `[N, 1]`."""
        weight = weight.float()
        scale = _magnitude(weight) / LARGEST_FP8
        return _float8_bytes(weight / scale), scale

    def unpack(self, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        codes, scale = packed
        return codes.view(torch.float8_e4m3fn).to(dtype).mul_(scale)


class Float8Cast(Format):
    def _pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Codes uint8 `[N, K]`."""
        return (_float8_bytes(weight),)

    def unpack(self, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return packed[0].view(torch.float8_e4m3fn).to(dtype)


class _FourBits(Format):
    """Two codes in a byte. `table`, float32 `[256, 2]`, holds the values of both, so that one look-up reads them."""

    multiple = GROUPS[-1]

    @staticmethod
    def _grouped(weight: Tensor) -> Tensor:
        """`[N, K / G, G]` in float32."""
        size = next(size for size in GROUPS if weight.shape[1] % size == 0)
        return weight.float().unflatten(1, (-1, size))

    @staticmethod
    def _bytes(codes: Tensor) -> Tensor:
        """uint8 `[N, K / 2]` of codes `[N, K / G, G]`."""
        pairs = codes.flatten(1).to(torch.uint8).unflatten(1, (-1, 2))
        return pairs[..., 0] * (LEVELS + 1) + pairs[..., 1]

    @staticmethod
    def _values(codes: Tensor, table: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
        """`[N, K / G, G]` in `dtype`, of codes uint8 `[N, K / 2]`."""
        found = torch.nn.functional.embedding(codes.to(torch.int32), table.to(dtype))
        return found.view(codes.shape[0], groups, -1)


class Int4(_FourBits):
    parts = ("scale", "offset", "table")
    values = tuple(range(LEVELS + 1))

    def _pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Codes uint8 `[N, K / 2]`, step and least value bfloat16 `[N, K / G, 1]`."""
        grouped = self._grouped(weight)
        least, greatest = grouped.aminmax(dim=2, keepdim=True)
        scale = _positive((greatest - least) / LEVELS).to(torch.bfloat16)
        offset = least.to(torch.bfloat16)
        codes = ((grouped - offset) / scale).round_().clamp_(0, LEVELS)
        return self._bytes(codes), scale, offset

    def unpack(self, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        codes, scale, offset, table = packed
        values = self._values(codes, table, scale.shape[1], dtype)
        return torch.addcmul(offset.to(dtype), values, scale.to(dtype)).flatten(1)


class NormalFloat4(_FourBits):
    parts = ("scale", "table")
    values = NF4

    def _pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Codes uint8 `[N, K / 2]`, greatest magnitude bfloat16 `[N, K / G, 1]`."""
        grouped = self._grouped(weight)
        scale = _magnitude(grouped).to(torch.bfloat16)
        values = torch.tensor(NF4, dtype=torch.float32, device=weight.device)
        between = (values[1:] + values[:-1]) / 2
        codes = torch.bucketize(grouped / scale, between, out_int32=True)
        return self._bytes(codes), scale

    def unpack(self, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        codes, scale, table = packed
        return self._values(codes, table, scale.shape[1], dtype).mul_(scale).flatten(1)


FORMATS: dict[str, Format] = {
    "int8": Int8(),
    "fp8": Float8(),
    "fp8-cast": Float8Cast(),
    "int4": Int4(),
    "nf4": NormalFloat4(),
}
"""By the value of `base_model_precision`."""


def _magnitude(weight: Tensor) -> Tensor:
    """The greatest magnitude along the last dimension, which stays; above 0, so that it can be divided by."""
    return _positive(weight.abs().amax(dim=-1, keepdim=True))


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(torch.float32).smallest_normal * LARGEST_FP8)


def _float8_bytes(weight: Tensor) -> Tensor:
    """e4m3 as uint8; what is greater than its greatest number would become NaN."""
    return weight.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn).view(torch.uint8)
