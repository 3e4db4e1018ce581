"""Sound in the widgets: players, spectrogram, the parts of the loss, and a first project of such a family."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

import tunerkit as tk
import tunerkit_widgets as tw
from tunerkit.validation.video_files import write_mp4
from tunerkit_widgets import surroundings
from tunerkit_widgets.form_layout import flavour_options, published
from tunerkit_widgets.previews import has_sound, preview
from tunerkit_widgets.sounds import mel_png, wav
from tunerkit_widgets.videos import _rendering, videos_html, videos_text

RATE = 24000
TONE_HZ = 440.0


@pytest.fixture
def loud_video(tmp_path: Path) -> Path:
    """25 frames of 416x240 at 24 fps with a tone in stereo."""
    y, x = np.mgrid[0:240, 0:416]
    frames = [np.stack([(x + 5 * t) % 256, (y + 3 * t) % 256, (x * y // 64 + t) % 256], axis=-1) for t in range(25)]
    tone = np.sin(2 * np.pi * TONE_HZ * np.arange(round(25 / 24 * RATE)) / RATE) * 0.5
    path = tmp_path / "validation" / "step-4" / "fox-416x240-7.mp4"
    return write_mp4(path, np.stack(frames).astype(np.uint8), 24.0, np.stack([tone, tone], axis=1), RATE)


def heard(data: bytes) -> tuple[np.ndarray, int]:
    """(waveform of the first channel, Hz) of a video."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.audio[0]
        pieces = [frame.to_ndarray()[0] for frame in container.decode(stream)]
        return np.concatenate(pieces), stream.rate


@pytest.mark.parametrize("room", [10_000_000, 40_000])
def test_a_preview_keeps_the_sound(loud_video: Path, room: int) -> None:
    data = preview(loud_video, room)
    assert len(data) <= room
    assert (data == loud_video.read_bytes()) is (room > 1_000_000)
    sound, rate = heard(data)
    assert len(sound) / rate == pytest.approx(25 / 24, abs=2 * 1024 / rate)
    spectrum = np.abs(np.fft.rfft(sound[rate // 10 : -rate // 10]))
    assert np.argmax(spectrum) * rate / len(sound[rate // 10 : -rate // 10]) == pytest.approx(TONE_HZ, abs=2)
    assert data.index(b"moov") < data.index(b"mdat")


def test_sound_is_said_and_not_muted(loud_video: Path) -> None:
    found = _rendering(loud_video)
    page = videos_html([found], max_bytes=60_000)
    assert "muted" not in page
    assert "with sound" in page
    assert "with sound" in videos_text([found])
    (source,) = re.findall(r"<video src='data:video/mp4;base64,([^']+)'", page)
    assert len(heard(base64.b64decode(source))[0]) > 0
    silent = write_mp4(loud_video.with_name("silent.mp4"), np.zeros((9, 64, 64, 3), np.uint8), 24.0)
    assert not has_sound(silent)
    assert "with sound" not in videos_html([replace(found, path=silent)], base=False)


def test_the_player_holds_exactly_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = np.random.default_rng(0).uniform(-1, 1, (2, 16667)).astype(np.float32)
    with av.open(io.BytesIO(wav(waveform, 16000)), "r") as container:
        pieces = [frame.to_ndarray().reshape(-1, 2) for frame in container.decode(audio=0)]
        assert container.streams.audio[0].rate == 16000
    assert np.array_equal(np.concatenate(pieces).T, np.round(waveform * 32767).astype(np.int16))

    shown: list[tuple[str, str]] = []
    monkeypatch.setattr("tunerkit_widgets.sounds.show", lambda page, words: shown.append((page, words)))
    mel = np.zeros((2, 105, 64))
    tw.show_sound(waveform, 16000, mel, title="<clip>.mp4")
    page, words = shown[0]
    assert words == "<clip>.mp4: 1.04 s, 16000 Hz, 2 channels"
    assert "<clip>" not in page
    assert "<audio src='data:audio/wav;base64," in page
    assert "<img src='data:image/png;base64," in page


def test_the_spectrogram_is_bright_where_the_sound_is() -> None:
    from PIL import Image

    mel = np.full((2, 100, 64), -11.5)
    mel[:, 50:, 48:] = 2.0  # high bands, second half
    pixels = np.asarray(Image.open(io.BytesIO(mel_png(mel, 1.04))).convert("L"), dtype=float)
    height, width = pixels.shape
    upper = pixels[height // 10 : height // 5]
    assert upper[:, int(width * 0.6) : int(width * 0.9)].mean() > 150
    assert upper[:, int(width * 0.2) : int(width * 0.4)].mean() < 40
    assert pixels[height // 2 : int(height * 0.6), int(width * 0.6) : int(width * 0.9)].mean() < 40


def test_encoding_of_sound_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tw.CacheProgress()("sound", 3, 3)
    assert capsys.readouterr().out == "Sounds: 3 encoded in 0 s\n"


def test_a_first_project_takes_sound_where_the_family_has_it(tmp_path: Path) -> None:
    (dataset,) = tw.new_project(tmp_path, "ltxvideo2").datasets
    assert (dataset.video.num_frames, dataset.video.min_frames) == (49, 17)
    assert dataset.takes_sound
    assert dataset.audio is not None
    assert dataset.audio.allow_zero_audio
    assert not tw.new_project(tmp_path, "sanavideo").datasets[0].takes_sound


def test_only_flavours_that_train_are_offered() -> None:
    assert [value for _, value in flavour_options("ltxvideo2")][1:] == ["dev", "2.3-dev"]
    assert published("ltxvideo2") == ["Lightricks/LTX-2", "diffusers/LTX-2.3-Diffusers"]


def test_each_family_and_flavour_has_a_demo_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Path, dict[str, str]]] = []

    def create(folder: Path, **settings: str) -> Path:
        made.append((Path(folder), settings))
        raise InterruptedError

    monkeypatch.setattr(tk.demo, "create", create)
    monkeypatch.setenv(surroundings.VARIABLE, "1")
    for parameters in (
        {"family": "sanavideo"},
        {"family": "ltxvideo2"},
        {"family": "ltxvideo2", "model_flavour": "2.3-dev"},
    ):
        with pytest.raises(InterruptedError):
            tw.guided_form("", **parameters)
    assert [folder.as_posix() for folder, _ in made] == [
        "demo-project/sanavideo",
        "demo-project/ltxvideo2",
        "demo-project/ltxvideo2-2.3-dev",
    ]
    assert made[2][1] == {"family": "ltxvideo2", "model_flavour": "2.3-dev"}
    # Own weights, even named by their file alone, are no demo.
    with pytest.raises(tk.ConfigError, match="instance_data_dir"):
        tw.guided_form("", family="ltxvideo2", ltx2_checkpoint_filename="ltx-2-19b-dev.safetensors")
