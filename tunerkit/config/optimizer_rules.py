"""What an optimizer asks of the other settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

SCHEDULE_FREE, PRODIGY = "adamw_schedulefree", "prodigy"
_SMALLEST_OF_PRODIGY = 0.1
_WITHOUT_CLIPPING = {
    PRODIGY: "it estimates its step size from the gradients, and divides by their size itself",
    "optimi-stableadamw": "it limits every update itself",
}


def optimizer_problems(config: TrainConfig) -> Iterator[Problem]:
    """What cannot be combined with an optimizer."""
    if config.optimizer != SCHEDULE_FREE:
        return
    average = f"optimizer = {SCHEDULE_FREE} averages the weights in place of a decay"
    if not config.lr_scheduler.startswith("constant"):
        fix = "write constant_with_warmup, or choose another optimizer"
        yield Problem("lr_scheduler", config.lr_scheduler, f"lets the learning rate fall, and {average}", fix)
    if config.use_ema:
        message = f"would average what is averaged already: {average}"
        yield Problem("use_ema", True, message, "set it to false")


def optimizer_notes(config: TrainConfig) -> Iterator[Note]:
    """What is allowed with an optimizer and is rarely meant."""
    if config.optimizer == PRODIGY and config.learning_rate < _SMALLEST_OF_PRODIGY:
        message = f"is a factor of the rate that {PRODIGY} finds by itself; 1.0 is usual, and less trains slower"
        yield Note("learning_rate", f"{config.learning_rate:g} {message}")
    if config.optimizer in _WITHOUT_CLIPPING and config.max_grad_norm > 0:
        why = _WITHOUT_CLIPPING[config.optimizer]
        yield Note("max_grad_norm", f"{config.optimizer} is best used without: {why}. Set it to 0")
    if config.optimizer_offload_gradients and config.optimizer_cpu_offload_method == "none":
        yield Note("optimizer_offload_gradients", "has no effect without optimizer_cpu_offload_method = cpu")
    if config.lr_scale_sqrt and not config.lr_scale:
        yield Note("lr_scale_sqrt", "has no effect without lr_scale")
