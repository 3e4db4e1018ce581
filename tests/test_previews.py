"""Previews of videos being rendered: what they show, who is told, and that they change and endanger nothing."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
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
from tunerkit.validation.previews import Preview, checked_pictures, clean_estimate, encoded, milliseconds

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
    (tmp_path / "a.webp").write_bytes(encoded(pictures, milliseconds(3, 3, 4, 16.0), width=192))
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((192, 128), 3)
        times = []
        for frame in range(3):
            image.seek(frame)
            image.load()
            times.append(image.info["duration"])
    assert times == [62, 250, 250]  # one frame, and twice four
    assert encoded(pictures, times, width=192) == encoded(pictures, times, width=192)
    (tmp_path / "b.webp").write_bytes(encoded(pictures[:1], [62], width=4096))
    with Image.open(tmp_path / "b.webp") as image:
        assert image.size == (256, 171)
    assert milliseconds(9, 3, 4, 16.0) == [62] * 9  # of a decoder that gives every frame
    assert milliseconds(12, 3, 4, 24.0) == [31] * 12
    assert milliseconds(1, 1, 4, 24.0) == [42]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([[[[0, 128, 255]]]], dtype=np.uint8), [0, 128, 255]),
        (torch.tensor([[[[0.0, 0.5, 1.5]]]], dtype=torch.bfloat16), [0, 128, 255]),
        (np.array([[[[-0.1, 0.25, np.nan]]]]), [0, 64, 0]),
        (torch.zeros(1, 3, 1, 1), r"returned \[1, 3, 1, 1\], not pictures \[F, H, W, 3\]"),
        (np.zeros((0, 1, 1, 3), np.uint8), r"returned \[0, 1, 1, 3\]"),
        ([[[[0.0, 0.5, 1.0]]]], "returned list"),
        (torch.zeros(1, 1, 1, 3, dtype=torch.int64), "returned int64, not uint8"),
    ],
)
def test_what_a_decoder_may_return(given: Any, expected: list[int] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(tk.TunerkitError, match=expected):
            checked_pictures(given)
        return
    pictures = checked_pictures(given)
    assert (pictures.dtype, pictures.tolist()) == (np.uint8, [[[expected]]])


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
    count = 17 if altered else 9
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


@contextlib.contextmanager
def prepared(config: tk.TrainConfig) -> Iterator[tk.Trainer]:
    trainer = tk.Trainer(config).prepare(progress=False)
    try:
        yield trainer
    finally:
        trainer.close()


def validated(trainer: tk.Trainer) -> tuple[bytes, list[tuple[Any, ...]]]:
    """The file of a validation's video, and the events of its previews."""
    events = trainer.loaded.folder.path / "events.jsonl"
    before = len(events.read_text().splitlines())
    (video,) = trainer.validate()
    rows = [json.loads(line) for line in events.read_text().splitlines()[before:]]
    return video.path.read_bytes(), [
        (row["denoised"], row["steps"], row["name"], row["path"]) for row in rows if row["kind"] == "preview"
    ]


def test_previews_of_a_validation(make_config: MakeConfig, tmp_path: Path, caplog: Any) -> None:
    with prepared(make_config(**RENDER, output_dir=tmp_path / "off")) as trainer:
        plain, events = validated(trainer)
        assert not events
        assert not list((tmp_path / "off").rglob("*.webp"))

    folder, told = tmp_path / "on", []
    config = make_config(**RENDER, validation_preview=True, validation_preview_steps=3, output_dir=folder)
    assert not [note for note in config.notes if note.key.startswith("validation_preview")]
    with prepared(config) as trainer, caplog.at_level(logging.WARNING, "tunerkit"):
        # A decoder: no colours are needed.
        given: list[torch.Tensor] = []
        trainer.on_preview = told.append
        trainer.preview_decoder = lambda latents: given.append(latents.clone()) or latents.fill_(0.5)[:3].movedim(0, -1)
        video, events = validated(trainer)
        assert video == plain
        assert [event[:2] for event in events] == [(3, 4), (4, 4)]
        assert not list(folder.rglob("*colours*"))
        assert not caplog.records
        assert [(list(one.shape), one.dtype, str(one.device)) for one in given] == [
            ([16, 3, 8, 12], torch.float32, "cpu")
        ] * 2
        with Image.open(told[-1].path) as image:
            assert np.abs(np.asarray(image.convert("RGB"), np.int16) - 128).max() <= 2

        # One that fails: no more previews, and the same video.
        trainer.preview_decoder = failing
        assert validated(trainer) == (plain, [])
        assert [record.getMessage() for record in caplog.records] == [ENDED]

        # None: fitted colours.
        trainer.preview_decoder = None
        told.clear()
        video, events = validated(trainer)
        assert video == plain
        assert [(one.denoised, one.steps, one.step) for one in told] == [(3, 4, 0), (4, 4, 0)]
        assert [event[:3] for event in events] == [(3, 4, told[0].name), (4, 4, told[0].name)]
        path = folder / events[-1][3]
        assert path == told[-1].path
        with Image.open(path) as image:
            assert (image.format, image.size, getattr(image, "n_frames", 1)) == ("WEBP", (96, 64), 3)
    assert [one.path.name for one in tk.attach(folder).videos()] == [f"{told[0].name}.mp4"]


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("colours are gone")


ENDED = "no more previews are made of videos being rendered (colours are gone); the videos themselves are"


@pytest.mark.parametrize("broken", [None, "projection_of", "encoded", "listener", "decoder"])
def test_what_goes_wrong_ends_previews_and_no_video(
    broken: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    colours = Projection(np.eye(4, 3), np.zeros(3))
    monkeypatch.setattr(previews, "projection_of", lambda *_: colours)
    if broken in ("projection_of", "encoded"):
        monkeypatch.setattr(previews, broken, failing)
    told: list[Preview] = []
    made = previews.Previews(tk.TrainConfig(validation_preview=True), tk.family("sanavideo"), None, ())  # pyright: ignore[reportArgumentType]
    made.hear(failing if broken == "listener" else told.append, failing if broken == "decoder" else None)
    request = RenderRequest({}, {}, width=96, height=64, frames=9, steps=3, guidance=1.0, seed=0, fps=16.0)

    def one_video() -> int:
        """How many previews there are of a video that is rendered."""
        told.clear()
        made.prepare(tmp_path)
        watch = made.watcher(tmp_path / "a.mp4", 0, request)
        for step in (1, 2, 3) if watch else ():
            assert watch
            watch(step, lambda step=step: (1 - step / 3, torch.full((4, 3, 2, 3), step / 3)))
        return len(told)

    with caplog.at_level(logging.WARNING, "tunerkit"):
        found = [one_video(), one_video()]
    assert found == ([2, 2] if broken is None else [0, 0])
    assert [record.getMessage() for record in caplog.records] == ([] if broken is None else [ENDED])
    made.hear(told.append, lambda latents: latents[:3].movedim(0, -1))  # another decoder is given a chance
    assert one_video() == (0 if broken == "encoded" else 2)


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
