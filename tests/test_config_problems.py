"""Settings: everything that is wrong is said at once, with the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_documents import problems

from tunerkit.config import (
    DatasetConfig,
    TrainConfig,
    VideoSettings,
)
from tunerkit.config.names import ALIASES, DATASET_ALIASES, INHERITED
from tunerkit.config.paths import Folders
from tunerkit.errors import ConfigError


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(
            learning_rat=1e-4,
            checkpointing_step=5,
            lora_rank=2000,
            train_batch_size="two",
            mixed_precision="fp8",
            use_ema="maybe",
            seed=True,
            learning_rate=float("nan"),
            checkpoint_step_interval=0,
            gradient_accumulation_steps=0,
            base_model_precision="int2-quanto",
            max_train_steps=5,
            num_train_epochs=2,
            validation_resolution="832-480",
            optimizer="prodigi",
            data_backend_config=[
                {"id": "a", "video": {"num_frame": 81}, "cache_dir_vae": "shared-cache"},
                {"id": "a", "resolution": 480, "resolution_type": "area", "cache_dir_vae": "shared-cache"},
                "not an object",
                {"dataset_type": "vidio"},
                {"id": "t1", "dataset_type": "text_embeds", "default": True},
                {"id": "t2", "dataset_type": "text_embeds", "default": True},
            ],
        )
    found = problems(error)
    assert set(found) == {
        "learning_rat",
        "checkpointing_step",
        "lora_rank",
        "train_batch_size",
        "mixed_precision",
        "use_ema",
        "seed",
        "learning_rate",
        "checkpoint_step_interval",
        "gradient_accumulation_steps",
        "base_model_precision",
        "num_train_epochs",
        "validation_resolution",
        "optimizer",
        "datasets[0].video.num_frame",
        "datasets[1].id",
        "datasets[1].resolution",
        "datasets[1].cache_dir_vae",
        "datasets[2]",
        "datasets[3].id",
        "datasets[3].dataset_type",
        "datasets[5].default",
    }
    assert "learning_rate" in found["learning_rat"].fix
    assert "checkpoint_step_interval" in found["checkpointing_step"].fix
    assert "num_frames" in found["datasets[0].video.num_frame"].fix
    assert "1024" in found["lora_rank"].message
    assert "no, fp16, bf16" in found["mixed_precision"].fix
    assert "nf4" in found["base_model_precision"].fix
    assert "video" in found["datasets[3].dataset_type"].fix
    for problem in error.value.problems:
        assert problem.message
        assert problem.fix


@pytest.mark.parametrize(
    ("given", "key", "fix"),
    [
        ({"lr": 1}, "lr", "learning_rate"),
        ({"steps": 1}, "steps", "max_train_steps"),
        ({"num_frames": 81}, "num_frames", '"video" of an entry'),
        ({"instance_data_dir": "x"}, "instance_data_dir", "entry of the dataset document"),
        ({"data_backend_confg": "x"}, "data_backend_confg", "data_backend_config"),
        ({"frame_rat": 1}, "frame_rat", "framerate"),
        ({"zzzz": 1}, "zzzz", "remove it"),
        ({"datasets": [{"id": "a", "learning_rate": 1}]}, "datasets[0].learning_rate", "config.json"),
        ({"datasets": [{"id": "a", "num_frames": 1}]}, "datasets[0].num_frames", '"video"'),
        ({"datasets": [{"id": "a", "instance_dir": 1}]}, "datasets[0].instance_dir", "instance_data_dir"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name_and_its_place(given: dict[str, Any], key: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**given)
    assert [problem.key for problem in error.value.problems] == [key]
    assert fix in problems(error)[key].fix


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"lr_scheduler": "linear", "lr_warmup_steps": 20, "max_train_steps": 10}, "lr_warmup_steps"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 20, "lr_decay_steps": 10}, "lr_warmup_steps"),
        ({"lr_scheduler": "cosine", "lr_end": 1.0, "lr_warmup_steps": 1}, "lr_end"),
        ({"validation_seed": []}, "validation_seed"),
        ({"validation_resolution": "4x4"}, "validation_resolution"),
        ({"peft_lora_target_modules": []}, "peft_lora_target_modules"),
        ({"lora_type": "lycoris"}, "lora_type"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_rules_between_settings(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**given)
    assert [problem.key for problem in error.value.problems] == [key]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"maximum_image_size": 512, "resolution": 512}, "maximum_image_size"),
        (
            {"maximum_image_size": 512, "target_downsample_size": 600, "resolution": 512},
            "target_downsample_size",
        ),
        ({"resolution": 0.5}, "resolution"),
        ({"resolution": 480, "resolution_type": "area"}, "resolution"),
        ({"resolution_type": "pixel"}, "resolution_type"),
        ({"caption_strategy": "instanceprompt"}, "caption_strategy"),
        ({"prepend_instance_prompt": True, "instance_prompt": " "}, "prepend_instance_prompt"),
        ({"video": {"num_frames": 81, "max_frames": 49}}, "video.max_frames"),
        ({"video": {"min_frames": 20, "max_frames": 17}}, "video.max_frames"),
        ({"type": "aws"}, "type"),
    ],
)
def test_rules_of_a_dataset(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(datasets=[{"id": "clips", **given}])
    assert [problem.key for problem in error.value.problems] == [f"datasets[0].{key}"]


def test_fewer_and_more_min_frames_than_num_frames_both_make_sense() -> None:
    for minimum in (9, 81, 100):
        video = {"num_frames": 81, "min_frames": minimum}
        config = TrainConfig(datasets=[{"id": "clips", "video": video}])
        assert config.datasets[0].video.min_frames == minimum
    assert TrainConfig(datasets=[{"id": "t", "dataset_type": "text_embeds"}]).datasets[0].default is False


ODD_VALUES = ["", " 7 ", 0, -1, 1.5, "a/b", ["x"], {"a": (1,)}, True, b"x", "1e400"]


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
def test_any_value_of_any_setting_is_either_refused_or_read_back(
    value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[dict[str, Any]] = [{name: value} for name in [*TrainConfig.model_fields, *ALIASES, *INHERITED]]
    given += [{"datasets": [{"id": "a", name: value}]} for name in [*DatasetConfig.model_fields, *DATASET_ALIASES]]
    given += [{"datasets": [{"id": "a", "video": {name: value}}]} for name in VideoSettings.model_fields]
    for settings in given:
        try:
            config = TrainConfig(**settings)
        except ConfigError:
            continue
        assert TrainConfig.from_documents([as_saved(config)], Folders.of()) == config, settings


def as_saved(config: TrainConfig) -> dict[str, Any]:
    """The document that `save` writes, without the cost of writing it safely."""
    return json.loads(config.model_dump_json())


def test_assignment_is_checked() -> None:
    config = TrainConfig(datasets=[{"id": "clips"}])
    config.learning_rate = "3e-5"  # pyright: ignore[reportAttributeAccessIssue] - text is taken as well
    assert config.learning_rate == 3e-5
    with pytest.raises(ConfigError, match="lora_rank"):
        config.lora_rank = 0
    with pytest.raises(ConfigError, match=r"did you mean learning_rate\?"):
        config.lerning_rate = 1.0  # pyright: ignore[reportAttributeAccessIssue] - what is tested
    with pytest.raises(ConfigError, match="num_frames"):
        config.datasets[0].video.num_frames = -1
    assert config.lora_rank == 16
