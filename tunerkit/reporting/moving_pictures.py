"""Rendered videos as animated images, for places that show no videos."""

from __future__ import annotations

import io
from pathlib import Path

WIDTH, FRAMES = 256, 32
"""Greatest width in pixels, and greatest number of frames."""


def gif(video: Path, width: int = WIDTH, frames: int = FRAMES) -> tuple[bytes, tuple[int, int]]:
    """A video as an animated GIF of its own length, with frames left out evenly: the file, and (width, height).

    Args:
        video: any video file that PyAV reads.
        width: at most so many pixels; a smaller video keeps its size.
        frames: at most so many.

    Raises:
        OSError, av.FFmpegError: the file cannot be read.
        IndexError: it holds no picture.
    """
    import av
    from PIL import Image

    with av.open(str(video)) as source:
        stream = source.streams.video[0]
        rate = float(stream.average_rate or 16)
        pictures = [frame.to_image() for frame in source.decode(stream)]
    count = min(frames, len(pictures))
    chosen = [pictures[index * len(pictures) // count] for index in range(count)]
    scale = min(1.0, width / chosen[0].width)
    size = (max(1, round(chosen[0].width * scale)), max(1, round(chosen[0].height * scale)))
    small = [picture.resize(size, Image.Resampling.LANCZOS) for picture in chosen]
    file = io.BytesIO()
    seconds = len(pictures) / rate / count
    small[0].save(file, "GIF", save_all=True, append_images=small[1:], duration=max(20, round(1000 * seconds)), loop=0)
    return file.getvalue(), size
