"""Optimizer, learning rate, clipping and the moving average of the weights."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="optimizer")


class OptimizerSettings(Settings):
    """How a gradient becomes a step."""

    optimizer: str = _setting("torch-adamw", "Name of the optimizer.")
    optimizer_config: dict[str, Any] = _setting(dict, "Further options of the optimizer: {'eps': 1e-6} or 'eps=1e-6'.")
    optimizer_beta1: float | None = _setting(
        None, "Decay of the first moment; the optimizer's when not set.", ge=0, lt=1
    )
    optimizer_beta2: float | None = _setting(
        None, "Decay of the second moment; the optimizer's when not set.", ge=0, lt=1
    )
    weight_decay: float | None = _setting(None, "Weight decay; the optimizer's when not set.", ge=0)
    optimizer_release_gradients: bool = _setting(False, "Step inside the backward pass.")
    optimizer_cpu_offload_method: str = _setting(
        "none", "cpu: the optimizer's state and updates are in RAM; saves most with model_type = full, and is slower."
    )
    optimizer_offload_gradients: bool = _setting(
        False, "With optimizer_cpu_offload_method: each gradient goes to RAM as soon as it is there."
    )
    learning_rate: float = _setting(1e-4, "Peak learning rate.", gt=0, le=10)
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine", "rex"
    ] = _setting("constant_with_warmup", "How the learning rate changes over the run.")
    lr_warmup_steps: int = _setting(0, "Steps over which the learning rate rises to its peak.", ge=0)
    lr_end: float = _setting(0.0, "Learning rate at the end of the decay.", ge=0)
    lr_power: float = _setting(1.0, "Power of the polynomial decay.", gt=0)
    lr_num_cycles: int = _setting(1, "Falls of cosine_with_restarts.", ge=1)
    lr_decay_steps: int | None = _setting(None, "Step at which lr_end is reached; the last one when not set.", ge=1)
    lr_scale: bool = _setting(False, "Multiply learning_rate by the samples of an optimizer step, on all GPUs.")
    lr_scale_sqrt: bool = _setting(False, "With lr_scale: multiply by the root of their number.")
    max_grad_norm: float = _setting(1.0, "Limit of the gradient; 0 = no clipping.", ge=0)
    grad_clip_method: Literal["norm", "value"] = _setting(
        "norm", "What is limited: the norm of the whole gradient, or each of its elements."
    )
    use_ema: bool = _setting(False, "Keep a moving average of the trained weights.")
    ema_decay: float = _setting(0.995, "Decay of the average after its ramp.", ge=0, lt=1)
    ema_update_interval: int = _setting(1, "Steps between updates of the average.", ge=1)
    ema_warmup_steps: int = _setting(0, "Steps before the average starts.", ge=0)
    ema_device: Literal["cpu", "accelerator"] = _setting("cpu", "Where the average is kept.")
    ema_cpu_only: bool = _setting(False, "Insist on ema_device = cpu.")
    ema_validation: Literal["none", "ema_only", "comparison"] = _setting(
        "comparison", "What validation renders with: live weights, the average, or both."
    )
