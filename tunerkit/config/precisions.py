"""Names of the precisions that frozen weights can be kept in, ours and those of other trainers."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

UNCHANGED = "no_change"
FORMATS = ("int8", "fp8", "fp8-cast", "int4", "nf4")
"""Every precision but `UNCHANGED`; `tunerkit.memory.quantised_formats` says what they are."""
BASE = "base_model_precision"
TEXT = tuple(f"text_encoder_{number}_precision" for number in (1, 2, 3, 4))

_FLOATING = ("bf16", "fp16", "fp32", "no", "none", "bfloat16", "float16", "float32", "null")
_WEIGHTS = "weights are quantised, activations are not"
_LIBRARIES = ("quanto", "torchao", "sdnq", "bnb", "bitsandbytes")
_OTHERS: dict[str, tuple[str, str]] = {
    "uint8-sdnq": ("int8", ""),
    "fp8wo-torchao": ("fp8", ""),
    "uint4-sdnq": ("int4", ""),
    "fp8-torchao": ("fp8", _WEIGHTS),
    "int8dq-torchao": ("int8", _WEIGHTS),
    "int8dq-int4-torchao": ("int4", _WEIGHTS),
    "fp8-int4-torchao": ("int4", _WEIGHTS),
    "fp8-native": ("fp8-cast", ""),
    "fp8-storage": ("fp8-cast", ""),
    "layerwise-casting": ("fp8-cast", ""),
}
"""Names of other trainers -> ours, and what is different. Those made of our name and a library are not listed."""

_FIX = f"use int8 or fp8 (half of 16 bits), nf4 or int4 (a quarter), or {UNCHANGED}"
_REFUSED: tuple[tuple[str, str, str], ...] = (
    (r".*gguf.*", "GGUF files hold weights for sampling", "name the unquantised checkpoint, and use nf4 or int4"),
    (r"u?int[23]-\w+", "two or three bits leave too little of a model to train an adapter on", "use nf4"),
    (r"u?int[567]-\w+", "there is no such format here; the next larger one is int8", "use int8, or nf4"),
    (r"(u?int|fp)16-\w+", "16 bits save nothing beside mixed_precision = bf16", f"write {UNCHANGED}"),
    (r"fp8uz-\w+", "that float8 is of one kind of GPU only", "use fp8, which is computed everywhere"),
    (r"fp8-transformerengine", "it computes in float8 and needs weights in full", "use fp8, which saves memory"),
)
"""Pattern of a name -> why it is refused, and what to write instead."""


def translate_precision(values: MutableMapping[str, Any], key: str) -> Iterator[Note]:
    """Put our name for the precision `values[key]` in its place; a name that nobody knows stays."""
    given = values[key]
    name = str(given).strip().casefold().replace("_", "-")
    if name in ("no-change", "default", ""):
        values[key] = UNCHANGED
    elif name in _FLOATING:
        values[key] = UNCHANGED
        if given is not None and key == BASE:
            yield Note(
                key,
                f"{given} names no quantisation: read as {UNCHANGED}; the base model has the dtype of mixed_precision",
            )
    elif name in _OTHERS or name.rpartition("-")[2] in _LIBRARIES:
        ours, difference = _OTHERS.get(name, (name.rpartition("-")[0], ""))
        if ours in FORMATS:
            values[key] = ours
            yield Note(key, f"{given} is called {ours} here" + (f": {difference}" if difference else ""))
    elif name in FORMATS:
        values[key] = name


def precision_problems(config: TrainConfig) -> Iterator[Problem]:
    """Precisions that are not known, and settings that go with no quantised model."""
    for key in (BASE, *TEXT):
        name = getattr(config, key)
        if name not in (UNCHANGED, *FORMATS):
            message, fix = next(
                (found[1:] for found in _REFUSED if re.fullmatch(found[0], name.casefold())),
                ("is not known", _FIX),
            )
            yield Problem(key, name, message, fix)
        elif name.startswith("fp8") and config.device == "mps":
            yield Problem(key, name, "device = mps knows no float8", "use int8")
    if config.quantize_activations:
        yield Problem(
            "quantize_activations",
            True,
            "gradients have to pass through activations, and rounding has none",
            "remove it; weights are quantised with base_model_precision",
        )
    if not is_quantised(config):
        return
    if config.model_type == "full":
        yield Problem(
            BASE,
            config.base_model_precision,
            "quantised weights are frozen, and model_type = full trains all of them",
            f"write {UNCHANGED}, or model_type = lora",
        )
    elif config.use_dora or config.lora_init_type in ("pissa", "olora", "loftq"):
        key = "use_dora" if config.use_dora else "lora_init_type"
        yield Problem(
            key,
            getattr(config, key),
            f"needs the base weights in full, and base_model_precision = {config.base_model_precision}",
            f"remove it, or write {UNCHANGED}",
        )


def is_quantised(config: TrainConfig) -> bool:
    """Whether the base model is."""
    return config.base_model_precision != UNCHANGED


def text_precisions(config: TrainConfig, encoders: int) -> dict[str, Any]:
    """What `encoders` text encoders are quantised in, for a cache key; nothing where they are not."""
    names = [getattr(config, key) for key in TEXT[:encoders]]
    return {} if set(names) == {UNCHANGED} else {"precision": names}


def precision_notes(config: TrainConfig) -> Iterator[Note]:
    """Legal settings that do less than they seem to."""
    if config.quantize_via == "pipeline":
        yield Note("quantize_via", "read as accelerator: weights are quantised one by one while they are loaded")
    if config.base_model_default_dtype == "fp32" and not is_quantised(config):
        yield Note("base_model_default_dtype", "has no effect: nothing of the base model is quantised")
