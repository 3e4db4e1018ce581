"""A training that is watched while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Generator

import tunerkit as tk
from tunerkit_widgets.evaluation_plan import EvaluationPlan
from tunerkit_widgets.history import TrainingHistory, tenths
from tunerkit_widgets.live_views import PlainView, Progress, View, WidgetView
from tunerkit_widgets.surroundings import headless
from tunerkit_widgets.texts import text
from tunerkit_widgets.videos import find_videos

BREATH_SECONDS = 0.25
"""How often the waiting clicks of an asynchronous cell are handled."""


class TrainingStopped(KeyboardInterrupt):
    """The notebook's stop button ended the training, after a checkpoint. Shown as one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class LiveTraining:
    """Runs a prepared trainer in a cell: loss curves, state line and the rendered videos as they arrive.

    Args:
        trainer: prepared.
        evaluate_every: steps between evaluations at fixed noise; None: about twenty in the run, fewer where they are
            slow; 0: never.

    Attributes:
        history: both loss curves, of earlier sessions of the run too.
        view: what is shown, while it runs.
    """

    def __init__(self, trainer: tk.Trainer, *, evaluate_every: int | None = None) -> None:
        self.trainer = trainer
        self.history = TrainingHistory.read(trainer.config.output_path, trainer.global_step)
        self._plan = EvaluationPlan(evaluate_every)
        self._stop_asked = False
        self.view: View | None = None

    def run(self, steps: int | None = None) -> TrainingHistory:
        """Train `steps` steps, or all that are left; the cell is busy until then.

        Raises:
            TrainingStopped: on an interrupt, after the trainer has saved a checkpoint.
            NonFiniteLossError: as `Trainer.step`.
        """
        for _ in self._steps(steps):
            pass
        return self.history

    async def run_async(self, steps: int | None = None) -> TrainingHistory:
        """As `run`, but for `await` in a cell: between the steps the kernel handles clicks, if it can."""
        breathed = time.monotonic()
        with contextlib.closing(self._steps(steps)) as taken:
            for _ in taken:
                now = time.monotonic()
                if now - breathed >= BREATH_SECONDS:
                    breathed = now
                    await asyncio.sleep(0.01)
        return self.history

    def stop(self) -> None:
        """End after the running step, with a checkpoint."""
        self._stop_asked = True
        self.trainer.stop()

    def _new_view(self) -> View:
        return PlainView() if headless() else WidgetView(self.stop)

    def _steps(self, steps: int | None) -> Generator[None, None, None]:
        trainer, history = self.trainer, self.history
        view = self.view = self._new_view()
        view.open(self._progress(), history)
        message = text("live.failed")
        self._stop_asked, history.stopped = False, None
        try:
            self._evaluate()
            if self._renders_first():
                view.say(text("live.starting"))
            for result in trainer.steps(steps):
                self._take(view, result)
                yield
            if self._stop_asked and not trainer.done:
                history.stopped = text("live.stopped", step=trainer.global_step)
            message = history.stopped or self._closing_words()
        except KeyboardInterrupt as error:
            message = history.stopped = self._interrupted_words()
            raise TrainingStopped(message) from error
        finally:
            view.close(message, self._progress(), history, history.videos)

    def _take(self, view: View, result: tk.StepResult) -> None:
        """Record and show one step."""
        first = self.history.session_steps == 0
        self.history.add(result)
        if first:
            view.say("")
            self._show_base_model(view)
        if result.videos:
            view.videos(result.videos)
        self._evaluate()
        view.update(self._progress(result), self.history)

    def _renders_first(self) -> bool:
        """Whether the trainer renders the base model before the first step, which takes a while."""
        config = self.trainer.config
        compared = config.validation_step_interval and not config.disable_benchmark
        wanted = (compared or config.validation_on_startup) and not config.validation_disable
        return bool(self.trainer.global_step == 0 and wanted)

    def _show_base_model(self, view: View) -> None:
        """The videos of step 0, which the trainer has just rendered."""
        videos = find_videos(self.trainer.config.output_path, step=0) if self.trainer.global_step == 1 else []
        if videos:
            view.videos(videos)

    def _evaluate(self) -> None:
        """Measure the loss at fixed noise, if it is due and not known yet."""
        step, history = self.trainer.global_step, self.history
        known = bool(history.evaluations) and history.evaluations[-1][0] == step
        if known or not self._plan.due(step, self.trainer.total_steps, history.session_seconds):
            return
        started = time.perf_counter()
        history.evaluations.append((step, self.trainer.evaluation_loss()))
        self._plan.took(time.perf_counter() - started)

    def _progress(self, result: tk.StepResult | None = None) -> Progress:
        history = self.history
        speed = history.session_steps / history.session_seconds if history.session_seconds else None
        return Progress(
            step=self.trainer.global_step,
            total=self.trainer.total_steps,
            loss=history.losses[-1][1] if history.losses else None,
            lr=result.lr if result else None,
            speed=speed,
            parts={name: curve[-1][1] for name, curve in history.parts.items()},
        )

    def _interrupted_words(self) -> str:
        """A second interrupt ends the training before its checkpoint; then nothing is promised."""
        step = self.trainer.global_step
        saved = (self.trainer.config.output_path / f"checkpoint-{step}").is_dir()
        return text("live.stopped" if saved else "live.interrupted", step=step)

    def _closing_words(self) -> str:
        trainer, history = self.trainer, self.history
        key = "live.done" if trainer.done else "live.paused"
        words = [text(key, step=trainer.global_step, folder=trainer.config.output_path)]
        change = tenths(history.evaluations)
        if change and len(history.evaluations) > 1:
            first, last = change
            words.append(text("live.evaluation", first=f"{first:.4f}", last=f"{last:.4f}", share=f"{last / first:.0%}"))
        return "\n".join(words)


def watch(trainer: tk.Trainer, steps: int | None = None, *, evaluate_every: int | None = None) -> TrainingHistory:
    """Train with live curves and videos: `LiveTraining(trainer, evaluate_every=...).run(steps)`."""
    return LiveTraining(trainer, evaluate_every=evaluate_every).run(steps)


async def watch_async(
    trainer: tk.Trainer, steps: int | None = None, *, evaluate_every: int | None = None
) -> TrainingHistory:
    """As `watch`, for `await` in a cell, where the Stop button then works on current kernels."""
    return await LiveTraining(trainer, evaluate_every=evaluate_every).run_async(steps)
