"""Reads what a media file holds: size as displayed, the time of every frame, sound; or says truly why it
cannot.

A video's packets are read without decoding them, because only their timestamps say how many frames there are
and when each is shown; then one frame is decoded, which tells the rotation and whether the file decodes at
all.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps, UnidentifiedImageError

from tunerkit.data.discover import kind_of
from tunerkit.data.frames import clip_end
from tunerkit.data.media import STILL, Clock, Media, UnreadableMedia
from tunerkit.data.samples import Kind, Source

LFS_POINTER = b"version https://git-lfs"
EDGE_BYTES = 64 * 1024
WHOLE_BYTES = 1024 * 1024

LOCAL_FILES_ONLY = {"protocol_whitelist": "file"}
"""Container option: a playlist under a video's name must not make the program open network addresses."""

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer functions of high dynamic range by their number in ITU-T H.273."""

PASSING_ERRORS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
)
"""Errors of the machine or the disk, which say nothing about the file."""


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
        OSError: the machine or the disk failed, not the file.
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
        if _is_passing(error):
            raise
        raise UnreadableMedia(path, *_why_not_opened(path, error)) from None
    with container:
        if _holds_still(container):
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
        clock: when each frame is shown.
        last_duration: how long the last frame stays, in seconds; 0 where the file does not say.
        timed: whether decoded frames carry these times.
        complete: no packet is damaged and as many were read as the file declares.
        first_frame: the first frame that decodes.
    """

    clock: Clock
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
        except av.error.FFmpegError as error:
            if _is_passing(error):
                raise
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
    clock, last_duration, timed = _clock(container, stream, shown, first)
    return _Packets(clock, last_duration, timed, complete and read >= stream.frames, first)


def _clock(
    container: Any, stream: Any, shown: list[tuple[int | None, int | None, int]], first: av.VideoFrame
) -> tuple[Clock, float, bool]:
    """When each frame is shown, how long the last one stays, and whether decoded frames carry these times.

    AVI stores no presentation times, and what the reader makes up for them is wrong with B-frames; its packets stand
    in slots of constant length, of which some may be empty, and frames are shown in such slots in their order.
    """
    tick = float(stream.time_base)
    durations = {pts: duration for pts, _, duration in shown if pts is not None}
    if container.format.name != "avi" and len(durations) == len(shown) and first.pts in durations:
        # Frames ahead of the first that decodes (they lean on pictures that were cut away) are never shown.
        ticks = sorted(pts for pts in durations if pts >= first.pts)
        return Clock.of(ticks, tick), durations[ticks[-1]] * tick, True
    slots = sorted({dts for _, dts, _ in shown if dts is not None})
    if len(slots) < len(shown):
        slots, tick = list(range(len(shown))), 1 / float(stream.average_rate or stream.guessed_rate or 25)
    return Clock.of(slots, tick), tick, False


def _is_hidden(packet: Any, stream: Any) -> bool:
    """Whether a packet is only referred to and never shown: VP8 clears bit 4 of its first byte (RFC 6386)."""
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10


def _describe_video(path: Path, container: Any, stream: Any, packets: _Packets) -> Media:
    frame = packets.first_frame
    times = packets.clock.times
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
        remarks.append(f"HDR ({HDR_TRANSFERS[frame.color_trc]}): tone mapped to standard range")
    return Media(source, packets.clock, end, packets.timed, tuple(remarks), damaged=not packets.complete)


def _read_image(path: Path) -> Media:
    try:
        with Image.open(path) as image:
            image.load()
            name = (image.format or path.suffix[1:]).lower()
            pictures = getattr(image, "n_frames", 1)
            width, height = ImageOps.exif_transpose(image).size
    except Exception as error:
        if _is_passing(error):
            raise
        raise UnreadableMedia(path, *_why_no_image(path, error)) from None
    facts = path.stat()
    source = Source(width, height, 0.0, 1, 0.0, 0, False, name, facts.st_size, facts.st_mtime_ns, content_digest(path))
    remarks = (f"the first of {pictures} pictures",) if pictures > 1 else ()
    return Media(source, STILL, 0.0, False, remarks)


def _is_passing(error: Exception) -> bool:
    return getattr(error, "errno", None) in PASSING_ERRORS


def _why_no_image(path: Path, error: Exception) -> tuple[str, str, str]:
    """Reason, fix and cause for an image that Pillow cannot read; its readers raise errors of many types."""
    text = _looks_like_text(path)
    if text:
        return text, _text_fix(path, "image"), "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "it claims more pixels than an image may have (178 million)", "make the image smaller", "too large"
    if isinstance(error, UnidentifiedImageError):
        if _opens_as_video(path):
            return "it is a video under an image's name", "give it a video's extension, such as .mp4", "not an image"
        return "it is damaged, or of no known image format", "save the image again, as PNG or JPEG", "unreadable"
    reason = f"it cannot be read as an image: {_first_line(error)}"
    return reason, "save the image again, as PNG or JPEG", "unreadable"


def _opens_as_video(path: Path) -> bool:
    try:
        with av.open(str(path), options=LOCAL_FILES_ONLY, metadata_errors="ignore") as container:
            return picture_stream(container) is not None and not _holds_still(container)
    except (av.error.FFmpegError, OSError):
        return False


def _holds_still(container: Any) -> bool:
    return container.format.name == "image2" or container.format.name.endswith("_pipe")


def _text_fix(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    return "run `git lfs pull` in the dataset's folder" if pointer else f"replace it by the real {kind}"


def _not_a_file(path: Path) -> tuple[str, str, str]:
    if path.is_symlink():
        try:
            path.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                return "it is a link that leads back to itself", "remove the link or repair it", "broken link"
    if path.is_symlink() and not path.exists():
        return "it is a link to a file that does not exist", "remove the link or repair it", "broken link"
    if not path.exists():
        return "the file does not exist", "restore the file", "missing"
    return "it is not a regular file", "remove it from the folder", "not a file"


def _why_not_opened(path: Path, error: Exception) -> tuple[str, str, str]:
    """Reason, fix and cause for a file that no reader accepts."""
    text = _looks_like_text(path)
    if text:
        return text, _text_fix(path, "video"), "not a video"
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
    if head.startswith(LFS_POINTER):
        return "it is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
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
