"""Engines for tests of what saves memory: few blocks, as wide as every format of a quantised weight needs them, one
clip, and few layers with an adapter."""

from __future__ import annotations

import functools
from typing import Any

import method_models
from method_models import CPU, FAMILIES, Batches, Outcome, Size, same, trained

import tunerkit as tk
from tunerkit.training.engine import Engine

__all__ = ["BLOCKS", "CPU", "FAMILIES", "engine_of", "plain", "same", "trained"]

BLOCKS = 3
SIZE = Size(BLOCKS, half_width=32, clips=1)


def engine_of(family: str, *, micro_batches: int = 1, **settings: Any) -> tuple[Engine, Batches]:
    """An engine on a miniature, and the micro-batches of a step.

    Raises:
        ConfigError: the settings are refused.
    """
    layers = tk.family(family).lora_targets(tk.TrainConfig())[:1]
    settings = {"peft_lora_target_modules": layers, **settings}
    return method_models.engine_of(family, size=SIZE, micro_batches=micro_batches, **settings)


@functools.cache
def _plain(family: str, settings: tuple[tuple[str, Any], ...]) -> Outcome:
    return trained(*engine_of(family, **dict(settings)))


def plain(family: str, **settings: Any) -> Outcome:
    """What training with these settings gives; worked out once."""
    return _plain(family, tuple(sorted(settings.items())))
