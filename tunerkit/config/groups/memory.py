"""Offloading, block swap and several GPUs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="memory")


class MemorySettings(Settings):
    """What is moved out of the GPU's memory, or spread over several."""

    enable_group_offload: bool = _setting(
        False,
        "Keep the frozen weights of all transformer blocks in RAM, each on the GPU only while it computes; for LoRA "
        "with gradient_checkpointing.",
    )
    group_offload_type: Literal["block_level", "leaf_level"] = _setting(
        "block_level",
        "What comes and goes as one: whole blocks, or every layer by itself (least memory, slowest).",
    )
    group_offload_blocks_per_group: int = _setting(1, "Blocks that come and go as one, with block_level.", ge=1)
    group_offload_use_stream: bool = _setting(
        False, "Copy the next group while one computes: faster, with the memory of one group more."
    )
    group_offload_to_disk_path: Path | None = _setting(
        None, "Folder on a fast disk to offload to where RAM is short: slower."
    )
    group_offload_text_encoder: bool = _setting(
        False,
        "Keep the text encoder's weights in RAM while it encodes, each layer's on the GPU while it computes.",
    )
    group_offload_vae: bool = _setting(
        False, "The same for the VAE, in validation as well; its weights are few, vae_enable_tiling saves more."
    )
    musubi_blocks_to_swap: int = _setting(
        0,
        "Transformer blocks, evenly spread, whose frozen weights wait in RAM and are copied to the GPU ahead of their "
        "turn; for LoRA with gradient_checkpointing. 0 = none.",
        ge=0,
    )
    musubi_block_swap_device: str = _setting("cpu", "Where swapped blocks wait: cpu.")
    ramtorch: bool = _setting(False, "Stream the weights of every linear layer from CPU memory.")
    ramtorch_target_modules: str | None = _setting(None, "Layers to stream.")
    ramtorch_transformer_percent: float = _setting(
        100.0, "Share of the transformer to stream, in percent.", ge=0, le=100
    )
    ramtorch_text_encoder: bool = _setting(False, "Stream the text encoder.")
    ramtorch_text_encoder_percent: float | None = _setting(None, "Share of the text encoder.", ge=0, le=100)
    ramtorch_vae: bool = _setting(False, "Stream the VAE.")
    attention_mechanism: str = _setting("diffusers", "Implementation of attention.")
    dynamo_backend: str = _setting("no", "Compiler of the model.")
    fsdp_enable: bool = _setting(False, "Shard the model over several GPUs (FSDP2).")
    fsdp_version: Literal[1, 2] = _setting(2, "Version of FSDP.")
    fsdp_reshard_after_forward: bool = _setting(True, "Drop gathered weights after the forward pass.")
    fsdp_state_dict_type: Literal["SHARDED_STATE_DICT", "FULL_STATE_DICT"] = _setting(
        "SHARDED_STATE_DICT", "Form of a sharded checkpoint."
    )
    fsdp_cpu_ram_efficient_loading: bool = _setting(False, "Load weights on one process only.")
    fsdp_auto_wrap_policy: str = _setting("TRANSFORMER_BASED_WRAP", "What is sharded as one unit.")
    fsdp_limit_all_gathers: bool = _setting(True, "Gather no further ahead than needed.")
    fsdp_cpu_offload: bool = _setting(False, "Keep shards in CPU memory.")
    fsdp_activation_checkpointing: bool = _setting(False, "Recompute activations inside FSDP.")
    fsdp_transformer_layer_cls_to_wrap: str | list[str] | None = _setting(None, "Classes of the sharded blocks.")
    context_parallel_size: int | None = _setting(None, "GPUs that share one clip's tokens.", ge=1)
    context_parallel_comm_strategy: Literal["allgather", "alltoall"] = _setting("allgather", "How they exchange them.")
    num_processes: int = _setting(1, "Processes, one per GPU.", ge=1)
