"""Previews of videos being rendered: what they show, who is told, and that they change and endanger nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import FakeRun
from PIL import Image

import tunerkit as tk
from tunerkit.cache.entries import Cache
from tunerkit.data.decode import decode
from tunerkit.data.masks import latent_weights
from tunerkit.families.rendering import RenderRequest
from tunerkit.validation import previews
from tunerkit.validation.preview_projection import RIDGE, Projection, fit, projection_of
from tunerkit.validation.previews import Preview, clean_estimate, encoded
from tunerkit.validation.video_files import read_mp4

MakeConfig = Callable[..., tk.TrainConfig]
RENDER: dict[str, Any] = {
    "validation_disable": False,
    "validation_prompt": "A red square moves slowly to the right.",
    "validation_negative_prompt": "blurry",
    "validation_resolution": "96x64",
    "validation_num_video_frames": 9,
    "validation_num_inference_steps": 4,
    "validation_guidance": 4.0,
    "validation_seed": 11,
    "user_prompt_library": None,
    "disable_benchmark": True,
    "max_train_steps": 1,
}


# What is estimated -------------------------------------------------------------------------------------------------


def test_the_estimate_is_what_the_model_predicted_of_the_clean_video() -> None:
    """Of diffusers' own Euler sampler: x_t - sigma v in every step but the first, of which only the end is seen."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    torch.manual_seed(0)
    x, before = torch.randn(4, 2, 3, 3), None
    for place, timestep in enumerate(scheduler.timesteps):
        velocity = torch.randn_like(x)
        predicted = x - scheduler.sigmas[place] * velocity
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        now = float(scheduler.sigmas[place + 1]), x
        estimate = clean_estimate(before, now)
        if place == 0:
            assert estimate is None
        else:
            assert estimate is not None
            torch.testing.assert_close(estimate, predicted, rtol=1e-4, atol=1e-4)
        before = now
    assert clean_estimate(None, (0.0, x)) is x  # of a single step


def test_colours_are_fitted_by_least_squares() -> None:
    source = np.random.default_rng(0)
    pairs = [(source.normal(size=(n, 5)), source.random((n, 3))) for n in (40, 25)]
    found = fit(pairs)
    latents, colours = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    # The same as plain least squares with a row for each channel that pulls its weight towards 0.
    rows = np.concatenate([latents - latents.mean(0), np.sqrt(RIDGE * 65) * np.eye(5)])
    expected, *_ = np.linalg.lstsq(rows, np.concatenate([colours - colours.mean(0), np.zeros((5, 3))]), rcond=None)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-9)
    np.testing.assert_allclose(found.bias + latents.mean(0) @ found.weights, colours.mean(0), rtol=1e-9)
    few = fit([(source.normal(size=(3, 128)), source.random((3, 3)))])  # fewer places than channels
    assert np.isfinite(few.weights).all()


def test_pictures_have_the_fitted_colours() -> None:
    projection = Projection(np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]), np.array([0.0, 0.25, 0.5]))
    latents = torch.tensor([[[[1.0, -3.0]]], [[[0.5, 9.0]]]])  # two channels, one frame of two pixels
    assert projection.pictures(latents).tolist() == [[[[255, 128, 128], [0, 255, 128]]]]


def test_a_preview_is_small_and_lasts_as_long_as_the_video(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    (tmp_path / "a.webp").write_bytes(encoded(pictures, 16.0, 4, width=192))
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((192, 128), 3)
        times = []
        for frame in range(3):
            image.seek(frame)
            image.load()
            times.append(image.info["duration"])
    assert times == [62, 250, 250]  # one frame, and twice four
    assert encoded(pictures, 16.0, 4, width=192) == encoded(pictures, 16.0, 4, width=192)
    (tmp_path / "b.webp").write_bytes(encoded(pictures[:1], 16.0, 4, width=4096))
    with Image.open(tmp_path / "b.webp") as image:
        assert image.size == (256, 171)


# In the pipelines --------------------------------------------------------------------------------------------------


def unnormalised(name: str, vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE decodes them."""
    if name == "kandinsky5-video":
        return latents / vae.config.scaling_factor
    if name == "ltxvideo2":
        mean, std = (value.view(1, -1, 1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
        return latents * std / vae.config.scaling_factor + mean
    mean, std = (
        torch.tensor(value).view(1, -1, 1, 1, 1) for value in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents * std + mean


@pytest.mark.parametrize("image_to_video", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("name", ["sanavideo", "kandinsky5-video", "ltxvideo2"])
def test_watching_a_pipeline_changes_nothing_and_sees_its_latents(
    name: str, image_to_video: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if name == "sanavideo":
        path = request.getfixturevalue("pristine_project") / "config.json"
    elif name == "ltxvideo2":
        path = request.getfixturevalue("ltx2_projects")["dev"]
    else:
        path = request.getfixturevalue("kandinsky5_projects")("t2v-lite-sft-5s")
    config = tk.resolve(tk.load_config(path, output_dir=tmp_path / "out"))
    family = tk.family(name)
    text = Cache(config, family).text("", "negative")
    torch.manual_seed(0)
    transformer = family.load_transformer(config, torch.float32).eval()
    vae = family.load_vae(config, torch.device("cpu"))
    # Kandinsky's pipeline gives the first four latent frames the mean and the deviation of those after them.
    altered = 4 if name == "kandinsky5-video" and image_to_video else 0
    count = 21 if altered else 9
    asked = RenderRequest(
        text, text, width=96, height=64, frames=count, steps=3, guidance=4.0, seed=1, fps=16.0,
        image=Image.new("RGB", (96, 64), (200, 30, 30)) if image_to_video else None,
    )  # fmt: skip
    decoded: list[torch.Tensor] = []
    plain_decode = vae.decode

    def noted_decode(latents: torch.Tensor, *rest: Any, **named: Any) -> Any:
        decoded.append(latents.clone())
        return plain_decode(latents, *rest, **named)

    vae.decode = noted_decode
    seen: list[tuple[int, float, torch.Tensor]] = []
    pipeline = family.build_pipeline(config, transformer, vae, image_to_video=image_to_video)
    plain = family.render(config, pipeline, asked)
    watched = family.render(config, pipeline, replace(asked, watch=lambda step, read: seen.append((step, *read()))))

    np.testing.assert_array_equal(watched.frames, plain.frames)
    if plain.sound is not None and watched.sound is not None:
        np.testing.assert_array_equal(watched.sound, plain.sound)
    assert [step for step, *_ in seen] == [1, 2, 3]
    sigmas = [sigma for _, sigma, _ in seen]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0.0
    latents = [state for *_, state in seen]
    assert not torch.equal(latents[0], latents[1])  # copies: a pipeline may write into the same tensor
    assert latents[-1].shape[1] == family.latent_frames(count)
    found, wanted = unnormalised(name, vae, latents[-1][None])[:, :, altered:], decoded[-1].float()[:, :, altered:]
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)  # the VAE's dtype is bfloat16


# In a run ----------------------------------------------------------------------------------------------------------


def validated(config: tk.TrainConfig, told: list[Preview] | None = None) -> tuple[bytes, list[dict[str, Any]], Path]:
    """The frames of a validation's video, the run's events, and its folder."""
    trainer = tk.Trainer(config).prepare()
    try:
        if told is not None:
            trainer.on_preview = told.append
        (video,) = trainer.validate()
        folder = trainer.loaded.folder.path
    finally:
        trainer.close()
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return video.path.read_bytes(), rows, folder


def frames_of(video: bytes, path: Path) -> np.ndarray:
    path.write_bytes(video)
    return read_mp4(path)


def test_previews_of_a_validation(make_config: MakeConfig, tmp_path: Path) -> None:
    plain, rows, folder = validated(make_config(**RENDER, output_dir=tmp_path / "off"))
    assert not [row for row in rows if row["kind"] == "preview"]
    assert not list(folder.rglob("*.webp"))

    told: list[Preview] = []
    changes = {"validation_preview": True, "validation_preview_steps": 3, "output_dir": tmp_path / "on"}
    config = make_config(**RENDER, **changes)
    assert not [note for note in config.notes if note.key.startswith("validation_preview")]
    video, rows, folder = validated(config, told)
    np.testing.assert_array_equal(frames_of(video, tmp_path / "a.mp4"), frames_of(plain, tmp_path / "b.mp4"))
    assert [(one.denoised, one.steps, one.step) for one in told] == [(3, 4, 0), (4, 4, 0)]
    events = [row for row in rows if row["kind"] == "preview"]
    assert [(row["denoised"], row["steps"], row["name"]) for row in events] == [
        (3, 4, told[0].name), (4, 4, told[0].name),
    ]  # fmt: skip
    path = folder / events[-1]["path"]
    assert path == told[-1].path
    with Image.open(path) as image:
        assert (image.format, image.size, getattr(image, "n_frames", 1)) == ("WEBP", (96, 64), 3)
    assert [one.path.name for one in tk.attach(folder).videos()] == [f"{told[0].name}.mp4"]


def test_pictures_resemble_the_clips(make_config: MakeConfig) -> None:
    """Of a clip's own latents, the pictures are near its pixels: far nearer than one colour for all."""
    config = tk.resolve(make_config())
    family = tk.family("sanavideo")
    cache, samples = Cache(config, family), tk.inspect_dataset(config).samples
    path = config.output_path / "validation" / "colours.json"
    projection = projection_of(path, family, cache, samples)
    before = path.read_bytes()
    again = projection_of(path, family, cache, samples)  # read
    assert (again.weights == projection.weights).all()
    path.write_text(path.read_text()[:50])  # cut off: made again, the same
    projection_of(path, family, cache, samples)
    assert path.read_bytes() == before

    latents = cache.latents(samples[0])
    _, frames, height, width = latents.shape
    pixels = decode(samples[0])
    true = np.stack([latent_weights(pixels[..., c], frames, height, width, 4)[0] for c in range(3)], -1) * 255
    error = np.square(projection.pictures(latents) - true).mean()
    assert error < 0.5 * np.square(true - true.mean((0, 1, 2))).mean()


@pytest.mark.parametrize("broken", ["fit", "show", "listener"])
def test_what_goes_wrong_ends_previews_and_no_video(
    make_config: MakeConfig, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("colours are gone")

    config = make_config(**RENDER, validation_preview=True, output_dir=tmp_path / "out")
    trainer = tk.Trainer(config).prepare()
    if broken == "listener":
        trainer.on_preview = failing
    else:
        monkeypatch.setattr(previews, "projection_of" if broken == "fit" else "encoded", failing)
    try:
        with caplog.at_level(logging.WARNING, "tunerkit"):
            rounds = [trainer.validate(), trainer.validate()]
    finally:
        trainer.close()
    assert [len(videos) for videos in rounds] == [1, 1]
    warnings = [record.getMessage() for record in caplog.records if "previews" in record.getMessage()]
    assert warnings == [
        "no more previews are made of videos being rendered (colours are gone); the videos themselves are"
    ]


def test_the_dashboard_shows_the_newest_preview_while_a_video_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tunerkit_widgets as tw

    monkeypatch.setenv("TUNERKIT_HEADLESS", "0")
    run = FakeRun(tmp_path)
    dashboard = tw.TrainingDashboard(run)
    view = dashboard._view
    assert view is not None

    def update(kind: str, picture: bytes | None = None, **facts: Any) -> tuple[str | None, bytes]:
        if picture is not None:
            (tmp_path / "a.webp").write_bytes(picture)
            facts = {"path": "a.webp", "name": "cat", "denoised": 5, "steps": 20}
        run.report(kind)
        run.reported[-1].update(facts)
        dashboard._update()
        return view.preview.widget.layout.display, view.preview.picture.value

    assert update("state")[0] == "none"
    run.be(state="validating")
    assert update("preview", b"one") == (None, b"one")
    assert "cat" in view.preview.words.value
    assert update("preview", b"two") == (None, b"two")
    assert update("preview", path="gone.webp", name="cat", denoised=6, steps=20)[0] == "none"
    assert update("preview", b"three") == (None, b"three")
    run.be(state="running")
    assert update("state")[0] == "none"
    run.be(state="validating")  # the next round: what is left of the last one is not shown
    assert update("checkpoint")[0] == "none"
    view.close()
