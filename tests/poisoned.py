"""An offloader that lets nobody compute with a weight that is not there, and writes down what is."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from tunerkit.memory import offload_groups
from tunerkit.memory.offload import Group, Offloader

NAN = 255
"""A byte of which bfloat16 and float32 numbers become NaN."""


class Poisoned(Offloader):
    """Lets modules hold NaN while their weights are not brought, fills memory with NaN before and after its use, and
    counts the buffers that are alive."""

    def __init__(self, root: torch.nn.Module, groups: Any, device: torch.device, *, prefetch: bool) -> None:
        for group in groups:
            group._waiting = group.master.read(torch.full_like(group.master.buffer, NAN))
            group.release()
        super().__init__(root, groups, device, prefetch=prefetch)
        lists = [child for child in root.children() if isinstance(child, torch.nn.ModuleList)]
        self._in_blocks = {id(module) for blocks in lists for module in blocks.modules()}
        self.alive = self.bytes_alive = self.most_bytes = self.brought = 0
        self.most = {False: 0, True: 0}
        """Most buffers that were alive in forward (False) and backward (True)."""
        self._used: Any = None

    def _empty(self, group: Group) -> torch.Tensor:
        buffer = super()._empty(group).fill_(NAN)
        self.brought += 1
        self.alive += 1
        self.bytes_alive += group.bytes
        self.most[self._backward] = max(self.most[self._backward], self.alive)
        self.most_bytes = max(self.most_bytes, self.bytes_alive)
        weakref.finalize(buffer.untyped_storage(), self._gone, group.bytes)
        return buffer

    def _gone(self, size: int) -> None:
        self.alive -= 1
        self.bytes_alive -= size

    def _bring(self, group: Group) -> torch.Tensor:
        buffer = super()._bring(group)
        self._used = weakref.ref(buffer)
        return buffer

    def _release(self) -> None:
        leaving = self._active
        super()._release()
        buffer = None if leaving is None else self._used()
        if leaving is not None and buffer is not None and not self._needed(leaving):
            buffer.fill_(NAN)

    def _needed(self, group: Group) -> bool:
        """Whether autograd may hold the weights: in the backward pass, and of layers outside of checkpointed blocks."""
        outside = any(id(module) not in self._in_blocks for module in group.modules)
        return torch.is_grad_enabled() and (self._backward or outside)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever is offloaded be poisoned."""
    monkeypatch.setattr(offload_groups, "Offloader", Poisoned)
