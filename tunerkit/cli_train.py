"""`train` on a terminal: a line per step, what was saved and rendered, and a summary."""

from __future__ import annotations

import contextlib
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.cli_commands import describe
from tunerkit.cli_output import duration, encoding_progress, process_rank, quiet_libraries, say

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.training.results import StepResult
    from tunerkit.training.trainer import Trainer

SECONDS_BETWEEN_LINES = 0.5
FEW_STEPS = 60
"""Every step of a run this short has its line."""
RECENT_STEPS = 20
"""Steps whose median duration the remaining time is estimated from."""


class StepPrinter:
    """Prints the steps of a run as they come, at most two lines a second once there are many.

    Args:
        total: steps of the whole run.
        done: steps done before the first one printed.
        show: takes a line.
        clock: seconds; only differences count.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        show: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._show, self._clock = total, show, clock
        self._every_step = total - done <= FEW_STEPS
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._printed: float | None = None

    def step(self, result: StepResult) -> None:
        """Print a finished step, and always what was saved or rendered after it."""
        self._recent.append(result.seconds)
        now = self._clock()
        waited = self._printed is None or now - self._printed >= SECONDS_BETWEEN_LINES
        news = result.checkpoint is not None or bool(result.videos)
        if waited or news or self._every_step or result.step >= self._total:
            self._printed = now
            self._show(self._line(result))
        if result.checkpoint is not None:
            self._show(f"  checkpoint: {result.checkpoint}")
        for video in result.videos:
            self._show(f"  video: {describe(video)}")

    @property
    def seconds_per_step(self) -> float:
        """Median of the latest steps; what lies between steps does not count."""
        return statistics.median(self._recent)

    def _line(self, result: StepResult) -> str:
        seconds = self.seconds_per_step
        left = duration(seconds * (self._total - result.step))
        return (
            f"step {result.step}/{self._total}  loss {result.loss:.5f}  lr {result.lr:.2e}  "
            f"grad norm {result.grad_norm:.3g}  {seconds:.2f} s/step  {left} left"
        )


def train(config: TrainConfig) -> None:
    """Train from where the run stands to its end, with a line per step.

    Raises:
        KeyboardInterrupt: after an interrupt, when the checkpoint is saved.
    """
    from tunerkit.training.run_folder import RunFolder
    from tunerkit.training.trainer import Trainer

    trainer = Trainer(config)
    folder = RunFolder(trainer.config.output_path)
    with _ending_on_sigterm():
        try:
            if process_rank() == 0:
                folder.lock()  # before torch is loaded: whoever watches the folder sees a sign of life at once
            quiet_libraries()
            trainer.prepare(progress=encoding_progress(), folder=folder)
            _run(trainer)
        finally:
            trainer.close()
            folder.close()
            _leave_process_group()


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the preparation as Ctrl-C does; once steps are taken, they handle both."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(trainer: Trainer) -> None:
    total, first = trainer.total_steps, trainer.global_step
    say(_opening(trainer))
    printer = StepPrinter(total, first)
    started, last = time.monotonic(), None
    for result in trainer.steps(evaluate=True):
        if last is None and first == 0:
            _show_base_videos(trainer.config.output_path)
        printer.step(result)
        last = result
    if not trainer.done:
        say(f"stopped at step {trainer.global_step} of {total}; the same command goes on from there")
    elif last is None:
        done = trainer.global_step
        say(f"{done} steps were done before, and {total} are asked for. To train further: max_train_steps={2 * done}")
    if last is not None:
        seconds = time.monotonic() - started
        say(
            f"{last.step - first} steps, {1 / printer.seconds_per_step:.3g} a second ({duration(seconds)} with "
            f"checkpoints and videos), final loss {last.loss:.5f}"
        )
    if trainer.done:
        say(f"{_result_word(trainer.config)}: {result_path(trainer.config)}")
    say(f"peak memory: {peak_memory()}")


def _opening(trainer: Trainer) -> str:
    config, samples = trainer.config, len(trainer.report.samples) if trainer.report else 0
    what = f"LoRA of rank {config.lora_rank}" if config.model_type == "lora" else "all weights"
    start = f"from step {trainer.global_step}" if trainer.global_step else "from the start"
    return (
        f"training {what} of {trainer.family.title} on {samples} clips: {trainer.total_steps} steps, {start}, "
        f"on {trainer.loaded.engine.device}; files in {config.output_path}"
    )


def _show_base_videos(output: Path) -> None:
    """The base model's videos, which are rendered before the first step."""
    for path in sorted((output / "validation" / "step-0").glob("*.mp4")):
        say(f"  video of the base model: {path}")


def _result_word(config: TrainConfig) -> str:
    return "adapter" if config.model_type == "lora" else "model"


def result_path(config: TrainConfig) -> Path:
    """Where a finished run leaves its weights."""
    from tunerkit.training.export import LORA_FILE

    return config.output_path / (LORA_FILE if config.model_type == "lora" else "transformer")


def peak_memory() -> str:
    """The most memory this process has held: of the GPU if one was used, else of the machine."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return f"{peak * unit / 2**30:.2f} GiB of RAM"


def _leave_process_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
