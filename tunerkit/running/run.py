"""A training in a process of its own, seen through the files in its folder."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import RunFailedError, TunerkitError
from tunerkit.running import processes, results
from tunerkit.running.control import Command
from tunerkit.running.json_files import JsonLines
from tunerkit.running.status import OUTPUT_FILE, RunStatus, last_lines, read_status
from tunerkit.running.waiting import breathing, say_one_line
from tunerkit.training.run_folder import EVALUATION_FILE, EVENTS_FILE, METRICS_FILE, send_command

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.running.results import CheckpointInfo
    from tunerkit.training.export import LoraFormat
    from tunerkit.validation.render import Rendering

CONFIG_FILE = "config.json"
"""The settings as the run resolved them, written when it is prepared."""
REQUEST_FILE = "requested_settings.json"
"""The settings that `tk.start` gave to the process."""
_WAIT_SECONDS = 0.1
_LEAVE_SECONDS = 10.0
"""How long a process that has said its last word is waited for: until then it holds memory."""


class Run:
    """A run, alive or over. Reading never disturbs it, and any number of programs may watch at once.

    Made by `tk.start`, `tk.attach` and `tk.runs`.

    Attributes:
        output_dir: the run's folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._metrics = JsonLines(output_dir / METRICS_FILE)
        self._evaluations = JsonLines(output_dir / EVALUATION_FILE)
        self._events = JsonLines(output_dir / EVENTS_FILE)
        self._settings: tuple[tuple[Path, int], TrainConfig] | None = None

    def __repr__(self) -> str:
        status = self.status
        return f"Run({str(self.output_dir)!r}: {status.state}, step {status.step} of {status.total_steps})"

    @property
    def config(self) -> TrainConfig:
        """The settings as the run resolved them; until it has, as they were given to it.

        `output_dir` is the folder that the run lies in now, wherever it was trained.

        Raises:
            TunerkitError: if the folder holds no settings.
        """
        from tunerkit.project import load_config

        path = self.settings_file
        key = (path, path.stat().st_mtime_ns)
        if self._settings is None or self._settings[0] != key:
            self._settings = (key, load_config(path, output_dir=self.output_dir))
        return self._settings[1]

    @property
    def settings_file(self) -> Path:
        """Which file holds the settings: of what was trained, or of the process that is about to train.

        While one prepares, config.json is that of an earlier one; a start that failed has left none.
        """
        resolved = self.output_dir / CONFIG_FILE
        if self.status.ended and resolved.is_file():
            return resolved
        files = [path for name in (CONFIG_FILE, REQUEST_FILE) if (path := self.output_dir / name).is_file()]
        if not files:
            raise TunerkitError(f"{self.output_dir} holds no settings ({CONFIG_FILE}). Fix: wait until it is prepared")
        return max(files, key=lambda path: path.stat().st_mtime_ns)

    @property
    def status(self) -> RunStatus:
        """What the run does now."""
        return read_status(self.output_dir) or RunStatus(state="died", error="status.json is missing or damaged")

    # Commands --------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Wait after the running step, with everything kept in memory."""
        self._send("pause")

    def resume(self) -> None:
        """Go on after a pause."""
        self._send("run")

    def stop(self) -> None:
        """End after the running step, with a checkpoint; `tk.start` goes on from there."""
        self._send("stop")

    def save_now(self) -> None:
        """Save a checkpoint after the running step."""
        self._send("save")

    def validate_now(self) -> None:
        """Render the validation prompts after the running step."""
        self._send("validate")

    def change(self, **settings: Any) -> dict[str, Any]:
        """Go on with other settings after the running step; `tk.Trainer.change` says which can be.

            run.change(crepa_lambda=0.1, tread_config=None)

        They are checked here, and once more by the run, which knows its model; a refusal then is a warning of the run.
        `config` has them as soon as the run goes by them, and a later `tk.start` has to be given them, too.

        Returns:
            what is asked for: setting -> value.

        Raises:
            ConfigError: all problems of the result, and every setting that cannot change, at once; nothing is changed.
            TunerkitError: if nothing runs there.
        """
        from tunerkit import families
        from tunerkit.training.checking import changed_settings

        config = self.config
        changed_settings(config, families.get(str(config.model_family)), settings, has_projector=True)
        asked = json.loads(json.dumps(settings, default=str))
        self._send(asked)
        return asked

    def _send(self, command: Command | dict[str, Any]) -> None:
        """Leave a command, or settings to go on with, in control.json.

        Raises:
            TunerkitError: if nothing runs there.
        """
        status = self.status
        if status.ended:
            word = "dead" if status.state == "died" else status.state
            raise TunerkitError(
                f"no training is running in {self.output_dir} (it is {word} at step {status.step} of "
                f"{status.total_steps}). Fix: start it with python -m tunerkit train, or tk.start"
            )
        send_command(self.output_dir, command)

    def kill(self) -> None:
        """End the process at once; what was trained since the last checkpoint is lost.

        Raises:
            TunerkitError: if it does not run on this machine, or is the calling process itself.
        """
        status = self.status
        if not status.alive or status.pid is None:
            raise TunerkitError(f"no process trains in {self.output_dir}. Fix: nothing is left to do")
        if status.pid == os.getpid():
            raise TunerkitError(
                f"{self.output_dir} is trained by a Trainer of this very process. Fix: call its close()"
            )
        if not processes.is_running(status.pid, None):
            raise TunerkitError(f"{self.output_dir} is trained on another machine. Fix: end process {status.pid} there")
        processes.kill(status.pid)

    # Waiting ---------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Wait until the run is over, however it ends; the cell or program is busy until then.

        Args:
            timeout: seconds; None waits for ever.

        Returns:
            the last status; that of a run that goes on when the time is up.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            status = self.status
            if self._over(status) or (deadline is not None and time.monotonic() >= deadline):
                return status
            time.sleep(_WAIT_SECONDS)

    async def finished(self, on_change: Callable[[RunStatus], object] | None = None, every: float = 0.25) -> RunStatus:
        """Wait in a cell (`await run.finished()`) until the run is over, while buttons go on working.

        An interrupt ends the waiting only; the training goes on.

        Args:
            on_change: called with the status at first, and whenever it has changed.
            every: seconds between two looks.

        Raises:
            RunFailedError: if the run failed or died.
        """
        told: RunStatus | None = None
        try:
            async with breathing() as pause:
                while True:
                    status = self.status
                    seen = replace(status, heartbeat=None)
                    if on_change is not None and seen != told:
                        on_change(status)
                    told = seen
                    if self._over(status):
                        break
                    await pause(every)
        except (KeyboardInterrupt, asyncio.CancelledError) as error:
            say_one_line(
                error,
                f"The training in {self.output_dir} goes on; only the waiting has ended. run.stop() ends the training, "
                "and running this cell again watches it again.",
            )
            raise
        if status.state in ("failed", "died"):
            raise RunFailedError(status, self.output_dir)
        return status

    def _over(self, status: RunStatus) -> bool:
        """Whether the run has ended and its process has left, or had the time to."""
        if not status.ended:
            return False
        written = status.heartbeat or 0.0
        return not status.alive or status.pid == os.getpid() or time.time() - written > _LEAVE_SECONDS

    # What it has left ------------------------------------------------------------------------------------------

    def metrics(self, after: int = 0) -> list[dict[str, Any]]:
        """The steps after step `after`: step, loss, parts, lr, grad_norm, seconds, epoch, samples."""
        return _after(self._metrics, "step", after)

    def evaluations(self) -> list[dict[str, Any]]:
        """Losses at fixed noise by step: step, loss and time; `datasets` (id -> loss), `sigmas` (noise level -> loss)
        and, with sound, `parts` ("video" and "audio") where the run has told them."""
        rows = {row["step"]: row for row in _after(self._evaluations, "step", -1)}
        return [rows[step] for step in sorted(rows)]

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """What happened after event number `after`: number, time, kind, step, text and more by kind."""
        return _after(self._events, "number", after)

    def videos(self, step: int | None = None) -> list[Rendering]:
        """The rendered videos of all rounds, or of the round at `step` (0: the base model)."""
        return results.read_videos(self.output_dir, step)

    def compare(self, step: int | None = None, other: int = 0) -> list[tuple[Rendering, Rendering]]:
        """The videos of two rounds side by side: (of `other`, of `step`) for each prompt, size and seed in both.

        Args:
            step: optimizer steps done; the newest round when not given.
            other: the same, of what it is compared with; 0 is the base model.
        """
        return results.pairs(self.videos(), step, other)

    def render(self, prompt: str, seed: int | None = None, checkpoint: str | int = "latest") -> list[Rendering]:
        """Render words of your own with a checkpoint, in the size and length of the run's validation.

        A process of its own does it, on the run's device; the videos stay among those of the run.

        Args:
            prompt: what the video shows.
            seed: that of the run's validation when not given.
            checkpoint: "latest", a step, a checkpoint folder, or "base" for the model without training.

        Raises:
            TunerkitError: if the prompt is empty, the run goes on (it holds the device), or with what the process had
                to say.
        """
        from tunerkit.running.rendering import render

        return render(self, prompt, seed, _checkpoint(checkpoint))

    def checkpoints(self) -> list[CheckpointInfo]:
        """The finished checkpoints, by rising step."""
        return results.read_checkpoints(self.output_dir, self.status.total_steps, self.metrics(), self.evaluations())

    def delete_checkpoint(self, step: int) -> int:
        """Delete the checkpoint of `step`: the bytes that are free now.

        Raises:
            CheckpointError: if there is none, or it cannot be deleted.
        """
        return results.delete_checkpoint(self.output_dir, step)

    def log(self, lines: int = 20) -> list[str]:
        """The last lines that the process printed."""
        return last_lines(self.output_dir / OUTPUT_FILE, lines)

    def summary(self) -> dict[str, Any]:
        """The run in figures, for tables; see `tunerkit.running.results.summarised`."""
        return results.summarised(self.output_dir, self.status, self.metrics(), self.evaluations())

    def export(self, path: str | Path, format: LoraFormat = "diffusers", checkpoint: str | int = "latest") -> Path:
        """Write the adapter of a checkpoint as a LoRA file.

        The model is not loaded: it takes a second, and nothing from a run that goes on.

        Args:
            path: the `.safetensors` file.
            format: key layout, "diffusers" or "comfyui".
            checkpoint: "latest", a step, or a checkpoint folder.

        Raises:
            CheckpointError: if there is no such checkpoint, or it is damaged.
            TunerkitError: if it holds no adapter, or the file cannot be written.
        """
        from tunerkit.training.checkpoints import whole_checkpoint
        from tunerkit.training.export import export_checkpoint

        source = whole_checkpoint(self.output_dir, _checkpoint(checkpoint))
        return export_checkpoint(source, Path(path).expanduser().absolute(), format)


def _checkpoint(which: str | int) -> str:
    """A checkpoint as the command line takes it."""
    return f"checkpoint-{which}" if isinstance(which, int) else str(which)


def _after(lines: JsonLines, key: str, number: int) -> list[dict[str, Any]]:
    return [row for row in lines.rows() if isinstance(row.get(key), int) and row[key] > number]
