"""Settings that are known, typed and checked, and that this version does not act on yet.

This is the only place that says so: a feature that arrives deletes its lines here, and nothing else.
A setting at its default (or empty) is never mentioned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tunerkit.config.problems import entry_key
from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.fields import Settings
    from tunerkit.config.settings import TrainConfig

_RAM = "weights stay on the device"
_FSDP = "the model is not sharded"
_CACHE = "everything is encoded once, before the first step"
_DENSITY = "timesteps follow the family's official density"
_LOSS = "the loss is the family's official one"
_RECOMPUTE = "every block is recomputed, with torch's own checkpointing"
_TIMING = "the dataset is used in every epoch"
_SPAN = "a clip's sound lasts exactly as long as its frames"
_CONDITIONING = "nothing is made from other datasets; masks are read from a dataset of their own"

INACTIVE: dict[str, str] = {
    # adapter
    "lycoris_config": "the adapter is a LoRA",
    # model
    "pretrained_transformer_model_name_or_path": "the base model's own transformer is used",
    "pretrained_transformer_subfolder": "the base model's own transformer is used",
    # memory: quantisation
    "quantization_config": "base_model_precision alone says how weights are quantised",
    # memory: offloading
    "ramtorch": _RAM,
    "ramtorch_target_modules": _RAM,
    "ramtorch_transformer_percent": _RAM,
    "ramtorch_text_encoder": _RAM,
    "ramtorch_text_encoder_percent": _RAM,
    "ramtorch_vae": _RAM,
    "gradient_checkpointing_interval": _RECOMPUTE,
    "gradient_checkpointing_segment_stride": _RECOMPUTE,
    "gradient_checkpointing_backend": _RECOMPUTE,
    "gradient_precision": "gradients have the dtype of the trained weights",
    "attention_mechanism": "attention is the stock one of diffusers",
    "dynamo_backend": "the model is not compiled",
    # several GPUs
    "fsdp_enable": _FSDP,
    "fsdp_version": _FSDP,
    "fsdp_reshard_after_forward": _FSDP,
    "fsdp_state_dict_type": _FSDP,
    "fsdp_cpu_ram_efficient_loading": _FSDP,
    "fsdp_auto_wrap_policy": _FSDP,
    "fsdp_limit_all_gathers": _FSDP,
    "fsdp_cpu_offload": _FSDP,
    "fsdp_activation_checkpointing": _FSDP,
    "fsdp_transformer_layer_cls_to_wrap": _FSDP,
    "context_parallel_size": "a clip's tokens stay on one GPU",
    "context_parallel_comm_strategy": "a clip's tokens stay on one GPU",
    "num_processes": "one process trains",
    # objective
    "loss_type": _LOSS,
    "huber_c": _LOSS,
    "snr_gamma": _LOSS,
    "noise_offset": _LOSS,
    "input_perturbation": _LOSS,
    "flow_sigmoid_scale": _DENSITY,
    "flow_use_uniform_schedule": _DENSITY,
    "flow_use_beta_schedule": _DENSITY,
    "flow_beta_schedule_alpha": _DENSITY,
    "flow_beta_schedule_beta": _DENSITY,
    "flow_custom_timesteps": _DENSITY,
    "crepa_use_tae": "the image encoder sees the clip's own frames, so nothing is decoded",
    "crepa_self_flow_mask_ratio": "crepa_feature_source = self_flow is refused",
    # optimizer
    "optimizer_release_gradients": "max_grad_norm and accumulation need all gradients before the first update",
    # data
    "vae_cache_ondemand": _CACHE,
    "vae_cache_disable": _CACHE,
    "vae_cache_clear_each_epoch": _CACHE,
    "vae_cache_scan_behaviour": _CACHE,
    "text_cache_ondemand": _CACHE,
    "text_cache_disable": _CACHE,
    # validation
    "validation_prompt_library": "use user_prompt_library for a list of prompts",
    "validation_guidance_rescale": "guidance is not rescaled",
    "validation_seed_source": "noise is drawn on the CPU",
    "validation_epoch_interval": "use validation_step_interval",
    "validation_disable_unconditional": "the empty prompt is not rendered",
    "validation_adapter_path": "the trained adapter is rendered",
    "validation_external_script": "videos are rendered in the run itself",
    "evaluation_type": "rendered videos are not scored",
    # checkpoints
    "checkpoint_epoch_interval": "use checkpoint_step_interval",
    "checkpoints_rolling_interval": "use checkpoint_step_interval",
    "disk_low_threshold": "a checkpoint that does not fit ends the run and leaves the last one whole",
    "disk_low_action": "a checkpoint that does not fit ends the run and leaves the last one whole",
    # tracking
    "tracker_image_layout": "every video is reported by itself, under the name of its prompt",
}
"""Setting -> what happens instead."""

DATASET_INACTIVE: dict[str, str] = {
    "caption_shuffle": "captions are used as written",
    "caption_filter_list": "captions are used as written",
    "start_epoch": _TIMING,
    "start_step": _TIMING,
    "end_epoch": _TIMING,
    "end_step": _TIMING,
    "text_encoder_batch_size": "text_encoder_batch_size of the run counts",
    "is_regularisation_data": "the clips are trained like all others",
    "disable_validation": "validation_using_datasets takes inputs from all",
    "timestep_sampling_offset": _DENSITY,
    "conditioning": _CONDITIONING,
    "source_dataset_id": _CONDITIONING,
    "text_embeds": "all datasets share one cache of text embeddings",
    "image_embeds": "image embeddings are not used",
    "vae_cache_ondemand": _CACHE,
    "vae_cache_disable": _CACHE,
    "audio.bucket_strategy": _SPAN,
    "audio.duration_interval": _SPAN,
}
"""Dataset setting (with a dot inside a group) -> what happens instead."""

INACTIVE_TYPES: dict[str, str] = {
    "image_embeds": "image embeddings are not used",
    "conditioning_image_embeds": "image embeddings are not used",
    "distillation_cache": "no teacher is trained from",
}
"""`dataset_type` -> what happens instead."""


def inactive_notes(config: TrainConfig) -> Iterator[Note]:
    """One note for each setting that is set to something and has no effect yet."""
    for key, instead in INACTIVE.items():
        if _is_active(config, key):
            yield _note(key, instead)
    for index, dataset in enumerate(config.datasets):
        if dataset.disabled:
            continue
        yield from _dataset_notes(dataset, entry_key("datasets", index))


def _dataset_notes(dataset: DatasetConfig, entry: str) -> Iterator[Note]:
    if dataset.dataset_type in INACTIVE_TYPES:
        yield _note(f"{entry}.dataset_type", INACTIVE_TYPES[dataset.dataset_type])
        return
    for key, instead in DATASET_INACTIVE.items():
        group, _, name = key.rpartition(".")
        settings = getattr(dataset, group) if group else dataset
        if settings is not None and _is_active(settings, name):
            yield _note(f"{entry}.{key}", instead)


def _note(key: str, instead: str) -> Note:
    return Note(key, f"accepted; this version trains without it: {instead}")


def _is_active(settings: Settings, key: str) -> bool:
    """Whether a setting differs from its default and says anything."""
    value = getattr(settings, key)
    default = type(settings).model_fields[key].get_default(call_default_factory=True)
    if value == default or value in (None, ""):
        return False
    words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if words and all(str(word).casefold() in ("none", "no_change", "no") for word in words):
        return False
    # Turning off what is on by default says something; turning off what is off does not.
    return bool(value) or bool(default)


REFUSED: dict[str, tuple[Iterable[Any], str, str]] = {
    "lora_type": (("standard",), "this version trains standard LoRA adapters only", "write standard"),
}
"""Settings that cannot be left without effect: setting -> (values that are fine, what is wrong, fix)."""


def refused_problems(config: TrainConfig) -> Iterator[Problem]:
    """One problem for each setting whose value would have to be obeyed and cannot be yet."""
    for key, (fine, message, fix) in REFUSED.items():
        value = getattr(config, key)
        if value not in fine:
            yield Problem(key, value, message, fix)
