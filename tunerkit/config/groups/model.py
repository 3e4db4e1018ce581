"""Which model is trained, in which precision, on which device."""

from __future__ import annotations

from functools import partial
from typing import Literal

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="model")
_memory = partial(setting, group="memory")


class ModelSettings(Settings):
    """What is loaded."""

    model_family: str | None = _setting(None, "Model family to train.")
    model_flavour: str | None = _setting(None, "Published checkpoint of the family; the family's default when not set.")
    model_type: Literal["lora", "full"] = _setting(
        "lora", "What is trained: a LoRA adapter, or all weights of the transformer."
    )
    pretrained_model_name_or_path: str | None = _setting(
        None, "Base model: a folder in diffusers layout or a hub id 'owner/name'; the flavour's when not set."
    )
    pretrained_vae_model_name_or_path: str | None = _setting(
        None, "Folder or hub id whose VAE is used; the base model's own when not set."
    )
    pretrained_text_encoder_model_name_or_path: str | None = _setting(
        None,
        "Folder or hub id of the text encoder that belongs to a combined checkpoint file; the published one when not "
        "set.",
    )
    pretrained_transformer_model_name_or_path: str | None = _setting(
        None, "Folder or hub id whose transformer replaces the base model's."
    )
    pretrained_transformer_subfolder: str | None = _setting(None, "Sub-folder of the replacing transformer.")
    ltx2_checkpoint_filename: str | None = _setting(None, "Name of a combined LTX-2 checkpoint file.")
    revision: str | None = _setting(None, "Branch, tag or commit of the hub repository.")
    variant: str | None = _setting(None, "Weight file variant of the hub repository, for example fp16.")
    mixed_precision: Literal["no", "fp16", "bf16"] = _setting(
        "bf16", "Precision of the training computation; no = float32 throughout."
    )
    sparse_attention: bool = _setting(
        True,
        "Attend sparsely where the model was trained so (Kandinsky 5.0 of 10 s and HD); false = every token sees every "
        "other.",
    )
    device: str | None = _setting(
        None,
        "Where to compute: cpu, cuda, cuda:1 or mps; the GPU if there is one when not set.",
        pattern=r"^(cpu|mps|cuda(:\d+)?)$",
    )
    flow_schedule_shift: float | None = _setting(
        None, "Shift of the training noise schedule; the family's own when not set.", gt=0
    )
    flow_schedule_auto_shift: bool = _setting(False, "Derive the shift from the number of tokens.")

    base_model_precision: str = _memory(
        "no_change",
        "What the transformer blocks' frozen linear layers are kept in, for LoRA: int8 or fp8 (half of 16 bits), "
        "nf4 or int4 (about a quarter), fp8-cast (float8 without scales); no_change keeps the mixed_precision dtype.",
    )
    base_model_default_dtype: Literal["bf16", "fp32"] = _memory(
        "bf16",
        "Beside a quantised base model: bf16 leaves what is not quantised, and the computation, in the mixed_precision "
        "dtype; fp32 makes both float32.",
    )
    quantize_via: Literal["cpu", "accelerator", "pipeline"] = _memory(
        "accelerator",
        "Where weights are quantised, one by one while they are loaded: on the CPU, or on the device that trains "
        "(accelerator or pipeline), which is faster.",
    )
    quantize_activations: bool = _memory(False, "Refused: only frozen weights are quantised.")
    quantization_config: str | dict[str, object] | None = _memory(None, "Quantisation options, as JSON.")
    text_encoder_1_precision: str = _memory(
        "no_change", "What the layers of the first text encoder are kept in; values as for base_model_precision."
    )
    text_encoder_2_precision: str = _memory(
        "no_change", "What the layers of the second text encoder are kept in (Kandinsky's CLIP)."
    )
    text_encoder_3_precision: str = _memory("no_change", "No model here has a third text encoder.")
    text_encoder_4_precision: str = _memory("no_change", "No model here has a fourth text encoder.")
    vae_dtype: Literal["fp32", "bf16", "fp16"] | None = _memory(
        None, "Precision of the VAE; the family's own when not set."
    )
    vae_enable_tiling: bool = _memory(False, "Encode and decode in spatial tiles: less memory, slower.")
    vae_enable_slicing: bool = _memory(False, "Encode and decode one clip of a batch at a time.")
    vae_enable_patch_conv: bool = _memory(
        False,
        "Run the VAE a few frames at a time, as many as fit into free memory: much less memory for long clips, and the "
        "same latents and videos.",
    )
    vae_enable_temporal_roll: bool = _memory(
        False, "Run the VAE one frame at a time: as vae_enable_patch_conv, with the least memory, and slower."
    )
