"""Clips with painted frame numbers decode to exactly the frames that were planned, which brute force checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from data_clips import read_number, write_clip
from test_data_media import numbers, sample_of

import tunerkit.data.decode as decode_module
from tunerkit.data.decode import decode
from tunerkit.data.frames import FramePlan, FrameRules, decide_frames
from tunerkit.data.probe import Media, read_media
from tunerkit.data.samples import Sample

NTSC_FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)


def legal(count: int) -> int:
    """The frame rule of a VAE that takes 8n + 1 frames."""
    return (count - 1) // 8 * 8 + 1


def plan(media: Media, target: float, **rules: int) -> FramePlan:
    return decide_frames(
        media.times,
        end=media.end,
        source_fps=media.source.fps,
        target_fps=target,
        rules=FrameRules(**{"num_frames": None, "min_frames": 1, "max_frames": None, **rules}),
        legal_frames=legal,
    )


def brute_force(times: Sequence[Fraction], end: Fraction, target: Fraction, most: int) -> list[int]:
    """Each output frame that lies inside for at least half its time takes the nearest frame, the earlier on a tie."""
    available = 0
    while Fraction(2 * available + 1, 2) / target <= end - times[0]:
        available += 1
    count = max(n for n in range(1, max(1, min(available, most)) + 1) if (n - 1) % 8 == 0)
    wanted = [times[0] + k / target for k in range(count)]
    return [min(range(len(times)), key=lambda i: (abs(times[i] - moment), i)) for moment in wanted]


def decoded_numbers(path: Path, media: Media, indices: tuple[int, ...], target: float) -> list[int]:
    size = (media.source.width, media.source.height)
    times = tuple(media.times[index] for index in indices) if media.timed else ()
    sample = Sample(
        "d", path, "video", ("",), media.source, indices, target, size, size, (0, 0), 0, False, times
    )  # fmt: skip
    return [read_number(picture) for picture in decode(sample)]


@pytest.mark.parametrize(
    ("source", "target", "frames"),
    [
        (NTSC_FILM, 16, 120),
        (Fraction(60), 24, 250),
        (Fraction(25), 25, 100),
        (NTSC, 24, 150),
        (Fraction(60000, 1001), 16, 250),
        (Fraction(12), 16, 60),
        (Fraction(50), Fraction(24000, 1001), 200),
    ],
    ids=["23.976-16", "60-24", "25-25", "29.97-24", "59.94-16", "12-16", "50-23.976"],
)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_constant_rates(tmp_path: Path, source: Fraction, target: int, frames: int, name: str) -> None:
    path = write_clip(tmp_path / name, frames, fps=source, options={"bf": "3", "preset": "ultrafast"})
    media = read_media(path)
    assert media.source.frames == frames
    times = [number / source for number in range(frames)]
    if name == "clip.mkv":  # Matroska rounds to milliseconds, by which near ties may go the other way
        times = [Fraction(round(time * 1000), 1000) for time in times]
    expected = brute_force(times, frames / source, Fraction(target), 81)
    planned = plan(media, float(target), num_frames=81)
    assert list(planned.indices) == expected
    assert decoded_numbers(path, media, planned.indices, float(target)) == expected


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", [16, 24])
def test_variable_rates(tmp_path: Path, name: str, seed: int, target: int) -> None:
    """Gaps from 8 to 150 ms, as screen recorders and phones write them; later than zero, too."""
    rng = np.random.default_rng(seed)
    # On the millisecond, so that either container stores the times as they are.
    millis = np.cumsum([int(rng.integers(0, 900)), *rng.integers(8, 150, 119).tolist()]).tolist()
    path = write_clip(tmp_path / name, 120, times=[m / 1000 for m in millis], options={"bf": "2"})
    media = read_media(path)
    times = [Fraction(m, 1000) for m in millis]
    assert media.times == pytest.approx([float(time) for time in times], abs=1e-6)
    expected = brute_force(times, Fraction(media.end).limit_denominator(90_000), Fraction(target), 121)
    planned = plan(media, target, num_frames=121)
    assert list(planned.indices) == expected
    assert decoded_numbers(path, media, planned.indices, target) == expected


def test_speed_of_motion_is_kept(tmp_path: Path) -> None:
    """However a clip is resampled, the planned frames stand at most half a source frame from their moment."""
    path = write_clip(tmp_path / "clip.mp4", 200, fps=NTSC)
    media = read_media(path)
    for target in (8, 16, 23.976, 24, 25, 30, 48):
        indices = plan(media, target).indices
        drift = [abs(media.times[index] - k / target) for k, index in enumerate(indices)]
        # The last output frame may be shown up to half its time after the clip's last frame.
        assert max(drift[:-1]) <= 0.5 / float(NTSC) + 1e-6
        assert math.isclose(len(indices) / target, min(5, 200 / float(NTSC)), abs_tol=8.5 / target)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "libx264", {"bf": "3", "g": "24"}),
        ("open.mp4", "libx264", {"bf": "3", "g": "24", "x264-params": "open-gop=1:b-adapt=0"}),
        ("open.mkv", "libx264", {"bf": "3", "g": "24", "x264-params": "open-gop=1:b-adapt=0"}),
        ("refresh.mp4", "libx264", {"bf": "0", "g": "24", "x264-params": "intra-refresh=1"}),
        ("open.mov", "libx265", {"x265-params": "log-level=none:keyint=24:open-gop=1:bframes=4"}),
        ("v9.webm", "libvpx-vp9", {"g": "24", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}),
        ("v8.webm", "libvpx", {"g": "24", "cpu-used": "8"}),
        ("a.mp4", "libsvtav1", {"g": "24", "preset": "12"}),
    ],
)
def test_windows_far_into_a_clip_are_sought_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str, options: dict[str, str]
) -> None:
    """The same bytes as decoding from the start, with far fewer frames decoded."""
    path = write_clip(tmp_path / name, 120, fps=25, codec=codec, options=options)
    handled = []
    frames_of = decode_module._frames
    monkeypatch.setattr(
        decode_module, "_frames", lambda packets: (handled.append(1) or frame for frame in frames_of(packets))
    )
    saved = 0
    for start in range(0, 117, 7):
        sample = sample_of(path, (start, start + 1, start + 3))
        handled.clear()
        sought = decode(sample)
        saved += start + 4 - len(handled)
        assert numbers(sought) == [start, start + 1, start + 3]
        from_start = decode_module._read_video(sample, seek=False)
        assert from_start is not None
        assert (sought == from_start).all()
    assert saved > 250


def test_false_key_frames_are_not_trusted(tmp_path: Path) -> None:
    """A table of key frames (stss) that names frame 50 of a clip whose only key frame is the first."""
    path = write_clip(tmp_path / "clip.mp4", 100, fps=25, options={"bf": "0", "g": "100", "sc_threshold": "0"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"stss") + 12
    assert data[entry - 4 : entry + 4] == bytes([0, 0, 0, 1, 0, 0, 0, 1])
    data[entry + 3] = 51
    path.write_bytes(data)
    assert numbers(decode(sample_of(path, (60, 61, 90)))) == [60, 61, 90]
