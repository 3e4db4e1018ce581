"""Decodes exactly the planned frames of a sample to RGB, turned, scaled and cropped.

One swscale pass per frame converts to RGB and scales with a bicubic filter, which widens when it makes
smaller and so does not alias. The flags ask for exact rounding and full chroma, so that every processor
gives the same bytes. Images are scaled by Pillow with the same kind of filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps

from tunerkit.data.probe import LOCAL_FILES_ONLY, UnreadableMedia, orientation_of, picture_stream
from tunerkit.data.samples import Sample

DECODE_RECIPE = 1
"""Version of the pixels: it changes when the same sample would decode to other bytes."""

# Numbers of swscale's flags; not every PyAV release names the last three.
FULL_CHROMA, EXACT_ROUNDING, BIT_EXACT = 0x2000, 0x40000, 0x80000
SCALING = int(Interpolation.BICUBIC) | FULL_CHROMA | EXACT_ROUNDING | BIT_EXACT

BT709, UNSPECIFIED = 1, 2
"""Colour matrices by their number in ITU-T H.273."""


LIBRARY_ERRORS = (OSError, ValueError, SyntaxError, av.error.FFmpegError, Image.DecompressionBombError)
"""What PyAV and Pillow raise on damaged files (Pillow's PNG reader a SyntaxError)."""


def decode(sample: Sample) -> np.ndarray:
    """The pixels of a sample, uint8 `[T, H, W, 3]` in RGB.

    Frame `t` is source frame `sample.frame_indices[t]`, turned as the file asks, scaled to `sample.resized`,
    of which the box of `sample.size` at `sample.crop` is kept. Decoding stops after the last frame that is needed.

    Raises:
        UnreadableMedia: the file is gone or changed, is damaged or ends before the last planned frame.
    """
    return _decode_image(sample) if sample.kind == "image" else _decode_video(sample)


def _decode_video(sample: Sample) -> np.ndarray:
    width, height = sample.size
    pixels = np.empty((len(sample.frame_indices), height, width, 3), dtype=np.uint8)
    filled = 0
    try:
        with av.open(str(sample.file), options=LOCAL_FILES_ONLY, metadata_errors="ignore") as container:
            stream = picture_stream(container)
            if stream is None:
                raise _missing_frame(sample, 0, "the file holds no picture any more")
            stream.thread_type = "AUTO"
            wanted = _wanted_keys(sample, stream)
            # One for the whole clip: it keeps its filter tables from frame to frame.
            scaler = VideoReformatter()
            for number, frame in enumerate(_frames(container, stream)):
                key = frame.pts if sample.frame_times else number
                if key is None or key < wanted[filled]:
                    continue
                if key > wanted[filled]:
                    raise _missing_frame(sample, filled, "it does not decode")
                picture = _to_picture(frame, scaler, sample)
                while filled < len(wanted) and wanted[filled] == key:
                    pixels[filled] = picture
                    filled += 1
                if filled == len(wanted):
                    return pixels
    except LIBRARY_ERRORS as error:
        raise _missing_frame(sample, filled, str(error)) from error
    raise _missing_frame(sample, filled, "the file ends before it")


def _frames(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    """Every frame of the stream in presentation order; damage ahead of the first one is passed over."""
    started = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if started:
                raise
            continue
        started = started or bool(frames)
        yield from frames


def _wanted_keys(sample: Sample, stream: Any) -> list[int]:
    """What each planned frame is recognised by: its timestamp in the stream's ticks, or else its number."""
    if not sample.frame_times:
        return list(sample.frame_indices)
    return [round(seconds / float(stream.time_base)) for seconds in sample.frame_times]


def _missing_frame(sample: Sample, position: int, why: str) -> UnreadableMedia:
    index = sample.frame_indices[position]
    return UnreadableMedia(
        sample.file,
        f"frame {index} of {sample.source.frames} cannot be decoded: {why}",
        "copy or export the clip again, or remove it",
        "damaged",
    )


def _to_picture(frame: av.VideoFrame, scaler: VideoReformatter, sample: Sample) -> np.ndarray:
    """One frame as uint8 `[H, W, 3]` of `sample.size`."""
    orientation = orientation_of(frame)
    width, height = orientation.displayed(*sample.resized)
    alpha = any(component.is_alpha for component in frame.format.components)
    scaled = scaler.reformat(
        frame,
        width=width,
        height=height,
        format="rgba" if alpha else "rgb24",
        interpolation=SCALING,
        src_colorspace=_matrix(frame),
    ).to_ndarray()
    return _cut(orientation.apply(_over_white(scaled) if alpha else scaled), sample)


def _matrix(frame: av.VideoFrame) -> int | None:
    """The colour matrix where the file names none: BT.709 above standard definition, as players assume."""
    unnamed = frame.colorspace == UNSPECIFIED
    return BT709 if unnamed and (frame.width >= 1280 or frame.height > 576) else None


def _decode_image(sample: Sample) -> np.ndarray:
    try:
        with Image.open(sample.file) as opened:
            image = _to_rgb(ImageOps.exif_transpose(opened))
    except LIBRARY_ERRORS as error:
        raise UnreadableMedia(
            sample.file, f"the image cannot be decoded: {error}", "save it again, or remove it", "damaged"
        ) from error
    scaled = np.asarray(image.resize(sample.resized, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(_cut(scaled, sample))[None]


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; transparent parts become white, 16-bit greys keep their upper 8 bits."""
    if image.mode.startswith(("I;16", "I")):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return Image.fromarray(_over_white(np.asarray(image.convert("RGBA"))))
    return image.convert("RGB")


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA `[H, W, 4]` laid over white: uint8 `[H, W, 3]`."""
    alpha = rgba[..., 3:].astype(np.uint32)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _cut(picture: np.ndarray, sample: Sample) -> np.ndarray:
    """The box of `sample.size` at `sample.crop`."""
    (x, y), (width, height) = sample.crop, sample.size
    return picture[y : y + height, x : x + width]
