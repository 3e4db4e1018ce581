"""Smaller copies of rendered videos, for pages that have to play without their files."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

SOUND_BITS = 48_000
"""Of the sound, per second."""


def small_video(path: Path, width: int, quality: int, *, sound: bool = False) -> bytes:
    """Every frame of a video as H.264 4:2:0 in an mp4 with its index in front, at the video's own frame rate.

    Args:
        path: any video file that PyAV reads.
        width: at most so many pixels; a smaller video keeps its size. Edges are made even.
        quality: constant rate factor of x264, 0 to 51; larger is smaller and worse.
        sound: keep the sound as well, as AAC at `SOUND_BITS`.

    Raises:
        OSError, av.FFmpegError: the file cannot be read.
        IndexError: it holds no picture.
    """
    import av

    # The index is moved to the front in a second pass, which needs a real file.
    with tempfile.TemporaryDirectory() as folder, av.open(str(path)) as source:
        target = Path(folder) / "small.mp4"
        video = source.streams.video[0]
        rate = Fraction(video.average_rate or 16)
        scale = min(1.0, width / video.width)
        with av.open(str(target), "w", options={"movflags": "+faststart"}) as output:
            stream = cast(Any, output.add_stream("libx264", rate=rate))
            # 4:2:0 chroma needs even edges.
            stream.width, stream.height = (max(2, 2 * round(e * scale / 2)) for e in (video.width, video.height))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(quality), "preset": "medium"}
            # All streams must be there before the first packet is written.
            if sound and source.streams.audio:
                _copy_sound(path, output)
            for number, frame in enumerate(source.decode(video)):
                picture = frame.reformat(stream.width, stream.height, "yuv420p")
                picture.pts, picture.time_base = number, 1 / rate
                output.mux(stream.encode(picture))
            output.mux(stream.encode())
        return target.read_bytes()


def _copy_sound(path: Path, output: Any) -> None:
    """Add the sound of a file."""
    import av

    with av.open(str(path)) as source:  # of its own: the picture is read by another pass over the file
        sound = source.streams.audio[0]
        stream = output.add_stream("aac", rate=sound.rate, layout="stereo" if sound.channels > 1 else "mono")
        stream.bit_rate = SOUND_BITS
        for frame in source.decode(sound):
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
