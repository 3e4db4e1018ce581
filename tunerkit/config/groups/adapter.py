"""The LoRA adapter."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="adapter")


class AdapterSettings(Settings):
    """Shape and start of the adapter; used when `model_type` is lora."""

    lora_type: Literal["standard", "lycoris"] = _setting("standard", "Kind of adapter.")
    lora_rank: int = _setting(16, "Rank of the adapter: its capacity and file size.", ge=1, le=1024)
    lora_alpha: float | None = _setting(None, "Adapter scale is alpha / rank; equal to the rank when not set.", gt=0)
    lora_dropout: float = _setting(0.0, "Dropout inside the adapter.", ge=0, lt=1)
    lora_init_type: Literal["default", "gaussian", "olora", "pissa", "loftq"] = _setting(
        "default", "How the adapter's matrices start."
    )
    use_dora: bool = _setting(False, "Train magnitude and direction separately (DoRA).")
    use_rslora: bool = _setting(False, "Scale by alpha / sqrt(rank) instead of alpha / rank.")
    peft_lora_target_modules: list[str] | None = _setting(
        None, "Names (or ends of names) of the layers that get an adapter; the family's when not set."
    )
    init_lora: str | None = _setting(None, "Adapter file, folder or hub id whose weights the training starts from.")
    lora_format: Literal["diffusers", "comfyui"] = _setting("diffusers", "Key layout of the exported adapter file.")
    lycoris_config: Path | None = _setting(None, "LyCORIS settings file.")
