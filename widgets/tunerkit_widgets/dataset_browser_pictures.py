"""Pictures and short videos of what is used of each file, made when they are asked for, in threads."""

from __future__ import annotations

import io
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import tunerkit as tk
from tunerkit_widgets.previews import poster

Kind = Literal["picture", "video"]

THREADS = 2
"""Decoding happens outside Python's lock; more threads would only take time from a training beside them."""
PICTURE_HEIGHT, VIDEO_HEIGHT = 144, 240
"""Pixels. Wide pictures are held to twice as much width."""
VIDEO_SECONDS = 2.0
QUALITY = 72
"""Of the JPEGs; a picture is about 5 kB."""
KEPT_BYTES = 96 * 2**20
"""Pictures and videos kept in memory, the ones used last."""


class Pictures:
    """Makes the pictures and videos of a report's rows; what nobody waits for any more is not begun."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tunerkit-pictures")
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._waiting: dict[tuple[Kind, int], Future[None]] = {}
        self._lock = threading.Lock()

    def ask(self, kind: Kind, rows: Iterable[tuple[int, Any]], deliver: Callable[[int, bytes], None]) -> None:
        """Make what is wanted now; earlier wishes of the same kind that are not begun and not repeated are dropped.

        Args:
            rows: (number, row of a report), the most wanted first.
            deliver: called with the number and a JPEG or mp4, empty where there is none: at once for what is in
                memory, else from a thread.
        """
        wanted: dict[tuple[Kind, int], Any] = {(kind, number): row for number, row in rows}
        with self._lock:
            for key in [key for key in self._waiting if key[0] == kind and key not in wanted]:
                if self._waiting[key].cancel():
                    del self._waiting[key]
        for key, row in wanted.items():
            known = self._recall(_key(kind, row))
            if known is not None:
                deliver(key[1], known)
                continue
            with self._lock:
                if key not in self._waiting:
                    self._waiting[key] = self._pool.submit(self._deliver, key, row, deliver)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def made(self, kind: Kind, row: Any) -> bytes:
        """The JPEG or mp4 of a row, from memory or made now; empty where there is none."""
        key = _key(kind, row)
        known = self._recall(key)
        if known is not None:
            return known
        try:
            made = picture(row) if kind == "picture" else video(row)
        except Exception:
            # An extra: the row stands without it, and its reason or the training says what is wrong with the file.
            made = b""
        self._remember(key, made)
        return made

    def in_thread(self, action: Callable[[], None]) -> None:
        """Run something that makes pictures in a thread of these."""
        self._pool.submit(action)

    def _deliver(self, key: tuple[Kind, int], row: Any, deliver: Callable[[int, bytes], None]) -> None:
        made = self.made(key[0], row)
        with self._lock:
            self._waiting.pop(key, None)
        deliver(key[1], made)

    def _recall(self, key: Hashable) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _remember(self, key: Hashable, made: bytes) -> None:
        with self._lock:
            self._kept_bytes += len(made) - len(self._kept.pop(key, b""))
            self._kept[key] = made
            while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def picture(row: Any) -> bytes:
    """The middle used frame of the first window, cropped as it is trained on, as JPEG; of a file that is not used its
    first frame.

    Raises:
        Exception: anything that reading a damaged file raises.
    """
    from PIL import Image

    sample = row.sample
    if sample is None:
        return poster(row.file, 2 * PICTURE_HEIGHT)
    middle = len(sample.frame_indices) // 2
    frames = _frames(_smaller(_part(sample, middle, 1), PICTURE_HEIGHT))
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def video(row: Any) -> bytes:
    """The first seconds of the first window, cropped as it is trained on, as mp4; empty where nothing moves.

    Raises:
        Exception: anything that reading a damaged file raises.
    """
    sample = row.sample
    if sample is None or len(sample.frame_indices) < 2:
        return b""
    shown = _part(sample, 0, max(2, round(VIDEO_SECONDS * sample.fps)))
    with tempfile.TemporaryDirectory() as folder:
        path = tk.write_mp4(Path(folder) / "preview.mp4", _frames(_smaller(shown, VIDEO_HEIGHT)), sample.fps, threads=1)
        return path.read_bytes()


def _frames(sample: Any) -> Any:
    """Its pixels, uint8 `[T, H, W, 3]`."""
    return tk.decode(sample)


def _part(sample: Any, first: int, count: int) -> Any:
    """The sample with `count` of its frames."""
    return sample._replace(
        frame_indices=sample.frame_indices[first : first + count],
        frame_times=sample.frame_times[first : first + count],
    )


def _smaller(sample: Any, height: int) -> Any:
    """The sample with the same crop at no more than `height` pixels, so that only small pictures are made."""
    width = sample.size[0]
    scale = min(1.0, height / sample.size[1], 2 * height / width)
    size = tuple(_even(edge * scale) for edge in sample.size)
    crop = tuple(round(edge * scale) for edge in sample.crop)
    resized = tuple(
        max(round(whole * scale), box + start) for whole, box, start in zip(sample.resized, size, crop, strict=True)
    )
    return sample._replace(size=size, crop=crop, resized=resized)


def _even(edge: float) -> int:
    return max(2, 2 * round(edge / 2))


def _key(kind: Kind, row: Any) -> Hashable:
    """What a picture depends on: the file as it is, its frames and its crop."""
    sample = row.sample
    if sample is None:
        return kind, row.file
    return kind, row.file, sample.source.mtime_ns, sample.frame_indices, sample.resized, sample.size, sample.crop
