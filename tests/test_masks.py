"""Masks: cut like their clip, reduced to the latent grid, and matched with clips or refused with a true reason."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_clips import write_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tunerkit.config.settings import TrainConfig
from tunerkit.data.mask_files import link_masks
from tunerkit.data.masks import decode_mask, latent_weights
from tunerkit.data.media import UnreadableMedia
from tunerkit.data.probe import content_digest, read_media
from tunerkit.data.samples import ClipRow, Mask, Sample
from tunerkit.errors import DatasetError

LOSSLESS: dict[str, Any] = {"codec": "libx264rgb", "pixel_format": "rgb24", "options": {"qp": "0"}}
WIDTH, HEIGHT = 128, 64


def moving_area(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Grey picture `[H, W]`: a white area that moves 2 pixels to the right and 1 down per frame."""
    picture = np.zeros((height, width), np.uint8)
    picture[4 + number : 28 + number, 6 + 2 * number : 46 + 2 * number] = 255
    return picture


def mask_clip(path: Path, frames: int, **encoding: Any) -> Path:
    return write_clip(path, [np.repeat(moving_area(n)[..., None], 3, axis=2) for n in range(frames)], **encoding)


def white(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 255).save(path)
    return path


def sample_of(clip: Path, indices: tuple[int, ...], mask: Path | None = None, **changes: Any) -> Sample:
    media = read_media(clip)
    size = (media.source.width, media.source.height)
    times = tuple(media.times[index] for index in indices)
    sample = Sample("clips", clip, "video", ("",), media.source, indices, 16.0, size, size, (0, 0), 0, False, times)
    kind = "image" if mask and mask.suffix == ".png" else "video"
    return sample._replace(mask=mask and Mask(mask, kind, content_digest(mask)), **changes)


def row_of(file: Path, dataset: str = "clips", samples: tuple[Sample, ...] = ()) -> ClipRow:
    samples = samples or (sample_of(file, (0, 2, 4, 6, 8)),)
    return ClipRow(dataset, file, "video", "used", "uses 5", "", samples[0].source, samples)


def config_of(tmp_path: Path, **changes: Any) -> TrainConfig:
    """A dataset of clips, one of masks for it and one without masks; `clips` and `masks` change the first two."""
    clips = {"id": "clips", "instance_data_dir": tmp_path / "clips", "conditioning_data": "masks"}
    masks = {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask"}
    return TrainConfig(
        model_family="sanavideo",
        output_dir=tmp_path / "out",
        datasets=[
            {**clips, **changes.get("clips", {})},
            {**masks, "instance_data_dir": tmp_path / "masks", **changes.get("masks", {})},
            {"id": "plain", "instance_data_dir": tmp_path / "plain"},
            *changes.get("more", []),
        ],
    )


def clip(tmp_path: Path, name: str, frames: int = 10, folder: str = "clips", **encoding: Any) -> Path:
    path = tmp_path / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, frames, **encoding)


# On the latent grid --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    t=st.integers(1, 4),
    r=st.sampled_from([1, 4, 8]),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tile=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 1000),
)
def test_weights_are_the_means_of_what_a_latent_stands_for(
    t: int, r: int, grid: tuple[int, int], tile: tuple[int, int], seed: int
) -> None:
    (h, w), (down, across) = grid, tile
    mask = np.random.default_rng(seed).integers(0, 256, ((t - 1) * r + 1, h * down, w * across), dtype=np.uint8)
    expected = np.zeros((1, t, h, w))
    for j in range(t):
        frames = [0] if j == 0 else range((j - 1) * r + 1, j * r + 1)
        for y in range(h):
            for x in range(w):
                values = [
                    float(mask[f, y * down + a, x * across + b]) / 255
                    for f in frames
                    for a in range(down)
                    for b in range(across)
                ]
                expected[0, j, y, x] = sum(values) / len(values)
    weights = latent_weights(mask, t, h, w, r)
    assert weights.dtype == np.float32
    assert weights.shape == (1, t, h, w)
    assert weights.min() >= 0
    assert weights.max() <= 1
    np.testing.assert_allclose(weights, expected, atol=1e-7)


def test_white_weighs_exactly_one_and_black_nothing() -> None:
    assert (latent_weights(np.full((9, 64, 96), 255, np.uint8), 2, 2, 3, 8) == 1).all()
    assert (latent_weights(np.zeros((9, 64, 96), np.uint8), 2, 2, 3, 8) == 0).all()


@pytest.mark.parametrize("shape", [(8, 64, 64), (9, 63, 64), (9, 64, 63)])
def test_a_mask_that_does_not_divide_into_the_grid(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        latent_weights(np.zeros(shape, np.uint8), 2, 2, 2, 8)


# Cut like the clip ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "kind"), [(30, "mp4"), (Fraction(24000, 1001), "mkv")])
def test_a_moving_mask_has_the_frames_and_the_crop_of_its_clip(tmp_path: Path, rate: Any, kind: str) -> None:
    source = write_clip(tmp_path / "clip.mp4", 20, fps=30)
    mask = mask_clip(tmp_path / f"mask.{kind}", 20, fps=rate, **LOSSLESS)  # its own clock does not count
    indices = (1, 3, 5, 7, 8, 10, 12, 14, 16)
    sample = sample_of(source, indices, mask, size=(96, 32), crop=(20, 24))
    grey = decode_mask(sample)
    expected = np.stack([moving_area(number)[24:56, 20:116] for number in indices])
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, expected)

    weights = latent_weights(grey, 3, 1, 3, 4)
    frames = expected / 255
    for j, own in enumerate([frames[:1], frames[1:5], frames[5:9]]):
        for x in range(3):
            assert weights[0, j, 0, x] == pytest.approx(own[:, :, x * 32 : x * 32 + 32].mean(), abs=1e-6)


def test_a_usual_h264_mask_is_right_to_a_few_grey_levels(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", 9)
    sample = sample_of(source, tuple(range(9)), mask_clip(tmp_path / "mask.mp4", 9))
    expected = np.stack([moving_area(number) for number in range(9)])
    assert np.abs(decode_mask(sample).astype(int) - expected).mean() < 4


def test_a_mask_of_another_size_is_scaled_with_the_clip(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", 9)
    half = Image.new("L", (WIDTH // 2, HEIGHT // 2), 0)
    half.paste(255, (0, 0, WIDTH // 4, HEIGHT // 2))
    half.save(tmp_path / "mask.png")
    sample = sample_of(source, (0, 4, 8), tmp_path / "mask.png", resized=(256, 128), size=(128, 128), crop=(64, 0))
    grey = decode_mask(sample)
    assert grey.shape == (3, 128, 128)
    assert (grey[:, :, :52] == 255).all()
    assert (grey[:, :, 76:] == 0).all()


def test_a_still_holds_for_every_frame(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", 9)
    Image.fromarray(moving_area(3)).save(tmp_path / "mask.png")
    grey = decode_mask(sample_of(source, tuple(range(9)), tmp_path / "mask.png"))
    np.testing.assert_array_equal(grey, np.repeat(moving_area(3)[None], 9, axis=0))


def test_grey_is_the_luma_of_the_colours(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", 1)
    colours = {(255, 0, 0): 54, (0, 255, 0): 182, (0, 0, 255): 18, (77, 77, 77): 77, (255, 255, 255): 255}
    for colour, grey in colours.items():
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(tmp_path / "mask.png")
        assert (decode_mask(sample_of(source, (0,), tmp_path / "mask.png")) == grey).all()


@pytest.mark.parametrize(
    ("size", "frames", "words"),
    [((64, 64), 9, ["64x64", "128x64", "not the same shape"]), ((WIDTH, HEIGHT), 6, ["6 frames", "128x64"])],
)
def test_a_mask_that_does_not_fit_names_both_files(
    tmp_path: Path, size: tuple[int, int], frames: int, words: list[str]
) -> None:
    source = write_clip(tmp_path / "clip.mp4", 9)
    mask = write_clip(tmp_path / "other.mp4", frames, size=size)
    with pytest.raises(UnreadableMedia) as refused:
        decode_mask(sample_of(source, (0, 8), mask))
    for word in ["clip.mp4", "other.mp4", *words]:
        assert word in str(refused.value)


def test_a_mask_of_nearly_the_same_shape_fits(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", 2)
    assert decode_mask(sample_of(source, (0, 1), white(tmp_path / "mask.png", (215, 107)))).shape == (2, 64, 128)
    with pytest.raises(UnreadableMedia, match="not the same shape"):
        decode_mask(sample_of(source, (0, 1), white(tmp_path / "mask.png", (215, 105))))


# Matching ------------------------------------------------------------------------------------------------------


def test_masks_go_by_path_and_then_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [clip(tmp_path, name) for name in ("a/x.mp4", "b/x.mp4", "deep/er/y.mov", "caf\u00e9.mp4")]
    masks = [
        white(tmp_path / "masks" / "a" / "x.png"),
        mask_clip(tmp_path / "masks" / "a" / ".." / "x.mkv", 10),  # the only one left for b/x
        white(tmp_path / "masks" / "y.png"),
        white(tmp_path / "masks" / "cafe\u0301.png"),
    ]
    white(tmp_path / "masks" / "nobody.png")
    windows = (sample_of(files[0], (0, 1)), sample_of(files[0], (4, 5), window=1))
    rows = [row_of(files[0], samples=windows), *map(row_of, files[1:])]
    with caplog.at_level(logging.WARNING, "tunerkit"):
        linked = link_masks(rows, config_of(tmp_path))
    assert [row.decision for row in linked] == ["used"] * 4
    for row, mask in zip(linked, masks, strict=True):
        assert f"mask {mask.name}" in row.reason
        for sample in row.samples:
            assert sample.mask is not None
            assert sample.mask.file.samefile(mask)
            assert sample.mask.digest == content_digest(mask)
            assert sample.mask.kind == ("image" if mask.suffix == ".png" else "video")
    assert len(linked[0].samples) == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert "1 of 5 masks" in line
    assert "nobody.png" in line
    assert "masks" in line


def test_other_datasets_and_dropped_rows_pass_through(tmp_path: Path) -> None:
    white(tmp_path / "masks" / "x.png")
    plain = row_of(clip(tmp_path, "p.mp4", folder="plain"), "plain")
    dropped = row_of(clip(tmp_path, "x.mp4"))._replace(decision="dropped", reason="too short", samples=())
    rows = [plain, dropped]
    linked = link_masks(rows, config_of(tmp_path))
    assert linked[0] is plain
    assert linked[1] is dropped


def test_without_mask_datasets_nothing_changes(tmp_path: Path) -> None:
    rows = [row_of(clip(tmp_path, "x.mp4"))]
    assert link_masks(rows, config_of(tmp_path, clips={"conditioning_data": None}, masks={"disabled": True})) == rows


def test_a_gif_of_one_picture_is_a_still(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(moving_area(2)).save(tmp_path / "masks" / "x.gif")
    (row,) = link_masks([row_of(clip(tmp_path, "x.mp4"))], config_of(tmp_path))
    assert row.sample is not None
    assert row.sample.mask is not None
    assert row.sample.mask.kind == "image"
    np.testing.assert_array_equal(decode_mask(row.sample), np.repeat(moving_area(2)[None], 5, axis=0))


def test_another_number_of_frames_is_said(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask_clip(tmp_path / "masks" / "x.mp4", 15)
    (row,) = link_masks([row_of(clip(tmp_path, "x.mp4"))], config_of(tmp_path))
    assert row.decision == "used"
    assert "mask x.mp4 (15 frames where the clip has 10" in row.reason


def test_masks_of_several_datasets(tmp_path: Path) -> None:
    white(tmp_path / "masks" / "x.png")
    white(tmp_path / "second" / "y.png")
    second = {"id": "second", "dataset_type": "conditioning", "instance_data_dir": tmp_path / "second"}
    config = config_of(tmp_path, clips={"conditioning_data": ["masks", "second"]}, more=[second])
    rows = [row_of(clip(tmp_path, "x.mp4")), row_of(clip(tmp_path, "y.mp4"))]
    for row, name in zip(link_masks(rows, config), ["x.png", "y.png"], strict=True):
        assert row.sample is not None
        assert row.sample.mask is not None
        assert row.sample.mask.file.name == name


# Refusals ------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, *rows: ClipRow) -> ClipRow:
    white(tmp_path / "masks" / "other.png")
    row = link_masks(rows, config_of(tmp_path))[0]
    assert row.decision == "dropped"
    assert not row.samples
    assert row.source is not None
    assert str(tmp_path / "masks") in row.fix
    assert "all-white" in row.fix
    return row


def test_no_mask(tmp_path: Path) -> None:
    row = refused(tmp_path, row_of(clip(tmp_path, "x.mp4")))
    assert row.cause == "no mask"
    assert "x.mp4" in row.reason


def test_two_masks(tmp_path: Path) -> None:
    white(tmp_path / "masks" / "x.png")
    mask_clip(tmp_path / "masks" / "x.mp4", 10)
    row = refused(tmp_path, row_of(clip(tmp_path, "x.mp4")))
    assert row.cause == "several masks"
    assert "x.png" in row.reason
    assert "x.mp4" in row.reason


def test_one_mask_for_two_clips_of_one_name(tmp_path: Path) -> None:
    white(tmp_path / "masks" / "x.png")
    row = refused(tmp_path, row_of(clip(tmp_path, "a/x.mp4")), row_of(clip(tmp_path, "b/x.mp4")))
    assert row.cause == "unclear mask"
    assert "mask x.png" in row.reason


def test_the_mask_of_another_clip_is_never_taken(tmp_path: Path) -> None:
    white(tmp_path / "masks" / "a" / "x.png")
    row = refused(tmp_path, row_of(clip(tmp_path, "b/x.mp4")), row_of(clip(tmp_path, "a/x.mp4")))
    assert row.cause == "no mask"


@pytest.mark.parametrize("name", ["x.png", "x.mp4"])
def test_an_unreadable_mask(tmp_path: Path, name: str) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).write_bytes(b"")
    row = refused(tmp_path, row_of(clip(tmp_path, "x.mp4")))
    assert row.cause == "mask unreadable"
    assert f"mask {name}" in row.reason
    assert "empty" in row.reason


def test_a_mask_with_transparent_parts(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 255))
    picture.save(tmp_path / "masks" / "y.png")  # transparency that is nowhere used
    picture.putpixel((3, 3), (0, 0, 0, 0))
    picture.save(tmp_path / "masks" / "x.png")
    rows = [row_of(clip(tmp_path, "x.mp4")), row_of(clip(tmp_path, "y.mp4"))]
    assert refused(tmp_path, *rows).cause == "mask transparent"
    assert link_masks(rows, config_of(tmp_path))[1].decision == "used"


def test_another_shape(tmp_path: Path) -> None:
    white(tmp_path / "masks" / "x.png", (64, 64))
    row = refused(tmp_path, row_of(clip(tmp_path, "x.mp4")))
    assert row.cause == "mask shape"
    assert "64x64" in row.reason
    assert "128x64" in row.reason


def test_too_few_frames_for_a_later_window(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask_clip(tmp_path / "masks" / "x.mp4", 5)
    file = clip(tmp_path, "x.mp4")
    early, late = sample_of(file, (0, 4)), sample_of(file, (5, 9), window=1)
    row = refused(tmp_path, row_of(file, samples=(early, late)))
    assert row.cause == "mask too short"
    assert "5 frames" in row.reason
    assert "frame 10" in row.reason
    (kept,) = link_masks([row_of(file, samples=(early,))], config_of(tmp_path))
    assert kept.decision == "used"


# Settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clips", "masks", "words"),
    [
        ({"conditioning_data": "msks"}, {}, ["'msks'", "no dataset", "plain"]),
        ({"conditioning_data": ["masks", "plain"]}, {}, ["'plain'", "of type video"]),
        ({}, {"conditioning_type": "reference_strict"}, ["reference_strict", "only masks"]),
        ({}, {"disabled": True}, ["is disabled"]),
    ],
)
def test_ids_that_give_no_masks(tmp_path: Path, clips: dict[str, Any], masks: dict[str, Any], words: list[str]) -> None:
    config = config_of(tmp_path)
    # The settings are checked when they are read; here they are changed behind that check.
    changes = {"clips": clips, "masks": masks}
    changed = [dataset.model_copy(update=changes.get(dataset.id, {})) for dataset in config.datasets]
    config = config.model_copy(update={"datasets": changed})
    with pytest.raises(DatasetError) as wrong:
        link_masks([row_of(clip(tmp_path, "x.mp4"))], config)
    for word in ["conditioning_data", "'clips'", "Fix", "masks", *words]:
        assert word in str(wrong.value)


def test_a_mask_folder_that_is_missing_or_not_set(tmp_path: Path) -> None:
    rows = [row_of(clip(tmp_path, "x.mp4"))]
    with pytest.raises(DatasetError, match=r"dataset 'masks'.*does not exist"):
        link_masks(rows, config_of(tmp_path))
    with pytest.raises(DatasetError, match="dataset 'masks': instance_data_dir is not set"):
        link_masks(rows, config_of(tmp_path, masks={"instance_data_dir": None}))
