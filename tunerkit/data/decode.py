"""Decodes exactly the planned frames of a sample to RGB, turned, scaled and cropped.

One swscale pass per frame converts to RGB and scales with a bicubic filter, which widens when it makes
smaller and so does not alias. The flags ask for exact rounding and full chroma, so that every processor
gives the same bytes. High dynamic range is tone mapped after scaling, from 16 bits. Images are scaled by
Pillow with the same kind of filter.

A call works in one thread: the cache decodes several clips at once, and threads of one clip's decoder would
only take turns with those of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps

from tunerkit.data.hdr import Transfer, tone_map
from tunerkit.data.probe import LOCAL_FILES_ONLY, UnreadableMedia, orientation_of, picture_stream
from tunerkit.data.samples import Sample

DECODE_RECIPE = 2
"""Version of the pixels: it changes when the same sample would decode to other bytes."""

# Numbers of swscale's flags; not every PyAV release names the last three.
FULL_CHROMA, EXACT_ROUNDING, BIT_EXACT = 0x2000, 0x40000, 0x80000
SCALING = int(Interpolation.BICUBIC) | FULL_CHROMA | EXACT_ROUNDING | BIT_EXACT

BT709, UNSPECIFIED, BT2020_MATRIX = 1, 2, 9
"""Colour matrices by their number in ITU-T H.273."""

HDR: dict[int, Transfer] = {16: "PQ", 18: "HLG"}
"""Transfer functions of high dynamic range by their number in ITU-T H.273."""

INDEXED_FORMATS = ("mov", "matroska")
"""Containers that say truly which frames can be decoded by themselves, and find them without reading the file."""
SEEK_SECONDS = 1.0
"""A window that starts later than this in the clip is sought; nearer ones are reached as fast by decoding."""
SEEK_TRIES = 4

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
    if sample.frame_times:
        # What goes wrong after a jump is told by decoding from the start, which needs no index to be right.
        try:
            pixels = _read_video(sample, seek=True)
        except UnreadableMedia:
            pixels = None
        if pixels is not None:
            return pixels
    pixels = _read_video(sample, seek=False)
    assert pixels is not None
    return pixels


def _read_video(sample: Sample, *, seek: bool) -> np.ndarray | None:
    """Decode from the start of the clip or, with `seek`, from near the first planned frame.

    Returns:
        None where `seek` is asked for and there is nothing to gain or no sure place to start from.
    """
    width, height = sample.size
    pixels = np.empty((len(sample.frame_indices), height, width, 3), dtype=np.uint8)
    filled = 0
    try:
        with av.open(str(sample.file), options=LOCAL_FILES_ONLY, metadata_errors="ignore") as container:
            stream = picture_stream(container)
            if stream is None:
                raise _missing_frame(sample, 0, "the file holds no picture any more")
            stream.codec_context.thread_count = 1
            wanted = _wanted_keys(sample, stream)
            frames = _frames_from(container, stream, wanted[0]) if seek else _frames(container.demux(stream))
            if frames is None:
                return None
            # One for the whole clip: it keeps its filter tables from frame to frame.
            scaler = VideoReformatter()
            for number, frame in enumerate(frames):
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


def _frames(packets: Iterator[Any]) -> Iterator[av.VideoFrame]:
    """Every frame of the packets in presentation order; damage ahead of the first one is passed over."""
    started = False
    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if started:
                raise
            continue
        started = started or bool(frames)
        yield from frames


def _frames_from(container: Any, stream: Any, wanted: int) -> Iterator[av.VideoFrame] | None:
    """The frames from the last key frame that is shown at or before `wanted` (ticks of the stream).

    Frames that are shown after a key frame never lean on what is stored before it, not even with an open group of
    pictures; those shown ahead of it may, and are not wanted here.

    Returns:
        None where the start is near, or no such key frame is found.
    """
    start = stream.start_time or 0
    target = wanted
    if not container.format.name.startswith(INDEXED_FORMATS) or (wanted - start) * stream.time_base < SEEK_SECONDS:
        return None
    for _ in range(SEEK_TRIES):
        container.seek(target, stream=stream)
        packets = container.demux(stream)
        first = next(packets, None)
        if first is None or first.pts is None or not first.is_keyframe:
            return None
        if first.pts <= start:
            return None
        if first.pts <= wanted:
            return _checked(_frames(chain([first], packets)), first.pts)
        # Containers seek by storing order, in which a key frame stands ahead of frames that are shown before it.
        target = (first.pts if first.dts is None else first.dts) - 1
    return None


def _checked(frames: Iterator[av.VideoFrame], start: int) -> Iterator[av.VideoFrame]:
    """The frames shown from `start` on; an error where the decoder does not take the one there for a key frame."""
    for frame in frames:
        if frame.pts is None or frame.pts < start:
            continue
        if frame.pts == start and (not frame.key_frame or frame.is_corrupt):
            raise ValueError("the container marks a frame as a key frame that is none")
        yield frame


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
    transfer = HDR.get(frame.color_trc)
    narrow, wide = ("rgba", "rgba64le") if alpha else ("rgb24", "rgb48le")
    scaled = scaler.reformat(
        frame,
        width=width,
        height=height,
        format=wide if transfer else narrow,
        interpolation=SCALING,
        src_colorspace=_matrix(frame),
        threads=1,
    ).to_ndarray()
    if transfer:
        scaled = _to_standard_range(scaled, transfer, frame.color_primaries)
    return _cut(orientation.apply(_over_white(scaled) if alpha else scaled), sample)


def _to_standard_range(picture: np.ndarray, transfer: Transfer, primaries: int) -> np.ndarray:
    """RGB or RGBA, uint16 `[H, W, C]`, as uint8 of standard range; alpha is no light and only loses precision."""
    shown = tone_map(picture[..., :3], transfer, primaries)
    return np.concatenate([shown, (picture[..., 3:] >> 8).astype(np.uint8)], axis=-1)


def _matrix(frame: av.VideoFrame) -> int | None:
    """The colour matrix where the file names none: that of BT.2020 for high dynamic range, and BT.709 above
    standard definition, as players assume."""
    if frame.colorspace != UNSPECIFIED:
        return None
    if frame.color_trc in HDR:
        return BT2020_MATRIX
    return BT709 if frame.width >= 1280 or frame.height > 576 else None


def _decode_image(sample: Sample) -> np.ndarray:
    try:
        with Image.open(sample.file) as opened:
            image = to_rgb(ImageOps.exif_transpose(opened))
    except LIBRARY_ERRORS as error:
        raise UnreadableMedia(
            sample.file, f"the image cannot be decoded: {error}", "save it again, or remove it", "damaged"
        ) from error
    scaled = np.asarray(image.resize(sample.resized, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(_cut(scaled, sample))[None]


def to_rgb(image: Image.Image) -> Image.Image:
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
