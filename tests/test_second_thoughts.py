"""Settings, files and folders that change between one run and the next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tunerkit as tk

MakeConfig = Callable[..., tk.TrainConfig]
RENDER: dict[str, Any] = {
    "validation_disable": False,
    "validation_prompt": "a fox",
    "validation_resolution": "64x64",
    "validation_num_video_frames": 5,
    "validation_num_inference_steps": 2,
    "validation_step_interval": 1,
    "user_prompt_library": None,
}


def train(config: tk.TrainConfig) -> list[tk.StepResult]:
    trainer = tk.Trainer(config).prepare(progress=False)
    try:
        return list(trainer.steps())
    finally:
        trainer.close()


def test_videos_are_compared_with_the_base_model_at_equal_settings_only(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(make_config(**RENDER, max_train_steps=1))
    assert first[0].videos[0].comparison is not None
    changed = {**RENDER, "validation_guidance": 9.0, "validation_prompt": "a red car drives at night"}
    second = train(make_config(**changed, max_train_steps=2))
    assert second[0].videos[0].comparison is None
    assert "other validation settings" in caplog.text


def test_base_model_is_rendered_again_when_a_new_run_has_other_settings(make_config: MakeConfig) -> None:
    fresh = {"resume_from_checkpoint": None, "max_train_steps": 1}
    train(make_config(**RENDER, **fresh))
    changed = {**RENDER, "validation_prompt": "a red car drives at night"}
    results = train(make_config(**changed, **fresh))
    assert results[0].videos[0].comparison is not None


@pytest.mark.parametrize(
    "change", [{"lora_alpha": 64}, {"use_rslora": True}, {"lora_init_type": "pissa"}], ids=lambda c: next(iter(c))
)
def test_settings_that_rescale_a_trained_adapter_are_refused(make_config: MakeConfig, change: dict[str, Any]) -> None:
    train(make_config(max_train_steps=1, checkpoint_step_interval=1))
    with pytest.raises(tk.CheckpointError, match=r"LoRA settings.*Fix"):
        tk.Trainer(make_config(max_train_steps=2, **change)).prepare(progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mixed_precision": "bf16"}, "mixed_precision"),
        ({"caption_dropout_probability": 0.5}, "caption dropout"),
        ({"max_grad_norm": 0.5}, "gradient clipping"),
        ({"train_batch_size": 1}, "batch size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_changes_that_end_exact_continuation_are_said(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, change: dict[str, Any], words: str
) -> None:
    train(make_config(max_train_steps=1, checkpoint_step_interval=1))
    caplog.clear()
    results = train(make_config(max_train_steps=2, **change))
    assert [result.step for result in results] == [2]
    assert words in caplog.text


def test_a_missing_clip_is_said_in_numbers(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    train(make_config(max_train_steps=1, checkpoint_step_interval=1))
    samples = tk.inspect_dataset(make_config()).samples
    samples[0].file.unlink()
    train(make_config(max_train_steps=2))
    assert f"clips {len(samples)}" in caplog.text
    assert f"clips {len(samples) - 1}" in caplog.text


def test_a_cache_deleted_during_training_costs_nothing(make_config: MakeConfig, project: Path, tmp_path: Path) -> None:
    settings = {"max_train_steps": 12, "checkpoint_step_interval": 100}
    expected = [result.loss for result in train(make_config(output_dir=str(tmp_path / "whole"), **settings))]
    config = make_config(output_dir=str(tmp_path / "cut"), **settings)
    trainer = tk.Trainer(config).prepare(progress=False)
    done: list[float] = []

    def train_without_cache() -> None:
        for result in trainer.steps():
            done.append(result.loss)
            if result.step == 3:
                shutil.rmtree(project / "cache")

    train_without_cache()
    trainer.close()
    assert done == expected


def damage(folder: Path) -> int:
    """Flip a byte of every entry below `folder`; returns how many."""
    entries = list(folder.rglob("*.safetensors"))
    for path in entries:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    return len(entries)


def test_another_users_damaged_cache_is_made_anew_in_memory(
    make_config: MakeConfig,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"max_train_steps": 8, "checkpoint_step_interval": 100}
    expected = [result.loss for result in train(make_config(output_dir=str(tmp_path / "whole"), **settings))]
    cache = project / "cache"
    count = damage(cache)
    before = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
    unlink, write = Path.unlink, Path.write_bytes

    def guarded(real: Any) -> Any:
        def call(path: Path, *args: Any, **settings: Any) -> Any:
            if cache in path.parents and "media" not in path.parts:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **settings)

        return call

    monkeypatch.setattr(Path, "unlink", guarded(unlink))
    monkeypatch.setattr(Path, "write_bytes", guarded(write))
    caplog.clear()
    assert [result.loss for result in train(make_config(output_dir=str(tmp_path / "shared"), **settings))] == expected
    assert {path: path.read_bytes() for path in cache.rglob("*.safetensors")} == before
    told = [record.getMessage() for record in caplog.records if "held in memory" in record.getMessage()]
    assert len(told) == 2  # captions and clips
    assert all("(Permission denied)" in text and "cache_dir" in text for text in told)
    assert {text.split()[2] for text in told} == {str(cache / "text"), str(cache / "vae")}
    again = [record for record in caplog.records if "damaged or gone" in record.getMessage()]
    assert 0 < len(again) <= count  # each once, though several epochs were trained


def test_what_cannot_be_made_anew_is_told_in_one_message_with_one_fix(
    make_config: MakeConfig, project: Path, tmp_path: Path
) -> None:
    config = make_config(max_train_steps=9, output_dir=str(tmp_path / "run"))
    trainer = tk.Trainer(config).prepare(progress=False)
    damage(project / "cache" / "vae")
    for sample in tk.inspect_dataset(config).samples:
        sample.file.unlink()
    with pytest.raises(tk.TunerkitError) as error:
        list(trainer.steps())
    trainer.close()
    text = str(error.value)
    assert text.count("Fix: ") == 1
    assert "was damaged" in text
    assert "cannot be encoded again: No such file or directory. Fix: put the file back" in text
    assert ". The training up to step 0 is saved in" in text


def write_image(path: Path, width: int, height: int) -> Path:
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
    path.with_suffix(".txt").write_text("a plain picture\n")
    return path


def test_extreme_shapes_and_stills_are_told_apart(make_config: MakeConfig, project: Path) -> None:
    strip = write_image(project / "clips" / "strip.png", 3000, 10)
    still = write_image(project / "clips" / "still.gif", 128, 96)
    still.with_suffix(".txt").write_text("first line\nsecond line\n")
    config = make_config(**{"datasets.0.video.is_i2v": True})
    rows = {row.file: row for row in tk.inspect_dataset(config).rows}
    assert rows[strip].decision == "dropped"
    assert "maximum_aspect_ratio" in rows[strip].reason
    assert rows[still].decision == "used"
    assert "2 captions" in rows[still].reason
    assert "not as image to video" in rows[still].reason
    wide = make_config(**{"datasets.0.maximum_aspect_ratio": 300})
    assert {row.file: row for row in tk.inspect_dataset(wide).rows}[strip].decision == "used"


def test_a_path_in_place_of_settings_is_explained(make_config: MakeConfig) -> None:
    for call in (tk.Trainer, tk.build_cache, tk.inspect_dataset):
        with pytest.raises(tk.TunerkitError, match="load_config"):
            call("config/config.json")  # type: ignore[arg-type]
    with pytest.raises(tk.TunerkitError, match="TrainConfig"):
        tk.load_config({"seed": 1})  # type: ignore[arg-type]
    trainer = tk.Trainer(make_config(max_train_steps=1)).prepare(progress=False)
    with pytest.raises(tk.TunerkitError, match="whole number"):
        list(trainer.steps(-1))
    trainer.close()
