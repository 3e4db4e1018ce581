"""A small picture of what is used of a file, for tables in a notebook."""

from __future__ import annotations

import base64
import io

from PIL import Image

from tunerkit.data.decode import decode
from tunerkit.data.samples import ClipRow

HEIGHT = 96
"""Pixels; wide pictures are held to twice as much width."""


def thumbnail(row: ClipRow, height: int = HEIGHT) -> str:
    """The middle frame of the first window as the model sees it, as the `data:` address of a JPEG.

    Empty where the file is not used, or its frame cannot be decoded.
    """
    sample = row.sample
    if sample is None:
        return ""
    middle = len(sample.frame_indices) // 2
    single = sample._replace(
        frame_indices=sample.frame_indices[middle : middle + 1],
        frame_times=sample.frame_times[middle : middle + 1],
    )
    try:
        picture = Image.fromarray(decode(single)[0])
    except Exception:
        # A picture is an extra: the table stands without it, and training will say what is wrong with the file.
        return ""
    picture.thumbnail((2 * height, height))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
