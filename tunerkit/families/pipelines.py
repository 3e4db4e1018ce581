"""What rendering with the stock pipelines needs in more than one family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def any_precision(vae: Any) -> Iterator[None]:
    """Inside, the VAE encodes pictures of any dtype: pipelines hand it the first frame in that of another part."""
    encode = vae.encode
    vae.encode = lambda pixels, *rest, **named: encode(pixels.to(vae.dtype), *rest, **named)
    try:
        yield
    finally:
        del vae.encode


def as_bytes(frames: Any) -> np.ndarray:
    """Frames in [0, 1] as uint8, of the same shape."""
    return (np.asarray(frames) * 255.0).round().clip(0, 255).astype(np.uint8)
