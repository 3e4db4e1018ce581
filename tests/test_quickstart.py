"""The two documents of the Sana Video quickstart, as published, drive a run on the tiny checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import tunerkit as tk
from tunerkit.training.run_folder import read_metrics

FIXTURES = Path(__file__).parent / "fixtures" / "quickstarts"


def test_the_published_documents_drive_a_run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only paths, sizes and step counts are overridden; what the documents say otherwise is done."""
    home = tmp_path / "home"
    (home / "config" / "sanavideo").mkdir(parents=True)
    shutil.copyfile(FIXTURES / "sana_video.hi.1.config.json", home / "config" / "config.json")
    shutil.copyfile(FIXTURES / "sana_video.hi.6.dataset.json", home / "config" / "sanavideo" / "multidatabackend.json")
    shutil.copytree(project / "clips", home / "datasets" / "disney-black-and-white")
    monkeypatch.chdir(home)
    sizes = {f"datasets.0.{key}": 64 for key in ("resolution", "minimum_image_size", "maximum_image_size")}
    model = str(project / "model")
    config = tk.load_config(
        "config/config.json",
        pretrained_model_name_or_path=model,
        pretrained_vae_model_name_or_path=model,
        max_train_steps=6,
        checkpoint_step_interval=3,
        validation_step_interval=3,
        validation_resolution="96x64",
        validation_num_video_frames=9,
        validation_num_inference_steps=2,
        report_to="none",  # it asks for wandb, whose package the tests do without
        **sizes,
        **{
            "datasets.0.target_downsample_size": 64,
            "datasets.0.video.num_frames": 17,
            "datasets.0.video.min_frames": 17,
        },
    )
    trainer = tk.Trainer(config).prepare()
    engine = trainer.loaded.engine
    assert {p.dtype for p in engine.transformer.parameters()} == {torch.bfloat16}
    assert type(engine.optimizer).__name__ == "AdamWBF16"
    results = list(trainer.steps())
    trainer.close()

    output = home / "output" / "sanavideo"
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert results[0].lr == 5e-5
    assert results[-1].lr < results[0].lr  # SimpleTuner's cosine: no warmup, decay
    assert [video.ema for video in results[-1].videos] == [True]  # ema_only
    assert results[-1].videos[0].path.is_file()
    for folder in ("checkpoint-3", "checkpoint-6", "transformer", "transformer_ema", "validation/step-0"):
        assert (output / folder).is_dir(), folder
    assert list((home / "cache" / "vae" / "sanavideo" / "disney-black-and-white").rglob("*.safetensors.zst"))
    assert list((home / "cache" / "text" / "sanavideo").rglob("*.safetensors.zst"))
    noted = {note.key for note in tk.resolve(config).notes}
    assert {"lr_warmup_steps", "base_model_precision"} <= noted, noted
