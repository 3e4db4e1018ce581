"""The sound of a clip: in time with the picture, at the rate and with the channels asked for, of exact length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from data_clips import numbered_frame, write_clip

from tunerkit.data.audio import decode_audio, kept_part
from tunerkit.data.probe import UnreadableMedia, read_media

TONE_HZ, CLICK = 440, 0.9


def tone_with_click(rate: int, seconds: float, channels: int, click: float) -> np.ndarray:
    """A quiet tone (in the second channel half as loud) with a loud pulse of 0.3 ms at `click` seconds."""
    times = np.arange(round(seconds * rate)) / rate
    sound = 0.1 * np.sin(2 * np.pi * TONE_HZ * times)
    sound[np.abs(times - click) < 0.00015] = 0.9
    return np.stack([sound / (channel + 1) for channel in range(channels)]).astype(np.float32)


def write_talkie(
    path: Path,
    waveform: np.ndarray,
    rate: int,
    *,
    fps: Fraction | int = 25,
    frames: int = 50,
    codec: str = "aac",
    late: float = 0.0,
    picture_late: float = 0.0,
) -> Path:
    """A clip with sound that starts `late` seconds after zero, the picture `picture_late` seconds after it."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(waveform)]
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=fps, options={"g": "12"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound: Any = out.add_stream(codec, rate=rate, layout=layout)
        sound_format = sound.codec_context.format.name
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, 64, 64), format="rgb24")
            frame.pts, frame.time_base = round(number + picture_late * fps), 1 / Fraction(fps)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        convert = av.AudioResampler(sound_format, layout, rate, frame_size=sound.codec_context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, round(late * rate), Fraction(1, rate)
        for piece in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    return path


def click_of(waveform: np.ndarray, rate: int) -> float:
    return int(np.abs(waveform[0]).argmax()) / rate


def tone_level(waveform: np.ndarray, rate: int) -> float:
    """Amplitude of the tone, by projection on its sine and cosine."""
    phase = 2 * np.pi * TONE_HZ * np.arange(len(waveform)) / rate
    return float(2 * abs(np.mean(waveform * np.exp(-1j * phase))))


@pytest.mark.parametrize("fps", [24, 25, 30, Fraction(30000, 1001)])
@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels", "target", "wanted"),
    [
        ("a.mp4", "aac", 44_100, 1, 16_000, 1),
        ("a.mp4", "aac", 48_000, 2, 48_000, 2),
        ("a.mkv", "libopus", 48_000, 2, 16_000, 2),
        ("a.mov", "pcm_s16le", 22_050, 1, 24_000, 2),
    ],
)
def test_a_click_stays_in_its_place(tmp_path: Path, fps, name, codec, rate, channels, target, wanted) -> None:
    path = write_talkie(tmp_path / name, tone_with_click(rate, 2, channels, CLICK), rate, fps=fps, codec=codec)
    media = read_media(path)
    for first, count in ((0, 40), (7, 30), (20, 5)):
        start, seconds = media.times[first], count / float(fps)
        sound = decode_audio(path, start, seconds, sample_rate=target, channels=wanted)
        assert sound.dtype == np.float32
        assert sound.shape == (wanted, round(seconds * target))
        if start + 0.01 < CLICK < start + seconds - 0.01:
            assert click_of(sound, target) == pytest.approx(CLICK - start, abs=0.001)
    quiet = decode_audio(path, 0.1, 0.5, sample_rate=target, channels=wanted)
    assert tone_level(quiet[0], target) == pytest.approx(0.1, rel=0.05)
    assert tone_level(quiet[-1], target) == pytest.approx(0.1 / channels, rel=0.05)


@pytest.mark.parametrize(("late", "picture_late"), [(0.5, 0.0), (0.0, 0.48), (0.25, 1.0)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_that_starts_later_or_earlier_than_the_picture(tmp_path, name, late, picture_late) -> None:
    path = write_talkie(
        tmp_path / name, tone_with_click(48_000, 2, 1, CLICK), 48_000, late=late, picture_late=picture_late
    )
    media = read_media(path)
    assert media.times[0] == pytest.approx(picture_late, abs=0.002)
    sound = decode_audio(path, media.times[0], 2.0, sample_rate=16_000, channels=1)
    assert sound.shape == (1, 32_000)
    assert click_of(sound, 16_000) == pytest.approx(CLICK + late - media.times[0], abs=0.0015)
    silent = round((late - picture_late - 0.03) * 16_000)
    if silent > 0:
        assert np.abs(sound[:, :silent]).max() < 1e-4


def test_a_span_far_into_a_clip_equals_the_same_span_decoded_from_the_start(tmp_path: Path) -> None:
    waveform = tone_with_click(44_100, 12, 2, 9.5)
    path = write_talkie(tmp_path / "long.mp4", waveform, 44_100, frames=300)
    far = decode_audio(path, 9.0, 1.0, sample_rate=16_000, channels=2)
    whole = decode_audio(path, 0.0, 12.0, sample_rate=16_000, channels=2)
    assert click_of(far, 16_000) == pytest.approx(0.5, abs=0.001)
    assert np.abs(far - whole[:, 144_000:160_000]).max() < 1e-3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_silence_outside_the_sound(tmp_path: Path, name: str) -> None:
    path = write_talkie(tmp_path / name, tone_with_click(48_000, 1, 2, 0.5), 48_000)
    tail = decode_audio(path, 0.8, 1.0, sample_rate=48_000, channels=2)
    assert tail.shape == (2, 48_000)
    assert tone_level(tail[0, :9000], 48_000) == pytest.approx(0.1, rel=0.05)
    assert np.abs(tail[:, 12_000:]).max() < 1e-3
    for start in (-3.0, 30.0):
        nothing = decode_audio(path, start, 0.5, sample_rate=16_000, channels=1)
        assert nothing.shape == (1, 8000)
        assert not nothing.any()


def test_channels(tmp_path: Path) -> None:
    """Both channels count in mono, one is copied to two; a rate that does not change leaves samples as they are."""
    left_only = np.stack([np.full(48_000, 0.5), np.zeros(48_000)]).astype(np.float32)
    path = write_talkie(tmp_path / "a.mov", left_only, 48_000, codec="pcm_f32le")
    both = decode_audio(path, 0, 1, sample_rate=48_000, channels=2)
    assert (both == left_only).all()
    assert (decode_audio(path, 0, 1, sample_rate=48_000, channels=1) == 0.25).all()
    mono = write_talkie(tmp_path / "b.mov", left_only[:1], 48_000, codec="pcm_f32le")
    assert (decode_audio(mono, 0, 1, sample_rate=48_000, channels=2) == 0.5).all()
    surround = write_talkie(tmp_path / "c.mov", np.repeat(left_only[:1] / 5, 6, 0), 48_000, codec="pcm_f32le")
    assert decode_audio(surround, 0, 1, sample_rate=16_000, channels=2).shape == (2, 16_000)
    with pytest.raises(ValueError, match="channels must be 1 or 2"):
        decode_audio(path, 0, 1, sample_rate=48_000, channels=6)


def test_files_without_sound(tmp_path: Path) -> None:
    mute = write_clip(tmp_path / "mute.mp4", 5)
    with pytest.raises(UnreadableMedia, match=r"mute\.mp4: it holds no sound.*allow_zero_audio"):
        decode_audio(mute, 0, 1, sample_rate=16_000, channels=1)
    (tmp_path / "text.mp3").write_text("no music at all")
    with pytest.raises(UnreadableMedia, match=r"text\.mp3: its sound cannot be decoded"):
        decode_audio(tmp_path / "text.mp3", 0, 1, sample_rate=16_000, channels=1)


def test_the_part_that_is_kept() -> None:
    assert kept_part(7.0, "beginning", "x") == 0
    assert kept_part(7.0, "end", "x") == 7
    begins = [kept_part(7.0, "random", str(digest)) for digest in range(1500)]
    assert begins == [kept_part(7.0, "random", str(digest)) for digest in range(1500)]
    assert np.histogram(begins, bins=7, range=(0, 7))[0].min() > 150
    assert min(begins) >= 0
    assert max(begins) < 7
    assert kept_part(0.0, "random", "x") == 0
