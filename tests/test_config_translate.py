"""SimpleTuner's meaning of settings -> ours, each change with a note."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tunerkit.config import TrainConfig
from tunerkit.config.inactive import INACTIVE
from tunerkit.config.names import IRRELEVANT
from tunerkit.errors import ConfigError
from tunerkit.project import load_config


def notes(config: TrainConfig) -> dict[str, str]:
    return {note.key: note.message for note in config.notes}


def stable(config: TrainConfig, folder: Path) -> None:
    """A translated configuration is not translated again."""
    assert load_config(config.save(folder / "stable.json")) == config
    assert config.changed() == config


@pytest.mark.parametrize("scheduler", ["cosine", "sine"])
@pytest.mark.parametrize("warmup", [100, "100", 250])
def test_a_warmup_as_long_as_the_run_is_the_length_of_the_curve(scheduler: str, warmup: Any, tmp_path: Path) -> None:
    config = TrainConfig(lr_scheduler=scheduler, lr_warmup_steps=warmup, max_train_steps=100)
    assert (config.lr_warmup_steps, config.lr_decay_steps) == (0, int(warmup))
    assert "lr_warmup_steps" in notes(config)
    stable(config, tmp_path)


def test_the_translated_cosine_gives_the_rates_of_the_original() -> None:
    """end + (top - end) * (1 + cos(pi * step / T)) / 2 with T = lr_warmup_steps, for a run shorter than T."""
    from tunerkit.training.schedules import learning_rate

    config = TrainConfig(
        lr_scheduler="cosine", lr_warmup_steps=1000, max_train_steps=200, learning_rate=1e-4, lr_end=1e-6
    )
    for step in (0, 1, 57, 199):
        expected = 1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * step / 1000)) / 2
        assert learning_rate(config, step, 200) == pytest.approx(expected, rel=1e-12)


def test_a_shorter_warmup_is_a_real_one(tmp_path: Path) -> None:
    config = TrainConfig(lr_scheduler="cosine", lr_warmup_steps=10, max_train_steps=100)
    assert (config.lr_warmup_steps, config.lr_decay_steps) == (10, None)
    assert "real warmup" in notes(config)["lr_warmup_steps"]
    stable(config, tmp_path)
    with pytest.raises(ConfigError, match="leaves nothing after the warmup"):
        config.changed(max_train_steps=10)  # our own meaning stays ours
    assert config.changed(lr_warmup_steps=100).lr_decay_steps == 100


@pytest.mark.parametrize("given", ["bf16", "fp32", "no", "BF16"])
def test_a_base_precision_that_is_no_quantisation(given: str, tmp_path: Path) -> None:
    config = TrainConfig(base_model_precision=given)
    assert config.base_model_precision == "no_change"
    assert "mixed_precision" in notes(config)["base_model_precision"]
    stable(config, tmp_path)


@pytest.mark.parametrize("key", ["base_model_precision", "text_encoder_1_precision"])
@pytest.mark.parametrize(
    ("given", "ours", "difference"),
    [
        ("int8-quanto", "int8", ""),
        ("INT8_torchao", "int8", ""),
        ("uint8-sdnq", "int8", ""),
        ("int8dq-torchao", "int8", "activations are not"),
        ("fp8wo-torchao", "fp8", ""),
        ("fp8-torchao", "fp8", "activations are not"),
        ("fp8-native", "fp8-cast", ""),
        ("int4-quanto", "int4", ""),
        ("nf4-bnb", "nf4", ""),
    ],
)
def test_the_precisions_of_other_trainers(key: str, given: str, ours: str, difference: str, tmp_path: Path) -> None:
    config = TrainConfig(**{key: given})
    assert getattr(config, key) == ours
    assert f"{given} is called {ours} here" in notes(config)[key]
    assert difference in notes(config)[key]
    assert not TrainConfig(**{key: ours}).notes
    stable(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_precision": "model.gguf"}, "GGUF files hold weights for sampling.*nf4"),
        ({"base_model_precision": "int2-quanto"}, "too little of a model.*use nf4"),
        ({"base_model_precision": "fp8uz-quanto"}, "one kind of GPU.*use fp8"),
        ({"base_model_precision": "in8"}, "is not known.*int8"),
        ({"text_encoder_1_precision": "uint5-sdnq"}, "no such format here.*int8"),
        ({"base_model_precision": "int8", "model_type": "full"}, "model_type = full trains all.*lora"),
        ({"base_model_precision": "nf4", "use_dora": True}, "use_dora.*needs the base weights in full"),
        ({"base_model_precision": "nf4", "lora_init_type": "pissa"}, "lora_init_type.*needs the base weights in full"),
        ({"quantize_activations": True}, "gradients have to pass"),
        ({"base_model_precision": "fp8-torchao", "device": "mps"}, "mps knows no float8.*int8"),
    ],
)
def test_what_cannot_be_quantised_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**changes)


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"checkpointing_steps": 7}, "checkpoint_step_interval", 7),
        ({"sana_motion_score": 30}, "motion_score", 30),
        ({"ltx2_first_frame_conditioning_probability": 0.5}, "first_frame_conditioning_probability", 0.5),
        ({"frame_rate": 25}, "framerate", 25),
        ({"validation_steps": 9}, "validation_step_interval", 9),
        ({"learning_rate_end": 1e-6}, "lr_end", 1e-6),
        ({"adam_beta2": 0.99}, "optimizer_beta2", 0.99),
        ({"optimizer": "adamw"}, "optimizer", "torch-adamw"),
        ({"optimizer": "AdamW8bit"}, "optimizer", "bnb-adamw8bit"),
        ({"seed": -1}, "seed", 42),
        ({"validation_resolution": 0.25}, "validation_resolution", "512x512"),
    ],
)
def test_other_names_and_meanings_are_noted(given: dict[str, Any], key: str, value: Any, tmp_path: Path) -> None:
    config = TrainConfig(**given)
    assert getattr(config, key) == value
    assert set(notes(config)) == set(given)
    stable(config, tmp_path)


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"resume_from_checkpoint": ""}, "resume_from_checkpoint", None),
        ({"resume_from_checkpoint": None}, "resume_from_checkpoint", None),
        ({"resume_from_checkpoint": "none"}, "resume_from_checkpoint", None),
        ({"validation_resolution": 480}, "validation_resolution", "480x480"),
        ({"validation_resolution": "480"}, "validation_resolution", "480x480"),
        ({"validation_resolution": "832X480, 640 x 640"}, "validation_resolution", "832x480,640x640"),
        ({"validation_resolution": [[832, 480], "512x768"]}, "validation_resolution", "832x480,512x768"),
        ({"mixed_precision": "bfloat16"}, "mixed_precision", "bf16"),
        ({"mixed_precision": "fp32"}, "mixed_precision", "no"),
        ({"vae_dtype": "default"}, "vae_dtype", None),
        ({"num_train_epochs": -1, "max_train_steps": 5}, "num_train_epochs", 0),
        ({"max_grad_norm": 0.5}, "grad_clip_method", "norm"),
        ({"num_validation_images": 3}, "num_validation_images", 3),
        ({"validation_negative_prompt": ""}, "validation_negative_prompt", ""),
    ],
)
def test_other_spellings_need_no_note(given: dict[str, Any], key: str, value: Any, tmp_path: Path) -> None:
    config = TrainConfig(**given)
    assert getattr(config, key) == value
    assert not config.notes
    stable(config, tmp_path)


def test_source_files_are_deleted_only_if_a_second_setting_says_so() -> None:
    config = TrainConfig(delete_problematic_images="true", delete_unwanted_images=True, write_batch_size=64)
    assert "delete_quarantined_files" in notes(config)["delete_problematic_images"]
    assert "never deleted" in notes(config)["delete_unwanted_images"]
    assert "write_batch_size" in notes(config)
    assert not config.delete_quarantined_files
    both = TrainConfig(delete_problematic_images=True, delete_quarantined_files=True)
    assert both.delete_quarantined_files
    assert "delete_problematic_images" not in notes(both)
    assert "no effect" in notes(TrainConfig(delete_quarantined_files=True))["delete_quarantined_files"]
    assert not TrainConfig(delete_problematic_images="false", compress_disk_cache=False).notes


@pytest.mark.parametrize("key", sorted(IRRELEVANT))
def test_settings_that_cannot_matter_are_accepted_with_a_note(key: str) -> None:
    config = TrainConfig(**{f"--{key}": "anything"})
    assert "no effect here" in notes(config)[key]
    assert config == TrainConfig()


ACTIVE: dict[str, Any] = {
    "report_to": "wandb",
    "tracker_project_name": "project",
    "enable_group_offload": "true",
    "group_offload_use_stream": True,
    "musubi_blocks_to_swap": 4,
    "tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]},
    "crepa_enabled": True,
    "crepa_adjacent_distance": 0,
    "scheduled_sampling_max_step_offset": 10,
    "validation_preview": True,
    "push_to_hub": True,
    "ramtorch": True,
    "fsdp_enable": True,
    "fsdp_limit_all_gathers": False,
    "quantize_via": "cpu",
    "text_encoder_1_precision": "int8-quanto",
    "eval_steps_interval": 50,
    "eval_dataset_id": "eval",
    "webhook_config": [{"webhook_type": "discord", "webhook_url": "https://example.org/hook"}],
    "ema_cpu_only": True,
    "vae_cache_ondemand": True,
    "validation_prompt_library": True,
    "masked_loss_probability": 0.5,
    "vae_enable_patch_conv": True,
    "validation_using_datasets": True,
}


@pytest.mark.parametrize("key", sorted(ACTIVE))
def test_a_setting_without_effect_yet_is_kept_and_noted(key: str, tmp_path: Path) -> None:
    config = TrainConfig(**{key: ACTIVE[key]})
    if key in INACTIVE:
        assert notes(config) == {key: f"accepted; this version trains without it: {INACTIVE[key]}"}
    assert getattr(config, key) != getattr(TrainConfig(), key)
    stable(config, tmp_path)


def test_settings_at_rest_are_not_mentioned() -> None:
    config = TrainConfig(
        report_to="none",
        enable_group_offload=False,
        tread_config=None,
        text_encoder_1_precision="no_change",
        musubi_blocks_to_swap=0,
        webhook_config="",
        eval_epoch_interval=None,
        crepa_lambda=0.5,
        validation_using_datasets=False,
    )
    assert not config.notes


def test_settings_of_datasets_are_translated(tmp_path: Path) -> None:
    config = TrainConfig(
        framerate=16,
        caption_strategy="filename",
        datasets=[
            {
                "id": "clips",
                "disable": "false",
                "--crop_style": "centre",
                "metadata_backend": "discovery",
                "delete_problematic_images": "true",
                "is_regularization_data": True,
                "video": {"num_frames": "49", "fps": 24},
                "audio": {"channels": 1},
                "conditioning_data": "mask",
            },
            {"id": "own", "caption_strategy": "textfile", "audio": {"auto_split": "false"}},
            {"id": "mask", "dataset_type": "conditioning", "conditioning_type": "mask"},
            {"id": "off", "dataset_type": "eval", "disabled": True},
        ],
    )
    first, second, *_ = config.datasets
    assert (first.caption_strategy, second.caption_strategy) == ("filename", "textfile")
    assert (first.crop_style, first.is_regularisation_data, first.disabled) == ("center", True, False)
    assert (first.video.num_frames, first.video.frame_rate) == (49, 16)  # a run has one framerate
    assert set(notes(config)) == {
        "caption_strategy",
        "datasets[0].metadata_backend",
        "datasets[0].delete_problematic_images",
        "datasets[0].is_regularisation_data",
        "datasets[0].video.fps",
        "datasets[0].video.frame_rate",
    }
    stable(config, tmp_path)


def test_captions_come_from_text_files_unless_said_otherwise(tmp_path: Path) -> None:
    config = TrainConfig(datasets=[{"id": "clips"}])
    assert config.datasets[0].caption_strategy == "textfile"
    assert "filename" in notes(config)["datasets[0].caption_strategy"]
    stable(config, tmp_path)
