"""A plan against one real training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunerkit.errors import DatasetError
from tunerkit.planning.result import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunerkit.data.samples import Sample
    from tunerkit.planning.result import Plan
    from tunerkit.training.batches import BatchSource


@dataclass(frozen=True)
class Verification:
    """Peaks of the training step, in bytes of tensors.

    Attributes:
        planned: by the trace.
        measured: of the real step: by CUDA's counters on a GPU, by counting storages on the CPU.
        device: where it was measured.
    """

    planned: int
    measured: int
    device: str

    @property
    def error(self) -> float:
        """Share of what was measured by which the plan is above (or, negative, below) it."""
        return self.planned / self.measured - 1.0

    def __str__(self) -> str:
        planned, measured = (f"{size / GIB:.3f} GiB" for size in (self.planned, self.measured))
        return f"training step on {self.device}: planned {planned}, measured {measured} ({self.error:+.1%})"


def verify(plan: Plan) -> Verification:
    """See `Plan.verify`.

    Raises:
        DatasetError: there is no usable clip.
        ModelError: the base model is not there.
        OutOfMemoryError: the step does not fit.
    """
    import torch

    from tunerkit import families
    from tunerkit.cache.entries import Cache
    from tunerkit.devices import free_memory, run_device
    from tunerkit.dtypes import model_dtype
    from tunerkit.planning.measured import largest_of, measured_on_gpu, measured_step
    from tunerkit.planning.planner import traced_training
    from tunerkit.training.batches import BatchSource
    from tunerkit.training.engine import Engine
    from tunerkit.training.failures import explained_memory

    config, samples = plan.config, plan.samples
    if not samples:
        raise DatasetError("there is no usable clip to do a step with. Fix: see tk.inspect_dataset(config)")
    device, family = run_device(config), families.get(str(config.model_family))
    if device.type == "cpu":
        config = config.model_copy(update={"device": "cpu"})
    source = BatchSource(config, family, Cache(config, family), samples)
    try:
        number = _largest_batch(source, samples)
        with explained_memory(config):
            drawn = source.make(number)  # encodes what is not cached
            free_memory()
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            engine = Engine(config, family, family.load_transformer(config, model_dtype(config)), device)
            count = config.gradient_accumulation_steps
            if device.type == "cuda":
                measured = measured_on_gpu(engine, drawn, count) - before
            else:
                measured = max(one.peak for one in measured_step(engine, drawn, count))
    finally:
        source.close()
    step = traced_training(config, family, largest_of(drawn, samples[drawn.draw.indices[0]]))
    return Verification(step.largest.peak, measured, str(device))


def _largest_batch(source: BatchSource, samples: Sequence[Sample]) -> int:
    """Number of the batch of the first epoch with the most pixels."""

    def pixels(number: int) -> int:
        indices = source.plan.draw(number).indices
        width, height = samples[indices[0]].size
        return len(indices) * width * height * len(samples[indices[0]].frame_indices)

    return max(range(source.plan.batches_per_epoch), key=pixels)
