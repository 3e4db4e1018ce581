"""Frozen weights that are on the device only while their modules run.

Copies go from host to device only, since frozen weights never change: what is released is dropped. Trained weights
never move. Forward hooks bring a group of modules before its first module runs and release it after its last one, in
training as in rendering; in the backward pass the same hooks work for the recomputation of checkpointed blocks, whose
gradients then use what autograd itself still holds of the weights. This needs checkpointing that recomputes to the end
of a block: see `Offloader.around_recomputation`.

With prefetching, the weights of the group that follows travel on a stream of their own while a group computes. The
memory is taken on the computing stream, before the group's own work is queued, so that it is memory that earlier groups
have finished with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunerkit.memory.masters import Master, Store


class Group:
    """Modules whose frozen weights travel together.

    Args:
        modules: in the order in which they run; at least one.
        places: module (one of `modules` or inside one) and name of each parameter that travels; they are replaced by
            the master's.
        store: where the master keeps its bytes.
    """

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        places: Sequence[tuple[torch.nn.Module, str]],
        store: Store,
    ) -> None:
        self.modules = tuple(modules)
        self._places = tuple(places)
        self._store = store  # one on disk deletes its files when nobody has it any more
        weights: list[Any] = [module._parameters[name] for module, name in places]
        self.master = Master(weights, store)
        self._waiting = self.master.read(self.master.buffer)
        del weights
        self.release()

    @property
    def bytes(self) -> int:
        return self.master.buffer.numel()

    def use(self, buffer: torch.Tensor) -> None:
        """Let the modules compute with the weights in `buffer`, a copy of the master's on the device."""
        self._set(self.master.read(buffer))

    def release(self) -> None:
        """Let the modules hold the master's weights again."""
        self._set(self._waiting)

    def take_out(self) -> None:
        """Leave the modules without these weights."""
        self._set([None] * len(self._places))

    def _set(self, weights: Sequence[torch.nn.Parameter | None]) -> None:
        # The parameter is replaced, not its data: autograd keeps the ones that it saved, whatever comes after.
        for (module, name), weight in zip(self._places, weights, strict=True):
            module._parameters[name] = weight


class Offloader:
    """Brings groups to a device when they are needed; at most one is in use, and one on its way, at any time.

    Args:
        root: the model; its forward is one pass.
        groups: in the order in which they usually run. Where they run in another order, prefetching learns it.
        device: where they compute.
        prefetch: bring the next group while one computes.
    """

    def __init__(self, root: torch.nn.Module, groups: Sequence[Group], device: torch.device, *, prefetch: bool) -> None:
        self.groups = tuple(groups)
        self.device = device
        self._next: dict[tuple[bool, Group], Group] = {}
        if prefetch:
            for backward, order in ((False, self.groups), (True, self.groups[::-1])):
                self._next |= {(backward, one): other for one, other in zip(order, order[1:], strict=False)}
        self._prefetch = prefetch
        on_gpu = prefetch and device.type == "cuda" and torch.cuda.is_available()
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._backward = False
        self._active: Group | None = None
        self._passed: dict[tuple[bool, Group], None] = {}
        self._coming: _Coming | None = None
        self._hooks: list[Any] = [
            root.register_forward_pre_hook(lambda *_: self._rest()),
            root.register_forward_hook(lambda *_: self._rest(), always_call=True),
        ]
        for group in self.groups:
            for module in group.modules:
                self._hooks += [
                    module.register_forward_pre_hook(lambda *_, group=group: self._before(group)),
                    module.register_forward_hook(lambda module, *_, group=group: self._after(group, module)),
                ]

    @property
    def bytes(self) -> int:
        """Of all weights that wait on the host."""
        return sum(group.bytes for group in self.groups)

    @property
    def most_on_device(self) -> int:
        """Bytes of offloaded weights that are on the device at one time, at most, as long as autograd holds none."""
        sizes = sorted((group.bytes for group in self.groups), reverse=True)
        return sum(sizes[: 2 if self._prefetch else 1])

    def around_recomputation(self) -> tuple[contextlib.AbstractContextManager[Any], ...]:
        """The `context_fn` of `torch.utils.checkpoint.checkpoint`: what a forward and its recomputation run in.

        Checkpointing must not stop early (`early_stop=False`): a block is released at its end.
        """
        return contextlib.nullcontext(), self._recomputing()

    def remove(self) -> None:
        """Forget the hooks; the weights stay on the host."""
        self._rest()
        for hook in self._hooks:
            hook.remove()

    # Hooks -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        self._backward = True
        try:
            yield
        finally:
            self._backward = False

    def _before(self, group: Group) -> None:
        if self._active is group:
            return
        self._release()  # what an error left
        self._learn(group)
        group.use(self._bring(group))
        self._active = group
        following = self._next.get((self._backward, group))
        if following is not None:
            self._coming = _Coming(following, self._empty(following), self._stream)

    def _after(self, group: Group, module: torch.nn.Module) -> None:
        if self._coming is not None:
            # Only now, with the module's work queued: a copy from memory that is not pinned keeps this thread busy.
            self._coming.start()
        if module is group.modules[0 if self._backward else -1]:
            self._release()

    def _rest(self) -> None:
        """Between two passes nothing is on the device."""
        self._release()
        self._drop()
        self._end_pass()

    # The pieces ------------------------------------------------------------------------------------------------

    def _learn(self, group: Group) -> None:
        """Remember which group follows which in this direction, and which is the last of a pass."""
        if not self._prefetch:
            return
        here = (self._backward, group)
        if here in self._passed:
            self._end_pass()
        if self._passed:
            self._next[next(reversed(self._passed))] = group
        self._passed[here] = None

    def _end_pass(self) -> None:
        if self._passed:
            self._next.pop(next(reversed(self._passed)), None)
        self._passed.clear()

    def _bring(self, group: Group) -> torch.Tensor:
        coming = self._coming
        if coming is not None and coming.group is group:
            self._coming = None
            return coming.arrived()
        self._drop()
        buffer = self._empty(group)
        buffer.copy_(group.master.buffer, non_blocking=True)
        return buffer

    def _release(self) -> None:
        if self._active is not None:
            self._active.release()
            self._active = None

    def _drop(self) -> None:
        if self._coming is not None:
            self._coming.give_up()
            self._coming = None

    def _empty(self, group: Group) -> torch.Tensor:
        return torch.empty(group.bytes, dtype=torch.uint8, device=self.device)


class _Coming:
    """A group on its way to the device.

    Args:
        group: whose weights come.
        buffer: memory for them, just taken on the computing stream.
        stream: that copies; None where there are no streams.
    """

    def __init__(self, group: Group, buffer: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        self.group, self._buffer, self._stream = group, buffer, stream
        self._started = False
        self._free = None if stream is None else torch.cuda.current_stream(buffer.device).record_event()

    def start(self) -> None:
        """Queue the copy, once."""
        if self._started:
            return
        self._started = True
        if self._stream is None or self._free is None:
            self._buffer.copy_(self.group.master.buffer)
            return
        self._stream.wait_event(self._free)
        with torch.cuda.stream(self._stream):
            self._buffer.copy_(self.group.master.buffer, non_blocking=True)

    def arrived(self) -> torch.Tensor:
        """The weights; what is queued on the computing stream from now on waits for them."""
        self.start()
        self._wait()
        return self._buffer

    def give_up(self) -> None:
        """Let the memory be used for something else."""
        if self._started:
            self._wait()

    def _wait(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._buffer.device).wait_stream(self._stream)
