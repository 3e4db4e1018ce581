"""How many frames a VAE that works in parts takes at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

FRAMES = 4
"""Where free memory is not known."""
MOST_FRAMES = 16
"""Longer parts are no faster."""
SHARE = 0.25
"""Of the free memory, for what grows with a part; the rest is for what layers keep of other frames and for whole
activations."""
ACTIVATIONS = 8
"""So many activations as large as the outermost layer's does one more frame of a part take; traced: 4 to 9."""


@dataclass(frozen=True)
class Parts:
    """How an encoder or a decoder divides a clip.

    Attributes:
        frames: most frames that a layer is given at a time; None = as many as free memory allows.
        smallest: compute twice what would have to be kept.
        values: of the outermost layer's activation for each position of the input.
    """

    frames: int | None
    smallest: bool
    values: float

    def limit(self, x: torch.Tensor) -> int:
        """Most frames of a part of the input `x`, `[B, C, T, H, W]` on the device of the computation."""
        if self.frames is not None:
            return self.frames
        positions = x.shape[0] * x.shape[3] * x.shape[4]
        return frames_that_fit(free_memory(x.device), int(positions * self.values) * x.element_size())


def frames_that_fit(free: int | None, largest: int) -> int:
    """How many frames to take at a time.

    Args:
        free: bytes of memory; None where that is not known.
        largest: bytes of one frame in the outermost layer's activation.
    """
    if free is None:
        return FRAMES
    return min(MOST_FRAMES, max(1, int(free * SHARE / (ACTIVATIONS * largest))))


_PLANNED: ContextVar[Callable[[], int] | None] = ContextVar("_PLANNED", default=None)


@contextlib.contextmanager
def planned_memory(free: Callable[[], int]) -> Iterator[None]:
    """Inside, the meta device stands for a GPU on which `free()` bytes can still be taken."""
    before = _PLANNED.set(free)
    try:
        yield
    finally:
        _PLANNED.reset(before)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on a GPU; None elsewhere, so that nothing depends on what else runs."""
    if device.type == "meta" and (planned := _PLANNED.get()) is not None:
        return planned()
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
