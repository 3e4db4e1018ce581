"""Settings: saving and resolving."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from config_documents import problems, settings_that_resolve

from tunerkit.config import (
    TrainConfig,
)
from tunerkit.errors import ConfigError
from tunerkit.project import load_config, resolve


@pytest.fixture
def complete(tmp_path: Path) -> dict[str, Any]:
    """Settings that resolve."""
    return settings_that_resolve(tmp_path)


# Saving ------------------------------------------------------------------------------------------------------


def test_a_saved_configuration_reads_back_equal(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (load_config(quickstart / "config"), resolve(load_config(quickstart / "config"))):
        saved = config.save(quickstart / "saved/config.json")
        monkeypatch.chdir("/")  # all paths are absolute
        again = load_config(saved)
        assert again == config
        assert again.model_dump() == config.model_dump()
        assert resolve(again) == resolve(config)
        assert not list(saved.parent.glob(".*"))
        document = json.loads(saved.read_text(encoding="utf-8"))
        assert document["data_backend_config"][0]["id"] == "disney-black-and-white"
        assert set(document) == set(TrainConfig.model_fields) - {"datasets"} | {"data_backend_config"}


def test_two_documents_read_back_equal(quickstart: Path, tmp_path: Path) -> None:
    config = load_config(quickstart / "config", optimizer_config={"betas": (0.9, 0.99)}, validation_seed=[1, 2])
    saved = config.save(tmp_path / "two/config.json", dataset_document=tmp_path / "two/multidatabackend.json")
    document = json.loads(saved.read_text(encoding="utf-8"))
    assert document["data_backend_config"] == "multidatabackend.json"
    assert isinstance(json.loads((tmp_path / "two/multidatabackend.json").read_text(encoding="utf-8")), list)
    assert load_config(saved) == config


def test_changed_copies_are_equal_only_when_settings_are(complete: dict[str, Any]) -> None:
    config = TrainConfig(**complete)
    assert config.changed() == config
    other = config.changed(lora_rank="32", **{"datasets.clips.video.num_frames": 33})
    assert (other.lora_rank, other.datasets[0].video.num_frames) == (32, 33)
    assert (config.lora_rank, config.datasets[0].video.num_frames) == (16, 17)
    assert other != config
    with pytest.raises(ConfigError, match="lora_rank"):
        config.changed(lora_rank=0)
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert TrainConfig.model_validate(complete) == config


def test_notes_are_no_part_of_the_settings(complete: dict[str, Any]) -> None:
    quiet, noted = TrainConfig(**complete), TrainConfig(**complete, max_workers=4)
    assert "max_workers" in [note.key for note in noted.notes]
    assert quiet == noted
    assert "loss_type" in [note.key for note in quiet.changed(loss_type="huber").notes]
    assert "loss_type" not in [n.key for n in quiet.changed(loss_type="huber").changed(loss_type="l2").notes]


# Resolving ---------------------------------------------------------------------------------------------------


def test_resolving_fills_what_the_family_decides_and_is_idempotent(complete: dict[str, Any]) -> None:
    from tunerkit import families

    family = families.get("sanavideo")
    resolved = resolve(TrainConfig(**{**complete, "model_family": "Sana-Video"}))
    assert resolved.model_family == "sanavideo"
    assert resolved.model_flavour == family.default_flavour
    assert resolved.pretrained_model_name_or_path == family.flavours[family.default_flavour].repo
    assert resolved.pretrained_vae_model_name_or_path == resolved.pretrained_model_name_or_path
    for key, value in family.defaults.items():
        assert getattr(resolved, key) == value
    assert resolved.datasets[0].resolution_type == "model"
    assert resolve(resolved) == resolved
    assert resolve(resolved).notes == resolved.notes
    kept = resolve(TrainConfig(**complete, validation_guidance=3.5, vae_dtype="bf16", resolution=256))
    assert (kept.validation_guidance, kept.vae_dtype) == (3.5, "bf16")
    assert (kept.datasets[0].resolution, kept.datasets[0].resolution_type) == (256, "pixel_area")


def test_resolving_asks_for_everything_that_is_missing_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(TrainConfig())
    assert set(problems(error)) == {"model_family", "output_dir", "data_backend_config", "max_train_steps"}
    assert "sanavideo" in problems(error)["model_family"].fix
    with pytest.raises(ConfigError) as error:
        resolve(
            TrainConfig(
                model_family="sanavide",
                num_train_epochs=1,
                output_dir=tmp_path,
                resume_from_checkpoint="checkpoint-9",
                datasets=[{"id": "a"}, {"id": "b", "instance_data_dir": __file__}],
            )
        )
    found = problems(error)
    assert "did you mean sanavideo?" in found["model_family"].fix
    assert set(found) == {
        "model_family",
        "datasets[0].instance_data_dir",
        "datasets[1].instance_data_dir",
        "resume_from_checkpoint",
    }


def test_resolving_refuses_unknown_flavours_and_only_disabled_datasets(complete: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="did you mean 2b-480p"):
        resolve(TrainConfig(**complete, model_flavour="2b-480"))
    with pytest.raises(ConfigError, match="enable at least one"):
        resolve(TrainConfig(**complete).changed(**{"datasets.clips.disabled": True}))
    with pytest.raises(ConfigError, match=r"data_backend_config.*has clips to evaluate only"):
        resolve(TrainConfig(**complete).changed(**{"datasets.clips.dataset_type": "eval"}))


def test_one_framerate_for_the_run(complete: dict[str, Any]) -> None:
    clips = complete["datasets"][0]
    video = {"num_frames": 17, "frame_rate": 24}
    asked = resolve(TrainConfig(**{**complete, "datasets": [{**clips, "video": video}]}))
    assert asked.framerate == 24
    assert "framerate" in [note.key for note in asked.notes]
    both = [{**clips, "video": video}, {**clips, "id": "more", "video": {"frame_rate": 30}}]
    with pytest.raises(ConfigError, match="several frame rates"):
        resolve(TrainConfig(**{**complete, "datasets": both}))
    assert resolve(TrainConfig(**{**complete, "datasets": both}, framerate=16)).framerate == 16


def test_a_checkpoint_may_be_named_inside_the_output_folder(complete: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "out/checkpoint-9"
    checkpoint.mkdir(parents=True)
    config = TrainConfig(**complete, resume_from_checkpoint="checkpoint-9")
    assert resolve(config).resume_from_checkpoint == str(checkpoint)
