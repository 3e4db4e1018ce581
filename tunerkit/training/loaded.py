"""What a prepared trainer holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tunerkit.cache.entries import Cache
from tunerkit.devices import run_device
from tunerkit.dtypes import model_dtype

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.training.batches import BatchSource
    from tunerkit.training.engine import Engine
    from tunerkit.training.run_folder import RunFolder
    from tunerkit.training.state import Fingerprint
    from tunerkit.validation.render import Renderer

logger = logging.getLogger("tunerkit")
_T = TypeVar("_T")


class Loaded:
    """The model, the data and the folder of a run, and this process's place among those that train it."""

    def __init__(
        self,
        *,
        folder: RunFolder,
        engine: Engine,
        source: BatchSource,
        evaluated: Sequence[Sample],
        renderer: Renderer,
        fingerprint: Fingerprint,
        processes: int,
        rank: int,
    ) -> None:
        self.folder, self.engine, self.source, self.renderer = folder, engine, source, renderer
        self.evaluated = evaluated
        """What the evaluation loss is measured on: the eval datasets, else the training samples."""
        self.fingerprint, self.processes, self.rank = fingerprint, processes, rank
        if engine.alignment is not None:
            engine.alignment.total_steps = self.total_steps
        self.metrics_continue = False
        """Whether metrics.jsonl ends where the trainer is."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; see `Trainer.total_steps`."""
        config = self.engine.config
        if config.max_train_steps:
            return config.max_train_steps
        batches = self.source.plan.first_batch(config.num_train_epochs or 0)
        return -(-batches // (config.gradient_accumulation_steps * self.processes))

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps of the first epoch; not always a whole number."""
        together = self.engine.config.gradient_accumulation_steps * self.processes
        return self.source.plan.batches_per_epoch / together

    def agree(self, decision: _T) -> _T:
        """The main process's decision, in every process."""
        if self.processes == 1:
            return decision
        import torch.distributed as dist

        shared = [decision]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def wait(self) -> None:
        """Meet the other processes."""
        if self.processes > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def load(
    config: TrainConfig,
    family: Family,
    folder: RunFolder,
    samples: Sequence[Sample],
    evaluated: Sequence[Sample],
    processes: Any,
) -> Loaded:
    """Load the model and make everything ready for the first step.

    Args:
        config: resolved settings.
        family: the model family.
        folder: the run's folder.
        samples: what is trained on; all in the cache.
        evaluated: held-out samples; the training samples are evaluated where there are none.
        processes: accelerate's state of the processes that train together.

    Raises:
        ModelError: if the base model is missing or of another family.
        CheckpointError: if `init_lora` does not fit.
    """
    from tunerkit.training.batches import BatchSource
    from tunerkit.training.engine import Engine
    from tunerkit.training.state import Fingerprint
    from tunerkit.validation.render import Renderer

    device = run_device(config)
    cache = Cache(config, family)
    # First: what is wrong with its inputs is known before a large model is loaded.
    renderer = Renderer(config, family, cache, device, folder.path / "validation", evaluated or samples)
    transformer = family.load_transformer(config, model_dtype(config))
    engine = Engine(config, family, transformer, device, processes.num_processes)
    if config.init_lora:
        from tunerkit.training.export import read_lora

        read_lora(engine, config.init_lora)
    source = BatchSource(config, family, cache, samples)
    for remark in source.plan.remarks:
        logger.warning("%s", remark)
    if any(sample.is_i2v for sample in samples) and renderer.prompts and not renderer.has_images:
        logger.warning(
            "image to video is trained (video.is_i2v), but every validation prompt renders text to video: give "
            "first frames in validation_input"
        )
    return Loaded(
        folder=folder,
        engine=engine,
        source=source,
        evaluated=evaluated or samples,
        renderer=renderer,
        fingerprint=Fingerprint.of(config, samples, processes.num_processes),
        processes=processes.num_processes,
        rank=processes.process_index,
    )
