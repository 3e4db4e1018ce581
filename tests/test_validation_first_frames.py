"""Where the first frame of an image-to-video rendering comes from when none is given."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tunerkit as tk
from tunerkit.validation.first_frames import UnreadableFrameError
from tunerkit.validation.inputs import read_frame, starts_from_image
from tunerkit.validation.video_files import read_mp4

MakeTrainer = Callable[..., tk.Trainer]
PROMPT = "A red ball moves to the right across a green field."
OTHER = "A blue ball moves to the left across a yellow wall."
NEGATIVE = "blurry, jittery, distorted"
STEM = "validation-64x64-42"
RENDER: dict[str, Any] = {
    "validation_prompt": PROMPT,
    "validation_negative_prompt": NEGATIVE,
    "validation_resolution": "64x64",
    "validation_num_video_frames": 17,
    "validation_num_inference_steps": 2,
    "validation_guidance": 3.0,
    "validation_seed": 42,
    "user_prompt_library": None,
    "max_train_steps": 4,
    "learning_rate": 0.05,
}


@pytest.fixture(scope="module")
def i2v(kandinsky5_projects: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json of a project whose model makes videos from a first frame only; the cache is filled."""
    path = kandinsky5_projects("i2v-lite-5s")
    library = tmp_path_factory.mktemp("i2v") / "texts.json"
    library.write_text(json.dumps({"one": PROMPT, "other": OTHER}))
    tk.build_cache(tk.load_config(path, **{**RENDER, "user_prompt_library": str(library)}), progress=False)
    return path


@pytest.fixture
def make_trainer(i2v: Path, tmp_path: Path) -> MakeTrainer:
    """A prepared trainer that writes to this test's own folder."""

    def make(**changes: Any) -> tk.Trainer:
        settings = {**RENDER, "output_dir": str(tmp_path / "output"), **changes}
        return tk.Trainer(tk.load_config(i2v, **settings)).prepare(progress=False)

    return make


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """Where the run of `make_trainer` keeps the first frame of its only prompt."""
    return tmp_path / "output" / "validation" / "first-frames" / f"{STEM}.png"


def validate(trainer: tk.Trainer, steps: int = 0) -> list[Any]:
    """The videos after so many steps from now; the trainer is closed."""
    try:
        for _ in range(steps):
            trainer.step()
        return trainer.validate()
    finally:
        trainer.close()


def recorded(video: Any) -> dict[str, Any]:
    return json.loads((video.path.parent / "renderings.json").read_text())[video.path.name]


def stock_text_to_video(i2v: Path) -> np.ndarray:
    """Frames `[T, H, W, 3]` that the same checkpoint renders from the prompt alone, with diffusers alone."""
    import diffusers
    import transformers

    classes: dict[str, Any] = {
        "transformer": diffusers.Kandinsky5Transformer3DModel,
        "vae": diffusers.AutoencoderKLHunyuanVideo,
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration,
        "tokenizer": transformers.AutoTokenizer,  # the stock processor needs torchvision
        "text_encoder_2": transformers.CLIPTextModel,
        "tokenizer_2": transformers.AutoTokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    }
    model = str(i2v.parent / "model")
    parts = {name: each.from_pretrained(model, subfolder=name) for name, each in classes.items()}
    pipeline: Any = diffusers.Kandinsky5T2VPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=64, height=64, num_frames=17, num_inference_steps=2,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(42), output_type="np",
    ).frames[0]  # fmt: skip
    return (np.asarray(frames) * 255).round().astype(np.uint8)


def test_the_frame_is_the_first_of_a_stock_text_to_video_rendering(
    make_trainer: MakeTrainer, i2v: Path, png: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tunerkit"):
        trainer = make_trainer(validation_resolution="64x64,96x64")
        renderer = trainer.loaded.renderer
        assert renderer.has_images
        assert all(map(starts_from_image, renderer.prompts))
        video, wide = validate(trainer)
    image = np.asarray(Image.open(png))
    theirs = stock_text_to_video(i2v)
    assert image.shape == (64, 64, 3)
    assert np.abs(image.astype(int) - theirs[0].astype(int)).max() <= 1
    assert np.abs(image.astype(int) - theirs[8].astype(int)).max() > 16  # another frame would be told from it

    # The stock VAE blurs the image and the encoder compresses it; still it is nearer to it than to any later frame.
    frames = read_mp4(video.path).astype(int)
    assert frames.shape == (17, 64, 64, 3)
    far = [np.abs(frame - image).mean() for frame in frames]
    assert far[0] == min(far)
    assert far[0] < 0.5 * max(far)

    assert recorded(video)["image"] == "first-frames/validation-64x64-42.png"
    assert recorded(wide)["image"] == "first-frames/validation-96x64-42.png"
    assert Image.open(png.with_name("validation-96x64-42.png")).size == (96, 64)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert all(word in told[0] for word in ("2 validation video(s)", "validation_input", "validation_using_datasets"))


def test_it_is_made_once_for_all_rounds_and_resumed_runs(
    make_trainer: MakeTrainer, png: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"validation_step_interval": 2, "checkpoint_step_interval": 2, "use_ema": True, "ema_decay": 0.5}
    trainer = make_trainer(**settings, ema_validation="comparison")
    first = list(trainer.steps(2))[-1]
    made, time = png.read_bytes(), png.stat().st_mtime_ns
    trainer.close()
    resumed = make_trainer(**settings, ema_validation="comparison", resume_from_checkpoint="latest")
    assert resumed.global_step == 2
    second = list(resumed.steps())[-1]
    live = {name: weight.clone() for name, weight in resumed.loaded.engine.weights.live.items()}
    resumed.close()

    assert (png.read_bytes(), png.stat().st_mtime_ns) == (made, time)
    assert any(bool(weight.any()) for name, weight in live.items() if "lora_B" in name)  # the model is another by now
    videos = [*first.videos, *second.videos]
    assert [video.ema for video in videos] == [False, True, False, True]
    assert all(video.comparison is not None for video in videos)
    base = json.loads((png.parents[1] / "step-0" / "renderings.json").read_text())
    assert [recorded(video) for video in videos] == [base[f"{STEM}.mp4"]] * 4
    assert sum("no first frame" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("changed", "remade"),
    [
        ({"validation_prompt": OTHER}, True),
        ({"validation_negative_prompt": OTHER}, True),
        ({"validation_num_inference_steps": 3}, True),
        ({"validation_guidance": 4.0}, True),
        ({"validation_num_video_frames": 21}, True),
        ({"validation_step_interval": 7, "learning_rate": 0.01}, False),
    ],
    ids=["prompt", "negative prompt", "steps", "guidance", "frames", "nothing that shapes it"],
)
def test_it_is_made_anew_when_what_shapes_it_changed(
    make_trainer: MakeTrainer, png: Path, changed: dict[str, Any], remade: bool
) -> None:
    validate(make_trainer())
    made = png.read_bytes()
    trainer = make_trainer(**changed)
    assert trainer.loaded.renderer.has_base() is not remade
    validate(trainer)
    assert (png.read_bytes() != made) is remade
    fresh = make_trainer(**changed)  # what was made is up to date
    assert fresh.loaded.renderer.has_base()
    fresh.close()


def test_a_given_image_or_a_sample_comes_first(make_trainer: MakeTrainer, png: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), (250, 40, 10)).save(tmp_path / "orange.png")
    entries = [{"image": "orange.png", "prompt": PROMPT}, {"prompt": PROMPT, "nickname": "bare"}]
    (tmp_path / "inputs.json").write_text(json.dumps(entries))
    trainer = make_trainer(
        validation_prompt=None,
        validation_input=str(tmp_path / "inputs.json"),
        validation_using_datasets=True,
        num_eval_images=1,
    )
    given, bare, sample = validate(trainer)
    assert given.nickname == "orange"
    assert [path.name for path in png.parent.glob("*.png")] == ["bare-64x64-42.png"]
    assert recorded(given)["image"] == "orange.png"
    assert recorded(bare)["image"] == "first-frames/bare-64x64-42.png"
    assert recorded(sample)["image"] == f"{sample.nickname}.mp4"
    assert "image_sha256" not in recorded(given)
    start = read_mp4(given.path)[0].reshape(-1, 3).mean(axis=0)
    assert np.abs(start - (250, 40, 10)).max() < 40


def test_a_picture_put_in_its_place_is_used_and_never_overwritten(
    make_trainer: MakeTrainer, png: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [base] = validate(make_trainer())
    Image.new("RGBA", (200, 100), (20, 60, 240, 255)).save(png)
    own = png.read_bytes()
    [video] = validate(make_trainer(), steps=1)
    assert video.comparison is None
    assert "from another first frame" in caplog.text
    assert np.abs(read_mp4(video.path)[0].reshape(-1, 3).mean(axis=0) - (20, 60, 240)).max() < 40
    assert recorded(video)["image_sha256"] != recorded(base)["image_sha256"]
    validate(make_trainer(validation_guidance=4.0))
    assert png.read_bytes() == own


def test_a_deleted_picture_is_made_anew_with_the_weights_of_now(make_trainer: MakeTrainer, png: Path) -> None:
    validate(make_trainer())
    made = png.read_bytes()
    png.unlink()
    trainer = make_trainer()
    assert not trainer.loaded.renderer.has_base()
    [video] = validate(trainer, steps=2)
    assert png.read_bytes() != made
    assert json.loads(png.with_suffix(".json").read_text())["step"] == 2
    assert video.comparison is None


def test_an_unreadable_picture_is_named_before_the_model_is_loaded(
    make_trainer: MakeTrainer, png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate(make_trainer())
    png.write_bytes(png.read_bytes()[:200])
    loads: list[int] = []
    monkeypatch.setattr("tunerkit.families.kandinsky5.family.Kandinsky5.load_transformer", lambda *_: loads.append(1))
    with pytest.raises(UnreadableFrameError, match=rf"{STEM}.png is not a readable image .* Fix: put a whole PNG"):
        make_trainer()
    assert not loads


def test_a_picture_broken_during_the_run_costs_a_round_and_not_the_training(
    make_trainer: MakeTrainer, png: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(validation_step_interval=1)
    steps = trainer.steps(2)
    assert next(steps).videos
    png.write_text("not a picture")
    result = next(steps)
    trainer.close()
    assert (result.step, result.videos) == (2, ())
    [told] = [record.getMessage() for record in caplog.records if "not a readable image" in record.getMessage()]
    assert told.startswith("validation at step 2 ended early; training goes on")
    assert str(png) in told


def test_images_of_every_depth_keep_their_light(tmp_path: Path) -> None:
    """16 bits a pixel are scaled, what is transparent becomes white: as of images that are trained on."""
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    clear = np.zeros((64, 64, 4), np.uint8)
    clear[:, :, 0], clear[:, :32, 3] = 255, 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    deep, half = (np.asarray(read_frame(tmp_path / name, 64, 64)) for name in ("deep.png", "clear.png"))
    assert np.abs(deep[0, :, 0] - ramp[0] / 257).max() <= 1
    assert half[0, 0].tolist() == [255, 0, 0]
    assert half[0, -1].tolist() == [255, 255, 255]


def test_an_image_that_vanishes_does_not_end_the_training(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (64, 64), (200, 40, 90)).save(tmp_path / "given.png")
    (tmp_path / "inputs.json").write_text(json.dumps([{"prompt": PROMPT, "image": "given.png"}]))
    trainer = make_trainer(
        validation_input=str(tmp_path / "inputs.json"), validation_prompt=None, validation_step_interval=1,
        disable_benchmark=True, max_train_steps=2,
    )  # fmt: skip
    (tmp_path / "given.png").unlink()
    results = list(trainer.steps())
    trainer.close()
    assert len(results) == 2
    assert "given.png" in caplog.text
    assert "training goes on" in caplog.text


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_record_that_cannot_be_read_counts_as_none(make_trainer: MakeTrainer, png: Path, content: str) -> None:
    """The picture is then taken for one of the user's own."""
    validate(make_trainer())
    before = png.read_bytes()
    png.with_suffix(".json").write_text(content)
    [video] = validate(make_trainer(), steps=1)
    assert png.read_bytes() == before
    assert recorded(video)["image"].endswith(png.name)
