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
    "build_cache": "tunerkit.cache.build",
    "cache_report": "tunerkit.cache.census",
    "prune_cache": "tunerkit.cache.census",
    "Trainer": "tunerkit.training.trainer",
    "StepResult": "tunerkit.training.results",
    "Rendering": "tunerkit.validation.render",
    "doctor": "tunerkit.machine_check",
    "TunerkitError": "tunerkit.errors",
    "ConfigError": "tunerkit.errors",
    "DatasetError": "tunerkit.errors",
    "ModelError": "tunerkit.errors",
    "CheckpointError": "tunerkit.errors",
    "MissingExtraError": "tunerkit.errors",
    "NonFiniteLossError": "tunerkit.errors",
}
_MODULES = ("demo", "families")

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DatasetReport",
    "MissingExtraError",
    "ModelError",
    "NonFiniteLossError",
    "Rendering",
    "SettingInfo",
    "StepResult",
    "TrainConfig",
    "Trainer",
    "TunerkitError",
    "__version__",
    "build_cache",
    "cache_report",
    "demo",
    "describe",
    "doctor",
    "families",
    "family",
    "inspect_dataset",
    "load_config",
    "prune_cache",
    "resolve",
]

if TYPE_CHECKING:
    from tunerkit import demo, families
    from tunerkit.cache.build import build_cache
    from tunerkit.cache.census import cache_report, prune_cache
    from tunerkit.config import SettingInfo, describe
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.inspect import inspect_dataset
    from tunerkit.data.report import DatasetReport
    from tunerkit.errors import (
        CheckpointError,
        ConfigError,
        DatasetError,
        MissingExtraError,
        ModelError,
        NonFiniteLossError,
        TunerkitError,
    )
    from tunerkit.families.base import Family
    from tunerkit.machine_check import doctor
    from tunerkit.project import load_config, resolve
    from tunerkit.training.results import StepResult
    from tunerkit.training.trainer import Trainer
    from tunerkit.validation.render import Rendering


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
