"""What a prepared trainer holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunerkit.cache.entries import Cache
from tunerkit.devices import run_device
from tunerkit.dtypes import model_dtype
from tunerkit.errors import CheckpointError
from tunerkit.training.checkpoints import find_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.training.batches import BatchSource
    from tunerkit.training.engine import Engine
    from tunerkit.training.run_folder import RunFolder
    from tunerkit.training.state import Fingerprint
    from tunerkit.validation.previews import Preview, PreviewDecoder
    from tunerkit.validation.render import Renderer, Rendering

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
        self._tell_length()
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

    def change(self, config: TrainConfig, new: dict[str, Any], step: int) -> None:
        """From the next step on, go by other settings; config.json and the events tell them.

        Args:
            config: resolved settings, of which `changed_settings` says that they can change.
            new: what is new of them, as JSON has it.
            step: optimizer steps done.

        Raises:
            ConfigError: they do not fit the transformer; nothing is changed then.
            OSError: config.json cannot be written; nothing is changed then.
        """
        objective = self.engine.objective_for(config)
        if self.is_main:
            self.folder.change(config, step, new)
        self.engine.change(config, objective)
        self.source.change(config)
        self.fingerprint = self.fingerprint.changed(config)
        self._tell_length()

    def _tell_length(self) -> None:
        if self.engine.alignment is not None:
            self.engine.alignment.total_steps = self.total_steps

    def save(self, step: int) -> Path:
        """Write the checkpoint of `step`, then prune to `checkpoints_total_limit`."""
        from tunerkit.training.state import write_state

        path = self.folder.path / f"checkpoint-{step}"
        if self.is_main:
            with self.folder.meanwhile("saving"):
                path = save_checkpoint(
                    self.folder.path,
                    step,
                    lambda folder: write_state(folder, self.engine, step, self.fingerprint),
                    self.engine.config.checkpoints_total_limit,
                )
            self.folder.event("checkpoint", step, f"saved {path.name}", path=path.name)
        self.wait()
        return path

    def restore(self, which: str | Path, *, missing_ok: bool) -> int:
        """Restore a checkpoint; see `Trainer.load_checkpoint`."""
        from tunerkit.training.state import read_state

        path, warnings = find_checkpoint(self.folder.path, which)
        step = 0
        if path is not None:
            step, more = read_state(path, self.engine, self.fingerprint)
            warnings = [*warnings, *more]
        elif not missing_ok:
            raise CheckpointError(f"{self.folder.path} holds no whole checkpoint. Fix: train first, or name one")
        for warning in warnings:
            logger.warning("%s", warning)
        self.metrics_continue = False
        return step

    def validate(
        self, step: int, on_preview: Callable[[Preview], object] | None, decoder: PreviewDecoder | None
    ) -> list[Rendering]:
        """Render every validation prompt, and tell of the videos and their previews.

        Args:
            step: optimizer steps done.
            on_preview: told of each preview beside the folder; None = nobody.
            decoder: makes their pictures; None = fitted colours.
        """

        def tell(preview: Preview) -> None:
            self.folder.preview(preview)
            if on_preview is not None:
                on_preview(preview)

        renderings: list[Rendering] = []
        if self.is_main:
            self.renderer.previews.hear(tell, decoder)
            with self.folder.meanwhile("validating"):
                renderings = self.renderer.round(self.engine, step)
            for rendering in renderings:
                name = rendering.path.relative_to(self.renderer.folder.parent).as_posix()
                self.folder.event("video", step, f"rendered {rendering.nickname}", path=name)
        self.wait()
        return renderings

    def finish(self, step: int, total: int) -> Path:
        """Write the final weights of a run that is done."""
        from tunerkit.training.export import write_final

        path = self.folder.path
        if self.is_main:
            path = write_final(self.engine, path)
            self.folder.listeners.tell("result", path)
            self.folder.status("done", step, total)
        self.wait()
        return path

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
