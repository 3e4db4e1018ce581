"""Writes pictures in memory to files that every browser and player opens, and composes them for comparison.

Videos are H.264 with 4:2:0 chroma in an mp4 whose index stands at the front, so that a notebook can start
playing while the file still loads. Everywhere in this module `frames` is a uint8 array [T, H, W, 3], RGB,
0..255.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from tunerkit.errors import TunerkitError
from tunerkit.files import replacing

QUALITY = 18
"""x264's constant rate factor: 0 is lossless, 51 the worst; 18 cannot be told from the source by eye."""

NTSC_TOLERANCE = 0.005
"""How far a rate may be from n * 1000 / 1001 (fps) and still mean it; people write 23.976, 23.98 or 29.97."""


def write_mp4(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    fps: float,
    audio: np.ndarray | None = None,
    audio_rate: int | None = None,
    *,
    threads: int | None = None,
) -> Path:
    """Writes one video file through moviepy, completely or not at all.

    An odd width or height is made even by repeating the last column or row: 4:2:0 chroma has one sample for
        two pixels.
    The sound is cut at the end of the last picture; a shorter one just ends earlier.

    Args:
        path: the file to write; the ending must be .mp4, missing folders are made, an older file is replaced.
        frames: [T, H, W, 3] uint8, at least one frame.
        fps: frames per second, 0.1..1000. 23.976, 29.97, 59.94 are written as the exact 24000/1001 and so on.
        audio: float [samples, channels] or [samples] in -1..1 (louder is clipped), one or two channels.
        audio_rate: samples per second; required with `audio`.
        threads: threads of the encoder. The same number gives the same bytes; None leaves it to ffmpeg.

    Returns:
        The path written.

    Raises:
        TunerkitError: the arrays are not what is described above, the folder cannot be written, or the
            encoder failed.
    """
    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise TunerkitError(f"{target}: videos are written as mp4. Fix: let the file name end in .mp4")
    rate = exact_rate(fps)
    pictures = _even(_checked(frames))
    sound = None if audio is None else _sound(audio, audio_rate, seconds=len(pictures) / rate)
    try:
        with replacing(target) as draft, tempfile.TemporaryDirectory() as folder:
            track = None
            if sound is not None and audio_rate is not None:
                track = _write_wav(Path(folder) / "sound.wav", sound, audio_rate)
            _encode(draft, pictures, rate, track, threads)
            _require_frames(draft, len(pictures))
    except OSError as error:
        raise TunerkitError(f"{target}: the video could not be written: {error}") from error
    return target


def exact_rate(fps: float) -> Fraction:
    """The frame rate as a fraction: 23.976 is 24000/1001, 12.5 is 25/2.

    Raises:
        TunerkitError: the rate is outside 0.1..1000 fps or not a number.
    """
    if not (math.isfinite(fps) and 0.1 <= fps <= 1000):
        raise TunerkitError(f"a frame rate of {fps} cannot be written. Fix: give 0.1 to 1000 frames per second")
    nominal = round(fps * 1.001)
    ntsc = Fraction(nominal * 1000, 1001)
    if nominal >= 1 and abs(fps - ntsc) < min(NTSC_TOLERANCE, abs(fps - nominal)):
        return ntsc
    return Fraction(fps).limit_denominator(1001)


def side_by_side(
    left: np.ndarray, right: np.ndarray, labels: tuple[str, str] | None = None, gap: int = 8
) -> np.ndarray:
    """Two videos in one picture, for example before and after training.

    The shorter one holds its last frame; a lower picture stands at the bottom, so that labels grow upwards.

    Args:
        left, right: [T, H, W, 3] uint8 each, sizes and lengths may differ.
        labels: texts drawn above the two pictures.
        gap: black pixels between them.

    Returns:
        [max T, max H (+ label), W_left + gap + W_right, 3] uint8.
    """
    pair = [_checked(left), _checked(right)]
    if labels is not None:
        pair = [label(frames, text) for frames, text in zip(pair, labels, strict=True)]
    count = max(len(frames) for frames in pair)
    height = max(frames.shape[1] for frames in pair)
    pair = [np.pad(_held(frames, count), ((0, 0), (height - frames.shape[1], 0), (0, 0), (0, 0))) for frames in pair]
    return np.concatenate([pair[0], np.zeros((count, height, gap, 3), np.uint8), pair[1]], axis=2)


def label(frames: np.ndarray, text: str) -> np.ndarray:
    """The video with a line of text above the picture, never over it; long text is wrapped.

    Args:
        frames: [T, H, W, 3] uint8.
        text: what to write; empty text leaves the frames as they are.

    Returns:
        [T, H + label height, W, 3] uint8.
    """
    frames = _checked(frames)
    if not text.strip():
        return frames
    count, height, width, _ = frames.shape
    bar = _text_bar(text, width, font_size=max(11, height // 24))
    bars = np.broadcast_to(bar, (count, *bar.shape))
    return np.concatenate([bars, frames], axis=1)


def poster(frames: np.ndarray, count: int = 4, height: int = 160) -> bytes:
    """A strip of a few frames from first to last, as PNG bytes: what a table or a static page shows of a video.

    Args:
        frames: [T, H, W, 3] uint8.
        count: frames in the strip; fewer when the video has fewer.
        height: the strip's height in pixels at most; the pictures are only ever made smaller.
    """
    from PIL import Image

    frames = _checked(frames)
    chosen = np.unique(np.linspace(0, len(frames) - 1, max(1, count)).round().astype(int))
    strip = Image.fromarray(np.concatenate([frames[index] for index in chosen], axis=1))
    if strip.height > height:
        size = (max(1, round(strip.width * height / strip.height)), height)
        strip = strip.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    strip.save(buffer, format="PNG")
    return buffer.getvalue()


def _checked(frames: np.ndarray) -> np.ndarray:
    array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise TunerkitError(
            f"a video must be a uint8 array [frames, height, width, 3] with at least one frame, "
            f"but this is {array.dtype} {list(array.shape)}"
        )
    return array


def _even(frames: np.ndarray) -> np.ndarray:
    _, height, width, _ = frames.shape
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _held(frames: np.ndarray, count: int) -> np.ndarray:
    return np.pad(frames, ((0, count - len(frames)), (0, 0), (0, 0), (0, 0)), mode="edge")


def _sound(audio: np.ndarray, rate: int | None, seconds: Fraction) -> np.ndarray:
    """The sound as float32 [samples, channels], cut to the picture's length; None where nothing is left."""
    array = np.asarray(audio, dtype=np.float32)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] not in (1, 2):
        raise TunerkitError(
            f"sound must be an array [samples, channels] with one or two channels, but this is {list(array.shape)}"
        )
    if not rate or rate < 1:
        raise TunerkitError(
            "sound was given without its rate. Fix: pass audio_rate, for example 48000 samples per second"
        )
    if not np.isfinite(array).all():
        raise TunerkitError("the sound holds values that are not numbers (NaN or infinite)")
    return array[: round(seconds * rate)]


def _write_wav(path: Path, audio: np.ndarray, rate: int) -> Path | None:
    """16-bit PCM for ffmpeg to read: moviepy's array clip would write a mono track as stereo of half its speed."""
    if len(audio) == 0:
        return None
    samples = np.round(np.clip(audio, -1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def _encode(path: Path, frames: np.ndarray, rate: Fraction, track: Path | None, threads: int | None) -> None:
    """Pipes the frames through moviepy to ffmpeg.

    moviepy names the rate to ffmpeg with two decimals and counts floor(duration * fps) frames; so the
    timestamps are set anew from the exact fraction, and the duration is a quarter frame longer than the
    frames need.
    """
    from moviepy import VideoClip

    last = len(frames) - 1
    fps = float(rate)
    clip = VideoClip(
        frame_function=lambda seconds: frames[min(round(seconds * fps), last)],
        duration=(len(frames) + 0.25) / fps,
    )
    # BT.709 is written and said: without the tags a player guesses the matrix from the picture's size.
    colours = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,"
    colours += "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709"
    clock = f"settb={rate.denominator}/{rate.numerator},setpts=N"
    try:
        clip.write_videofile(
            str(path),
            fps=fps,
            codec="libx264",
            audio=str(track) if track else False,
            audio_codec="aac" if track else None,
            threads=threads,
            ffmpeg_params=[
                *("-vf", f"{colours},{clock}"),
                *("-r", f"{rate.numerator}/{rate.denominator}"),
                *("-crf", str(QUALITY)),
                *("-movflags", "+faststart"),
                *("-f", "mp4"),  # the temporary name does not end in .mp4
            ],
            logger=None,
        )
    finally:
        clip.close()


def _require_frames(path: Path, count: int) -> None:
    """moviepy does not look at ffmpeg's exit status; a full disk would leave a short file that looks finished."""
    import av

    try:
        with av.open(str(path)) as container:
            written = sum(1 for packet in container.demux(video=0) if packet.size)
    except (av.FFmpegError, IndexError) as error:
        raise OSError(f"the encoder left no readable file ({error})") from error
    if written != count:
        raise OSError(f"the encoder wrote {written} of {count} frames; is the disk full?")


def _text_bar(text: str, width: int, font_size: int) -> np.ndarray:
    """White text on black, [height, width, 3] uint8, as many lines as the width asks for."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(font_size)
    lines = _wrapped(text, lambda piece: font.getlength(piece) <= width - 8)
    line_height = round(font_size * 1.3)
    bar = Image.new("RGB", (width, line_height * len(lines) + 6))
    draw = ImageDraw.Draw(bar)
    for number, line in enumerate(lines):
        draw.text((4, 2 + number * line_height), line, font=font, fill=(255, 255, 255))
    return np.asarray(bar)


def _wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Breaks text at spaces so that every line fits; a word too long for a line is cut by the edge."""
    lines: list[str] = []
    for word in text.split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def read_mp4(path: Path) -> np.ndarray:
    """All frames of a video file, uint8 `[T, H, W, 3]`."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
