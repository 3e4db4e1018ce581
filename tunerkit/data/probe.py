"""Reads what a media file holds: size as displayed, the time of every frame, sound; or says truly why it
cannot.

A video's packets are read without decoding them, because only their timestamps say how many frames there are
and when each is shown; then one frame is decoded, which tells the rotation and whether the file decodes at
all.
"""

from __future__ import annotations

import codecs
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

from tunerkit.data.discover import kind_of
from tunerkit.data.frames import clip_end
from tunerkit.data.samples import Kind, Source
from tunerkit.errors import DatasetError

EDGE_BYTES = 64 * 1024
WHOLE_BYTES = 1024 * 1024

LOCAL_FILES_ONLY = {"protocol_whitelist": "file"}
"""Container option: a playlist under a video's name must not make the program open network addresses."""

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer functions of high dynamic range by their number in ITU-T H.273."""


class UnreadableMedia(DatasetError):  # noqa: N818 - named for what it says about a file
    """A media file cannot be used.

    Args:
        file: the file.
        reason: what is wrong with it.
        fix: what to do about it.
        cause: the reason in a few words, shared by all files with the same trouble.
    """

    def __init__(self, file: Path, reason: str, fix: str, cause: str = "unreadable") -> None:
        self.file, self.reason, self.fix, self.cause = file, reason, fix, cause
        super().__init__(f"{file}: {reason}. Fix: {fix}")


@dataclass(frozen=True)
class Media:
    """A file that can be read.

    Attributes:
        source: its facts.
        times: presentation time of each frame in seconds, ascending; `(0.0,)` for an image.
        end: when the last frame leaves the screen, in seconds on the clock of `times`.
        timed: whether decoded frames carry `times`; without usable timestamps they are counted at a constant rate.
        remarks: what a person should know about the file.
        damaged: whether the file ends before its own end.
    """

    source: Source
    times: tuple[float, ...]
    end: float
    timed: bool
    remarks: tuple[str, ...] = ()
    damaged: bool = False


@dataclass(frozen=True)
class Orientation:
    """How a decoded picture is turned for display: mirrored left to right, then turned counter-clockwise."""

    turns: int = 0
    mirrored: bool = False

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Turn a picture `[H, W, C]`."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.turns)

    def displayed(self, width: int, height: int) -> tuple[int, int]:
        """(W, H) after turning."""
        return (height, width) if self.turns % 2 else (width, height)


def probe(path: Path) -> Source:
    """The facts of a video or image file.

    Raises:
        UnreadableMedia: it cannot be used; the message says why.
    """
    return read_media(path).source


def read_media(path: Path, kind: Kind | None = None) -> Media:
    """The facts and the timestamps of a video or image file; `kind` defaults to what its name promises.

    Raises:
        UnreadableMedia: it cannot be used; the message says why.
    """
    try:
        if not path.is_file():
            raise UnreadableMedia(path, *_not_a_file(path))
        if path.stat().st_size == 0:
            raise UnreadableMedia(path, "the file is empty (0 bytes)", "copy or download it again", "empty file")
        kind = kind or kind_of(path)
        return _read_image(path) if kind == "image" else _read_video(path)
    except PermissionError:
        raise UnreadableMedia(
            path,
            "no permission to read the file",
            "give yourself read permission (chmod u+r)",
            "no permission",
        ) from None


def content_digest(path: Path) -> str:
    """SHA-256 of the size and the first and last 64 KiB of a file, or all of it up to 1 MiB; hexadecimal."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode() + b"\n")
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(EDGE_BYTES))
            file.seek(-EDGE_BYTES, 2)
            digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """How a player turns `frame`, from its display matrix; angles between quarter turns go to the nearest one.

    The matrix (ISO/IEC 14496-12, 6.2.2) maps a pixel to (a x + c y, b x + d y); a negative determinant mirrors.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].astype(np.float64)
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b
    return Orientation(round(math.atan2(-b, a) / (math.pi / 2)) % 4, mirrored)


def _read_video(path: Path) -> Media:
    try:
        container = av.open(str(path), options=LOCAL_FILES_ONLY, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        if isinstance(error, PermissionError):
            raise
        raise UnreadableMedia(path, *_why_not_opened(path, error)) from None
    with container:
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            raise UnreadableMedia(
                path,
                f"it is a still image ({container.format.name.removesuffix('_pipe')}) under a video's name",
                "give it the extension of an image, such as .png or .jpg",
                "not a video",
            )
        stream = picture_stream(container)
        if stream is None:
            found = "only sound" if container.streams.audio else "no video stream"
            raise UnreadableMedia(path, f"it holds {found}", "use a file with a picture", "no picture")
        if stream.codec_context is None:
            raise UnreadableMedia(
                path,
                "no decoder for its video codec is installed",
                "export the clip again, for example as H.264 mp4",
                "unknown codec",
            )
        packets = _read_packets(path, container, stream)
        return _describe_video(path, container, stream, packets)


def picture_stream(container: Any) -> Any:
    """The first video stream that is no cover picture of a sound file; None when there is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


@dataclass(frozen=True)
class _Packets:
    """The frames of a stream as its packets announce them.

    Attributes:
        times: when each frame is shown, in seconds, ascending.
        last_duration: how long the last frame stays, in seconds; 0 where the file does not say.
        timed: whether decoded frames carry these times.
        complete: no packet is damaged and as many were read as the file declares.
        first_frame: the first frame that decodes.
    """

    times: tuple[float, ...]
    last_duration: float
    timed: bool
    complete: bool
    first_frame: av.VideoFrame


def _read_packets(path: Path, container: Any, stream: Any) -> _Packets:
    """Read every packet of the stream and decode until the first frame comes out.

    Raises:
        UnreadableMedia: no frame can be decoded.
    """
    shown: list[tuple[int | None, int | None, int]] = []  # (pts, dts, duration)
    read = 0
    complete = True
    first: av.VideoFrame | None = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.error.FFmpegError:
            complete = False
            break
        if packet.is_corrupt:
            complete = False
            continue
        read += packet.dts is not None or packet.pts is not None
        if packet.size and not packet.is_discard and not _is_hidden(packet, stream):
            shown.append((packet.pts, packet.dts, packet.duration or 0))
        if first is None:
            # The last packet of a stream is empty: it asks the decoder for the frames that it still holds.
            try:
                first = next(iter(packet.decode()), None)
            except av.error.FFmpegError:
                complete = False
    if first is None or not shown:
        raise UnreadableMedia(
            path,
            f"no frame can be decoded (codec {stream.codec_context.name})",
            "copy or export the clip again, for example as H.264 mp4",
        )
    times, last_duration, timed = _clock(container, stream, shown, first)
    return _Packets(times, last_duration, timed, complete and read >= stream.frames, first)


def _clock(
    container: Any, stream: Any, shown: list[tuple[int | None, int | None, int]], first: av.VideoFrame
) -> tuple[tuple[float, ...], float, bool]:
    """When each frame is shown, how long the last one stays, and whether decoded frames carry these times.

    AVI stores no presentation times, and what the reader makes up for them is wrong with B-frames; its packets stand
    in slots of constant length, of which some may be empty, and frames are shown in such slots in their order.
    """
    tick = float(stream.time_base)
    durations = {pts: duration for pts, _, duration in shown if pts is not None}
    if container.format.name != "avi" and len(durations) == len(shown) and first.pts in durations:
        # Frames ahead of the first that decodes (they lean on pictures that were cut away) are never shown.
        ticks = sorted(pts for pts in durations if pts >= first.pts)
        return tuple(pts * tick for pts in ticks), durations[ticks[-1]] * tick, True
    slots = sorted({dts for _, dts, _ in shown if dts is not None})
    if len(slots) < len(shown):
        slots, tick = list(range(len(shown))), 1 / float(stream.average_rate or stream.guessed_rate or 25)
    return tuple(slot * tick for slot in slots), tick, False


def _is_hidden(packet: Any, stream: Any) -> bool:
    """Whether a packet is only referred to and never shown: VP8 clears bit 4 of its first byte (RFC 6386)."""
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10


def _describe_video(path: Path, container: Any, stream: Any, packets: _Packets) -> Media:
    frame = packets.first_frame
    times = packets.times
    count = len(times)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    end = clip_end(times, packets.last_duration or (1 / rate if rate and count == 1 else None))
    measured = count / (end - times[0]) if end > times[0] else rate
    # The declared rate is exact where it is true; containers round timestamps.
    fps = rate if rate and abs(rate / measured - 1) < 0.01 else measured

    orientation = orientation_of(frame)
    pixel_aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    width, height = orientation.displayed(max(1, round(frame.width * pixel_aspect)), frame.height)
    facts = path.stat()
    source = Source(
        width=width,
        height=height,
        fps=fps,
        frames=count,
        duration=end - times[0],
        rotation=orientation.turns * 90,
        has_audio=bool(container.streams.audio),
        codec=stream.codec_context.name,
        size_bytes=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        digest=content_digest(path),
    )
    remarks = []
    if not packets.complete:
        declared = f" of {stream.frames}" if stream.frames > count else ""
        remarks.append(f"the file is damaged or cut off: {count}{declared} frames can be read")
    if frame.color_trc in HDR_TRANSFERS:
        remarks.append(f"HDR ({HDR_TRANSFERS[frame.color_trc]}): colours are taken without tone mapping")
    return Media(source, times, end, packets.timed, tuple(remarks), damaged=not packets.complete)


def _read_image(path: Path) -> Media:
    try:
        with Image.open(path) as image:
            image.load()
            name = (image.format or path.suffix[1:]).lower()
            pictures = getattr(image, "n_frames", 1)
            width, height = ImageOps.exif_transpose(image).size
    except PermissionError:
        raise
    except Exception as error:
        # Pillow's readers raise errors of many types on damaged files.
        text = _looks_like_text(path)
        reason = text or f"it cannot be read as an image: {_first_line(error)}"
        raise UnreadableMedia(
            path, reason, "save the image again, as PNG or JPEG", "not an image" if text else "unreadable"
        ) from None
    facts = path.stat()
    source = Source(width, height, 0.0, 1, 0.0, 0, False, name, facts.st_size, facts.st_mtime_ns, content_digest(path))
    remarks = (f"the first of {pictures} pictures",) if pictures > 1 else ()
    return Media(source, (0.0,), 0.0, False, remarks)


def _not_a_file(path: Path) -> tuple[str, str, str]:
    if path.is_symlink() and not path.exists():
        return "it is a link to a file that does not exist", "remove the link or repair it", "broken link"
    if not path.exists():
        return "the file does not exist", "restore the file", "missing"
    return "it is not a regular file", "remove it from the folder", "not a file"


def _why_not_opened(path: Path, error: Exception) -> tuple[str, str, str]:
    """Reason, fix and cause for a file that no reader accepts."""
    text = _looks_like_text(path)
    if text:
        return text, "replace it by the real video", "not a video"
    boxes = _mp4_boxes(path)
    if "ftyp" in boxes and "moov" not in boxes:
        return (
            "the file is cut off: its index (the moov box) is missing, the recording or copy did not finish",
            "copy or download it again",
            "cut off",
        )
    return (
        f"it is no video that can be opened: {_first_line(error)}",
        "check that it plays, or export it again, for example as H.264 mp4",
        "not a video",
    )


def _looks_like_text(path: Path) -> str:
    """What a file is when it holds text; empty when it does not."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run `git lfs pull`"
    if b"\0" in head:
        return ""
    try:
        # Incremental, because the last character may be cut in two.
        start = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return ""
    return "it is an HTML page, not media" if "<html" in start.lower() else "it is a text file, not media"


def _mp4_boxes(path: Path) -> list[str]:
    """Names of the boxes at the top level of an MP4 or MOV file (ISO/IEC 14496-12, 4.2)."""
    names: list[str] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position + 8 <= size and len(names) < 100:
            file.seek(position)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            names.append(header[4:8].decode("latin-1"))
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length < 8:
                break
            position += length
    return names


def _first_line(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    text = str(strerror or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".").lower()
