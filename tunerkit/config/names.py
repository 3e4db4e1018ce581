"""Other names of settings: what they were called before, what other trainers call them, and what cannot matter here."""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "adam_beta1": "optimizer_beta1",
    "adam_beta2": "optimizer_beta2",
    "adam_weight_decay": "weight_decay",
    "checkpointing_steps": "checkpoint_step_interval",
    "crepa_model": "crepa_encoder",
    "data_backend_config": "datasets",
    "frame_rate": "framerate",
    "learning_rate_end": "lr_end",
    "ltx2_first_frame_conditioning_probability": "first_frame_conditioning_probability",
    "model_flavor": "model_flavour",
    "optimizer_weight_decay": "weight_decay",
    "sana_motion_score": "motion_score",
    "vae_path": "pretrained_vae_model_name_or_path",
    "validation_steps": "validation_step_interval",
}
"""Accepted names -> ours, at the top level."""

DATASET_ALIASES: dict[str, str] = {
    "disable": "disabled",
    "is_regularization_data": "is_regularisation_data",
}
VIDEO_ALIASES: dict[str, str] = {"framerate": "frame_rate", "fps": "frame_rate"}

SILENT_ALIASES = frozenset({"data_backend_config", "disable", "model_flavor", "is_regularization_data"})
"""Aliases that need no note: the same setting under the same meaning."""

SUGGESTIONS: dict[str, str] = {
    "alpha": "lora_alpha",
    "batch_size": "train_batch_size",
    "cpu_offload": "enable_group_offload",
    "dataset": "data_backend_config",
    "dataset_config": "data_backend_config",
    "dropout": "lora_dropout",
    "enable_model_cpu_offload": "enable_group_offload",
    "epochs": "num_train_epochs",
    "flavour": "model_flavour",
    "fps": "framerate",
    "gradient_clipping": "max_grad_norm",
    "lr": "learning_rate",
    "max_epochs": "num_train_epochs",
    "max_steps": "max_train_steps",
    "max_train_epochs": "num_train_epochs",
    "model": "pretrained_model_name_or_path",
    "network_alpha": "lora_alpha",
    "network_dim": "lora_rank",
    "network_dropout": "lora_dropout",
    "output": "output_dir",
    "precision": "mixed_precision",
    "rank": "lora_rank",
    "sample_prompts": "user_prompt_library",
    "save_every": "checkpoint_step_interval",
    "save_every_n_steps": "checkpoint_step_interval",
    "scheduler": "lr_scheduler",
    "steps": "max_train_steps",
    "target_frames": "num_frames",
    "target_modules": "peft_lora_target_modules",
    "vae": "pretrained_vae_model_name_or_path",
    "warmup_steps": "lr_warmup_steps",
}
"""Names people try; only used to say which setting is meant."""

ENVIRONMENT = frozenset({"hf_endpoint", "hf_home", "hf_hub_offline", "hf_token", "wandb_api_key", "wandb_mode"})
"""Variables of the environment that people take for settings. Libraries read them when they are imported."""

_WORKERS = "files are read and written without a worker pool to tune"
_BUCKETS = "sizes follow the family's own multiple of pixels"
_EPOCHS = "a run ends exactly at max_train_steps or num_train_epochs"
_LOGS = "it sets a logging detail of another program"
_LAUNCH = "processes are started by `accelerate launch`"
_SERIAL = "one component is in memory at a time, in every phase"
_CACHE_KEY = "a cache file is named by everything that shaped it, so it cannot be stale"
_MATH = "matrix precision is left to torch"
_SAVE = "checkpoints are always written to a temporary folder, checked, and renamed"

IRRELEVANT: dict[str, str] = {
    "accelerate_config": _LAUNCH,
    "accelerate_extra_args": _LAUNCH,
    "accelerate_visible_devices": _LAUNCH,
    "allow_tf32": _MATH,
    "aspect_bucket_alignment": _BUCKETS,
    "aspect_bucket_disable_rebuild": _CACHE_KEY,
    "aspect_bucket_rounding": _BUCKETS,
    "aws_max_pool_connections": "datasets are local folders",
    "base_model_download": "models are downloaded when they are first needed",
    "cache_dir_text": "set cache_dir, or cache_dir of the text_embeds entry",
    "cache_dir_vae": "set cache_dir, or cache_dir_vae of the dataset",
    "cache_file_suffix": _CACHE_KEY,
    "checkpointing_use_tempdir": _SAVE,
    "config_backend": "settings are read from JSON files",
    "config_path": "the file is named when it is loaded",
    "dataloader_prefetch": _WORKERS,
    "dataloader_prefetch_qlen": _WORKERS,
    "debug_aspect_buckets": _LOGS,
    "debug_dataset_loader": _LOGS,
    "delete_invalid_checkpoints": "a damaged checkpoint is passed over for the one before it, never deleted",
    "delete_model_after_load": _SERIAL,
    "disable_accelerator": "device says where to compute",
    "disable_bucket_pruning": "no bucket is dropped for being small",
    "disable_multiprocessing": _WORKERS,
    "disable_tf32": _MATH,
    "enable_multiprocessing": _WORKERS,
    "enable_watermark": "rendered videos are never marked",
    "gradient_accumulation_plugin": _LAUNCH,
    "i_know_what_i_am_doing": "there are no warnings to switch off",
    "ignore_final_epochs": _EPOCHS,
    "image_processing_batch_size": _WORKERS,
    "keep_vae_loaded": _SERIAL,
    "local_rank": _LAUNCH,
    "log_level": _LOGS,
    "logging_dir": "metrics.jsonl and events.jsonl lie in output_dir",
    "machine_rank": _LAUNCH,
    "main_process_ip": _LAUNCH,
    "main_process_port": _LAUNCH,
    "max_workers": _WORKERS,
    "metadata_update_interval": _CACHE_KEY,
    "num_machines": _LAUNCH,
    "offload_during_save": _SERIAL,
    "offload_during_startup": _SERIAL,
    "override_dataset_config": _CACHE_KEY,
    "preserve_data_backend_cache": _CACHE_KEY,
    "print_filenames": _LOGS,
    "print_sampler_statistics": _LOGS,
    "read_batch_size": _WORKERS,
    "same_network": _LAUNCH,
    "seed_for_each_device": "every draw follows from seed, step and sample",
    "skip_file_discovery": _CACHE_KEY,
    "strict_epoch_limit": _EPOCHS,
    "text_embeds_cache_compress": "cache files are never compressed",
    "torch_num_threads": "set OMP_NUM_THREADS",
    "track_luminance": _LOGS,
    "training_num_processes": _LAUNCH,
    "trust_remote_code": "only the stock classes of diffusers and transformers are loaded",
}
"""Known settings of other programs that cannot matter here -> why. They are dropped with a note."""

DATASET_IRRELEVANT: dict[str, str] = {
    "aspect_bucket_alignment": _BUCKETS,
    "aspect_bucket_rounding": _BUCKETS,
    "cache_file_suffix": _CACHE_KEY,
    "compress_cache": "cache files are never compressed",
    "delete_problematic_images": "no source file is ever deleted; a file that fails is listed and skipped",
    "delete_unwanted_images": "no source file is ever deleted",
    "hash_filenames": _CACHE_KEY,
    "image_processing_batch_size": _WORKERS,
    "max_workers": _WORKERS,
    "metadata_backend": "files are always looked up in the folder itself",
    "metadata_update_interval": _CACHE_KEY,
    "preserve_data_backend_cache": _CACHE_KEY,
    "read_batch_size": _WORKERS,
    "scan_for_errors": "every cache file is checked when it is read",
    "skip_file_discovery": _CACHE_KEY,
    "vae_cache_clear_each_epoch": _CACHE_KEY,
    "write_batch_size": "every cache file is written as soon as it is ready",
}
"""The same inside a dataset."""

INHERITED: tuple[str, ...] = (
    "caption_strategy",
    "crop",
    "crop_aspect",
    "crop_style",
    "instance_prompt",
    "maximum_image_size",
    "minimum_image_size",
    "only_instance_prompt",
    "prepend_instance_prompt",
    "repeats",
    "target_downsample_size",
)
"""Dataset settings that may stand at the top level, as a default for every dataset of clips."""

VALUE_ALIASES: dict[str, dict[str, str]] = {
    "mixed_precision": {"fp32": "no", "float32": "no", "float16": "fp16", "bfloat16": "bf16"},
    "vae_dtype": {"default": "none", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"},
    "lr_scheduler": {"cosine_annealing": "cosine", "warmup": "constant_with_warmup"},
    "ema_device": {"cuda": "accelerator", "gpu": "accelerator"},
    "optimizer_cpu_offload_method": {"torchao": "cpu"},
    "crop_style": {"centre": "center"},
    "resolution_type": {"pixels": "pixel", "megapixels": "area"},
}
"""Spellings of choices -> ours; accepted silently, they mean the same."""

OPTIMIZER_ALIASES: dict[str, str] = {
    "adam": "torch-adam",
    "adamw": "torch-adamw",
    "adamw8bit": "bnb-adamw8bit",
    "adam8bit": "bnb-adam8bit",
    "lion8bit": "bnb-lion8bit",
    "pagedadamw8bit": "bnb-adamw8bit-paged",
    "paged_adamw8bit": "bnb-adamw8bit-paged",
    "adamwbf16": "adamw_bf16",
    "adamw-bf16": "adamw_bf16",
    "ao-adamw8bit": "adamw_8bit",
    "adamwschedulefree": "adamw_schedulefree",
    "schedulefree": "adamw_schedulefree",
    "torch-muon": "muon",
    "sgd": "torch-sgd",
    "stableadamw": "optimi-stableadamw",
    "lion": "optimi-lion",
}
