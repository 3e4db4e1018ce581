"""Decoding clips in threads while the VAE encodes others."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tunerkit.data.samples import Sample

DECODERS = max(1, min(4, (os.cpu_count() or 2) - 1))
"""Files decoded side by side; FFmpeg works outside Python's lock."""
AHEAD_CLIPS = 8
AHEAD_BYTES = 1 << 30
"""Decoded clips that wait for the VAE: so many, and so many bytes (11 clips of 81x832x480, 97 MB each), whichever is
reached first. A single clip may be larger; then it waits alone."""
TOGETHER_BYTES = AHEAD_BYTES // 4
"""Windows of one clip are decoded in one pass up to so many bytes."""


def pixel_bytes(sample: Sample) -> int:
    """Bytes of a decoded sample."""
    return len(sample.frame_indices) * sample.size[0] * sample.size[1] * 3


class DecodeAhead:
    """Iterates over the samples of `source` with their pixels, some of them decoded ahead.

    Yields (sample, pixels uint8 `[T, H, W, 3]`), or (sample, the exception that decoding raised), in the order of the
    source. None stands for a source that has nothing at the moment: ask again. Use as a context; at its end what is
    not decoded yet is dropped.
    """

    def __init__(self, source: Iterator[Sample | None], batch_size: int = 1) -> None:
        self._source = source
        self._clips = max(AHEAD_CLIPS, 2 * batch_size)
        self._peeked: Sample | None = None
        self._exhausted = False
        self._pending: deque[tuple[list[Sample], Future[list[torch.Tensor | Exception]]]] = deque()
        self._bytes = 0
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="tunerkit-decode")

    def __enter__(self) -> DecodeAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __iter__(self) -> Iterator[tuple[Sample, torch.Tensor | Exception] | None]:
        while True:
            self._fill()
            if not self._pending:
                if self._exhausted:
                    return
                yield None
                continue
            samples, future = self._pending.popleft()
            decoded = future.result()
            self._bytes -= sum(map(pixel_bytes, samples))
            del future  # it holds on to the pixels
            while samples:
                yield samples.pop(0), decoded.pop(0)

    def _fill(self) -> None:
        while sum(len(samples) for samples, _ in self._pending) < self._clips:
            following = self._next()
            if following is None:
                return
            if self._pending and self._bytes + pixel_bytes(following) > AHEAD_BYTES:
                self._peeked = following
                return
            samples = self._with_its_windows(following)
            self._bytes += sum(map(pixel_bytes, samples))
            self._pending.append((samples, self._pool.submit(decode_together, samples)))

    def _next(self) -> Sample | None:
        peeked, self._peeked = self._peeked, None
        if peeked is not None or self._exhausted:
            return peeked
        try:
            return next(self._source)
        except StopIteration:
            self._exhausted = True
            return None

    def _with_its_windows(self, first: Sample) -> list[Sample]:
        """`first` and the samples behind it that can be decoded in the same pass."""
        samples, total = [first], pixel_bytes(first)
        while (following := self._next()) is not None:
            total += pixel_bytes(following)
            if not _same_picture(first, following) or total > TOGETHER_BYTES:
                self._peeked = following
                break
            samples.append(following)
        return samples


def decode_together(samples: Sequence[Sample]) -> list[torch.Tensor | Exception]:
    """The pixels of samples of one file, decoded in one pass; of those that fail the exception instead."""
    import torch

    from tunerkit.data.decode import decode

    def alone(sample: Sample) -> torch.Tensor | Exception:
        return _caught(lambda: torch.from_numpy(decode(sample)))

    if len(samples) == 1:
        return [alone(samples[0])]
    times = dict(sorted(pair for sample in samples for pair in zip(*_frame_keys(sample), strict=True)))
    whole = samples[0]._replace(
        frame_indices=tuple(times),
        frame_times=tuple(times.values()) if samples[0].frame_times else (),
    )
    pixels = _caught(lambda: torch.from_numpy(decode(whole)))
    if isinstance(pixels, Exception):  # damage in one window is no reason to lose the others
        return [alone(sample) for sample in samples]
    place = {index: row for row, index in enumerate(times)}
    return [pixels[torch.tensor([place[index] for index in sample.frame_indices])] for sample in samples]


def _frame_keys(sample: Sample) -> tuple[Sequence[int], Sequence[float]]:
    return sample.frame_indices, sample.frame_times or [0.0] * len(sample.frame_indices)


def _same_picture(one: Sample, other: Sample) -> bool:
    """Whether two samples differ in their frames only."""
    return (
        one.kind == "video"
        and all(
            getattr(one, key) == getattr(other, key) for key in ("file", "source", "kind", "size", "resized", "crop")
        )
        and bool(one.frame_times) == bool(other.frame_times)
    )


def _caught(decode: Callable[[], torch.Tensor]) -> torch.Tensor | Exception:
    try:
        return decode()
    except Exception as error:  # one bad file, whatever the decoder makes of it, must not end the job
        return error
