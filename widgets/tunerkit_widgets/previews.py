"""Videos small enough to live inside a notebook: a saved notebook must open quickly and play without its files."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import tunerkit as tk

LADDER = ((480, 26), (416, 30), (320, 32), (240, 34), (160, 36))
"""(greatest width in pixels, constant rate factor of x264), tried in this order."""


def preview(path: Path, max_bytes: int) -> bytes:
    """A video as H.264 mp4 of at most `max_bytes`, with its sound; the file itself when it is small enough.

    The frame rate and every frame are kept; width and quality are lowered, and the least of them is returned even if
    it is still too large. Sound is encoded anew, whatever room there is.
    """
    original = path.read_bytes()
    if len(original) <= max_bytes:
        return original
    encoded = original
    for width, quality in LADDER:
        encoded = tk.small_video(path, width, quality, sound=True)
        if len(encoded) <= max_bytes:
            break
    return min(encoded, original, key=len)


def poster(path: Path, width: int) -> bytes:
    """The first frame as JPEG of at most `width` pixels."""
    import av
    from PIL import Image

    with av.open(str(path)) as container:
        image = next(container.decode(video=0)).to_image()
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=65)
    return buffer.getvalue()


def facts(path: Path) -> tuple[int, float]:
    """Number of frames and frames per second of a video."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for packet in container.demux(stream) if packet.size)
        return frames, float(stream.average_rate or 0)


def has_sound(path: Path) -> bool:
    """Whether a video has a sound track."""
    import av

    with av.open(str(path)) as container:
        return bool(container.streams.audio)


def data_uri(data: bytes, media_type: str) -> str:
    """The bytes as an address that needs no file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
