"""Settings: reading documents, and the path rule."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from config_documents import QUICKSTARTS, problems, write

from tunerkit.config import (
    TrainConfig,
    load_dataset_document,
    load_prompt_library,
)
from tunerkit.errors import ConfigError
from tunerkit.project import load_config, resolve

# Reading -----------------------------------------------------------------------------------------------------


def test_the_sana_quickstart_loads_verbatim(quickstart: Path) -> None:
    config = load_config(quickstart / "config/config.json")
    assert config.model_family == "sanavideo"
    assert config.model_type == "full"
    assert config.learning_rate == 0.00005
    assert (config.max_grad_norm, config.grad_clip_method) == (0.0, "value")
    assert config.validation_sizes == [(832, 480)]
    assert config.delete_problematic_images is True
    assert config.use_ema
    assert config.ema_validation == "ema_only"
    clips, text = config.datasets
    assert clips.id == "disney-black-and-white"
    assert (clips.video.num_frames, clips.video.min_frames, clips.repeats) == (81, 81, 0)
    assert config.resolution_of(clips) == (480, "pixel_area")
    assert text.default
    assert text.dataset_type == "text_embeds"
    assert config.media_datasets == [clips]
    resolved = resolve(config)
    assert resolved.framerate == 16
    assert resolved.max_train_steps == 400_000


@pytest.mark.parametrize("path", sorted(QUICKSTARTS.glob("*.config.json")), ids=lambda path: path.name)
def test_every_settings_fragment_of_the_quickstarts_loads(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config/sanavideo").mkdir(parents=True)
    shutil.copy(QUICKSTARTS / "sana_video.hi.6.dataset.json", tmp_path / "config/sanavideo/multidatabackend.json")
    monkeypatch.chdir(tmp_path)
    written = json.loads(path.read_text(encoding="utf-8"))
    config = load_config(path)
    for key in ("enable_group_offload", "tread_config", "group_offload_blocks_per_group", "validation_preview"):
        if key in written:
            assert getattr(config, key) == written[key]
    assert load_config(config.save(tmp_path / "saved.json")) == config


@pytest.mark.parametrize("path", sorted(QUICKSTARTS.glob("*.dataset.json")), ids=lambda path: path.name)
def test_every_dataset_document_of_the_quickstarts_loads(path: Path) -> None:
    clips, text = load_dataset_document(path)
    written = json.loads(path.read_text(encoding="utf-8"))[0]
    assert clips.dataset_type == "video"
    assert clips.video.num_frames == written["video"]["num_frames"]
    assert clips.video.frame_rate == written["video"].get("frame_rate")
    assert (clips.audio is not None) == ("audio" in written)
    assert clips.instance_data_dir is not None
    assert clips.instance_data_dir.is_absolute()
    assert text.default


def test_the_fragment_with_a_dashed_key_loads(tmp_path: Path) -> None:
    fragment = (QUICKSTARTS / "sana_video.hi.3.fragment.txt").read_text(encoding="utf-8").strip().rstrip(",")
    shutil.copy(QUICKSTARTS / "sana_video.hi.4.prompts.json", tmp_path / "user_prompt_library.json")
    with pytest.raises(ConfigError) as error:  # it names config/user_prompt_library.json
        load_config(write(tmp_path / "config.json", f"{{{fragment}}}"))
    assert str(problems(error)["user_prompt_library"]).count("user_prompt_library.json") >= 3
    library = tmp_path / "config/user_prompt_library.json"
    write(library, (tmp_path / "user_prompt_library.json").read_text(encoding="utf-8"))
    assert load_config(tmp_path / "config.json").user_prompt_library == library


def test_the_prompt_libraries_of_the_quickstarts_load() -> None:
    assert len(load_prompt_library(QUICKSTARTS / "sana_video.hi.4.prompts.json")) == 15
    library = load_prompt_library(QUICKSTARTS / "sana_video.hi.2.prompts.json")
    assert library == {
        "nickname": "the prompt goes here",
        "another_nickname": "another prompt goes here",
    }


def test_values_may_be_text_and_keys_may_have_dashes(tmp_path: Path) -> None:
    document = {
        "--learning_rate": "1e-4",
        "--max-train-steps": "1e3",
        "gradient_checkpointing": "False",
        "use_ema": "true",
        "lora_alpha": "None",
        "vae_dtype": "BF16",
        "validation_seed": "1, 2,3",
        "peft_lora_target_modules": "to_q, to_k",
        "optimizer_config": "eps=1e-6,foreach=false",
        "model_flavour": 2.0,
        "fsdp_version": "2",
        "seed": None,
    }
    config = load_config(write(tmp_path / "config.json", document), lora_rank="64", train_batch_size=2)
    assert (config.learning_rate, config.max_train_steps, config.lora_rank) == (1e-4, 1000, 64)
    assert (config.gradient_checkpointing, config.use_ema, config.lora_alpha) == (False, True, None)
    assert (config.vae_dtype, config.validation_seed, config.model_flavour) == ("bf16", [1, 2, 3], "2.0")
    assert config.peft_lora_target_modules == ["to_q", "to_k"]
    assert config.optimizer_config == {"eps": 1e-6, "foreach": False}
    assert config.seed == 42
    assert isinstance(config.max_train_steps, int)


def test_a_folder_means_its_config_and_later_documents_count_more(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"seed": 1, "lora_rank": 4, "checkpointing_steps": 10})
    second = write(tmp_path / "more.json", {"lora_rank": 8, "checkpoint_step_interval": 20})
    config = load_config(tmp_path, second, seed=3)
    assert (config.seed, config.lora_rank, config.checkpoint_step_interval) == (3, 8, 20)


def test_overrides_reach_into_datasets_by_number_and_by_id(tmp_path: Path) -> None:
    entries = [{"id": "a.b", "video": {"num_frames": 81}}, {"id": "images", "dataset_type": "image"}]
    write(tmp_path / "data.json", entries)
    path = write(tmp_path / "config.json", {"data_backend_config": "data.json"})
    changes = {
        "datasets.a.b.video.num_frames": "49",
        "datasets.a.b.video.fps": 24,
        "--datasets.1.resolution": "64",
        "data_backend_config.images.disable": "true",
    }
    first, second = load_config(path, **changes).datasets
    assert (first.video.num_frames, first.video.frame_rate) == (49, 24)
    assert (second.resolution, second.disabled) == (64, True)
    with pytest.raises(ConfigError, match=r"did you mean images\?"):
        load_config(path, **{"datasets.image.resolution": 64})
    assert load_config(path, datasets=[{"id": "only"}]).datasets[0].id == "only"


@pytest.mark.parametrize(
    ("text", "line", "advice"),
    [
        ('{"seed": 1,}', 1, "remove the comma before the closing bracket"),
        ("[1, 2,]", 1, "remove the comma before the closing bracket"),
        ('{"seed": 1,, "lora_rank": 2}', 1, "extra comma"),
        ('{"seed": 1\n "lora_rank": 2}', 2, "missing comma"),
        ("{'seed': 1}", 1, "double quotes"),
        ('{"use_ema": True}', 1, "lower case"),
        ('{"seed": 1} // note', 1, "comment"),
        ('{"seed": 1} {"lora_rank": 2}', 1, "outer brackets"),
        ('{"seed": 1,\n// note\n"lora_rank": 2}', 2, "comment"),
        ('{"output_dir": "C:\\data"}', 1, "backslash"),
        ('{"seed": 1', 1, "close every bracket"),
        ("", 1, "empty"),
    ],
)
def test_broken_json_names_file_place_and_what_to_look_for(tmp_path: Path, text: str, line: int, advice: str) -> None:
    path = write(tmp_path / "config.json", text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    message = str(error.value)
    assert str(path) in message
    assert f"line {line}" in message
    assert "column" in message
    assert advice in message


def test_documents_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(write(tmp_path / "list.json", [1]))
    with pytest.raises(ConfigError, match="not a list of datasets"):
        load_config(write(tmp_path / "config.json", {"data_backend_config": {"id": "a"}}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load_config(tmp_path / "empty")
    with pytest.raises(ConfigError, match="more than once"):
        load_config(write(tmp_path / "twice.json", '{"seed": 1, "seed": 2}'))
    with pytest.raises(ConfigError, match="same setting as"):
        load_config(write(tmp_path / "both.json", {"checkpointing_steps": 1, "checkpoint_step_interval": 2}))
    (tmp_path / "latin.json").write_bytes('{"validation_prompt": "\xe9"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.json")
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"seed": 7}')
    assert load_config(tmp_path / "bom.json").seed == 7


# Paths -------------------------------------------------------------------------------------------------------


def test_paths_count_from_current_folder_then_config_folder_then_its_parent(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(quickstart / "config/config.json")
    clips = config.datasets[0]
    assert clips.instance_data_dir == quickstart / "datasets/disney-black-and-white"
    # Outputs go to the folder from which the dataset document was found: here the parent of the config's folder.
    assert config.output_path == quickstart / "output/sanavideo"
    assert config.vae_cache_dir(clips) == quickstart / "cache/vae/sanavideo/disney-black-and-white"
    assert config.text_cache_dir == quickstart / "cache/text/sanavideo"
    nearer = Path.cwd() / "datasets/disney-black-and-white"
    nearer.mkdir(parents=True)
    assert load_config(quickstart / "config").datasets[0].instance_data_dir == nearer
    monkeypatch.chdir(quickstart)
    assert load_config("config").output_path == quickstart / "output/sanavideo"


def test_an_output_of_that_name_elsewhere_is_another_projects(quickstart: Path) -> None:
    for folder in ("config", ".."):
        (quickstart / folder / "output/sanavideo").mkdir(parents=True)
    assert load_config(quickstart / "config").output_path == quickstart / "output/sanavideo"


def test_an_input_that_exists_twice_is_said(quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first place counts, as documented; but it may be that of another project."""
    given = load_config(quickstart / "config").datasets[0].instance_data_dir
    relative = Path(os.path.relpath(str(given), quickstart))
    elsewhere = tmp_path / "elsewhere"
    for folder in (quickstart, elsewhere):
        (folder / relative).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(elsewhere)
    config = load_config(quickstart / "config")
    assert config.datasets[0].instance_data_dir == elsewhere / relative
    (note,) = [note for note in config.notes if note.key == "datasets[0].instance_data_dir"]
    assert str(quickstart / relative) in note.message
    assert "absolute path" in note.message


def test_a_missing_input_names_all_places(quickstart: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(quickstart / "config", data_backend_config="nowhere.json", user_prompt_library="none.json")
    found = problems(error)
    for key, name in (("data_backend_config", "nowhere.json"), ("user_prompt_library", "none.json")):
        for folder in (Path.cwd(), quickstart / "config", quickstart):
            assert str(folder / name) in found[key].message
    shutil.rmtree(quickstart / "datasets")
    config = load_config(quickstart / "config")  # clips may be downloaded later
    with pytest.raises(ConfigError) as error:
        resolve(config)
    message = problems(error)["datasets[0].instance_data_dir"].message
    for folder in (Path.cwd(), quickstart / "config", quickstart):
        assert str(folder / "datasets/disney-black-and-white") in message


def test_models_are_existing_folders_or_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config = TrainConfig(pretrained_model_name_or_path="model", pretrained_vae_model_name_or_path="owner/some.vae-1")
    assert config.pretrained_model_name_or_path == str(tmp_path / "model")
    assert config.pretrained_vae_model_name_or_path == "owner/some.vae-1"
    for wrong in ("models/are/here", "modl", "/nowhere/model", "../model2"):
        with pytest.raises(ConfigError, match="hub id"):
            TrainConfig(pretrained_model_name_or_path=wrong)


def test_home_is_expanded_and_assignment_makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(output_dir="~/out")
    assert config.output_path == tmp_path / "out"
    config.output_dir = Path("other")
    assert config.output_path == tmp_path / "other"


def test_caches_lie_in_the_output_folder_when_nothing_else_is_said(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=tmp_path / "out", datasets=[{"id": "clips"}])
    assert config.text_cache_dir == tmp_path / "out/cache/text"
    assert config.vae_cache_dir(config.datasets[0]) == tmp_path / "out/cache/vae/clips"
    assert config.changed(cache_dir=tmp_path / "c").text_cache_dir == tmp_path / "c/text"
    with pytest.raises(ConfigError, match="output_dir"):
        _ = TrainConfig().output_path


# Prompt libraries --------------------------------------------------------------------------------------------


def test_prompt_libraries_may_be_records(tmp_path: Path) -> None:
    records = [{"nickname": "a", "prompt": "a fox"}, {"name": "b", "text": "a dog"}]
    assert load_prompt_library(write(tmp_path / "list.json", records)) == {"a": "a fox", "b": "a dog"}
    nested = {"a": {"prompt": "a fox"}}
    assert load_prompt_library(write(tmp_path / "object.json", nested)) == {"a": "a fox"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "holds no prompt"),
        ({"a": 3}, "is not text"),
        ({"a": "  "}, "empty prompt"),
        (["a fox"], "no nickname"),
        ([{"nickname": "a", "prompt": "x"}, {"nickname": "a", "prompt": "y"}], "used twice"),
        ("a fox", "neither an object nor a list"),
    ],
)
def test_a_prompt_library_that_is_wrong_says_so(tmp_path: Path, value: Any, message: str) -> None:
    path = write(tmp_path / "library.json", json.dumps(value))
    with pytest.raises(ConfigError, match=message):
        load_prompt_library(path)
    with pytest.raises(ConfigError, match=message):  # and already when the settings are read
        TrainConfig(user_prompt_library=path)
