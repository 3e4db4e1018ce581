"""Tone mapping of high dynamic range: against the standards' formulas in float64, pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from data_clips import write_clip
from test_data_media import sample_of

from tunerkit.data.decode import decode
from tunerkit.data.hdr import FULL_SCALE, eetf, nits_to_pq, pq_to_nits, to_bt709, tone_map

PQ_TAGS = {"PQ": 16, "HLG": 18}


def pq_eotf(signal: float) -> float:
    """SMPTE ST 2084, equation 4.1, in nits."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = signal ** (1 / m2)
    return 10000 * (max(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def pq_inverse(nits: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if pq_eotf(middle) < nits else (low, middle)
    return low


def hlg_light(rgb: list[float]) -> list[float]:
    """ITU-R BT.2100 table 5: inverse OETF and the OOTF of a 1000-nit display, in nits."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * math.log(4 * a)
    scene = [e * e / 3 if e <= 0.5 else (math.exp((e - c) / a) + b) / 12 for e in rgb]
    luminance = 0.2627 * scene[0] + 0.678 * scene[1] + 0.0593 * scene[2]
    return [1000 * luminance**0.2 * e for e in scene]


def shrunk(nits: float) -> float:
    """ITU-R BT.2390-8 5.4.1.1 from 1000 to 203 nits, black 0."""
    top = pq_inverse(1000)
    e1, white = min(1.0, pq_inverse(nits) / top), pq_inverse(203) / top
    knee = 1.5 * white - 0.5
    if e1 < knee:
        return nits
    t = (e1 - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return pq_eotf(spline * top)


def reference(rgb: list[float], transfer: str) -> list[int]:
    """One pixel, R'G'B' 0..1 of BT.2020, as 8 bit of BT.709. The matrix is that of ITU-R BT.2087."""
    light = [pq_eotf(e) for e in rgb] if transfer == "PQ" else hlg_light(rgb)
    matrix = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    linear = [sum(m * e for m, e in zip(row, light, strict=True)) for row in matrix]
    brightest = min(1000.0, max(linear))
    gain = shrunk(brightest) / brightest if brightest > 0 else 1.0
    return [round(255 * min(1, max(0, e * gain / 203)) ** (1 / 2.4)) for e in linear]


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_tone_map_equals_the_formulas(transfer) -> None:
    signal = np.random.default_rng(0).uniform(0, 0.9, (20, 30, 3))
    signal[:2] *= 0.2
    signal[2:4] = signal[2:4, :, :1]  # greys
    picture = (signal * FULL_SCALE).round().astype(np.uint16)
    shown = tone_map(picture, transfer, 9)
    expected = np.array([[reference((pixel / FULL_SCALE).tolist(), transfer) for pixel in row] for row in picture])
    # The published matrix has four digits: where colours cancel to almost nothing, these are seen.
    assert (np.abs(shown.astype(int) - expected) <= np.where(expected < 8, 3, 1)).all()


def test_curves() -> None:
    nits = np.array([0.0, 0.005, 1, 18, 100, 203, 1000, 4000, 10_000])
    assert pq_to_nits(nits_to_pq(nits)) == pytest.approx(nits, rel=1e-9, abs=1e-6)
    # Table values of SMPTE ST 2084: half signal is 92.2 nits, 100 nits is 0.508, 203 nits 0.58 (ITU-R BT.2408).
    assert pq_to_nits(np.array(0.5)) == pytest.approx(92.2457, abs=1e-3)
    assert nits_to_pq(100) == pytest.approx(0.5081, abs=1e-4)
    assert nits_to_pq(203) == pytest.approx(0.5807, abs=1e-4)
    ramp = eetf(np.linspace(0.01, 1000, 5000))
    assert (np.diff(ramp) > 0).all()
    assert ramp[-1] == pytest.approx(203)
    assert eetf(np.array([1.0, 50.0])) == pytest.approx([1, 50])
    assert eetf(np.array(5000.0)) == pytest.approx(203)


def test_primaries() -> None:
    published = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert np.abs(to_bt709(9) - published).max() < 1e-4
    assert np.abs(to_bt709(1) - np.eye(3)).max() < 1e-6
    assert to_bt709(2).tolist() == to_bt709(9).tolist()
    for primaries in (1, 9, 12):  # white stays white
        assert to_bt709(primaries).sum(1) == pytest.approx([1, 1, 1], abs=1e-5)


def write_hdr(path: Path, luma: np.ndarray, transfer: int, cb: int = 512, cr: int = 512) -> Path:
    """A lossless clip of 10-bit limited-range Y'CbCr with BT.2020 tags."""
    import av

    height, width = luma.shape
    frame = av.VideoFrame(width, height, "yuv444p10le")
    for plane, values in zip(frame.planes, (luma, np.full_like(luma, cb), np.full_like(luma, cr)), strict=True):
        rows = np.zeros((height, plane.line_size // 2), "<u2")
        rows[:, :width] = values
        plane.update(rows.tobytes())
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p10le"
        for target in (stream.codec_context, frame):
            target.color_range, target.colorspace, target.color_trc, target.color_primaries = 1, 9, transfer, 9
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_grey_ramp_of_a_file(tmp_path: Path, transfer: str) -> None:
    """Bars of known light come out as the formulas say; before, 203 nits of PQ were a dull 58 %."""
    nits = [0.1, 1, 5, 10, 26, 50, 90, 120, 203, 400, 700, 1000]
    codes = [round(64 + 876 * (pq_inverse(n) if transfer == "PQ" else n / 1000)) for n in nits]
    luma = np.repeat(np.array([codes], "<u2"), 16, 0).repeat(16, 1)
    path = write_hdr(tmp_path / "ramp.mkv", luma, PQ_TAGS[transfer])
    shown = decode(sample_of(path, (0,)))[0, 8, 8::16].astype(int)
    expected = [reference([(code - 64) / 876] * 3, transfer) for code in codes]
    assert np.abs(shown - expected).max() <= 1
    if transfer == "PQ":
        assert shown[nits.index(203), 0] == pytest.approx(230, abs=1)
        assert shown[-1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("cb", "cr"), [(400, 640), (620, 450), (512, 420)])
def test_colour_of_a_file(tmp_path: Path, cb: int, cr: int) -> None:
    path = write_hdr(tmp_path / "flat.mkv", np.full((32, 32), 420, "<u2"), 16, cb, cr)
    y, u, v = (420 - 64) / 876, (cb - 512) / 896, (cr - 512) / 896
    red, blue = y + 1.4746 * v, y + 1.8814 * u
    green = (y - 0.2627 * red - 0.0593 * blue) / 0.678
    assert np.abs(decode(sample_of(path, (0,)))[0, 16, 16] - reference([red, green, blue], "PQ")).max() <= 2


def test_standard_range_is_left_alone(tmp_path: Path) -> None:
    """Ten bits without a high dynamic range transfer are only rounded to eight."""
    greys = np.repeat(np.array([[64, 200, 400, 600, 800, 940]], "<u2"), 16, 0).repeat(16, 1)
    path = write_hdr(tmp_path / "deep.mkv", greys, 14)
    shown = decode(sample_of(path, (0,)))[0, 8, 8::16, 0].astype(int)
    assert np.abs(shown - [round(255 * (code - 64) / 876) for code in (64, 200, 400, 600, 800, 940)]).max() <= 1


def test_clip_of_many_frames(tmp_path: Path) -> None:
    """An encoded file, tagged by its codec: whiter than the signal itself, and as large as asked."""
    tags = "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    grey = np.full((64, 128, 3), 140, np.uint8)
    path = write_clip(
        tmp_path / "hdr.mp4", [grey] * 5, codec="libx265", pixel_format="yuv420p10le", options={"x265-params": tags}
    )
    pixels = decode(sample_of(path, (0, 2, 4), size=(64, 32)))
    assert pixels.shape == (3, 32, 64, 3)
    assert abs(pixels.mean() - reference([140 / 255] * 3, "PQ")[0]) < 3
