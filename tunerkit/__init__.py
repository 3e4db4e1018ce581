"""tunerkit: fine-tune open video diffusion models, one step at a time.

    import tunerkit as tk

    config = tk.load_config("config/config.json", learning_rate=1e-4)
    tk.inspect_dataset(config)
    trainer = tk.Trainer(config)
    trainer.prepare()
    for result in trainer.steps():
        print(result.step, result.loss)

Importing tunerkit imports nothing heavy: every name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it.
_WHERE = {
    "load_config": "tunerkit.project",
    "resolve": "tunerkit.project",
    "TrainConfig": "tunerkit.config.settings",
    "describe": "tunerkit.config",
    "SettingInfo": "tunerkit.config",
    "inspect_dataset": "tunerkit.data.inspect",
    "DatasetReport": "tunerkit.data.report",
    "batch_plan": "tunerkit.data.sampler",
    "build_cache": "tunerkit.cache.build",
    "cache_report": "tunerkit.cache.census",
    "prune_cache": "tunerkit.cache.census",
    "Trainer": "tunerkit.training.trainer",
    "StepResult": "tunerkit.training.results",
    "Rendering": "tunerkit.validation.render",
    "runs": "tunerkit.running.launch",
    "start": "tunerkit.running.launch",
    "attach": "tunerkit.running.launch",
    "Run": "tunerkit.running.run",
    "RunStatus": "tunerkit.running.status",
    "CheckpointInfo": "tunerkit.running.results",
    "sweep": "tunerkit.batch",
    "plan_sweep": "tunerkit.batch",
    "read_sweep": "tunerkit.batch",
    "SweepResult": "tunerkit.batch",
    "SweepRow": "tunerkit.batch",
    "CaptionFiles": "tunerkit.data.caption_files",
    "CaptionConflictError": "tunerkit.data.caption_files",
    "plan": "tunerkit.planning.planner",
    "Plan": "tunerkit.planning.result",
    "autofit": "tunerkit.planning.advice",
    "decode": "tunerkit.data.decode",
    "write_mp4": "tunerkit.validation.video_files",
    "small_video": "tunerkit.validation.small_videos",
    "doctor": "tunerkit.machine_check",
    "TunerkitError": "tunerkit.errors",
    "ConfigError": "tunerkit.errors",
    "DatasetError": "tunerkit.errors",
    "ModelError": "tunerkit.errors",
    "CheckpointError": "tunerkit.errors",
    "MissingExtraError": "tunerkit.errors",
    "NonFiniteLossError": "tunerkit.errors",
    "OutOfMemoryError": "tunerkit.errors",
    "RunFailedError": "tunerkit.errors",
}
_MODULES = ("batch", "demo", "families")

__all__ = [
    "CaptionConflictError",
    "CaptionFiles",
    "CheckpointError",
    "CheckpointInfo",
    "ConfigError",
    "DatasetError",
    "DatasetReport",
    "MissingExtraError",
    "ModelError",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "Plan",
    "Rendering",
    "Run",
    "RunFailedError",
    "RunStatus",
    "SettingInfo",
    "StepResult",
    "SweepResult",
    "SweepRow",
    "TrainConfig",
    "Trainer",
    "TunerkitError",
    "__version__",
    "attach",
    "autofit",
    "batch",
    "batch_plan",
    "build_cache",
    "cache_report",
    "decode",
    "demo",
    "describe",
    "doctor",
    "families",
    "family",
    "inspect_dataset",
    "load_config",
    "plan",
    "plan_sweep",
    "prune_cache",
    "read_sweep",
    "resolve",
    "runs",
    "small_video",
    "start",
    "sweep",
    "write_mp4",
]

if TYPE_CHECKING:
    from tunerkit import batch, demo, families
    from tunerkit.batch import SweepResult, SweepRow, plan_sweep, read_sweep, sweep
    from tunerkit.cache.build import build_cache
    from tunerkit.cache.census import cache_report, prune_cache
    from tunerkit.config import SettingInfo, describe
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.caption_files import CaptionConflictError, CaptionFiles
    from tunerkit.data.decode import decode
    from tunerkit.data.inspect import inspect_dataset
    from tunerkit.data.report import DatasetReport
    from tunerkit.data.sampler import batch_plan
    from tunerkit.errors import (
        CheckpointError,
        ConfigError,
        DatasetError,
        MissingExtraError,
        ModelError,
        NonFiniteLossError,
        OutOfMemoryError,
        RunFailedError,
        TunerkitError,
    )
    from tunerkit.families.base import Family
    from tunerkit.machine_check import doctor
    from tunerkit.planning.advice import autofit
    from tunerkit.planning.planner import plan
    from tunerkit.planning.result import Plan
    from tunerkit.project import load_config, resolve
    from tunerkit.running.launch import attach, runs, start
    from tunerkit.running.results import CheckpointInfo
    from tunerkit.running.run import Run
    from tunerkit.running.status import RunStatus
    from tunerkit.training.results import StepResult
    from tunerkit.training.trainer import Trainer
    from tunerkit.validation.render import Rendering
    from tunerkit.validation.small_videos import small_video
    from tunerkit.validation.video_files import write_mp4


def family(name: str) -> Family:
    """The model family called `name`, for example `"sanavideo"`.

    Raises:
        ConfigError: if there is none of that name.
    """
    return import_module("tunerkit.families").get(name)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"tunerkit.{name}")
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tunerkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
