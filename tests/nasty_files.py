"""Writes a folder of files as people really have them, each with the decision that is right for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from data_clips import numbered_frame, write_clip, write_sound
from PIL import Image

EMOJI, JAPANESE, COMBINING = "\U0001f3ac clip.mp4", "動画テスト.mp4", "cafe\u0301.mp4"
NOT_UTF8 = os.fsdecode(b"caf\xe9.mp4")
"""A name in Latin-1, as old archives unpack them."""
LONGEST = "n" * 251 + ".mp4"
"""The longest name that file systems take: 255 bytes."""
PQ = "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
HLG = "log-level=none:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"


@dataclass(frozen=True)
class Nasty:
    """One file of the folder.

    Attributes:
        name: path inside the folder.
        write: makes the file.
        word: what the reason has to say, in any case; None where there must be no row at all.
        used: whether the file is trained on.
        caption: what its caption file holds; None for none.
        as_root: whether it is the same trouble for a user who may read everything.
    """

    name: str
    write: Callable[[Path], object]
    word: str | None
    used: bool = False
    caption: bytes | None = b"a clip"
    as_root: bool = True


def lay_out(folder: Path) -> list[Nasty]:
    """Write every nasty file into `folder`; those that only trouble users without root's rights are left out."""
    rows = [*_damaged(), *_unusual(), *_names(), *_not_media(), *_captions()]
    if os.geteuid() == 0:
        rows = [row for row in rows if row.as_root]
    folder.mkdir(parents=True)
    for row in rows:
        path = folder / row.name
        path.parent.mkdir(parents=True, exist_ok=True)
        row.write(path)
        if row.caption is not None:
            path.with_suffix(".txt").write_bytes(row.caption)
    return rows


def clip(path: Path, **how: object) -> Path:
    return write_clip(path, 20, fps=16, **how)  # type: ignore[arg-type]


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def as_suffix(write: Callable[[Path], object], suffix: str) -> Callable[[Path], object]:
    """Write with another extension than the name has, then rename."""

    def renamed(path: Path) -> None:
        real = path.with_name(f"real{suffix}")
        write(real)
        real.rename(path)

    return renamed


def _noisy(path: Path, **how: object) -> bytes:
    noise = [np.random.default_rng(n).integers(0, 255, (64, 128, 3), np.uint8) for n in range(40)]
    return write_clip(path, noise, fps=16, **how).read_bytes()  # type: ignore[arg-type]


def _cut_at(part: float, **how: object) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        data = _noisy(path, **how)
        path.write_bytes(data[: int(len(data) * part)])

    return write


def _flipped(path: Path) -> None:
    data = bytearray(_noisy(path, options={"g": "10"}))
    middle = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    data[middle : middle + 400] = bytes(byte ^ 0xFF for byte in data[middle : middle + 400])
    path.write_bytes(data)


def _no_frame_decodes(path: Path) -> None:
    data = bytearray(_noisy(path))
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def _damaged() -> list[Nasty]:
    faststart = {"container_options": {"movflags": "faststart"}}
    return [
        Nasty("zero bytes.mp4", content(b""), "0 bytes"),
        Nasty("zero bytes.png", content(b""), "0 bytes"),
        Nasty("no moov.mp4", _cut_at(0.6), "moov"),
        Nasty("broken tail.mp4", _cut_at(0.8, **faststart), "damaged or cut off", used=True),
        Nasty("hardly begun.mp4", _cut_at(0.1, **faststart), "damaged or cut off"),
        Nasty("flipped bytes.mp4", _flipped, "16 fps", used=True),
        Nasty("nothing decodes.mp4", _no_frame_decodes, "no frame can be decoded"),
        Nasty("noise.mkv", content(np.random.default_rng(0).bytes(5000)), "no video that can be opened"),
        Nasty("cut.jpg", _cut_jpeg, "cannot be read as an image"),
    ]


def _cut_jpeg(path: Path) -> None:
    Image.fromarray(numbered_frame(3)).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def _variable_rate(path: Path) -> None:
    gaps = np.random.default_rng(1).uniform(0.02, 0.12, 29)
    write_clip(path, 30, times=[0.0, *np.cumsum(gaps).tolist()])


def _edit_list(path: Path) -> None:
    """A clip cut without encoding anew: times below zero, which an edit list tells players to skip."""
    whole = write_clip(path.with_name("whole.mp4"), 60, fps=16, options={"bf": "2", "g": "60"})
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        skipped = round(Fraction(20, 16) / (source.streams.video[0].time_base or 1))
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - skipped, packet.dts - skipped, stream
                out.mux(packet)
    whole.unlink()


def _transparent(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx-vp9", rate=16, options={"cpu-used": "8"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuva420p"
        for number in range(20):
            picture = np.dstack([numbered_frame(number), np.full((64, 128), 128, np.uint8)])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        out.mux(stream.encode(None))


def _gif(pictures: int) -> Callable[[Path], object]:
    frames = [Image.fromarray(numbered_frame(n)) for n in range(pictures)]
    return lambda path: frames[0].save(path, save_all=True, append_images=frames[1:], duration=60)


def _huge_png(path: Path) -> None:
    """A valid header that claims 60000 x 60000 pixels, and nothing to fill them with."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _unusual() -> list[Nasty]:
    deep = {"codec": "libx265", "pixel_format": "yuv420p10le"}
    wide = [np.zeros((16, 4000, 3), np.uint8)] * 20
    return [
        Nasty("sound only.mp4", as_suffix(write_sound, ".m4a"), "only sound"),
        Nasty("one frame.mp4", lambda path: write_clip(path, 1, fps=16), "too short"),
        Nasty("two frames.mp4", lambda path: write_clip(path, 2, fps=16), "too short"),
        Nasty("variable rate.mp4", _variable_rate, "fps", used=True),
        Nasty("rotated.mp4", lambda path: clip(path, rotation=-90), "64x128", used=True),
        Nasty("mirrored.mp4", lambda path: clip(path, rotation=0, mirrored=True), "128x64", used=True),
        Nasty(
            "ten bit.mp4",
            lambda path: clip(path, **deep, options={"x265-params": "log-level=none"}),
            "128x64",
            used=True,
        ),
        Nasty("pq.mp4", lambda path: clip(path, **deep, options={"x265-params": PQ}), "HDR (PQ)", used=True),
        Nasty("hlg.mp4", lambda path: clip(path, **deep, options={"x265-params": HLG}), "HDR (HLG)", used=True),
        Nasty("odd.mkv", lambda path: clip(path, codec="ffv1", pixel_format="yuv444p", size=(131, 77)), "131x77", True),
        Nasty("tiny.mkv", lambda path: clip(path, codec="ffv1", pixel_format="yuv444p", size=(8, 8)), "8x8", True),
        Nasty("transparent.webm", _transparent, "128x64", used=True),
        Nasty("animated.gif", _gif(25), "fps", used=True),
        Nasty("single.gif", _gif(1), "1 frame", used=True),
        Nasty("claims 60000 pixels.png", _huge_png, "more pixels"),
        Nasty(
            "ribbon.mkv",
            lambda path: write_clip(path, wide, fps=16, codec="ffv1", pixel_format="yuv444p"),
            "4000x16",
        ),
        Nasty("edit list.mp4", _edit_list, "40 frames", used=True),
        Nasty("late.mkv", lambda path: clip(path, times=[3 + n / 16 for n in range(20)]), "1.25 s", True),
    ]


def _png(path: Path) -> None:
    Image.fromarray(numbered_frame(3)).save(path)


def _names() -> list[Nasty]:
    names = ["UPPER.MP4", NOT_UTF8, EMOJI, JAPANESE, COMBINING, LONGEST, "line\nbreak.mp4", 'it\'s "quoted".mp4']
    names += ["100%d%s.mp4", "-dash.mp4", "two.dots.mp4", " lead and trail .mp4", "#hash?query&.mp4"]
    return [
        *(Nasty(name, as_suffix(clip, ".mp4"), "16 fps", used=True) for name in names),
        Nasty("clip.png", as_suffix(clip, ".mp4"), "a video under an image's name"),
        Nasty("still.mp4", as_suffix(_png, ".png"), "still image"),
        Nasty("really webp.png", as_suffix(_png, ".webp"), "image", used=True),
        Nasty(".hidden.mp4", clip, None),
        Nasty(".hidden/clip.mp4", clip, None),
        Nasty("twins.mp4", clip, "16 fps", used=True),
        Nasty("twins.mov", clip, "16 fps", used=True),
    ]


def _loop(path: Path) -> None:
    """A link to a folder that leads back to it."""
    path.symlink_to(path.parent, target_is_directory=True)


def _linked_folder(path: Path) -> None:
    elsewhere = path.parent.parent.parent / "elsewhere"
    elsewhere.mkdir()
    clip(elsewhere / path.name)
    (elsewhere / path.with_suffix(".txt").name).write_bytes(b"a linked clip")
    path.parent.rmdir()
    path.parent.symlink_to(elsewhere, target_is_directory=True)


def _unreadable(path: Path) -> None:
    clip(path)
    path.chmod(0)


def _unreadable_folder(path: Path) -> None:
    path.mkdir()
    clip(path / "inside.mp4")
    path.chmod(0)


def _not_media() -> list[Nasty]:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    return [
        Nasty("text.mp4", content(b"hello, I am no video\n"), "text file"),
        Nasty("page.mov", content(b"<!doctype html>\n<html><body>404</body></html>"), "HTML page"),
        Nasty("pointer.mp4", content(pointer), "git lfs pull"),
        Nasty("pointer.png", content(pointer), "git lfs pull"),
        Nasty("list.mp4", content(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"), "text file"),
        Nasty("loop", _loop, None, caption=None),
        Nasty("dangling.mp4", lambda path: path.symlink_to("nowhere.mp4"), "does not exist"),
        Nasty("to itself.mp4", lambda path: path.symlink_to(path.name), "link"),
        Nasty("linked/clip.mp4", _linked_folder, "16 fps", used=True, caption=None),
        Nasty("folder.mp4", lambda path: path.mkdir(), None, caption=None),
        Nasty("pipe.mp4", lambda path: os.mkfifo(path), "not a regular file"),
        Nasty("locked.mp4", _unreadable, "permission", as_root=False),
        Nasty("locked", _unreadable_folder, "permission", caption=None, as_root=False),
        Nasty("notes.docx", content(b"no media"), None, caption=None),
    ]


def _captions() -> list[Nasty]:
    def captioned(name: str, text: bytes | None, word: str, used: bool = False) -> Nasty:
        return Nasty(f"caption {name}.mp4", clip, word, used, text)

    return [
        captioned("bom", b"\xef\xbb\xbfa clip", "16 fps", used=True),
        captioned("crlf", b"one clip\r\n\r\nthe same clip\r\n", "2 captions", used=True),
        captioned("nul", b"a\0clip", "NUL"),
        captioned("utf-16", "a clip".encode("utf-16"), "UTF-16"),
        captioned("latin-1", "ein schöner Clip".encode("latin-1"), "not UTF-8"),
        captioned("empty", b"", "empty"),
        captioned("blank", b" \n\t\r\n", "empty"),
        captioned("1 MB", b"word " * 200_000, "16 fps", used=True),
        captioned("missing", None, "is missing"),
    ]
