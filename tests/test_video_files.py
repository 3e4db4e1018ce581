"""Written videos are read back with PyAV, which shares no code with moviepy's ffmpeg."""

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tunerkit.errors import TunerkitError
from tunerkit.validation.video_files import exact_rate, label, poster, side_by_side, write_mp4


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that differ from each other by grey level, so that a lost or doubled one shows."""
    levels = np.linspace(20, 235, count).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


@dataclass(frozen=True)
class Written:
    """What a player finds in the file: frames [T, H, W, 3], their times in seconds, and the stream's description."""

    frames: np.ndarray
    times: list[float]
    rate: Fraction | None
    codec: str
    pixel_format: str | None


def read_back(path: Path) -> Written:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        return Written(
            frames=np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]),
            times=[float(frame.time or 0) for frame in decoded],
            rate=stream.average_rate,
            codec=stream.codec_context.name,
            pixel_format=stream.codec_context.pix_fmt,
        )


@pytest.mark.parametrize(
    ("fps", "rate"),
    [(16, Fraction(16)), (23.976, Fraction(24000, 1001)), (29.97, Fraction(30000, 1001)), (12.5, Fraction(25, 2))],
)
@pytest.mark.parametrize("count", [1, 2, 17, 81])
def test_every_frame_arrives_at_its_time(tmp_path: Path, fps: float, rate: Fraction, count: int) -> None:
    frames = numbered(count)
    path = write_mp4(tmp_path / "out" / "video.mp4", frames, fps)
    found = read_back(path)
    assert found.frames.shape == frames.shape
    assert np.abs(found.frames.astype(int) - frames).max() <= 6
    assert found.rate == rate
    assert found.times == pytest.approx([float(index / rate) for index in range(count)], abs=1e-4)
    assert (found.codec, found.pixel_format) == ("h264", "yuv420p")
    assert [entry.name for entry in path.parent.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 40, 90), (255, 255, 255), (0, 0, 0)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.full((3, 32, 32, 3), colour, np.uint8)
    found = read_back(write_mp4(tmp_path / "colour.mp4", frames, 16)).frames
    assert np.abs(found.astype(int) - frames).max() <= 4


def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path) -> None:
    frames = np.full((5, 33, 47, 3), 90, np.uint8)
    found = read_back(write_mp4(tmp_path / "odd.mp4", frames, 24)).frames
    assert found.shape == (5, 34, 48, 3)
    assert np.abs(found.astype(int) - 90).max() <= 3


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_is_muxed_and_cut_at_the_last_picture(tmp_path: Path, channels: int) -> None:
    rate, count, fps = 48000, 32, 16
    seconds = np.arange(5 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    path = write_mp4(tmp_path / "tone.mp4", numbered(count), fps, np.stack([tone] * channels, 1), rate)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.codec_context.channels) == ("aac", channels)
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)
    assert samples.shape[0] == channels
    assert samples.shape[1] == pytest.approx(count / fps * rate, abs=2048)  # AAC codes in packets of 1024
    middle = samples[0, rate // 2 : rate // 2 + 8192]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(8192)))
    assert np.argmax(spectrum) * rate / 8192 == pytest.approx(1000, abs=6)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert read_back(path).frames.shape[0] == count


def test_short_sound_does_not_cut_the_pictures(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "short.mp4", numbered(24), 24, np.zeros((4800, 2), np.float32), 48000)
    assert read_back(path).frames.shape[0] == 24


def test_the_index_stands_before_the_pictures(tmp_path: Path) -> None:
    content = write_mp4(tmp_path / "video.mp4", numbered(9), 16).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_one_thread_gives_the_same_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 96, 3), np.uint8)
    first = write_mp4(tmp_path / "a.mp4", noise, 16, threads=1)
    second = write_mp4(tmp_path / "b.mp4", noise, 16, threads=1)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "frames", "fps", "audio", "rate", "says"),
    [
        ("a.avi", numbered(2), 16, None, None, ".mp4"),
        ("a.mp4", numbered(2).astype(np.float32), 16, None, None, "uint8"),
        ("a.mp4", numbered(2)[..., 0], 16, None, None, "frames, height, width, 3"),
        ("a.mp4", numbered(2)[:0], 16, None, None, "at least one frame"),
        ("a.mp4", numbered(2), 0, None, None, "frame rate"),
        ("a.mp4", numbered(2), float("nan"), None, None, "frame rate"),
        ("a.mp4", numbered(2), 16, np.zeros((9, 2), np.float32), None, "audio_rate"),
        ("a.mp4", numbered(2), 16, np.zeros((9, 6), np.float32), 48000, "channels"),
        ("a.mp4", numbered(2), 16, np.full((9, 1), np.nan, np.float32), 48000, "NaN"),
    ],
)
def test_wrong_input_is_named_and_writes_nothing(tmp_path: Path, name, frames, fps, audio, rate, says) -> None:
    with pytest.raises(TunerkitError, match=says):
        write_mp4(tmp_path / name, frames, fps, audio, rate)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TunerkitError, match=r"file/video\.mp4"):
        write_mp4(tmp_path / "file" / "video.mp4", numbered(2), 16)


def test_a_failed_encoder_leaves_the_older_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mp4(tmp_path / "video.mp4", numbered(3), 16)
    before = path.read_bytes()
    monkeypatch.setattr("moviepy.video.io.ffmpeg_writer.FFMPEG_BINARY", "/bin/false")
    with pytest.raises(TunerkitError, match=r"video\.mp4"):
        write_mp4(path, numbered(3), 16)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_exact_rate_leaves_whole_rates_alone() -> None:
    assert [exact_rate(fps) for fps in (24, 25, 30, 60, 10.3)] == [24, 25, 30, 60, Fraction(103, 10)]
    assert exact_rate(23.98) == exact_rate(24000 / 1001) == Fraction(24000, 1001)
    assert exact_rate(59.94) == Fraction(60000, 1001)


def test_a_label_stands_above_the_picture() -> None:
    frames = numbered(3, 64, 96)
    labelled = label(frames, "before training")
    bar = labelled.shape[1] - 64
    assert labelled.shape == (3, 64 + bar, 96, 3)
    assert bar > 0
    np.testing.assert_array_equal(labelled[:, bar:], frames)
    assert labelled[0, :bar].max() > 200  # there is something to read
    assert label(frames, "a much longer text that does not fit on one line").shape[1] > labelled.shape[1]
    np.testing.assert_array_equal(label(frames, " "), frames)


def test_side_by_side_holds_the_shorter_video() -> None:
    left, right = numbered(5, 32, 40), numbered(3, 48, 24)
    both = side_by_side(left, right, gap=6)
    assert both.shape == (5, 48, 70, 3)
    np.testing.assert_array_equal(both[:, 16:, :40], left)
    np.testing.assert_array_equal(both[:3, :, 46:], right)
    np.testing.assert_array_equal(both[4, :, 46:], right[-1])
    assert both[:, :, 40:46].max() == both[:, :16, :40].max() == 0


def test_poster_shows_first_and_last_frame() -> None:
    frames = numbered(9, 32, 40)
    strip = Image.open(io.BytesIO(poster(frames, count=3)))
    assert (strip.format, strip.size) == ("PNG", (120, 32))
    pixels = np.asarray(strip)
    assert [pixels[5, x, 0] for x in (5, 45, 85)] == [frames[index, 0, 0, 0] for index in (0, 4, 8)]
    assert Image.open(io.BytesIO(poster(frames[:1], count=4, height=16))).size == (20, 16)
