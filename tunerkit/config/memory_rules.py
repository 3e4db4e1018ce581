"""What settings of offloading can be combined, and what has no effect."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunerkit.errors import ConfigError, Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

SWAP, GROUPS = "musubi_blocks_to_swap", "enable_group_offload"


def offload_problems(config: TrainConfig) -> Iterator[Problem]:
    """What cannot be combined with offloading the transformer."""
    key = _key(config)
    if key is None:
        return
    value, off = getattr(config, key), f"{key} to {'0' if key == SWAP else 'false'}"
    if config.musubi_blocks_to_swap and config.enable_group_offload:
        message = f"both move transformer blocks, and {GROUPS} is true"
        yield Problem(SWAP, value, message, f"set it to 0, or {GROUPS} to false")
    if config.model_type == "full":
        message = "only frozen weights can wait outside of the GPU, and model_type = full trains all of them"
        yield Problem(key, value, message, f"set {off}, or model_type to lora")
    if not config.gradient_checkpointing:
        yield Problem(
            "gradient_checkpointing",
            False,
            f"{key} needs it: without, the weights of all blocks are held from the forward pass until the backward one",
            f"set it to true, or {off}",
        )
    if config.musubi_blocks_to_swap and config.musubi_block_swap_device != "cpu":
        message = "swapped blocks wait in the CPU's memory only"
        fix = f"set it to cpu; to keep weights on disk, use {GROUPS} with group_offload_to_disk_path instead"
        yield Problem("musubi_block_swap_device", config.musubi_block_swap_device, message, fix)


def state_problems(config: TrainConfig) -> Iterator[Problem]:
    """What cannot be combined with optimizer state, or an average of the weights, in RAM."""
    key, method = "optimizer_cpu_offload_method", config.optimizer_cpu_offload_method
    if method not in ("none", "cpu"):
        yield Problem(key, method, "is not known", "cpu keeps the optimizer's state in RAM; none leaves it on the GPU")
    elif method == "cpu" and config.optimizer.startswith("bnb-"):
        message = f"optimizer = {config.optimizer} works on the GPU only"
        yield Problem(key, method, message, "optimizer = torch-adamw, or a paged one of bitsandbytes with none")
    elif method == "cpu" and config.mixed_precision == "fp16":
        message = "the loss scaling of mixed_precision = fp16 needs the gradients on the GPU"
        yield Problem(key, method, message, "mixed_precision = bf16, or none")
    if config.ema_cpu_only and config.ema_device != "cpu":
        message = f"contradicts ema_device = {config.ema_device}"
        yield Problem("ema_cpu_only", True, message, "set ema_device to cpu, or ema_cpu_only to false")


def process_problems(config: TrainConfig) -> Iterator[Problem]:
    """Offloading works in one process; how many there are, the launcher leaves in the environment."""
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    key = _key(config)
    if key is not None and processes > 1:
        message = f"weights are offloaded in one process only, and {processes} processes train together"
        yield Problem(key, getattr(config, key), message, "start one process, or leave the setting out")
    if config.optimizer_offload_gradients and processes > 1:
        message = f"gradients are averaged on the GPUs, and {processes} processes train together"
        yield Problem("optimizer_offload_gradients", True, message, "start one process, or set it to false")


def folder_problems(config: TrainConfig) -> Iterator[Problem]:
    """A folder to offload to that cannot be made or written to."""
    key, path = "group_offload_to_disk_path", config.group_offload_to_disk_path
    if path is None or not (
        config.enable_group_offload or config.group_offload_text_encoder or config.group_offload_vae
    ):
        return
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        wrong = "is not a folder" if not there.is_dir() else "cannot be written to"
        message = f"{wrong}, so no weights can wait there" if there == path else f"{there} {wrong}"
        yield Problem(
            key, str(path), message, "name a folder that you may write to, or leave it out to keep them in RAM"
        )


def _key(config: TrainConfig) -> str | None:
    """The setting that offloads the transformer."""
    return SWAP if config.musubi_blocks_to_swap else GROUPS if config.enable_group_offload else None


def offload_notes(config: TrainConfig) -> Iterator[Note]:
    """Settings of offloading without an effect."""
    if not config.musubi_blocks_to_swap and config.musubi_block_swap_device != "cpu":
        yield Note("musubi_block_swap_device", f"has no effect without {SWAP}")
    if not config.enable_group_offload:
        if config.group_offload_type != "block_level":
            yield Note("group_offload_type", f"has no effect without {GROUPS}")
        encodes = config.group_offload_text_encoder or config.group_offload_vae
        if config.group_offload_use_stream and not encodes:
            yield Note("group_offload_use_stream", f"has no effect without {GROUPS}")
        if config.group_offload_to_disk_path is not None and not encodes:
            yield Note("group_offload_to_disk_path", f"has no effect without {GROUPS}")
    by_leaf = config.group_offload_type == "leaf_level"
    if config.group_offload_blocks_per_group != 1 and (by_leaf or not config.enable_group_offload):
        needed = "group_offload_type = block_level" if by_leaf else GROUPS
        yield Note("group_offload_blocks_per_group", f"has no effect without {needed}")


def check_depth(config: TrainConfig, *blocks: int | None) -> None:
    """Not more blocks may be swapped than a transformer has, less one.

    Args:
        blocks: how many it has of each kind; None = not known.

    Raises:
        ConfigError: they are.
    """
    depth = sum(count or 0 for count in blocks)
    if config.musubi_blocks_to_swap >= max(depth, 1) and None not in blocks:
        message = f"the transformer has {depth} blocks, of which one at least has to stay"
        fix = f"set it to 0 to {depth - 1}, or use {GROUPS} = true, which offloads all of them"
        raise ConfigError([Problem(SWAP, config.musubi_blocks_to_swap, message, fix)])
