"""Frozen weights that wait in RAM or on disk: one buffer of bytes for a group of modules, and how to read it.

The weights of a group lie one behind the other, so that a group travels in one copy, takes one allocation of one size
on the device, and is pinned or memory-mapped as one piece.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

logger = logging.getLogger("tunerkit")
ALIGNMENT = 256
"""Bytes that every tensor starts at a multiple of: as much as any kernel asks for."""

Store = Callable[[torch.Tensor], torch.Tensor]
"""Takes a buffer of bytes on the CPU and returns one of the same content that is kept in another way."""


@dataclass(frozen=True)
class Place:
    """Where a plain tensor lies in a buffer: first byte, shape, stride, dtype."""

    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.start + torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor as a view of `buffer`, uint8 `[bytes]`."""
        return buffer[self.start : self.end].view(self.dtype).as_strided(self.shape, self.stride)

    def write(self, buffer: torch.Tensor, tensor: torch.Tensor) -> None:
        self.read(buffer).copy_(tensor)


def placed(tensor: torch.Tensor, start: int) -> Place:
    """Where `tensor` goes in a buffer whose first `start` bytes are taken.

    Raises:
        TypeError: it is made of several tensors.
    """
    if is_traceable_wrapper_subclass(tensor):
        raise TypeError(f"weights of class {type(tensor).__name__} cannot be offloaded")
    stride = tensor.stride() if _is_dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
    return Place(-(-start // ALIGNMENT) * ALIGNMENT, tuple(tensor.shape), tuple(stride), tensor.dtype)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without holes, in whatever order."""
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == 0 or span == tensor.numel()


class Master:
    """The weights of a group on the host.

    Args:
        tensors: weights on any device; copied.
        store: keeps the bytes elsewhere than in plain RAM.

    Raises:
        TypeError: a tensor is made of several.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], store: Store = lambda buffer: buffer) -> None:
        self._places: list[Place] = []
        size = 0
        for tensor in tensors:
            self._places.append(placed(tensor, size))
            size = self._places[-1].end
        buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
        with torch.no_grad():
            for place, tensor in zip(self._places, tensors, strict=True):
                place.write(buffer, tensor)
        self.buffer = buffer if buffer.is_meta else store(buffer)  # there is no content on the meta device
        """uint8 `[bytes]` on the CPU."""

    def read(self, buffer: torch.Tensor) -> list[torch.nn.Parameter]:
        """The weights as frozen parameters that are views of `buffer`, a copy of the master's on any device."""
        return [torch.nn.Parameter(place.read(buffer), requires_grad=False) for place in self._places]


class Pinned:
    """A store that locks buffers in RAM, so that a GPU reads them while it computes.

    The buffer itself is registered with CUDA: torch's own pinned memory would be rounded up to a power of two. Where
    the system refuses, buffers stay as they are, which is slower, and it is said once.
    """

    def __init__(self) -> None:
        self._refused = False

    def __call__(self, buffer: torch.Tensor) -> torch.Tensor:
        if self._refused or not buffer.numel():
            return buffer
        runtime: Any = torch.cuda.cudart()
        address = buffer.data_ptr()
        if int(runtime.cudaHostRegister(address, buffer.numel(), 0)) == 0:
            weakref.finalize(buffer.untyped_storage(), runtime.cudaHostUnregister, address).atexit = False
            return buffer
        with contextlib.suppress(RuntimeError):  # CUDA would tell the next kernel of the refusal: let it be this one
            torch.ones(1, device="cuda")
        self._refused = True
        logger.warning(
            "no more memory can be locked in RAM (ulimit -l, or too little RAM): offloaded weights are copied to the "
            "GPU more slowly"
        )
        return buffer
