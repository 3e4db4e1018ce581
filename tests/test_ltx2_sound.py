"""LTX-2's sound from a clip to the tokens that the pipelines expect, and into the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import tunerkit as tk
from tunerkit.data.audio import decode_audio
from tunerkit.families.ltx2.mel import log_mel
from tunerkit.validation.video_files import write_mp4

FAMILY = tk.family("ltxvideo2")
RATE = 16000
PITCH = 440.0
LENGTHS = [(fps, frames) for fps in (24, 25, 30) for frames in (49, 97, 121)]


@pytest.fixture(scope="module")
def audio_vae(ltx2_projects: dict[str, Path]) -> Any:
    return FAMILY.load_audio_vae(tk.resolve(tk.load_config(ltx2_projects["dev"])), torch.device("cpu"))


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    """`[2, samples]`."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * PITCH * time)] * 2).astype(np.float32)


def band_of(pitch: float) -> int:
    """The mel band whose centre is nearest, from Slaney's scale: 15 mel to 1 kHz, then 27 to a factor of 6.4."""

    def mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) / (np.log(6.4) / 27)

    centres = np.linspace(0, mel(RATE / 2), 66)[1:-1]
    return int(np.abs(centres - mel(pitch)).argmin())


@pytest.mark.parametrize(("fps", "frames"), LENGTHS)
def test_a_tone_survives_the_lengths(audio_vae: Any, tmp_path: Path, fps: int, frames: int) -> None:
    """A longer clip's sound is cut to the frames' time, becomes as many latents as the pipeline counts, and stays a
    tone of its pitch."""
    seconds = frames / fps
    pictures = np.zeros((frames + fps, 32, 32, 3), np.uint8)
    source = write_mp4(tmp_path / "clip.mp4", pictures, fps, tone(seconds + 1.0, 48000).T, 48000)
    waveform = decode_audio(source, 0.0, seconds, sample_rate=RATE, channels=2)
    assert waveform.shape == (2, round(seconds * RATE))

    mel = log_mel(torch.from_numpy(waveform)[None], sample_rate=RATE, n_fft=1024, hop_length=160, mel_bins=64)
    assert mel.shape == (1, 2, round(seconds * RATE) // 160 + 1, 64)
    bands = mel[0, :, 20:-20].argmax(-1)
    assert bool((bands == band_of(PITCH)).all())

    latents = FAMILY.encode_sound(audio_vae, torch.from_numpy(waveform)[None])
    length = round(seconds * 16000 / 160 / 4)  # as LTX2Pipeline counts its audio latents
    assert latents.shape == (1, length, 32)
    # Back: the statistics undone, unpacked channel by channel, decoded.
    packed = latents * audio_vae.latents_std + audio_vae.latents_mean
    unpacked = torch.stack([packed[..., channel * 16 : (channel + 1) * 16] for channel in range(2)], dim=1)
    with torch.no_grad():
        heard = audio_vae.decode(unpacked, return_dict=False)[0]
    assert heard.shape == (1, 2, 4 * length - 3, 64)
    # The miniature keeps the mean of four bands.
    assert bool(((heard[0, :, 20:-20].argmax(-1) - band_of(PITCH)).abs() <= 4).all())


def test_tokens_are_packed_and_then_normalised(audio_vae: Any) -> None:
    waveform = torch.from_numpy(tone(1.0))[None]
    latents = FAMILY.encode_sound(audio_vae, waveform)
    mel = log_mel(waveform, sample_rate=RATE, n_fft=1024, hop_length=160, mel_bins=64)
    with torch.no_grad():
        mode = audio_vae.encode(mel).latent_dist.mode()
    _, channels, _, bands = mode.shape
    for channel in range(channels):
        for band in range(bands):
            feature = channel * bands + band
            expected = (mode[0, channel, :25, band] - audio_vae.latents_mean[feature]) / audio_vae.latents_std[feature]
            torch.testing.assert_close(latents[0, :, feature], expected, rtol=1e-5, atol=1e-6)


def test_a_mono_file_is_heard_on_both_sides(audio_vae: Any, tmp_path: Path) -> None:
    source = write_mp4(tmp_path / "mono.mp4", np.zeros((48, 32, 32, 3), np.uint8), 24, tone(2.0)[:1].T, RATE)
    waveform = decode_audio(source, 0.0, 1.0, sample_rate=RATE, channels=2)
    assert np.array_equal(waveform[0], waveform[1])
    assert np.abs(waveform).max() > 0.3
    assert FAMILY.encode_sound(audio_vae, torch.from_numpy(waveform)[None]).shape == (1, 25, 32)


@pytest.mark.parametrize(("rate", "channels"), [(24000, 2), (48000, 2)], ids=["2.0", "2.3"])
@pytest.mark.parametrize(("fps", "frames"), [(24, 49), (25, 97), (30, 121)])
def test_a_written_video_has_sound_as_long_as_its_picture(
    tmp_path: Path, rate: int, channels: int, fps: int, frames: int
) -> None:
    made = tone(frames / fps, rate)[:channels]
    path = write_mp4(tmp_path / "video.mp4", np.zeros((frames, 64, 64, 3), np.uint8), fps, made.T, rate)
    with av.open(str(path)) as container:
        sound, picture = container.streams.audio[0], container.streams.video[0]
        assert sound.codec_context.name == "aac"
        assert sound.duration is not None
        assert picture.duration is not None
        assert sound.time_base is not None
        assert picture.time_base is not None
        heard, shown = float(sound.duration * sound.time_base), float(picture.duration * picture.time_base)
    assert shown == pytest.approx(frames / fps, abs=1e-3)
    assert abs(heard - shown) <= 1024 / rate
