"""The three LTX-2 quickstarts, as published, drive text, image and sound to video on the tiny checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from config_documents import QUICKSTARTS, write
from data_clips import write_clip

import tunerkit as tk

ROUTE = {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -1}]}
"""Where the published one lies, the tiny transformers have no blocks."""


@pytest.fixture
def models(ltx2_projects: dict[str, Path]) -> dict[str, Path]:
    """Demo projects of both versions, for their checkpoints and clips."""
    return {"2.0": ltx2_projects["dev"].parent, "2.3-dev": ltx2_projects["2.3-dev"].parent}


@pytest.mark.parametrize(
    ("language", "flavour", "model_type", "i2v"),
    [
        ("es", "2.0", "lora", False),
        ("hi", "2.3-dev", "full", True),
        ("ja", "2.0", "full", False),
        ("ja", "2.3-dev", "lora", True),
    ],
)
def test_the_published_documents_drive_a_run(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    flavour: str,
    model_type: str,
    i2v: bool,
) -> None:
    """Only paths, sizes and step counts are overridden; with Japanese, whose clips have sound, sound is trained."""
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    shutil.copyfile(QUICKSTARTS / f"ltx2.{language}.2.dataset.json", home / "config" / "multidatabackend.json")
    for number in (1, 3):
        shutil.copyfile(QUICKSTARTS / f"ltx2.{language}.{number}.config.json", home / "config" / f"{number}.json")
    write(
        home / "config" / "config.json",
        {"model_family": "ltxvideo2", "model_flavour": flavour, "data_backend_config": "config/multidatabackend.json"},
    )
    shutil.copytree(models[flavour] / "clips", home / "datasets" / "videos")
    monkeypatch.chdir(home)
    config = tk.load_config(
        "config/config.json",
        "config/1.json",
        "config/3.json",
        pretrained_model_name_or_path=str(models[flavour] / "model"),
        output_dir="output",
        model_type=model_type,
        enable_group_offload=model_type == "lora",  # refused where nothing is frozen
        tread_config=ROUTE,
        max_train_steps=2,
        mixed_precision="bf16",
        validation_prompt="A red ball moves to the right.",
        validation_using_datasets=True,
        num_eval_images=1,
        validation_resolution="128x64",
        validation_num_video_frames=9,
        validation_num_inference_steps=2,
        disable_benchmark=True,
        **{
            "datasets.my-video-dataset.resolution": 96,
            "datasets.my-video-dataset.video.num_frames": 25,
            "datasets.my-video-dataset.video.min_frames": 25,
            "datasets.my-video-dataset.video.is_i2v": i2v,
        },
    )
    trainer = tk.Trainer(config).prepare(progress=False)
    results = list(trainer.steps())
    videos = trainer.validate()
    trainer.close()
    sound = language == "ja"
    assert all(set(result.parts) == ({"video", "audio"} if sound else {"video"}) for result in results)
    assert len(videos) == 1 + (i2v or sound)
    assert all(video.path.is_file() and video.frames == 9 and video.fps == 25 for video in videos)
    result = home / "output" / ("pytorch_lora_weights.safetensors" if model_type == "lora" else "transformer")
    assert result.exists()
    if model_type == "full":
        from diffusers import DiffusionPipeline, LTX2VideoTransformer3DModel

        trained = LTX2VideoTransformer3DModel.from_pretrained(result)
        DiffusionPipeline.from_pretrained(str(models[flavour] / "model"), transformer=trained)
    noted = {note.key for note in tk.resolve(config).notes}
    assert "framerate" in noted
    assert not {"tread_config", "enable_group_offload"} & noted
    assert not any("audio" in key for key in noted)


def test_61_frames_become_57_and_it_is_said(tmp_path: Path, models: dict[str, Path]) -> None:
    """The published number is none the model can make: 8k + 1 is."""
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(clips / "long.mp4", 70, fps=25, size=(320, 192), options={"preset": "ultrafast"})
    (clips / "long.txt").write_text("a caption")
    config = tk.TrainConfig(
        model_family="ltxvideo2",
        pretrained_model_name_or_path=str(models["2.0"] / "model"),
        output_dir=tmp_path / "output",
        max_train_steps=1,
        data_backend_config=str(QUICKSTARTS / "ltx2.es.2.dataset.json"),
        **{"datasets.my-video-dataset.instance_data_dir": str(clips)},
    )
    [row] = tk.inspect_dataset(tk.resolve(config)).rows
    assert row.sample is not None
    assert len(row.sample.frame_indices) == 57
    assert "57 where 61 were asked" in row.reason


def test_61_frames_cannot_be_rendered(tmp_path: Path, models: dict[str, Path]) -> None:
    config = tk.load_config(
        models["2.0"] / "config.json", output_dir=tmp_path / "output", validation_num_video_frames=61
    )
    with pytest.raises(tk.ConfigError, match=r"validation_num_video_frames = 61: LTX-2 makes 8k \+ 1.*use 57 or 65"):
        tk.Trainer(config).prepare(progress=False)
