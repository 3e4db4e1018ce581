"""Tone maps high dynamic range pictures (PQ, HLG) to standard range, so that they do not look washed out.

The steps, all of published standards: the transfer function to display light in cd/m2 (nits), the primaries of
BT.709, the EETF of ITU-R BT.2390 from a 1000-nit display to one whose white is 203 nits (HDR reference white,
ITU-R BT.2408), clipping to the gamut, and the inverse of the BT.709 display's curve (ITU-R BT.1886).

Functions of one number are looked up in tables, which keeps the work at a few passes over the picture.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

Transfer = Literal["PQ", "HLG"]

FULL_SCALE = 255 << 8
"""The 16-bit number that swscale writes for a signal of 1.0 when it makes RGB of Y'CbCr."""

PEAK_NITS = 1000.0
"""White of the display that HDR is made for: the nominal one of HLG, and the usual one of PQ; above it is clipped."""
WHITE_NITS = 203.0
"""What becomes white in standard range."""
DISPLAY_GAMMA = 2.4
HLG_SYSTEM_GAMMA = 1.2
"""Gamma of HLG's OOTF at 1000 nits (ITU-R BT.2100, table 5)."""

LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)

PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # P3 with the white of D65
}
"""Chromaticities (x, y) of red, green and blue by their number in ITU-T H.273."""
BT709, BT2020 = 1, 9
D65 = (0.3127, 0.3290)

STRIPE_ROWS = 16
"""Rows that are worked on at a time: what lies in between stays in the processor's cache."""

STEPS = 1 << 14
"""Entries of the tables over light. They are spaced evenly in its square root, which gives the dark its share."""


def tone_map(picture: np.ndarray, transfer: Transfer, primaries: int) -> np.ndarray:
    """A high dynamic range picture in standard range.

    Args:
        picture: uint16 `[H, W, 3]`, R'G'B' in which `FULL_SCALE` is 1.0.
        transfer: PQ (SMPTE ST 2084) or HLG (ARIB STD-B67).
        primaries: number in ITU-T H.273; what is not known here is taken for BT.2020.

    Returns:
        uint8 `[H, W, 3]`, R'G'B' as a BT.709 display takes it.
    """
    shown = np.empty(picture.shape, np.uint8)
    for top in range(0, len(picture), STRIPE_ROWS):
        stripe = slice(top, top + STRIPE_ROWS)
        shown[stripe] = _tone_map_stripe(picture[stripe], transfer, primaries)
    return shown


def _tone_map_stripe(picture: np.ndarray, transfer: Transfer, primaries: int) -> np.ndarray:
    light = _light_table(transfer).take(picture)
    if transfer == "HLG":
        light *= _of_light(_hlg_gain_table(), light @ LUMA_2020, 1.0)[..., None]
    light = light @ to_bt709(primaries).T
    # The brightest channel decides the gain of all three, so that hues stay and nothing exceeds white.
    brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
    light *= _of_light(_tone_gain_table(), brightest, PEAK_NITS)[..., None]
    return _of_light(_display_table(), light, WHITE_NITS)


@cache
def to_bt709(primaries: int) -> np.ndarray:
    """The matrix `[3, 3]` that turns linear RGB of `primaries` into linear RGB of BT.709 (float32)."""
    source = _rgb_to_xyz(PRIMARIES.get(primaries, PRIMARIES[BT2020]))
    return np.linalg.solve(_rgb_to_xyz(PRIMARIES[BT709]), source).astype(np.float32)


def pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """Light in nits of a PQ signal 0..1: the EOTF of SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = _PQ
    power = np.power(signal, 1 / m2)
    return 10_000 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)


def nits_to_pq(nits: np.ndarray | float) -> np.ndarray:
    """PQ signal 0..1 of light in nits: the inverse EOTF of SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = _PQ
    power = np.power(np.asarray(nits, np.float64) / 10_000, m1)
    return np.power((c1 + c2 * power) / (1 + c3 * power), m2)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """Scene light 0..1 of an HLG signal 0..1: the inverse OETF of ITU-R BT.2100, table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def eetf(nits: np.ndarray) -> np.ndarray:
    """Light that `WHITE_NITS` can show for light up to `PEAK_NITS`: ITU-R BT.2390, section 5.4.1.1, black 0.

    Up to the knee nothing changes; from there a Hermite spline in PQ runs to the smaller white.
    """
    source_peak = nits_to_pq(PEAK_NITS)
    signal = np.minimum(nits_to_pq(nits) / source_peak, 1)
    white = nits_to_pq(WHITE_NITS) / source_peak
    knee = 1.5 * white - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * white
    return pq_to_nits(np.where(signal < knee, signal, spline) * source_peak)


_PQ = (2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32)


def _rgb_to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """RGB with D65 white to CIE XYZ, `[3, 3]` float64 (SMPTE RP 177)."""
    corners = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (*primaries, D65)]).T
    return corners[:, :3] * np.linalg.solve(corners[:, :3], corners[:, 3])


def _of_light(table: np.ndarray, light: np.ndarray, highest: float) -> np.ndarray:
    """The table's entries for `light` clipped to 0..`highest`."""
    steps = np.clip(light, 0, highest)
    np.sqrt(steps, out=steps)
    steps *= np.float32((STEPS - 1) / highest**0.5)
    steps += np.float32(0.5)
    return table.take(steps.astype(np.uint16))


def _table_light(highest: float) -> np.ndarray:
    """The light that each entry of a table stands for."""
    return highest * np.linspace(0, 1, STEPS) ** 2


@cache
def _light_table(transfer: Transfer) -> np.ndarray:
    """Of each 16-bit signal: light in nits for PQ, scene light 0..1 for HLG."""
    signal = np.arange(1 << 16) / FULL_SCALE
    return (pq_to_nits(signal) if transfer == "PQ" else hlg_to_scene(signal)).astype(np.float32)


@cache
def _hlg_gain_table() -> np.ndarray:
    """What HLG's OOTF multiplies scene light by to give nits, over scene luminance 0..1."""
    return (PEAK_NITS * _table_light(1.0) ** (HLG_SYSTEM_GAMMA - 1)).astype(np.float32)


@cache
def _tone_gain_table() -> np.ndarray:
    """What the EETF multiplies light by, over light 0..`PEAK_NITS`."""
    light = _table_light(PEAK_NITS)
    light[0] = light[1]
    return (eetf(light) / light).astype(np.float32)


@cache
def _display_table() -> np.ndarray:
    """The 8-bit signal over light 0..`WHITE_NITS`: the inverse EOTF of ITU-R BT.1886, black 0."""
    light = _table_light(WHITE_NITS) / WHITE_NITS
    return (255 * light ** (1 / DISPLAY_GAMMA)).round().astype(np.uint8)
