"""What people get wrong with LTX-2: each gives one clear message that names the setting or file, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_clips import write_clip

import tunerkit as tk
from tunerkit.demo.ltx2_combined import write_combined
from tunerkit.families.checkpoint_files import hub_file

FAMILY = tk.family("ltxvideo2")


@pytest.fixture(scope="module")
def projects(ltx2_projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Demo projects of both versions, and a folder with their checkpoints as combined files."""
    folder = tmp_path_factory.mktemp("combined")
    made = {"2.0": ltx2_projects["dev"].parent, "2.3": ltx2_projects["2.3-dev"].parent, "files": folder}
    for version in ("2.0", "2.3"):
        write_combined(made[version] / "model", folder / f"{version}.safetensors", version)
    return made


def refusal(project: Path, tmp_path: Path, **changes: Any) -> str:
    """The message with which a run is refused, in one line without a traceback."""
    config = tk.load_config(project / "config.json", output_dir=tmp_path / "output", **changes)
    with pytest.raises(tk.TunerkitError) as raised:
        tk.Trainer(config).prepare(progress=False)
    message = str(raised.value)
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("flavour", "words"),
    [
        ("distilled", "distilled for sampling"),
        ("2.3-distilled", "Fix: train 2.3-dev"),
        ("dev-fp8", "bf16 weights"),
        ("dev-fp4", "bf16 weights"),
        ("2.5", "Gemma-4"),
        ("2.4", "is not a flavour"),
    ],
)
def test_flavours_that_cannot_be_trained(projects: dict[str, Path], tmp_path: Path, flavour: str, words: str) -> None:
    message = refusal(projects["2.0"], tmp_path, model_flavour=flavour)
    assert f"model_flavour = '{flavour}'" in message
    assert words in message


@pytest.mark.parametrize(("given", "meant"), [("2.0", "dev"), ("2", "dev"), ("2.3", "2.3-dev")])
def test_other_names_of_flavours(projects: dict[str, Path], given: str, meant: str) -> None:
    config = tk.resolve(tk.load_config(projects["2.0"] / "config.json", model_flavour=given))
    assert config.model_flavour == meant


def test_a_folder_of_the_other_version(projects: dict[str, Path], tmp_path: Path) -> None:
    message = refusal(projects["2.0"], tmp_path, model_flavour="2.3-dev")
    assert "model_flavour = '2.3-dev'" in message
    assert "holds LTX-2 2.0" in message


@pytest.mark.parametrize(("version", "flavour"), [("2.3", "dev"), ("2.0", "2.3-dev")])
def test_a_file_of_the_other_version(projects: dict[str, Path], tmp_path: Path, version: str, flavour: str) -> None:
    file = projects["files"] / f"{version}.safetensors"
    message = refusal(projects[version], tmp_path, pretrained_model_name_or_path=str(file), model_flavour=flavour)
    assert version in message
    assert flavour in message


def test_a_truncated_file(projects: dict[str, Path], tmp_path: Path) -> None:
    whole = projects["files"] / "2.0.safetensors"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    message = refusal(projects["2.0"], tmp_path, pretrained_model_name_or_path=str(broken))
    assert "broken.safetensors" in message
    assert "truncated" in message
    assert "download" in message


def test_a_file_name_that_is_not_there(projects: dict[str, Path], tmp_path: Path) -> None:
    message = refusal(
        projects["2.0"],
        tmp_path,
        pretrained_model_name_or_path=str(projects["files"]),
        ltx2_checkpoint_filename="ltx-2-19b-dev.safetensors",
    )
    assert "ltx2_checkpoint_filename = 'ltx-2-19b-dev.safetensors'" in message
    assert "2.0.safetensors" in message  # what is there


def test_a_combined_file_without_gemma(projects: dict[str, Path], tmp_path: Path) -> None:
    """The file holds no text encoder; offline, the published one cannot be fetched."""
    file = tmp_path / "alone" / "model.safetensors"
    file.parent.mkdir()
    shutil.copy(projects["files"] / "2.0.safetensors", file)
    message = refusal(projects["2.0"], tmp_path, pretrained_model_name_or_path=str(file))
    assert "pretrained_text_encoder_model_name_or_path" in message
    assert "gemma-3-12b" in message


def test_a_combined_file_trains_as_the_folder_does(projects: dict[str, Path], tmp_path: Path) -> None:
    def losses(name: str, **changes: Any) -> list[float]:
        config = tk.load_config(
            projects["2.3"] / "config.json",
            output_dir=tmp_path / name,
            validation_disable=True,
            max_train_steps=2,
            **changes,
        )
        trainer = tk.Trainer(config).prepare(progress=False)
        found = [result.loss for result in trainer.steps()]
        trainer.close()
        return found

    from_file = losses(
        "file",
        pretrained_model_name_or_path=str(projects["files"]),
        ltx2_checkpoint_filename="2.3.safetensors",
        pretrained_text_encoder_model_name_or_path=str(projects["2.3"] / "model"),
    )
    assert from_file == losses("folder")


def test_gated_access_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    answer: Any = httpx.Response(403, request=httpx.Request("GET", "http://hub"))

    def refused(*_: Any, **__: Any) -> str:
        raise GatedRepoError("403 Client Error", response=answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(tk.ModelError, match=r"gated.*accept the licence at .*google/gemma.*HF_TOKEN"):
        hub_file("google/gemma-3-12b-it", "config.json", "pretrained_text_encoder_model_name_or_path", None)


def test_a_clip_without_sound_is_dropped_and_said(projects: dict[str, Path], tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(clips / "mute.mp4", 40, fps=24, size=(128, 128))
    (clips / "mute.txt").write_text("a caption")
    config = tk.load_config(
        projects["2.0"] / "config.json",
        output_dir=tmp_path / "output",
        **{"datasets.demo-clips.instance_data_dir": str(clips)},
    )
    with pytest.raises(tk.DatasetError, match="no sound") as raised:
        tk.Trainer(config).prepare(progress=False)
    assert "audio.allow_zero_audio" in str(raised.value)
    datasets = [dataset.model_dump() for dataset in config.datasets]
    datasets[0]["audio"] = {"allow_zero_audio": True}
    allowed = config.changed(datasets=datasets)
    [row] = tk.inspect_dataset(tk.resolve(allowed)).rows
    assert row.sample is not None
    assert row.sample.sound is not None
    assert row.sample.sound.silent
    assert "silence" in row.reason


def test_sound_settings_name_what_is_wrong(projects: dict[str, Path]) -> None:
    def wrong(**changes: Any) -> str:
        with pytest.raises(tk.ConfigError) as raised:
            tk.load_config(projects["2.0"] / "config.json", **changes)
        return str(raised.value)

    assert "s2v_datasets" in wrong(**{"datasets.demo-clips.s2v_datasets": "voices"})
    assert "audio_only" in wrong(**{"datasets.demo-clips.audio.audio_only": True})
    assert "audio_sigma" in wrong(audio_sigma="separate")
    assert "audio_loss_weight" in wrong(audio_loss_weight=-1)


def test_a_tokenizer_without_its_files(projects: dict[str, Path], tmp_path: Path) -> None:
    """transformers would make one of a few words, and every caption the same."""
    model = tmp_path / "model"
    shutil.copytree(projects["2.0"] / "model", model)
    (model / "tokenizer" / "tokenizer.json").unlink()
    message = refusal(projects["2.0"], tmp_path, pretrained_model_name_or_path=str(model))
    assert "tokenizer" in message
    message = refusal(projects["2.0"], tmp_path, pretrained_text_encoder_model_name_or_path=str(model / "text_encoder"))
    assert "tokenizer" in message


def test_parts_of_another_version(projects: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(projects["2.0"] / "model", model)
    shutil.rmtree(model / "connectors")
    shutil.copytree(projects["2.3"] / "model" / "connectors", model / "connectors")
    message = refusal(projects["2.0"], tmp_path, pretrained_model_name_or_path=str(model))
    assert "connectors are of another version" in message
    (model / "connectors" / "config.json").write_text("[]")
    message = refusal(projects["2.0"], tmp_path, pretrained_model_name_or_path=str(model))
    assert "config.json holds no settings" in message


def test_a_truncated_vae_is_no_fault_of_the_clips(projects: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(projects["2.0"] / "model", model)
    weights = next((model / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    message = refusal(projects["2.0"], tmp_path, pretrained_model_name_or_path=str(model))
    assert message.count("vae cannot be loaded") == 1
    assert "left out" not in message


def test_a_folder_with_a_combined_file_only(projects: dict[str, Path], tmp_path: Path) -> None:
    message = refusal(projects["2.0"], tmp_path, pretrained_model_name_or_path=str(projects["files"]))
    assert "set ltx2_checkpoint_filename" in message
    assert "2.0.safetensors" in message


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"audio": 5}, "audio = 5: is not a file name"),
        ({"audoi": "a.wav"}, "there is no such entry"),
        ({"audio": "inputs.json"}, "holds no sound"),
        ({"image": ["a.png"]}, "is not a file name"),
    ],
)
def test_inputs_of_a_validation(projects: dict[str, Path], tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    document = tmp_path / "inputs.json"
    document.write_text(json.dumps([{"prompt": "a ball", **entry}]))
    assert words in refusal(projects["2.0"], tmp_path, validation_input=document)


def test_sound_settings_without_sound_are_mentioned(projects: dict[str, Path]) -> None:
    config = tk.load_config(
        projects["2.0"] / "config.json", sound_conditioning_probability=0.5, **{"datasets.demo-clips.audio": None}
    )
    [note] = [note for note in tk.resolve(config).notes if note.key == "sound_conditioning_probability"]
    assert "no dataset takes sound along" in note.message


def test_a_model_without_sound_says_so(pristine_project: Path) -> None:
    path = pristine_project / "config.json"
    config = tk.resolve(tk.load_config(path, **{"datasets.demo-clips.audio": {"auto_split": True}}))
    [note] = [note for note in config.notes if "audio" in note.key]
    assert "makes no sound" in note.message
