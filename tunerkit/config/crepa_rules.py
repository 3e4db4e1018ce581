"""What settings of cross-frame representation alignment (CREPA) can be combined, and what has no effect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunerkit.errors import ConfigError, Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

ENABLED, ENCODER, BLOCK, TEACHER_BLOCK = (
    "crepa_enabled", "crepa_encoder", "crepa_block_index", "crepa_teacher_block_index",
)  # fmt: skip
CREPA_DEFAULTS = {"crepa_lambda": 0.5, "crepa_adjacent_tau": 1.0, "crepa_scheduler": "constant"}
"""Of the paper; a family may have others."""
_SIZES = {"s": ("small", 384), "b": ("base", 768), "l": ("large", 1024), "g": ("giant", 1536)}
"""Letter in a name of DINOv2 -> its word on the hub, and the width of a feature."""
_SHORT = re.compile(r"dino_?v2_(?:vit)?([sblg])(?:14)?(_reg)?")
_PUBLISHED = "facebook/dinov2-"
_REGISTERS = "with-registers-"


def is_short_name(name: str) -> bool:
    """Whether an encoder is called as its authors call it (`dinov2_vitg14`), not by a repository or a folder."""
    return _SHORT.fullmatch(_plain(name)) is not None


def teacher_model(name: str) -> str:
    """Hub repository or local folder of an encoder: `dinov2_vitg14` is `facebook/dinov2-giant`."""
    short = _SHORT.fullmatch(_plain(name))
    if short is None:
        return name
    return f"{_PUBLISHED}{_REGISTERS if short[2] else ''}{_SIZES[short[1]][0]}"


def published_width(model: str) -> int | None:
    """Width of the features of a published encoder; None where it is not known by heart."""
    size = model.removeprefix(_PUBLISHED).removeprefix(_REGISTERS)
    return next((width for word, width in _SIZES.values() if model.startswith(_PUBLISHED) and word == size), None)


def has_registers(model: str) -> bool:
    """Whether a published encoder is one of those with registers."""
    return model.startswith(_PUBLISHED + _REGISTERS)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def from_backbone(config: TrainConfig) -> bool:
    """Whether the features are hidden states of another block of the model itself."""
    return config.crepa_use_backbone_features or config.crepa_feature_source == "backbone"


def needs_features(config: TrainConfig) -> bool:
    """Whether features of an image encoder are cached beside the latents."""
    return config.crepa_enabled and not from_backbone(config)


def named_blocks(config: TrainConfig) -> dict[str, int]:
    """Setting -> number of a block whose output is needed for all tokens; empty without an alignment."""
    blocks: dict[str, int | None] = {}
    if config.crepa_enabled:
        blocks[BLOCK] = config.crepa_block_index
        if from_backbone(config):
            blocks[TEACHER_BLOCK] = config.crepa_teacher_block_index
    return {key: index for key, index in blocks.items() if index is not None}


def aligned_blocks(config: TrainConfig, blocks: int) -> tuple[int, int | None]:
    """Numbers of the aligned block, and of the one that the features come from; None = from an image encoder.

    Args:
        blocks: how many the picture's tokens pass.

    Raises:
        ConfigError: the transformer has no such block.
    """
    asked = named_blocks(config)
    problems = [
        Problem(key, index, f"is no block of the transformer, which has {blocks}", f"use 0 to {blocks - 1}")
        for key, index in asked.items()
        if index >= blocks
    ]
    if problems:
        raise ConfigError(problems)
    return asked[BLOCK], asked.get(TEACHER_BLOCK)


def check_aligned_blocks(config: TrainConfig, blocks: int | None) -> None:
    """The blocks that are aligned must be there.

    Args:
        blocks: how many the picture's tokens pass; None = not known.

    Raises:
        ConfigError: they are not.
    """
    if config.crepa_enabled and blocks is not None:
        aligned_blocks(config, blocks)


def crepa_problems(config: TrainConfig) -> Iterator[Problem]:
    """What of the alignment cannot be done."""
    if not config.crepa_enabled:
        return
    name = config.crepa_encoder
    if not from_backbone(config) and not is_short_name(name) and "/" not in name:
        message = "is neither a DINOv2, nor an existing folder, nor a repository on the hub"
        yield Problem(ENCODER, name, message, "use dinov2_vitg14, dinov2_vits14, or owner/name of another DINOv2")
    if config.crepa_feature_source == "self_flow":
        yield Problem(
            "crepa_feature_source",
            "self_flow",
            "needs a second model, averaged over the run, that looks at the same clip with other noise in every step",
            "use encoder, or backbone for features of the model itself",
        )
    elif from_backbone(config):
        yield from _backbone_problems(config)
    start, end = config.crepa_warmup_steps, config.crepa_decay_steps
    if end and start >= end:
        message = f"leaves nothing after the warmup: crepa_decay_steps = {end}"
        yield Problem("crepa_warmup_steps", start, message, f"set it below {end}")


def _backbone_problems(config: TrainConfig) -> Iterator[Problem]:
    teacher, student = config.crepa_teacher_block_index, config.crepa_block_index
    if teacher is None:
        message = "is not set, and features of the model itself come from a block"
        yield Problem(
            TEACHER_BLOCK, None, message, f"name a block behind {BLOCK}, or use crepa_feature_source = encoder"
        )
    elif student is not None and teacher <= student:
        message = f"is not behind {BLOCK} = {student}, so nothing would be learned from it"
        yield Problem(TEACHER_BLOCK, teacher, message, f"set it above {student}")


def crepa_notes(config: TrainConfig) -> Iterator[Note]:
    """Settings of the alignment without an effect."""
    if not config.crepa_enabled:
        return
    if from_backbone(config):
        yield Note(ENCODER, "the features come from the model itself; no image encoder is used")
    elif config.crepa_teacher_block_index is not None:
        yield Note(TEACHER_BLOCK, "has no effect without crepa_feature_source = backbone")
    if config.crepa_cumulative_neighbors and config.crepa_adjacent_distance < 2:
        yield Note("crepa_cumulative_neighbors", "has no effect with crepa_adjacent_distance below 2")
