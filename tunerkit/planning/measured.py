"""One real training step, measured: by counting storages on the CPU, by CUDA's own counters on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tunerkit.planning.batches import tensors_of
from tunerkit.planning.largest import Largest
from tunerkit.planning.step import MOST_MICRO_BATCHES, keep_on_host, label, marked
from tunerkit.planning.tracker import Segment, StorageTracker

if TYPE_CHECKING:
    from tunerkit.training.batches import Drawn
    from tunerkit.training.engine import Engine


def measured_step(engine: Engine, drawn: Drawn, micro_batches: int) -> list[Segment]:
    """Do two optimizer steps on the CPU with one batch, and count the storages of the second one.

    Args:
        micro_batches: of a step.

    Returns:
        its stretches, as `trace_step` gives them.
    """
    count = min(micro_batches, MOST_MICRO_BATCHES)
    engine.step([lambda: drawn] * count, 0, engine.config.learning_rate)
    engine.weights.zero_gradients()
    tracker = StorageTracker("cpu")
    with tracker:
        keep_on_host(tracker, engine)
        label(tracker, engine)
        tracker.label("activations", tensors_of(drawn))
        with marked(tracker, engine, len(engine.family.blocks(engine.transformer))):
            engine.step([lambda: drawn] * count, 1, engine.config.learning_rate)
        label(tracker, engine)
    return tracker.segments()[1:]


def measured_on_gpu(engine: Engine, drawn: Drawn, micro_batches: int) -> int:
    """Do two optimizer steps with one batch: the most bytes that the second one's tensors took on the engine's GPU."""
    step = [lambda: drawn] * micro_batches
    engine.step(step, 0, engine.config.learning_rate)
    engine.weights.zero_gradients()
    torch.cuda.reset_peak_memory_stats(engine.device)
    engine.step(step, 1, engine.config.learning_rate)
    return int(torch.cuda.max_memory_allocated(engine.device))


def largest_of(drawn: Drawn, sample: Any) -> Largest:
    """What a batch that was read is made of; `sample` is one of it."""
    batch = drawn.batch
    return Largest(
        *sample.size,
        frames=len(sample.frame_indices),
        fps=sample.fps,
        clips=len(batch.latents),
        sound=None if sample.sound is None else sample.sound.seconds,
        first_frame=batch.first_frame is not None,
        mask=batch.loss_mask is not None,
        tokens=batch.text["prompt_embeds"].shape[1],
    )
