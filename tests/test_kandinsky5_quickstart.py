"""The Kandinsky 5.0 Video quickstart's documents, as published, drive text and image to video on tiny checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from config_documents import QUICKSTARTS, write

import tunerkit as tk

ROUTE = {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -1}]}
"""Where the published one lies, the tiny transformers have no blocks."""


@pytest.mark.parametrize(
    ("family", "flavour", "model_type", "using_datasets"),
    [
        ("kandinsky5-video", "t2v-lite-sft-5s", "lora", False),
        ("kandinsky5_video", "i2v-lite-5s", "lora", True),
        ("kandinsky5-video", "i2v-lite-5s", "full", False),
    ],
)
def test_the_published_documents_drive_a_run(
    kandinsky5_projects: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    flavour: str,
    model_type: str,
    using_datasets: bool,
) -> None:
    """Only paths, sizes and step counts are overridden. Without an image, image to video makes its own first frame."""
    project = kandinsky5_projects(flavour).parent
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    shutil.copyfile(QUICKSTARTS / "kandinsky5.hi.2.dataset.json", home / "config" / "multidatabackend.json")
    for number in (1, 3):
        shutil.copyfile(QUICKSTARTS / f"kandinsky5.hi.{number}.config.json", home / "config" / f"{number}.json")
    write(
        home / "config" / "config.json",
        {"model_family": family, "model_flavour": flavour, "data_backend_config": "config/multidatabackend.json"},
    )
    shutil.copytree(project / "clips", home / "datasets" / "videos")
    monkeypatch.chdir(home)
    config = tk.load_config(
        "config/config.json",
        "config/1.json",
        "config/3.json",
        pretrained_model_name_or_path=str(project / "model"),
        output_dir="output",
        model_type=model_type,
        enable_group_offload=model_type == "lora",  # refused where nothing is frozen
        tread_config=ROUTE,
        max_train_steps=2,
        train_batch_size=2,
        mixed_precision="bf16",
        validation_prompt="A red ball moves to the right.",
        validation_using_datasets=using_datasets,
        num_eval_images=1,
        validation_resolution="64x64",
        validation_num_video_frames=17,
        validation_num_inference_steps=2,
        disable_benchmark=True,
        **{
            "datasets.my-video-dataset.resolution": 64,
            "datasets.my-video-dataset.video.num_frames": 17,
            "datasets.my-video-dataset.video.min_frames": 17,
        },
    )
    trainer = tk.Trainer(config).prepare(progress=False)
    results = list(trainer.steps())
    videos = trainer.validate()
    trainer.close()
    assert [len(result.samples) for result in results] == [2, 2]
    assert all(result.grad_norm > 0 for result in results)
    assert len(videos) == 1 + using_datasets
    assert all(video.path.is_file() and video.frames == 17 and video.fps == 24 for video in videos)
    made = list((home / "output" / "validation" / "first-frames").glob("*.png"))
    assert len(made) == flavour.startswith("i2v")
    result = home / "output" / ("pytorch_lora_weights.safetensors" if model_type == "lora" else "transformer")
    assert result.exists()
    if model_type == "full":
        from diffusers import Kandinsky5Transformer3DModel

        Kandinsky5Transformer3DModel.from_pretrained(result)
    noted = {note.key for note in tk.resolve(config).notes}
    assert not {"tread_config", "enable_group_offload"} & noted


def test_15_frames_become_13_and_it_is_said(kandinsky5_projects: Callable[[str], Path], tmp_path: Path) -> None:
    """The VAE would drop the last two without a word."""
    config = tk.load_config(
        kandinsky5_projects("t2v-lite-sft-5s"),
        output_dir=tmp_path / "output",
        **{"datasets.demo-clips.video.num_frames": 15, "datasets.demo-clips.video.min_frames": 5},
    )
    row = tk.inspect_dataset(tk.resolve(config)).rows[0]
    assert row.sample is not None
    assert len(row.sample.frame_indices) == 13
    assert "13 where 15 were asked" in row.reason
