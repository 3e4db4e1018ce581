"""Counts the bytes that tensors take while code runs: on real tensors, or without memory on those of the meta device.

Counted are storages, each once, rounded up as CUDA's allocator rounds them, from the operation that makes them until
nothing holds them any more: what an allocator would have to give, less its fragmentation. What kernels take for
themselves (workspaces) is not seen.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils.flop_counter import flop_registry

from tunerkit.planning.memo import MEMO
from tunerkit.planning.seconds import Work
from tunerkit.planning.traffic import starts_kernel, touched

ROUNDING = 512
"""Bytes that every allocation is a multiple of (CUDACachingAllocator's smallest block)."""
WEIGHTS, OTHER = "weights", "activations"
"""Parts that storages belong to where nothing is said: what is filled from the host, and all else."""
_CPU = torch.device("cpu")
_ATEN: Any = torch.ops.aten
_FLOPS: dict[Any, Any] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


@dataclass(slots=True)
class _Storage:
    """A storage that was seen: bytes, the moment it came and went (None: still there), and what it is part of."""

    size: int
    born: int
    died: int | None
    part: str
    alive: Any


@dataclass(frozen=True)
class Segment:
    """A stretch of the traced code.

    Attributes:
        name: see `StorageTracker.mark`.
        peak: most bytes alive at one time.
        parts: what they were, by part.
        work: what it asks of a machine; a multiply-add is two operations.
    """

    name: str
    peak: int
    parts: Mapping[str, int]
    work: Work


@dataclass(slots=True)
class _Open:
    """The segment that is being traced; `moment` is when its peak was, the rest is as in `Work`."""

    name: str
    peak: int
    moment: int
    flops: int = 0
    flops_fp32: int = 0
    touched: int = 0
    kernels: int = 0
    link: int = 0
    link_beside: int = 0

    @property
    def work(self) -> Work:
        return Work(self.flops, self.flops_fp32, self.touched, self.kernels, self.link, self.link_beside)


class StorageTracker(TorchDispatchMode):
    """Counts the bytes on one device while it is active (`with`).

    On the meta device, numbers that the code asks for (`.item()` of a tensor there) are 1, copies to the host stay on
    the meta device but are not counted, and results that were worked out before are not worked out again.

    Args:
        device: what is counted: "meta" stands for a GPU; "cpu" counts real tensors.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.current = 0
        self._storages: list[_Storage] = []
        self._known: dict[int, _Storage] = {}
        self._host: dict[int, Any] = {}
        self._moment = 0
        self._open = _Open("start", 0, 0)
        self._closed: list[_Open] = []
        self._host_factories = self._all_on_host = False
        self._memo = MEMO if device == "meta" else None

    # What is said from outside -------------------------------------------------------------------------------------

    def mark(self, name: str) -> None:
        """From now on it is the segment `name`."""
        self._closed.append(self._open)
        self._open = _Open(name, self.current, self._moment)

    def segments(self) -> list[Segment]:
        """What was counted so far, in order."""
        return [
            Segment(one.name, one.peak, self._parts_at(one.moment), one.work) for one in (*self._closed, self._open)
        ]

    def label(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Say what tensors are part of; those that were not seen yet are counted from now on."""
        for tensor in _plain(tensors):
            if (storage := self._count(tensor)) is not None:
                storage.part = part

    def to_host(self, tensors: Iterable[torch.Tensor]) -> None:
        """Say that tensors lie in the host's memory: they are counted no longer."""
        for tensor in _plain(tensors):
            self._on_host(tensor)

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        """Inside, what is made on the CPU by name stands on the meta device, uncounted: masters of offloaded weights,
        for one."""
        before, self._host_factories = self._host_factories, self._memo is not None
        try:
            yield
        finally:
            self._host_factories = before

    @contextlib.contextmanager
    def on_host(self) -> Iterator[None]:
        """Inside, all that operations make lies in the host's memory."""
        before, self._all_on_host = self._all_on_host, True
        try:
            yield
        finally:
            self._all_on_host = before

    @property
    def host_bytes(self) -> int:
        """Bytes that lie in the host's memory, as far as it was said."""
        return sum(storage.nbytes() for reference in self._host.values() if (storage := reference()) is not None)

    # Counting ------------------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is ever compiled: torch's guard against it would cost a tenth of a trace."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(_is_made_of_several(kind) for kind in types):
            return NotImplemented  # it is taken apart first, and its parts come here
        kwargs = kwargs or {}
        if self._memo is None:
            result = func(*args, **kwargs)
        else:
            result = self._without_content(func, args, kwargs)
        made = [one for one in _listed([result]) if one.device.type == self.device.type]
        for tensor in made:
            if self._all_on_host and tensor.untyped_storage()._cdata not in self._known:
                self._on_host(tensor)
            else:
                self._count(tensor)
        if starts_kernel(func):
            self._work(func, args, kwargs, result, made)
        return result

    def _work(self, func: Any, args: Any, kwargs: Any, result: Any, made: Sequence[torch.Tensor]) -> None:
        """Count what an operation asks of the machine."""
        given = [one for one in _listed(args) if one.device.type == self.device.type]
        if not given and not made:
            return
        packet, now = func._overloadpacket, self._open
        now.kernels += 1
        formula = _FLOPS.get(packet)
        if formula is None:
            now.touched += touched(args, result)
        elif given[0].dtype == torch.float32:
            now.flops_fp32 += int(formula(*args, **kwargs, out_val=result))
        else:
            now.flops += int(formula(*args, **kwargs, out_val=result))

    def _without_content(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation on the meta device."""
        assert self._memo is not None
        if func is _ATEN._local_scalar_dense.default and args[0].is_meta:
            return _one(args[0].dtype)
        if kwargs.get("device") == _CPU and self._goes_to_host(args):
            made = func(*args, **{**kwargs, "device": self.device, "pin_memory": False})
            self._on_host(made)
            return made
        if func is _ATEN.copy_.default and self._from_host(args[0], args[1]):
            self._open.link_beside += args[0].nbytes  # offloaded weights
            self.label(WEIGHTS, [args[0]])
        result = self._memo(func, args, kwargs)
        if func is _ATEN._to_copy.default and self._from_host(result, args[0]):
            self._open.link += result.nbytes
        return result

    def _goes_to_host(self, args: Any) -> bool:
        return self._host_factories or any(isinstance(one, torch.Tensor) and one.is_meta for one in args)

    def _from_host(self, made: torch.Tensor, source: Any) -> bool:
        if not isinstance(source, torch.Tensor) or not made.is_meta or self._is_host(made):
            return False
        return source.device == _CPU or self._is_host(source)

    def _is_host(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta and tensor.untyped_storage()._cdata in self._host

    def _on_host(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if (known := self._known.pop(key, None)) is not None:
            self._forget(known)
        if key not in self._host:
            self._host[key] = weakref.ref(storage, lambda _: self._host.pop(key, None))

    def _count(self, tensor: torch.Tensor) -> _Storage | None:
        """The storage of a tensor, counted if it is new; None where it is elsewhere."""
        if tensor.device.type != self.device.type:
            return None
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._known.get(key)
        if known is not None or key in self._host:
            return known
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        self._moment += 1
        known = _Storage(size, self._moment, None, OTHER, None)
        known.alive = weakref.ref(storage, lambda _: self._gone(key, known))
        self._storages.append(known)
        self._known[key] = known
        self.current += size
        if self.current > self._open.peak:
            self._open.peak, self._open.moment = self.current, self._moment
        return known

    def _gone(self, key: int, known: _Storage) -> None:
        if self._known.get(key) is known:
            del self._known[key]
            self._forget(known)

    def _forget(self, known: _Storage) -> None:
        self._moment += 1
        known.died = self._moment
        self.current -= known.size

    def _parts_at(self, moment: int) -> dict[str, int]:
        parts: dict[str, int] = {}
        for one in self._storages:
            if one.born <= moment and (one.died is None or one.died > moment):
                parts[one.part] = parts.get(one.part, 0) + one.size
        return parts


def _is_made_of_several(kind: type) -> bool:
    """Whether tensors of this class are made of several plain ones (quantised weights)."""
    return hasattr(kind, "__tensor_flatten__")


def _plain(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors, those made of several taken apart."""
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            yield from _plain(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        else:
            yield tensor


def _listed(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among values and in lists of them."""
    for one in values:
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, (tuple, list)):
            yield from (each for each in one if isinstance(each, torch.Tensor))


def _one(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1
