"""Probing and decoding real files: exact frames, rotation, colour, images, and true reasons for broken ones."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from data_clips import numbered_frame, read_number, write_clip, write_sound
from PIL import Image

from tunerkit.data.decode import decode
from tunerkit.data.frames import nearest_frames
from tunerkit.data.probe import Media, UnreadableMedia, content_digest, probe, read_media
from tunerkit.data.samples import Sample


def sample_of(path: Path, indices: tuple[int, ...], *, size=None, resized=None, crop=(0, 0), fps=16.0) -> Sample:
    """A sample that takes frames `indices` of a file, by default at its own size."""
    media: Media = read_media(path)
    source = media.source
    own = (source.width, source.height)
    times = tuple(media.times[index] for index in indices) if media.timed else ()
    kind = "image" if path.suffix in (".png", ".jpg", ".webp", ".bmp") else "video"
    return Sample(
        "d", path, kind, ("",), source, indices, fps, size or own, resized or size or own, crop, 0, False, times
    )


def numbers(pixels: np.ndarray) -> list[int]:
    return [read_number(picture) for picture in pixels]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.mp4", "libx264", {"bf": "3"}),
        ("b.mkv", "libx264", {"bf": "3"}),
        ("b.avi", "libx264", {"bf": "3"}),
        ("m.avi", "mpeg4", {"bf": "2"}),
        ("v.webm", "libvpx-vp9", {"lag-in-frames": "16", "auto-alt-ref": "1"}),
        ("v8.webm", "libvpx", {}),
        ("h.mov", "libx265", {"x265-params": "log-level=none"}),
    ],
)
def test_exact_frames_of_a_constant_rate(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write_clip(tmp_path / name, 60, fps=30, codec=codec, options=options)
    media = read_media(path)
    assert media.source.frames == 60
    assert media.source.fps == pytest.approx(30)
    assert media.source.duration == pytest.approx(2, abs=0.002)
    assert (media.source.width, media.source.height) == (128, 64)
    wanted = nearest_frames(media.times, 16, 29)
    assert numbers(decode(sample_of(path, wanted))) == list(wanted)


@pytest.mark.parametrize(("fps", "target"), [(Fraction(24000, 1001), 16), (60, 24), (25, 25), (12, 16)])
def test_resampled_frames(tmp_path: Path, fps: Fraction | int, target: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", 50, fps=fps)
    exact = [index / Fraction(fps) for index in range(50)]
    expected = [
        min(range(50), key=lambda i: (abs(exact[i] - Fraction(k, target)), i))
        for k in range(int(50 / Fraction(fps) * target))
    ]
    media = read_media(path)
    assert media.source.fps == pytest.approx(float(fps))
    assert list(nearest_frames(media.times, target, len(expected))) == expected
    assert numbers(decode(sample_of(path, tuple(expected)))) == expected


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate(tmp_path: Path, name: str) -> None:
    gaps = np.random.default_rng(5).uniform(0.01, 0.15, 59)
    times = [0.0, *np.cumsum(gaps).tolist()]
    path = write_clip(tmp_path / name, 60, times=times, options={"bf": "2"})
    media = read_media(path)
    assert media.times == pytest.approx(times, abs=0.0011)
    assert media.source.fps == pytest.approx(60 / media.source.duration, rel=0.01)
    expected = [
        min(range(60), key=lambda i: (abs(media.times[i] - k / 16), i)) for k in range(int(media.times[-1] * 16))
    ]
    assert list(nearest_frames(media.times, 16, len(expected))) == expected
    assert numbers(decode(sample_of(path, tuple(expected)))) == expected


def test_clip_that_does_not_start_at_zero(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "late.mkv", 20, fps=20, times=[3 + i / 20 for i in range(20)])
    media = read_media(path)
    assert media.source.duration == pytest.approx(1.0, abs=0.01)
    assert numbers(decode(sample_of(path, (0, 5, 19)))) == [0, 5, 19]


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path) -> None:
    """A clip cut without encoding anew keeps the frames since the last key frame and tells players to skip them."""
    whole = write_clip(tmp_path / "whole.mp4", 40, fps=20, options={"bf": "2", "g": "40"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        skipped = round(10 / 20 / float(source.streams.video[0].time_base or 1))
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - skipped, packet.dts - skipped, stream
                out.mux(packet)
    media = read_media(cut)
    assert media.source.frames == 30
    assert media.source.duration == pytest.approx(1.5)
    assert numbers(decode(sample_of(cut, (0, 1, 15, 29)))) == [10, 11, 25, 39]


def test_hidden_vp8_pictures_are_no_frames(tmp_path: Path) -> None:
    """A picture that only serves as a reference has a packet and a timestamp, and is never shown."""
    plain = write_clip(tmp_path / "plain.webm", 20, codec="libvpx")
    hidden = tmp_path / "hidden.webm"
    with av.open(str(plain)) as source, av.open(str(hidden), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                data = bytearray(bytes(packet))
                if number == 7:
                    data[0] &= 0xEF  # clear show_frame
                copy = av.Packet(bytes(data))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                out.mux(copy)
    assert probe(hidden).frames == 19
    assert numbers(decode(sample_of(hidden, (6, 7, 18)))) == [6, 8, 19]


def test_decoding_fails_by_name_where_the_file_ends_early(tmp_path: Path) -> None:
    long = write_clip(tmp_path / "clip.mp4", 40)
    sample = sample_of(long, (0, 10, 30))
    write_clip(long, 20)
    with pytest.raises(UnreadableMedia, match=r"clip\.mp4: frame 30 of 40 cannot be decoded"):
        decode(sample)
    long.unlink()
    with pytest.raises(UnreadableMedia, match="frame 0 of 40"):
        decode(sample)


@pytest.mark.parametrize(
    ("rotation", "turns"), [(0, 0), (90, 1), (-90, 3), (180, 2)], ids=["0", "90ccw", "90cw", "180"]
)
def test_rotation_is_applied(tmp_path: Path, rotation: int, turns: int) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :64] = 255  # the upper left quarter is white
    path = write_clip(tmp_path / "phone.mp4", [picture] * 3, rotation=rotation)
    source = probe(path)
    assert (source.width, source.height) == ((64, 128) if turns % 2 else (128, 64))
    assert source.rotation == turns * 90
    # 90 counter-clockwise brings the upper left corner to the lower left one, and so on round.
    corner = {0: (16, 32), 1: (96, 16), 2: (48, 96), 3: (32, 48)}[turns]
    shown = decode(sample_of(path, (1,)))[0]
    assert shown.shape == (source.height, source.width, 3)
    assert shown[corner].min() > 240
    assert shown.mean() == pytest.approx(255 / 4, abs=3)


@pytest.mark.parametrize(("rotation", "corner"), [(0, (16, 96)), (90, (96, 48)), (180, (48, 32)), (-90, (32, 16))])
def test_mirroring_is_applied(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    """The white upper left quarter, turned and then mirrored left to right."""
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :64] = 255
    path = write_clip(tmp_path / "selfie.mp4", [picture] * 3, rotation=rotation, mirrored=True)
    shown = decode(sample_of(path, (1,)))[0]
    assert shown[corner].min() > 240
    assert shown.mean() == pytest.approx(255 / 4, abs=3)


def test_high_dynamic_range_is_remarked(tmp_path: Path) -> None:
    tags = "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    path = write_clip(
        tmp_path / "hdr.mp4", 5, codec="libx265", pixel_format="yuv420p10le", options={"x265-params": tags}
    )
    assert list(read_media(path).remarks) == ["HDR (PQ): tone mapped to standard range"]
    assert numbers(decode(sample_of(path, (0, 4)))) == [0, 4]


def test_scaled_and_cropped(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5, size=(256, 128))
    pixels = decode(sample_of(path, (0, 3, 3), size=(96, 64), resized=(128, 64), crop=(32, 0)))
    assert pixels.shape == (3, 64, 96, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[1] == pixels[2]).all()
    whole = decode(sample_of(path, (0, 3, 3), size=(128, 64), resized=(128, 64)))
    assert (pixels == whole[:, :, 32:]).all()


def test_making_smaller_does_not_alias(tmp_path: Path) -> None:
    """One-pixel stripes scaled to an eighth are an even grey, not stripes of another width."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    path = write_clip(tmp_path / "stripes.mkv", [stripes] * 2, codec="ffv1", pixel_format="yuv444p")
    small = decode(sample_of(path, (0,), size=(32, 32)))[0, 4:-4, 4:-4].astype(int)
    assert np.abs(small - 127).max() <= 3
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    still = decode(sample_of(tmp_path / "stripes.png", (0,), size=(32, 32)))[0, 4:-4, 4:-4].astype(int)
    assert np.abs(still - 127).max() <= 3


def write_flat(path: Path, levels: tuple[int, int, int], matrix: int, full_range: bool, size: tuple[int, int]) -> Path:
    """A lossless clip of one colour given in Y, Cb, Cr with its colour tags."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full_range else 1
        frame = av.VideoFrame(*size, "yuv444p")
        for plane, level in zip(frame.planes, levels, strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def rgb_by_formula(levels: tuple[int, int, int], kr: float, kb: float, full_range: bool) -> np.ndarray:
    """ITU-T H.273, equations 11 to 24 and 38 to 40, in float64."""
    y, cb, cr = levels
    luma = y / 255 if full_range else (y - 16) / 219
    blue, red = [(c - 128) / (255 if full_range else 224) for c in (cb, cr)]
    r = luma + 2 * (1 - kr) * red
    b = luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return (np.clip([r, g, b], 0, 1) * 255).round()


@pytest.mark.parametrize("levels", [(120, 100, 160), (63, 102, 200), (180, 150, 90), (235, 128, 128)])
@pytest.mark.parametrize(
    ("matrix", "size", "kr", "kb"),
    [
        (1, (64, 64), 0.2126, 0.0722),  # BT.709 by tag
        (6, (64, 64), 0.299, 0.114),  # BT.601 by tag
        (9, (64, 64), 0.2627, 0.0593),  # BT.2020 by tag
        (2, (64, 64), 0.299, 0.114),  # no tag, standard definition
        (2, (1280, 64), 0.2126, 0.0722),  # no tag, high definition
    ],
)
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_follow_matrix_and_range(tmp_path, levels, matrix, size, kr, kb, full_range) -> None:
    path = write_flat(tmp_path / "flat.mkv", levels, matrix, full_range, size)
    shown = decode(sample_of(path, (0,), size=(32, 32)))[0, 16, 16]
    assert np.abs(shown - rgb_by_formula(levels, kr, kb, full_range)).max() <= 2


def test_ten_bits_and_odd_sizes(tmp_path: Path) -> None:
    deep = write_clip(tmp_path / "deep.mkv", 5, codec="ffv1", pixel_format="yuv420p10le")
    assert numbers(decode(sample_of(deep, (0, 4)))) == [0, 4]
    odd = write_clip(tmp_path / "odd.mkv", 5, codec="ffv1", pixel_format="yuv444p", size=(131, 67))
    assert (probe(odd).width, probe(odd).height) == (131, 67)
    assert numbers(decode(sample_of(odd, (2, 3)))) == [2, 3]


def test_gif(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.gif", 12, fps=10, codec="gif", pixel_format="rgb8")
    media = read_media(path)
    assert (media.source.frames, media.source.fps) == (12, pytest.approx(10))
    assert numbers(decode(sample_of(path, (0, 5, 11)))) == [0, 5, 11]


def test_non_square_pixels_are_stretched(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "wide.mp4", 3, options={"x264-params": "sar=2/1"}, size=(64, 64))  # shown as 128x64
    assert (probe(path).width, probe(path).height) == (128, 64)
    assert numbers(decode(sample_of(path, (2,)))) == [2]


def test_images(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(9)).save(tmp_path / "a.png")
    source = probe(tmp_path / "a.png")
    assert (source.width, source.height, source.frames, source.duration) == (128, 64, 1, 0.0)
    assert (decode(sample_of(tmp_path / "a.png", (0,)))[0] == numbered_frame(9)).all()

    # EXIF orientation 6: the camera was turned, show it rotated 90 degrees clockwise.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(numbered_frame(9)).save(tmp_path / "b.jpg", exif=exif, quality=95)
    turned = decode(sample_of(tmp_path / "b.jpg", (0,)))
    assert turned.shape == (1, 128, 64, 3)
    assert read_number(np.rot90(turned[0])) == 9

    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:, :, 0] = 200
    clear[:4, :, 3] = 255
    clear[4:, :, 3] = 51
    Image.fromarray(clear).save(tmp_path / "c.png")
    shown = decode(sample_of(tmp_path / "c.png", (0,)))[0]
    assert shown[0, 0].tolist() == [200, 0, 0]
    assert shown[7, 0].tolist() == [244, 204, 204]  # a fifth of the colour over white

    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "d.png")
    assert decode(sample_of(tmp_path / "d.png", (0,)))[0, 0, 0].tolist() == [156, 156, 156]
    for mode, name in (("L", "l.png"), ("CMYK", "k.jpg"), ("P", "p.png"), ("1", "one.png"), ("LA", "la.png")):
        Image.fromarray(numbered_frame(5)).convert(mode).save(tmp_path / name)
        assert read_number(decode(sample_of(tmp_path / name, (0,)))[0]) == 5, mode


def test_sound_is_noticed(tmp_path: Path) -> None:
    assert not probe(write_clip(tmp_path / "mute.mp4", 3)).has_audio
    with av.open(str(write_sound(tmp_path / "tone.m4a"))) as tone, av.open(str(tmp_path / "loud.mp4"), "w") as out:
        picture = out.add_stream("libx264", rate=10)
        assert isinstance(picture, av.VideoStream)
        picture.width, picture.height = 64, 64
        sound = out.add_stream_from_template(tone.streams.audio[0])
        for number in range(5):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(numbered_frame(number, 64, 64), format="rgb24")))
        out.mux(picture.encode(None))
        for packet in tone.demux(audio=0):
            if packet.dts is not None:
                packet.stream = sound
                out.mux(packet)
    assert probe(tmp_path / "loud.mp4").has_audio
    assert probe(tmp_path / "loud.mp4").frames == 5


def test_digest(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 1000)
    large.write_bytes(bytes(range(256)) * 8192)  # 2 MiB
    data = large.read_bytes()
    assert content_digest(small) == hashlib.sha256(b"1000\n" + b"x" * 1000).hexdigest()
    assert content_digest(large) == hashlib.sha256(b"2097152\n" + data[:65536] + data[-65536:]).hexdigest()


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be used, each with words of its true reason."""
    whole = write_clip(folder / "whole.mp4", 60, size=(256, 128))
    data = whole.read_bytes()

    def put(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    png = folder / "still.png"
    Image.fromarray(numbered_frame(3)).save(png)
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    return {
        "empty": (put("empty.mp4", b""), "empty (0 bytes)"),
        "no index": (put("cut.mp4", data[: data.index(b"moov") - 100]), "moov"),
        "text": (put("text.mp4", b"hello, I am no video\n"), "text file"),
        "page": (put("page.mp4", b"<!doctype html>\n<HTML><body>404</body></html>"), "HTML page"),
        "pointer": (put("lfs.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
        "noise": (put("noise.mkv", np.random.default_rng(0).bytes(5000)), "no video that can be opened"),
        "sound": (write_sound(folder / "sound.m4a").rename(folder / "sound.mp4"), "only sound"),
        "still": (put("still.mp4", png.read_bytes()), "still image"),
        "playlist": (put("list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"), "text file"),
        "broken link": (folder / "gone.mp4", "link to a file that does not exist"),
        "cut image": (put("cut.png", png.read_bytes()[:-40]), "cannot be read as an image"),
        "text image": (put("text.jpg", b"not a picture"), "text file"),
    }


def test_broken_files_have_true_reasons(tmp_path: Path) -> None:
    for label, (path, words) in broken_files(tmp_path).items():
        with pytest.raises(UnreadableMedia) as caught:
            read_media(path)
        assert words in caught.value.reason, label
        assert caught.value.fix, label
        assert str(path) in str(caught.value), label


def test_stream_that_never_decodes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 10)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(UnreadableMedia, match=r"no frame can be decoded \(codec h264\)"):
        read_media(path)


def test_cut_off_file_counts_what_can_be_read(tmp_path: Path) -> None:
    noise = [np.random.default_rng(n).integers(0, 255, (64, 128, 3), np.uint8) for n in range(40)]
    path = write_clip(tmp_path / "clip.mp4", noise, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    media = read_media(path)
    assert 10 < media.source.frames < 40
    assert f"{media.source.frames} of 40 frames can be read" in media.remarks[0]
    assert all(a < b for a, b in pairwise(media.times))
    assert decode(sample_of(path, tuple(range(5)))).shape[0] == 5
