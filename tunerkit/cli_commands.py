"""The commands. Each takes the parsed arguments, prints its result and returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.cli_output import encoding_progress, process_rank, quiet_libraries, runs_table, say
from tunerkit.cli_plan import run_plan as run_plan
from tunerkit.cli_sweep import run_sweep as run_sweep
from tunerkit.config.reporting_rules import QUIET
from tunerkit.errors import ConfigError, Problem, TunerkitError

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.running.run import Run
    from tunerkit.training.trainer import Trainer
    from tunerkit.validation.render import Rendering

logger = logging.getLogger("tunerkit")
BASE = "base"
"""`--checkpoint base`: the model without training."""


def load(arguments: argparse.Namespace, **settings: Any) -> TrainConfig:
    """The resolved settings that the arguments name; its notes are printed.

    Args:
        arguments: with `config` and `overrides`.
        settings: further settings, which count most.
    """
    from tunerkit.project import load_config, resolve

    overrides = {key: _from_here(key, value) for key, value in arguments.overrides.items()}
    config = resolve(load_config(arguments.config, **{**overrides, **settings}))
    for note in config.notes:
        say(f"note: {note}")
    return config


def _from_here(key: str, value: str) -> str:
    """An output folder typed in a shell counts from the current folder, not from the project's."""
    from tunerkit.config.paths import OUTPUT_FOLDERS

    return str(Path(value).expanduser().absolute()) if key in OUTPUT_FOLDERS and value else value


def run_demo(arguments: argparse.Namespace) -> int:
    from tunerkit import demo

    quiet_libraries()
    config = demo.create(arguments.directory, family=arguments.family, **arguments.overrides)
    say(f"demo project: {config.parent}")
    say(f"next: python -m tunerkit train {config.parent}")
    return 0


def run_dataset(arguments: argparse.Namespace) -> int:
    from tunerkit.data.inspect import inspect_dataset

    report = inspect_dataset(load(arguments))
    if process_rank() == 0:
        report.show()
        if arguments.csv:
            say(f"table: {_write_csv(report, Path(arguments.csv))}")
    report.require_samples()
    return 0


def _write_csv(report: Any, path: Path) -> Path:
    try:
        return report.to_csv(path)
    except OSError as error:
        raise TunerkitError(
            f"--csv {path} cannot be written ({error.strerror}). Fix: name a file in a folder you may write to"
        ) from error


def run_cache(arguments: argparse.Namespace) -> int:
    config = load(arguments)
    quiet_libraries()
    if arguments.report or arguments.prune:
        from tunerkit.cache.census import cache_report, prune_cache

        report = (prune_cache if arguments.prune else cache_report)(config)
        say(report.to_text())
        if arguments.prune:
            say(report.outcome())
        return 1 if report.failures else 0
    from tunerkit.cache.build import build_cache

    say(str(build_cache(config, progress=encoding_progress())))
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    from tunerkit.cli_train import train

    train(load(arguments))
    return 0


def run_validate(arguments: argparse.Namespace) -> int:
    from tunerkit.config.prompts import validation_prompts

    config = load(arguments, validation_disable=False)
    if not validation_prompts(config):
        problem = Problem("validation_prompt", None, "there is nothing to render", "write a prompt")
        raise ConfigError([problem])
    with _borrowed(config, arguments.checkpoint) as trainer:
        trainer.loaded.renderer.folder = config.output_path / "validation"
        videos = trainer.validate()
        say(f"{len(videos)} {'video' if len(videos) == 1 else 'videos'} after step {trainer.global_step}:")
        for video in videos:
            say(f"  {describe(video)}")
    return 0 if videos or process_rank() else 1


def run_export(arguments: argparse.Namespace) -> int:
    from tunerkit.training.checkpoints import whole_checkpoint
    from tunerkit.training.export import export_checkpoint

    config = load(arguments)
    if config.model_type != "lora":
        problem = Problem(
            "model_type", config.model_type, "has no adapter to export", "use transformer/ in output_dir as it is"
        )
        raise ConfigError([problem])
    target = Path(arguments.output).expanduser().absolute()
    if target.suffix != ".safetensors":
        raise TunerkitError(f"--output {target} is no .safetensors file. Fix: write {target.name}.safetensors")
    checkpoint = whole_checkpoint(config.output_path, arguments.checkpoint)
    path = export_checkpoint(checkpoint, target, arguments.format)
    say(f"adapter of {checkpoint.name}, {arguments.format} layout: {path}")
    return 0


@contextlib.contextmanager
def _borrowed(config: TrainConfig, which: str) -> Iterator[Trainer]:
    """A trainer that holds a checkpoint of the run and leaves the run's own files alone, even while it goes on.

    Its output folder is a temporary one; the cache is the run's.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is not whole; known before anything is loaded.
    """
    from tunerkit.training.checkpoints import whole_checkpoint

    found = None if which == BASE else whole_checkpoint(config.output_path, which)
    quiet_libraries()
    from tunerkit.training.trainer import Trainer

    with tempfile.TemporaryDirectory(prefix="tunerkit-") as folder:
        own = config.changed(
            output_dir=folder,
            cache_dir=config.cache_path,
            **QUIET,
            resume_from_checkpoint=None if found is None else str(found.absolute()),
        )
        trainer = Trainer(own)
        try:
            yield trainer.prepare()
        finally:
            trainer.close()


def describe(video: Rendering) -> str:
    """A rendered video in one line: its file, and the comparison with the base model if there is one."""
    width, height = video.size
    text = f"{video.path} ({width}x{height}, {video.frames} frames, {video.fps:g} fps, seed {video.seed})"
    return f"{text}; beside the base model: {video.comparison.name}" if video.comparison else text


def run_push(arguments: argparse.Namespace) -> int:
    from tunerkit.reporting.hub import push
    from tunerkit.running.launch import attach

    quiet_libraries()
    say(f"uploaded: {push(attach(arguments.output_dir).config.changed(**arguments.overrides))}")
    return 0


def run_pause(arguments: argparse.Namespace) -> int:
    return _command(arguments, lambda run: run.pause(), "waits after its current step; `resume` lets it go on")


def run_resume(arguments: argparse.Namespace) -> int:
    return _command(arguments, lambda run: run.resume(), "goes on")


def run_stop(arguments: argparse.Namespace) -> int:
    return _command(arguments, lambda run: run.stop(), "saves a checkpoint after its current step and ends")


def _command(arguments: argparse.Namespace, send: Callable[[Run], None], effect: str) -> int:
    """Leave a command for the run in a folder, if one is going on there."""
    from tunerkit.running.launch import attach

    run = attach(arguments.output_dir)
    send(run)
    say(f"the training in {run.output_dir} {effect}")
    return 0


def run_runs(arguments: argparse.Namespace) -> int:
    from tunerkit.running.launch import runs

    found = runs(arguments.folder)
    for line in runs_table(found, Path(arguments.folder).expanduser().absolute()):
        say(line)
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    del arguments
    from tunerkit.machine_check import doctor

    report = doctor()
    say(report.to_text())
    return 0 if report.ok else 1
