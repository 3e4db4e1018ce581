"""Writes small media files whose frames carry their number, for the tests of the data side."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8
"""Bars per frame; the number of a frame stands in them in binary, white for 1."""


def numbered_frame(number: int, width: int = 128, height: int = 64) -> np.ndarray:
    """A picture `[H, W, 3]` of black and white bars that spell `number`."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[:, width * bit // BITS : width * (bit + 1) // BITS] = 255
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number that `numbered_frame` painted, read from the middle of each bar."""
    width = picture.shape[1]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(centres) if picture[:, x].mean() > 127)


def write_clip(
    path: Path,
    frames: int | Sequence[np.ndarray],
    *,
    fps: Fraction | int = 30,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (128, 64),
    rotation: int | None = None,
    mirrored: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode numbered frames, or given pictures, at a constant rate or at `times` (seconds).

    `rotation` (degrees counter-clockwise) and then `mirrored` (left to right) tell players how to turn the picture.
    """
    pictures = [numbered_frame(n, *size) for n in range(frames)] if isinstance(frames, int) else frames
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", container_options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=fps, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        ticks = Fraction(1, 90_000)
        if times is not None:
            stream.time_base = stream.codec_context.time_base = ticks
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirrored)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] / ticks), ticks
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_sound(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    """A file that holds a tone and no picture."""
    tone = np.sin(np.arange(int(seconds * rate)) * 0.1).astype(np.float32)[None]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=rate, layout="mono")
        for start in range(0, tone.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
