"""Decodes the sound of a clip: exactly the used span, on the clock of the picture.

The decoded frames of the stream are laid on one line of samples by their presentation times. Only where these
jump (a gap, an overlap) is a frame laid anew; smaller differences are a container's rounding and would tear the
sound. Resampling sees some sound around the span, so that the span's edges are no edges of the sound.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np

from tunerkit.data.media import SoundTrack, UnreadableMedia
from tunerkit.data.probe import LOCAL_FILES_ONLY, PASSING_ERRORS, content_digest
from tunerkit.data.samples import Sound

TruncationMode = Literal["beginning", "end", "random"]

MARGIN_SECONDS = 0.05
"""Sound around the span that resampling sees; its filter is far shorter."""
JUMP_SECONDS = 0.01
"""Presentation times that are off by more are taken at their word; containers round to 1 ms or finer."""
PREROLL_SECONDS = 1.0
"""Sound that is decoded ahead of the span after a jump: decoders need up to 80 ms (RFC 7845) to settle."""
INDEXED_FORMATS = ("mov", "matroska")
"""Containers in which a jump lands at a known time; in others it is guessed from the bit rate."""
ESTIMATING_FORMATS = ("mp3", "aac")
"""Containers whose declared length is guessed from the bit rate."""

LIBRARY_ERRORS = (OSError, ValueError, av.error.FFmpegError)


def read_sound(file: Path) -> SoundTrack:
    """From when to when a file holds sound, from what it declares or else from its packets; nothing is decoded.

    Raises:
        UnreadableMedia: it cannot be opened, holds no sound, or there is no decoder for it.
        OSError: the machine or the disk failed, not the file.
    """
    digest = content_digest(file)
    try:
        with av.open(str(file), options=LOCAL_FILES_ONLY, metadata_errors="ignore") as container:
            stream = _sound_stream(file, container)
            tick = float(stream.time_base)
            # Where the encoder's delay is known it is no part of the sound, and the stream starts behind it.
            begins = None if stream.start_time is None else stream.start_time * tick
            if stream.duration and container.format.name not in ESTIMATING_FORMATS:
                begins = begins or 0.0
                return SoundTrack(begins, begins + stream.duration * tick, digest)
            spans = [(p.pts, p.pts + (p.duration or 0)) for p in container.demux(stream) if p.pts is not None]
    except LIBRARY_ERRORS as error:
        if getattr(error, "errno", None) in PASSING_ERRORS:
            raise
        raise UnreadableMedia(
            file, f"its sound cannot be read: {_text(error)}", "export it again, or remove it", "damaged sound"
        ) from None
    if not spans:
        raise UnreadableMedia(file, "its sound is empty", "export it again, or remove it", "damaged sound")
    first, last = min(begin for begin, _ in spans) * tick, max(end for _, end in spans) * tick
    return SoundTrack(first if begins is None else begins, last, digest)


def decode_sound(sound: Sound, *, sample_rate: int, channels: int) -> np.ndarray:
    """The waveform of a sample's sound, float32 `[channels, round(seconds * sample_rate)]`; zeros for a silent one.

    Raises:
        UnreadableMedia: as `decode_audio`.
    """
    if sound.silent:
        return np.zeros((channels, round(sound.seconds * sample_rate)), np.float32)
    return decode_audio(sound.file, sound.start, sound.seconds, sample_rate=sample_rate, channels=channels)


def decode_audio(file: Path, start: float, seconds: float, *, sample_rate: int, channels: int) -> np.ndarray:
    """The sound of a span of a file.

    Args:
        file: a video or audio file.
        start: where the span begins, in seconds on the clock of the file's presentation times, which picture and
            sound share (`Sample.frame_times`). Sound that starts later or ends earlier is filled up with silence.
        seconds: how long the span is, above 0.
        sample_rate: of the result, in Hz.
        channels: 1 or 2. Two become one by their mean, one becomes two by copying; more than two are first mixed
            down to two as FFmpeg does.

    Returns:
        float32 `[channels, round(seconds * sample_rate)]`, full scale -1..1.

    Raises:
        UnreadableMedia: the file cannot be opened, holds no sound, or none of it decodes.
    """
    if channels not in (1, 2):
        raise ValueError(f"channels must be 1 or 2, not {channels}")
    length = round(seconds * sample_rate)
    try:
        with av.open(str(file), options=LOCAL_FILES_ONLY, metadata_errors="ignore") as container:
            stream = _sound_stream(file, container)
            _seek(container, stream, start)
            found, rate = _collect(file, container, stream, start, seconds, sample_rate)
    except LIBRARY_ERRORS as error:
        raise UnreadableMedia(
            file, f"its sound cannot be decoded: {_text(error)}", "export it again, or remove it", "damaged sound"
        ) from error
    margin = _margin(rate, sample_rate)
    resampled = _resample(found, rate, sample_rate)[:, margin * sample_rate // rate :]
    return _with_channels(_cut(resampled, length), channels)


def kept_part(spare: float, mode: TruncationMode, digest: str) -> float:
    """Where the part begins that is kept of sound that is `spare` seconds too long, in seconds from its beginning.

    Args:
        spare: at least 0.
        mode: what is kept: its beginning, its end, or a part in between that `digest` decides.
        digest: content hash of the file: the same file is always cut at the same place.
    """
    if mode == "random":
        return spare * int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8], "big") / 2**64
    return spare if mode == "end" else 0.0


def _sound_stream(file: Path, container: Any) -> Any:
    """The first stream of sound.

    Raises:
        UnreadableMedia: there is none, or no decoder for it.
    """
    if not container.streams.audio:
        raise UnreadableMedia(
            file,
            "it holds no sound",
            "use a file with sound, or set audio.allow_zero_audio to true",
            "no sound",
        )
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise UnreadableMedia(
            file, "no decoder for its sound is installed", "export it again, for example as AAC", "no decoder"
        )
    return stream


def _seek(container: Any, stream: Any, start: float) -> None:
    """Jump to a little ahead of `start`, where that is safe and saves work."""
    target = start - PREROLL_SECONDS
    begins = float((stream.start_time or 0) * stream.time_base)
    if container.format.name.startswith(INDEXED_FORMATS) and target > begins + PREROLL_SECONDS:
        container.seek(int(target / stream.time_base), stream=stream)


def _collect(
    file: Path, container: Any, stream: Any, start: float, seconds: float, sample_rate: int
) -> tuple[np.ndarray, int]:
    """The span with its margins at the stream's own rate, float32 `[1 or 2, samples]`, and that rate (Hz)."""
    line: np.ndarray | None = None
    rate = next_sample = first = 0
    for time, samples, rate in _pieces(container, stream):
        if line is None:
            margin = _margin(rate, sample_rate)
            first = round(start * rate) - margin
            line = np.zeros((len(samples), 2 * margin + math.ceil(seconds * rate)), np.float32)
            next_sample = round(time * rate)
        if abs(time * rate - next_sample) > JUMP_SECONDS * rate:
            next_sample = round(time * rate)
        _lay(line, samples, next_sample - first)
        next_sample += samples.shape[1]
        if next_sample - first >= line.shape[1]:
            break
    if line is None:
        raise UnreadableMedia(
            file,
            f"none of its sound can be decoded (codec {stream.codec_context.name})",
            "export it again, for example as AAC",
            "damaged sound",
        )
    return line, rate


def _pieces(container: Any, stream: Any) -> Iterator[tuple[float, np.ndarray, int]]:
    """(presentation time in seconds, float32 `[1 or 2, samples]`, rate in Hz) of each frame that decodes."""
    to_float: Any = None
    expected = 0.0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue  # what is damaged stays silent; the next frame's time says how long
        for frame in frames:
            if to_float is None:
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
                to_float = av.AudioResampler("fltp", layout, frame.sample_rate)
            time = expected if frame.pts is None else float(frame.pts * (frame.time_base or stream.time_base))
            expected = time + frame.samples / frame.sample_rate
            frame.pts = None
            for piece in to_float.resample(frame):
                yield time, piece.to_ndarray(), frame.sample_rate


def _lay(line: np.ndarray, samples: np.ndarray, position: int) -> None:
    """Write `samples` into `line` from `position`, as far as they lie inside."""
    begin, end = max(0, position), min(line.shape[1], position + samples.shape[1])
    if begin < end:
        line[:, begin:end] = samples[:, begin - position : end - position]


def _margin(rate: int, sample_rate: int) -> int:
    """Samples at `rate` on either side of the span: as many as make a whole number at `sample_rate` too."""
    unit = rate // math.gcd(rate, sample_rate)
    return unit * math.ceil(MARGIN_SECONDS * rate / unit)


def _resample(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate:
        return waveform
    layout = "mono" if len(waveform) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
    frame.sample_rate = rate
    resampler = av.AudioResampler("fltp", layout, sample_rate)
    pieces = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([piece.to_ndarray() for piece in pieces], axis=1)


def _cut(waveform: np.ndarray, length: int) -> np.ndarray:
    """The first `length` samples; silence follows a shorter waveform."""
    kept = waveform[:, :length].astype(np.float32)
    return np.pad(kept, ((0, 0), (0, length - kept.shape[1])))


def _with_channels(waveform: np.ndarray, channels: int) -> np.ndarray:
    if len(waveform) == channels:
        return waveform
    return waveform.mean(0, keepdims=True) if channels == 1 else np.repeat(waveform, 2, axis=0)


def _text(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".").lower()
