"""Presets: ready-made answers to how much memory a run may take. Only data: what each changes, and what that costs.

A saving looks at the settings so far and says what it would set. A preset is a list of savings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = Callable[[str], Any]
"""Setting -> what stands in the form, unchecked."""
Changes = Mapping[str, Any]

AS_SET = ""
"""The preset that changes nothing."""
OWN = "own"
"""Shown when a setting of the chosen preset was edited since."""


@dataclass(frozen=True)
class Saving:
    """One way to need less memory.

    Attributes:
        settings: the names that it may set.
        changes: what it sets, from the settings so far; empty where it does not apply.
        meaning: key of the text that says what it does and costs.
    """

    settings: tuple[str, ...]
    changes: Callable[[Value], Changes]
    meaning: str


def _always(**changes: Any) -> Callable[[Value], Changes]:
    return lambda _: changes


def _bf16(value: Value) -> Changes:
    return {"mixed_precision": "bf16"} if value("mixed_precision") == "no" else {}


def _one_by_one(value: Value) -> Changes:
    """Batches of 1, and as many more of them in a step. A dataset with a batch size of its own keeps it."""
    size, accumulated = value("train_batch_size"), value("gradient_accumulation_steps")
    countable = all(isinstance(number, int) and number > 0 for number in (size, accumulated))
    if not countable or size == 1 or any(dataset.train_batch_size for dataset in value("datasets")):
        return {}
    return {"train_batch_size": 1, "gradient_accumulation_steps": size * accumulated}


def _adamw_bf16(value: Value) -> Changes:
    """Only all weights are trained in bfloat16; an adapter is float32 with any optimizer."""
    applies = value("model_type") == "full" and value("optimizer") == "torch-adamw"
    return {"optimizer": "adamw_bf16"} if applies else {}


def _int8(value: Value) -> Changes:
    """Only weights that stay as they are can be rounded, so not those of a full fine-tuning."""
    applies = value("model_type") == "lora" and value("base_model_precision") == "no_change"
    refused = value("use_dora") or value("lora_init_type") in ("pissa", "olora", "loftq")
    return {"base_model_precision": "int8"} if applies and not refused else {}


def _blocks_from_ram(value: Value) -> Changes:
    """Only weights that stay as they are can wait in RAM. Who has some or all of them there already keeps it so."""
    applies = value("model_type") == "lora" and value("musubi_blocks_to_swap") == 0
    offloaded = value("enable_group_offload")
    return {"enable_group_offload": True, "group_offload_use_stream": True} if applies and not offloaded else {}


CHECKPOINTING = Saving(
    ("gradient_checkpointing",), _always(gradient_checkpointing=True), "preset.gradient_checkpointing"
)
SLICING = Saving(("vae_enable_slicing",), _always(vae_enable_slicing=True), "preset.vae_enable_slicing")
PRECISION = Saving(("mixed_precision",), _bf16, "preset.mixed_precision")
BATCHES = Saving(("train_batch_size", "gradient_accumulation_steps"), _one_by_one, "preset.train_batch_size")
TILING = Saving(("vae_enable_tiling",), _always(vae_enable_tiling=True), "preset.vae_enable_tiling")
VAE_PRECISION = Saving(("vae_dtype",), _always(vae_dtype="bf16"), "preset.vae_dtype")
OPTIMIZER = Saving(("optimizer",), _adamw_bf16, "preset.optimizer")
QUANTISATION = Saving(("base_model_precision",), _int8, "preset.base_model_precision")
BLOCKS = Saving(("enable_group_offload", "group_offload_use_stream"), _blocks_from_ram, "preset.enable_group_offload")
TEXT_ENCODER = Saving(
    ("group_offload_text_encoder",), _always(group_offload_text_encoder=True), "preset.group_offload_text_encoder"
)

LIGHT = (CHECKPOINTING, SLICING)
BALANCED = (*LIGHT, PRECISION, BATCHES)
AGGRESSIVE = (*BALANCED, TILING, VAE_PRECISION, OPTIMIZER, QUANTISATION, BLOCKS, TEXT_ENCODER)
PRESETS: Mapping[str, tuple[Saving, ...]] = {"light": LIGHT, "balanced": BALANCED, "aggressive": AGGRESSIVE}
"""From the cheapest to the one that costs most speed."""


def changes_of(preset: str, value: Value) -> dict[str, Any]:
    """What a preset sets; nothing for `AS_SET` and `OWN`."""
    return {name: new for saving in PRESETS.get(preset, ()) for name, new in saving.changes(value).items()}


def settings_of(preset: str) -> set[str]:
    """The settings that a preset decides about."""
    return {name for saving in PRESETS.get(preset, ()) for name in saving.settings}
