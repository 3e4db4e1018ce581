"""The trainer: an object that is prepared once and then stepped, watched, saved and resumed at will."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunerkit.families as families
from tunerkit.cache.build import Progress
from tunerkit.data.report import DatasetReport
from tunerkit.devices import free_memory, run_device
from tunerkit.errors import TunerkitError
from tunerkit.project import resolve
from tunerkit.reporting.starting import start_reporting
from tunerkit.running.control import Orders
from tunerkit.training.checking import changed_settings, check_settings
from tunerkit.training.checkpoints import remove_temporary
from tunerkit.training.evaluation_plan import EvaluationPlan
from tunerkit.training.failures import explained_memory, saved_without_cache, told_failures
from tunerkit.training.loaded import Loaded, load
from tunerkit.training.optimizers import step_rate
from tunerkit.training.preparing import cached_samples
from tunerkit.training.results import StepResult
from tunerkit.training.run_folder import RunFolder
from tunerkit.training.schedules import learning_rate
from tunerkit.training.stopping import StopRequest, next_orders

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.training.export import LoraFormat
    from tunerkit.validation.previews import Preview, PreviewDecoder
    from tunerkit.validation.render import Rendering

logger = logging.getLogger("tunerkit")


class Trainer:
    """Trains one run.

    Making a trainer checks the settings and nothing else; `prepare()` caches, loads and resumes; `step()` does one
    optimizer step; `steps()` does many, with checkpoints and validation when they are due.

        trainer = Trainer(config)
        trainer.prepare()
        for result in trainer.steps(100):
            print(result.step, result.loss)

    Args:
        config: settings as from `load_config`.

    Raises:
        ConfigError: all problems of the settings at once.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = resolve(config)
        self.family = families.get(str(self.config.model_family))
        check_settings(self.config, self.family)
        self.report: DatasetReport | None = None
        self.global_step = 0
        self._state: Loaded | None = None
        self._stop_asked = False
        self.on_preview: Callable[[Preview], object] | None = None
        """Called with each preview of a video that is being rendered (`validation_preview`)."""
        self.preview_decoder: PreviewDecoder | None = None
        """Makes the pictures of previews from estimated latents, for example a Tiny AutoEncoder; see
        `tunerkit.validation.previews.PreviewDecoder`. None = rough colours that are fitted to a few clips."""
        self._evaluations = EvaluationPlan.of(self.config)
        self._trained = 0.0  # seconds of this process's steps

    # Preparation -----------------------------------------------------------------------------------------------

    def prepare(self, *, progress: Progress | bool = True, folder: RunFolder | None = None) -> Trainer:
        """Claim the output folder, look at the clips, fill the cache, load the model, resume. Safe to call twice.

        Args:
            progress: how to show the encoding of clips, as for `build_cache`.
            folder: the output folder, where the caller has claimed it already.

        Raises:
            DatasetError: if no clip is usable.
            ModelError: if the base model is missing or of another family.
            CheckpointError: if an explicitly named checkpoint cannot be used.
            OutOfMemoryError: if the model does not fit; the message says what to change.
            StoppedEarlyError: if control.json asked the run to end while clips were encoded.
        """
        if self._state is not None:
            return self
        from accelerate import PartialState

        processes = PartialState(cpu=self.config.device == "cpu")
        folder = folder or RunFolder(self.config.output_path)
        if processes.is_main_process:
            folder.lock()
            remove_temporary(folder.path)  # what killed runs left; also finishes a replacement they had begun
        try:
            with told_failures(folder, self.config, main=processes.is_main_process):
                self._prepare(folder, processes, progress)
        except BaseException:
            self._state = None
            folder.close()
            free_memory()
            raise
        return self

    def _prepare(self, folder: RunFolder, processes: Any, progress: Progress | bool) -> None:
        main = processes.is_main_process
        folder.device = str(run_device(self.config))
        told = folder if main else None
        if main:
            start_reporting(self.config, folder, processes.num_processes)
        with processes.main_process_first():
            self.report, samples, evaluated = cached_samples(self.config, told, progress)
        if main:
            folder.activity("loading the model")
        self._state = load(self.config, self.family, folder, samples, evaluated, processes)
        self._evaluations.steps_per_epoch = self._state.steps_per_epoch
        if self.config.resume_from_checkpoint:
            self.load_checkpoint(self.config.resume_from_checkpoint, missing_ok=True)
        if main:  # last: a refused resumption leaves the folder as it was
            self.config.save(folder.path / "config.json")
            folder.status("preparing", self.global_step, self.total_steps, activity="ready")

    @property
    def loaded(self) -> Loaded:
        """What `prepare()` loaded.

        Raises:
            TunerkitError: if `prepare()` was not called.
        """
        if self._state is None:
            raise TunerkitError("the trainer is not prepared. Fix: call trainer.prepare() first")
        return self._state

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: `max_train_steps`, or `num_train_epochs` over the data."""
        return self.config.max_train_steps or self.loaded.total_steps

    @property
    def done(self) -> bool:
        return self.global_step >= self.total_steps

    # Steps -----------------------------------------------------------------------------------------------------

    def step(self) -> StepResult:
        """One optimizer step: accumulate, clip, update, log.

        Raises:
            NonFiniteLossError: before anything is updated, naming the samples.
            OutOfMemoryError: if it does not fit into memory; the message says what to change.
        """
        with explained_memory(self.config, self.loaded.engine.weights.zero_gradients):
            return self._step()

    def _step(self) -> StepResult:
        started = time.perf_counter()
        loaded, step = self.loaded, self.global_step
        numbers = self._batch_numbers(step)
        following = [*numbers[1:], self._batch_numbers(step + 1)[0]]
        lr = learning_rate(self.config, step, self.total_steps, loaded.processes)
        rate = step_rate(loaded.engine.optimizer, lr)
        update = loaded.engine.step(
            [lambda n=n, f=f: loaded.source.get(n, f) for n, f in zip(numbers, following, strict=True)],
            step,
            lr,
        )
        self.global_step = step + 1
        result = StepResult(
            step=self.global_step,
            loss=update.loss,
            parts=update.parts,
            lr=rate,
            grad_norm=update.grad_norm,
            seconds=time.perf_counter() - started,
            epoch=update.epoch,
            samples=update.samples,
        )
        if loaded.is_main:
            if not loaded.metrics_continue:  # the first step since loading: later lines are of a course given up
                loaded.folder.keep_metrics(step)
                loaded.metrics_continue = True
            loaded.folder.log(result.row(), self.total_steps)
        self._trained += result.seconds
        return result

    def _batch_numbers(self, step: int) -> list[int]:
        """Numbers of this process's batches of optimizer step `step` (from 0)."""
        loaded, accumulation = self.loaded, self.config.gradient_accumulation_steps
        first = step * accumulation
        return [(first + i) * loaded.processes + loaded.rank for i in range(accumulation)]

    def steps(self, count: int | None = None, *, evaluate: bool = False) -> Iterator[StepResult]:
        """Steps until `count` are done or the run is complete, with checkpoints and validation when they are due.

        The base model is rendered before the first step. An interrupt (Ctrl-C, the notebook's stop button, SIGTERM)
        lets the running step finish, saves a checkpoint and then raises KeyboardInterrupt; a second one stops at
        once. After the last step of the run the final weights are written to the output folder.

        Args:
            count: number of steps, at least 0; None for all that are left.
            evaluate: also measure the loss at fixed noise, as often as `eval_steps_interval` and
                `eval_epoch_interval` say.

        Raises:
            TunerkitError: if `count` is not such a number.
            OutOfMemoryError: if a step does not fit into memory; the message says what to change.

        Yields:
            the result of each step, with the checkpoint and the videos made after it.
        """
        if count is not None and (not isinstance(count, int) or count < 0):
            raise TunerkitError(f"steps({count!r}): the number of steps must be a whole number from 0. Fix: steps(100)")
        self._stop_asked = False
        last = None if count is None else self.global_step + count
        told = told_failures(self.loaded.folder, self.config, main=self.loaded.is_main)
        with StopRequest() as stop, told, saved_without_cache(self.save_checkpoint):
            if self._goes_on(last):
                self._render_base_model()
                self._evaluate_if(evaluate)
            while self._goes_on(last):
                orders, interrupted = self.loaded.agree((self._next_orders(stop), stop.requested))
                self._take(orders.changes)
                if interrupted or orders.mode == "stop":
                    self._save_and_rest()
                    if interrupted:
                        raise KeyboardInterrupt
                    return
                if orders.mode == "pause" or not self._goes_on(last):  # with something to do all the same
                    self._fulfil(orders.requests)
                    continue
                result = self._after_step(self.step(), orders.requests)
                self._evaluate_if(evaluate, saved=result.checkpoint is not None)
                yield result
            if self.done:
                self.finish()

    def _goes_on(self, last: int | None) -> bool:
        """Whether there is a step to do up to `last`; the length of the run may change on the way."""
        return not self.done and (last is None or self.global_step < last)

    def _after_step(self, result: StepResult, requests: Collection[str]) -> StepResult:
        """Save and render what is due after a step, or was asked for."""
        due = set(requests)
        if _due(self.global_step, self.config.checkpoint_step_interval, self.done):
            due.add("save")
        if _due(self.global_step, self.config.validation_step_interval, self.done):
            due.add("validate")
        checkpoint, videos = self._fulfil(due)
        return replace(result, checkpoint=checkpoint, videos=videos)

    def _fulfil(self, requests: Collection[str]) -> tuple[Path | None, tuple[Rendering, ...]]:
        """Save a checkpoint, render the validation prompts, both or nothing."""
        checkpoint = self.save_checkpoint() if "save" in requests else None
        return checkpoint, tuple(self.validate()) if "validate" in requests else ()

    def _render_base_model(self) -> None:
        """The base model's videos, once, at step 0: what every later video is compared with."""
        compared = self.config.validation_step_interval and not self.config.disable_benchmark
        wanted = compared or self.config.validation_on_startup
        if self.global_step == 0 and wanted and not self.loaded.renderer.has_base():
            self.validate()

    def _evaluate_if(self, wanted: bool, *, saved: bool = False) -> None:
        """Measure the loss at fixed noise where that is wanted, due, and not known from before."""
        loaded = self.loaded
        if not (wanted and loaded.is_main):
            return
        due = self._evaluations.due(self.global_step, self.total_steps, self._trained, saved=saved)
        if not due or self.global_step in loaded.folder.evaluated_steps():
            return
        loaded.folder.activity("measuring the loss at fixed noise")
        started = time.perf_counter()
        self.evaluation_loss()
        self._evaluations.took(time.perf_counter() - started)
        loaded.folder.activity("")

    def _next_orders(self, stop: StopRequest) -> Orders:
        """What `stop()` or control.json asks for; waits while that is only a pause. Only the main process looks."""
        if not self.loaded.is_main:
            return Orders()
        folder, total = self.loaded.folder, self.total_steps
        return next_orders(folder, lambda: stop.requested or self._stop_asked, self.global_step, total)

    def stop(self) -> None:
        """Ask `steps()` to end after the running step, with a checkpoint; for buttons and other threads."""
        self._stop_asked = True

    def _save_and_rest(self) -> None:
        path = self.save_checkpoint()
        self._stop_asked = False
        if self.loaded.is_main:
            self.loaded.folder.clear_control()  # the stop is done: the next call of steps() goes on
            self.loaded.folder.status("stopped", self.global_step, self.total_steps)
            logger.warning("stopped after step %d; saved %s", self.global_step, path)

    def change(self, **settings: Any) -> dict[str, Any]:
        """Go on with other settings from the next step on; also inside a loop over `steps()`.

            trainer.change(tread_config=None)  # all tokens pass all blocks
            trainer.change(crepa_lambda=0.2, scheduled_sampling_max_step_offset=25)

        That can be the routes, the weight, threshold and neighbours of an alignment, and whether there is one where
        the trainer was prepared with it, the rollout, learning rate and schedule, gradient clipping, the length of the
        run, and how often it saves, validates and evaluates. The training is then, to the bit, that of a run which
        resumes here with these settings. `config` and config.json have them, for that run too. Several processes that
        train together must all call it.

        Returns:
            what is different now: setting -> value.

        Raises:
            ConfigError: all problems of the result, and every setting that cannot change, at once; nothing is changed.
            OSError: config.json cannot be written; nothing is changed.
        """
        loaded = self.loaded
        has_projector = loaded.engine.alignment is not None
        config, new = changed_settings(self.config, self.family, settings, has_projector=has_projector)
        if new:
            loaded.change(config, new, self.global_step)
            self.config = config
            self._evaluations.change(config)
        return new

    def _take(self, changes: Sequence[dict[str, Any]]) -> None:
        """Go on with settings that control.json asks for; what is refused is told, and the training goes on."""
        for settings in changes:
            try:
                self.change(**settings)
            except (TunerkitError, OSError) as error:
                logger.warning("settings were to change, and stay as they are: %s", error)

    # Checkpoints and results -----------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Write `checkpoint-<step>` whole or not at all, then prune to `checkpoints_total_limit`."""
        return self.loaded.save(self.global_step)

    def load_checkpoint(self, which: str | Path = "latest", *, missing_ok: bool = False) -> int:
        """Restore a checkpoint: the number of steps done.

        Args:
            which: "latest" (the newest whole one), a folder, or a folder's name in the output folder.
            missing_ok: with "latest" and no checkpoint at all, start from step 0 instead of raising.

        Raises:
            CheckpointError: if it is missing, damaged, or of another model.
        """
        self.global_step = self.loaded.restore(which, missing_ok=missing_ok)
        return self.global_step

    def validate(self) -> list[Rendering]:
        """Render every validation prompt with the current weights; out of memory is reported, not raised."""
        return self.loaded.validate(self.global_step, self.on_preview, self.preview_decoder)

    def evaluation_loss(self) -> float:
        """Loss at fixed samples, noise levels and noise: comparable between steps; logged to evaluation.jsonl.

        Measured on the datasets of `dataset_type = "eval"`, or on training samples where there are none. The line that
        is logged also has it by dataset, by noise level, and of picture and sound: see
        `tunerkit.training.evaluation.Evaluation`.
        """
        from tunerkit.training.evaluation import evaluate

        loaded = self.loaded
        result = evaluate(loaded.engine, loaded.source, loaded.evaluated)
        if loaded.is_main:
            loaded.folder.log_evaluation({"step": self.global_step, **result.row(), "time": time.time()})
        return result.loss

    def export_lora(self, path: str | Path, format: LoraFormat = "diffusers") -> Path:
        """Write the adapter to a `.safetensors` file, in `"diffusers"` or `"comfyui"` layout, and check it."""
        from tunerkit.training.export import export_lora

        return export_lora(self.loaded.engine, path, format)

    def finish(self) -> Path:
        """Write the final weights: `pytorch_lora_weights.safetensors`, or `transformer/` of a full fine-tuning.

        With EMA, its weights are written beside them (`ema_lora_weights.safetensors` or `transformer_ema/`).
        """
        return self.loaded.finish(self.global_step, self.total_steps)

    def close(self) -> None:
        """Free the model's memory and the output folder. A closed trainer may be prepared again."""
        if self._state is not None:
            self._state.source.close()
            self._state.folder.close()
        self._state = None
        free_memory()


def _due(step: int, interval: int | None, last: bool) -> bool:
    """Whether something with this interval is due; an active one is also due after the run's last step."""
    return bool(interval) and (step % interval == 0 or last)
