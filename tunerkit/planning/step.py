"""One training step, traced: the engine of a run does it, on tensors without content or on real ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.planning.batches import tensors_of
from tunerkit.planning.stand_ins import as_on, replaced
from tunerkit.planning.tracker import OTHER, WEIGHTS, Segment, StorageTracker
from tunerkit.training.engine import Engine

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family
    from tunerkit.training.batches import Drawn

ADAPTER, GRADIENTS, OPTIMIZER, EMA = "adapter", "gradients", "optimizer state", "EMA"
MOST_MICRO_BATCHES = 2
"""Micro-batches of a step that are traced: the second one finds gradients, and so do all that follow."""


def trace_step(
    config: TrainConfig, family: Family, transformer: Any, drawn: Callable[[], Drawn], *, alike: int
) -> tuple[list[Segment], int]:
    """Trace one step of a run as it is from the second step on, when the optimizer has its state.

    Args:
        transformer: on the meta device, as the family loads it.
        drawn: gives a batch.
        alike: how many blocks at the end of `family.blocks` are alike.

    Returns:
        what each stretch of the step takes, and the bytes that wait on the host.
    """
    tracker = StorageTracker()
    with as_on(planned_device(config)), tracker:
        tracker.label(WEIGHTS, tensors_in(transformer))
        with tracker.host(), torch.device("meta"):
            engine = Engine(config, family, transformer, tracker.device)
        keep_on_host(tracker, engine)
        _first_update(engine)
        label(tracker, engine)
        count = min(config.gradient_accumulation_steps, MOST_MICRO_BATCHES)
        if planned_device(config) == "cpu":  # a batch is not copied: it is there all the time
            with torch.device("meta"):
                kept = drawn()
            tracker.label(OTHER, tensors_of(kept))
            drawn = partial(_same, kept)
        with marked(tracker, engine, alike):
            engine.step([drawn] * count, 1, config.learning_rate)
        label(tracker, engine)
    return tracker.segments()[1:], tracker.host_bytes


def planned_device(config: TrainConfig) -> str:
    """What a plan is made for: a GPU, unless the settings name the CPU."""
    return "cpu" if config.device == "cpu" else "cuda"


def keep_on_host(tracker: StorageTracker, engine: Engine) -> None:
    """What a GPU would not hold: offloaded weights, what the optimizer has in RAM, and the EMA's weights unless the
    settings say otherwise."""
    if engine.offloader is not None:
        tracker.to_host(group.master.buffer for group in engine.offloader.groups)
    if engine.ema is not None and engine.config.ema_device != "accelerator":
        tracker.to_host(engine.ema.shadows.values())
    if engine.config.optimizer_cpu_offload_method != "none":
        weights = engine.weights
        tracker.to_host(one for name, one in weights.optimized.items() if one is not weights.live[name])
        for owner, name in ((weights, "gather_gradients"), (weights, "move_gradient"), (engine.optimizer, "step")):
            setattr(owner, name, _on_host(tracker, getattr(owner, name)))


def _on_host(tracker: StorageTracker, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, all of whose new tensors are in RAM."""

    def called(*arguments: Any, **named: Any) -> Any:
        with tracker.on_host():
            return call(*arguments, **named)

    return called


def _same(kept: Drawn) -> Drawn:
    return kept


def _first_update(engine: Engine) -> None:
    """The optimizer makes its state."""
    for parameter in engine.weights.live.values():
        parameter.grad = torch.empty_like(parameter)
    engine._update(0, [])
    engine.weights.zero_gradients()


def label(tracker: StorageTracker, engine: Engine) -> None:
    """Tell the tracker what the engine's tensors are."""
    live = list(engine.weights.live.values())
    trained = {id(one) for one in live} if engine.config.model_type == "lora" else set()
    tracker.label(WEIGHTS, [one for one in tensors_in(engine.transformer) if id(one) not in trained])
    tracker.label(ADAPTER if trained else WEIGHTS, live)
    weights = engine.weights
    masters = [one for name, one in weights.optimized.items() if one is not weights.live[name]]
    tracker.label(OPTIMIZER, masters)
    for state in engine.optimizer.state.values():
        tracker.label(OPTIMIZER, [one for one in state.values() if isinstance(one, torch.Tensor)])
    if engine.ema is not None:
        tracker.label(EMA, engine.ema.shadows.values())
    optimized = engine.weights.optimized.values()
    tracker.label(GRADIENTS, [one.grad for one in (*live, *optimized) if one.grad is not None])


@contextlib.contextmanager
def marked(tracker: StorageTracker, engine: Engine, alike: int) -> Iterator[None]:
    """Inside, a step's stretches are segments of their own, so that each grows evenly with the number of blocks.

    They are: what comes before the blocks that are alike; these; the loss; the way back through all of them but the
    first; through the first and what is before it; the update.
    """
    blocks = engine.family.blocks(engine.transformer)[-alike:]
    hooks = [
        blocks[0].register_forward_pre_hook(lambda *_: _forward_only(tracker, "blocks")),
        blocks[-1].register_forward_hook(lambda _, __, made: _after_last(tracker, made, last=True)),
        blocks[0].register_forward_hook(lambda _, __, made: _after_last(tracker, made, last=False)),
    ]
    hooks += [
        one.register_post_accumulate_grad_hook(partial(_label_gradient, tracker))
        for one in engine.weights.live.values()
    ]
    gather = engine.weights.gather_gradients

    def update() -> None:
        tracker.mark("update")
        gather()

    tracker.mark("before the blocks")
    try:
        with replaced(engine.weights, "gather_gradients", update):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _label_gradient(tracker: StorageTracker, one: torch.Tensor) -> None:
    if one.grad is not None:  # it may have gone to RAM
        tracker.label(GRADIENTS, [one.grad])


def _recomputing() -> bool:
    """Whether this runs inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


def _forward_only(tracker: StorageTracker, name: str) -> None:
    if not _recomputing():
        tracker.mark(name)


def _after_last(tracker: StorageTracker, made: Any, *, last: bool) -> None:
    """Mark the way back through a block when it begins: with whichever of the tensors it made comes first."""
    if _recomputing():
        return
    begun = False

    def begin(_: torch.Tensor) -> None:
        nonlocal begun
        if not begun:
            begun = True
            tracker.mark("back through the blocks" if last else "back through the first")

    for one in made if isinstance(made, Sequence) else [made]:
        if isinstance(one, torch.Tensor) and one.requires_grad:
            one.register_hook(begin)
    if last:
        tracker.mark("loss")


def tensors_in(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers and the tables that modules keep as plain attributes."""
    for each in module.modules():
        yield from (one for one in each._parameters.values() if one is not None)
        yield from (one for one in each._buffers.values() if one is not None)
        yield from (one for one in vars(each).values() if isinstance(one, torch.Tensor))
