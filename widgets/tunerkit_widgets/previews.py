"""Videos small enough to live inside a notebook: a saved notebook must open quickly and play without its files."""

from __future__ import annotations

import base64
import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

LADDER = ((480, 26), (416, 30), (320, 32), (240, 34), (160, 36))
"""(greatest width in pixels, constant rate factor of x264), tried in this order."""
SOUND_BITS = 48_000
"""Per second."""


def preview(path: Path, max_bytes: int) -> bytes:
    """A video as H.264 mp4 of at most `max_bytes`, with its sound; the file itself when it is small enough.

    The frame rate and every frame are kept; width and quality are lowered, and the least of them is returned even if
    it is still too large. Sound is encoded anew at `SOUND_BITS`, whatever room there is.
    """
    original = path.read_bytes()
    if len(original) <= max_bytes:
        return original
    encoded = original
    for width, quality in LADDER:
        encoded = _encoded(path, width, quality)
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


def _encoded(path: Path, width: int, quality: int) -> bytes:
    import av

    # The index is moved to the front in a second pass, which needs a real file.
    with tempfile.TemporaryDirectory() as folder, av.open(str(path)) as source:
        target = Path(folder) / "preview.mp4"
        video = source.streams.video[0]
        rate = Fraction(video.average_rate or 16)
        scale = min(1.0, width / video.width)
        with av.open(str(target), "w", options={"movflags": "+faststart"}) as output:
            stream = cast(Any, output.add_stream("libx264", rate=rate))
            stream.width, stream.height = (_even(edge * scale) for edge in (video.width, video.height))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(quality), "preset": "medium"}
            # All streams must be there before the first packet is written.
            if source.streams.audio:
                _copy_sound(path, output)
            for number, frame in enumerate(source.decode(video)):
                picture = frame.reformat(stream.width, stream.height, "yuv420p")
                picture.pts, picture.time_base = number, 1 / rate
                output.mux(stream.encode(picture))
            output.mux(stream.encode())
        return target.read_bytes()


def _copy_sound(path: Path, output: Any) -> None:
    """Add the sound of a file, as AAC at `SOUND_BITS`."""
    import av

    with av.open(str(path)) as source:  # of its own: the picture is read by another pass over the file
        sound = source.streams.audio[0]
        stream = output.add_stream("aac", rate=sound.rate, layout="stereo" if sound.channels > 1 else "mono")
        stream.bit_rate = SOUND_BITS
        for frame in source.decode(sound):
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def _even(edge: float) -> int:
    """4:2:0 chroma needs even edges."""
    return max(2, 2 * round(edge / 2))
