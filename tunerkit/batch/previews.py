"""Videos small enough to live inside a page."""

from __future__ import annotations

import base64
from pathlib import Path

from tunerkit.files import replacing
from tunerkit.validation.small_videos import small_video

LADDER = ((400, 28), (320, 31), (240, 34), (160, 37), (112, 40))
"""(greatest width in pixels, constant rate factor of x264), tried in this order."""
NAME = "preview.mp4"


def video_uri(video: Path, max_bytes: int, keep_in: Path | None = None) -> str | None:
    """A silent, smaller copy of a video as an address that needs no file; None if there is no way to make it so small.

    Args:
        video: any video file that PyAV reads.
        max_bytes: of the copy, before it is written as text.
        keep_in: a folder that remembers the copy until the video changes.
    """
    import av

    kept = keep_in / NAME if keep_in else None
    try:
        if kept and kept.is_file() and kept.stat().st_mtime_ns >= video.stat().st_mtime_ns:
            return _uri(kept.read_bytes())
        copy = _small(video, max_bytes)
        if copy is None:
            return None
        if kept:
            with replacing(kept) as draft:
                draft.write_bytes(copy)
        return _uri(copy)
    except (OSError, av.FFmpegError, IndexError):
        return None  # not a video, or one that is just being written


def _uri(data: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"


def _small(video: Path, max_bytes: int) -> bytes | None:
    for width, quality in LADDER:
        copy = small_video(video, width, quality)
        if len(copy) <= max_bytes:
            return copy
    return None
