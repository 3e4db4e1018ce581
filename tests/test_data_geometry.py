"""Sizes, scaling and crops against values worked out by hand."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import pytest

from tunerkit.data.geometry import (
    USUAL_ASPECTS,
    SizeRules,
    enlargement,
    plan_size,
    refuse_size,
    size_remarks,
    target_aspect,
    target_size,
)

SANA = ((448, 896), (480, 832), (832, 480), (896, 448))
WIDE = 16 / 9


@pytest.mark.parametrize(
    ("rules", "aspect", "multiple", "expected"),
    [
        # sqrt(480^2 * 16/9) = 640, 480^2 / 640 = 360: 352 is the nearest multiple of 32
        (SizeRules(480, "pixel_area"), WIDE, 32, (640, 352)),
        (SizeRules(480, "pixel_area"), 1 / WIDE, 32, (352, 640)),
        (SizeRules(480, "pixel_area"), 1.0, 32, (480, 480)),
        # sqrt(512^2 * 16/9) = 682.7 -> 21.3 * 32, 384 = 12 * 32
        (SizeRules(512, "pixel_area"), WIDE, 32, (672, 384)),
        (SizeRules(512, "pixel_area"), WIDE, 16, (688, 384)),
        # sqrt(640^2 * 16/9) = 853.3 -> 26.7 * 32, 480 = 15 * 32
        (SizeRules(640, "pixel_area"), WIDE, 32, (864, 480)),
        # 0.2304 megapixels is 480 squared
        (SizeRules(0.2304, "area"), WIDE, 32, (640, 352)),
        # shorter edge 480, longer 853.3
        (SizeRules(480, "pixel"), WIDE, 32, (864, 480)),
        (SizeRules(480, "pixel"), 1 / WIDE, 16, (480, 848)),
        # shorter edge 500 -> 512, longer 512 * 16/9 = 910.2 -> 28.4 * 32
        (SizeRules(500, "pixel"), WIDE, 32, (896, 512)),
        (SizeRules(512, "pixel_area"), WIDE, 128, (640, 384)),
        (SizeRules(16, "pixel_area"), WIDE, 32, (32, 32)),
    ],
)
def test_target_size(rules: SizeRules, aspect: float, multiple: int, expected: tuple[int, int]) -> None:
    assert target_size(aspect, rules, multiple) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [((1280, 720), (832, 480)), ((720, 1280), (480, 832)), ((2000, 1000), (896, 448)), ((640, 480), (832, 480))],
)
def test_model_takes_the_trained_size_of_nearest_aspect(source, expected) -> None:
    assert plan_size(source, SizeRules(480, "model"), multiple=32, model_sizes=SANA).size == expected


def test_model_without_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="trained sizes"):
        plan_size((640, 480), SizeRules(480, "model"), multiple=32)


def test_scaled_size_keeps_the_aspect_and_covers() -> None:
    plan = plan_size((1280, 720), SizeRules(480, "pixel_area"), multiple=32)
    assert plan == ((640, 352), (640, 360), (0, 4))


@pytest.mark.parametrize("source", [(1921, 1079), (333, 777), (1000, 100), (50, 50), (641, 479)])
@pytest.mark.parametrize("kind", ["pixel", "pixel_area"])
@pytest.mark.parametrize("style", ["center", "corner", "random"])
def test_every_plan_is_legal(source, kind, style) -> None:
    rules = SizeRules(480, kind, crop_style=style)
    size, resized, crop = plan_size(source, rules, multiple=32, digest="ab" * 32)
    assert size[0] % 32 == 0
    assert size[1] % 32 == 0
    assert all(0 <= start <= whole - part for start, whole, part in zip(crop, resized, size, strict=True))
    # The aspect is the source's within one rounded pixel per edge.
    assert abs(resized[0] * source[1] - resized[1] * source[0]) <= max(source)
    # Each edge is at most half a multiple from the ideal one (the shorter edge for `pixel`).
    if kind == "pixel_area":
        ideal = 480 * math.sqrt(source[0] / source[1])
        assert abs(size[0] - ideal) <= 16


def test_square_crop() -> None:
    plan = plan_size((1280, 720), SizeRules(480, "pixel_area", crop=True), multiple=32)
    assert plan == ((480, 480), (853, 480), (186, 0))


def test_crop_with_kept_aspect_equals_no_crop() -> None:
    kept = SizeRules(480, "pixel_area", crop=True, crop_aspect="preserve")
    assert plan_size((1280, 720), kept, multiple=32) == plan_size(
        (1280, 720), SizeRules(480, "pixel_area"), multiple=32
    )


def test_random_crop_depends_on_the_file_only() -> None:
    rules = SizeRules(480, "pixel_area", crop=True, crop_style="random")
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(100)]
    places = [plan_size((1280, 720), rules, multiple=32, digest=digest).crop for digest in digests]
    assert places == [plan_size((1280, 720), rules, multiple=32, digest=digest).crop for digest in digests]
    assert len(set(places)) > 50
    assert all(0 <= x <= 373 and y == 0 for x, y in places)


def test_corner_crop_is_the_lower_right_one() -> None:
    rules = SizeRules(480, "pixel_area", crop=True, crop_style="corner")
    assert plan_size((1280, 720), rules, multiple=32).crop == (373, 0)


def test_larger_files_are_first_scaled_to_the_target() -> None:
    rules = SizeRules(480, "pixel_area", maximum_image_size=960, target_downsample_size=720)
    size, resized, _ = plan_size((3840, 2160), rules, multiple=32)
    assert size == (640, 352)
    assert resized == (960, 540)  # area 720^2 at 16:9
    assert plan_size((1280, 720), rules, multiple=32).resized == (640, 360)  # area 960^2 exactly: not larger
    by_edge = SizeRules(480, "pixel", maximum_image_size=720, target_downsample_size=600)
    assert plan_size((1920, 1080), by_edge, multiple=32).resized == (1067, 600)


def test_minimum_maximum_and_target_of_one_value() -> None:
    """The size settings that a published example document carries."""
    rules = SizeRules(480, "pixel_area", minimum_image_size=480, maximum_image_size=480, target_downsample_size=480)
    plan = plan_size((1280, 720), rules, multiple=32)
    assert plan == ((640, 352), (640, 360), (0, 4))
    assert refuse_size((1280, 720), rules) is None


@pytest.mark.parametrize(
    ("source", "rules", "dropped"),
    [
        ((640, 360), SizeRules(480, "pixel_area", minimum_image_size=480), False),  # 230,400 = 480^2
        ((640, 358), SizeRules(480, "pixel_area", minimum_image_size=480), True),
        ((640, 480), SizeRules(480, "pixel", minimum_image_size=480), False),
        ((1000, 479), SizeRules(480, "pixel", minimum_image_size=480), True),
        ((1000, 500), SizeRules(0.25, "area", minimum_image_size=0.5), False),
        ((1000, 499), SizeRules(0.25, "area", minimum_image_size=0.5), True),
        ((1000, 400), SizeRules(480, "pixel_area", crop=True, minimum_image_size=480), True),
    ],
)
def test_refusals(source, rules, dropped) -> None:
    refusal = refuse_size(source, rules)
    assert (refusal is not None) == dropped
    if refusal:
        assert f"{source[0]}x{source[1]}" in refusal.reason
        assert refusal.fix


def test_the_fix_for_a_small_file_is_true() -> None:
    rules = SizeRules(480, "pixel_area", minimum_image_size=480)
    refusal = refuse_size((500, 300), rules)
    assert refusal
    assert "minimum_image_size to 387" in refusal.fix  # 387^2 = 149,769 <= 150,000 < 388^2
    admitted = SizeRules(480, "pixel_area", minimum_image_size=387)
    assert refuse_size((500, 300), admitted) is None


def test_remarks() -> None:
    rules = SizeRules(480, "pixel_area")
    assert size_remarks((320, 180), plan_size((320, 180), rules, multiple=32)) == ["upscaled 2.00 x"]
    square = SizeRules(480, "pixel_area", crop=True)
    assert size_remarks((1280, 720), plan_size((1280, 720), square, multiple=32)) == [
        "the crop keeps 56% of the picture"
    ]
    assert size_remarks((1280, 720), plan_size((1280, 720), rules, multiple=32)) == []


def test_closest_takes_the_nearest_ratio() -> None:
    rules = SizeRules(480, "pixel_area", crop=True, crop_aspect="closest", crop_aspect_buckets=(0.5, 1.0, 2.0))
    # The border between 1 and 2 lies at their geometric mean, 1.414.
    assert target_aspect((1410, 1000), rules) == 1.0
    assert target_aspect((1420, 1000), rules) == 2.0
    assert target_aspect((1000, 1420), rules) == 0.5
    # 480 * sqrt 2 = 678.8 -> 672, 480 / sqrt 2 = 339.4 -> 352; 1280x720 is scaled by 0.525 to cover it.
    assert plan_size((1280, 720), rules, multiple=32) == ((672, 352), (672, 378), (0, 13))


def test_closest_without_a_list_takes_usual_shapes() -> None:
    rules = SizeRules(480, "pixel_area", crop=True, crop_aspect="closest")
    assert target_aspect((1918, 1080), rules) == 16 / 9
    assert target_aspect((1080, 1920), rules) == 9 / 16
    assert target_aspect((720, 576), rules) == 4 / 3
    assert all(target_aspect((round(3600 * aspect), 3600), rules) == aspect for aspect in USUAL_ASPECTS)


def test_random_shape_depends_on_the_file_only_and_takes_all() -> None:
    rules = SizeRules(480, "pixel_area", crop=True, crop_aspect="random", crop_aspect_buckets=(0.5, 1.0, 2.0))
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(240)]
    drawn = [target_aspect((1280, 720), rules, digest) for digest in digests]
    assert drawn == [target_aspect((640, 640), rules, digest) for digest in digests]
    assert all(50 < drawn.count(aspect) < 110 for aspect in (0.5, 1.0, 2.0))  # 80 expected, standard deviation 7
    sizes = {plan_size((1280, 720), rules, multiple=32, digest=digest).size for digest in digests}
    assert sizes == {(352, 672), (480, 480), (672, 352)}


def test_random_place_does_not_depend_on_the_random_shape() -> None:
    rules = SizeRules(
        480, "pixel_area", crop=True, crop_aspect="random", crop_aspect_buckets=(1.0, 2.0), crop_style="random"
    )
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]
    plans = [plan_size((1280, 720), rules, multiple=32, digest=digest) for digest in digests]
    places = [plan.crop[0] for plan in plans if plan.size == (480, 480)]
    assert len(set(places)) > 50
    assert {place % 2 for place in places} == {0, 1}


@pytest.mark.parametrize("shape", ["square", "closest", "random"])
def test_a_long_file_is_used_where_another_shape_is_cut_from_it(shape) -> None:
    assert refuse_size((2000, 400), SizeRules(480, crop=True, crop_aspect=shape)) is None
    assert refuse_size((2000, 400), SizeRules(480, crop=False, crop_aspect=shape)) is not None
    assert refuse_size((2000, 400), SizeRules(480, crop=True, crop_aspect="preserve")) is not None


def test_minimum_counts_only_what_is_cut() -> None:
    rules = SizeRules(
        480, "pixel_area", crop=True, crop_aspect="closest", crop_aspect_buckets=(0.5,), minimum_image_size=480
    )
    source = (1000, 600)
    plan = plan_size(source, rules, multiple=32)
    assert plan.size == (352, 672)
    refusal = refuse_size(source, rules, plan=plan)
    assert refusal
    assert "here 188,571" in refusal.reason  # 600 high, 600 * 352 / 672 = 314.3 wide
    assert refuse_size((1000, 800), rules, plan=plan_size((1000, 800), rules, multiple=32)) is None


@pytest.mark.parametrize(
    ("source", "threshold", "dropped"),
    [
        ((640, 352), 0.0, False),
        ((640, 351), 0.0, True),
        ((534, 300), 0.2, False),  # 640 / 534 = 1.199
        ((533, 300), 0.2, True),  # 640 / 533 = 1.201
        ((320, 176), 1.0, False),
        ((320, 175), 1.0, True),
        ((1920, 1080), 0.0, False),
    ],
)
def test_files_are_enlarged_up_to_the_threshold(source, threshold, dropped) -> None:
    rules = SizeRules(480, "pixel_area", max_upscale_threshold=threshold)
    plan = plan_size(source, rules, multiple=32)
    assert plan.size == (640, 352)
    refusal = refuse_size(source, rules, plan=plan)
    assert (refusal is not None) == dropped
    assert refuse_size(source, replace(rules, max_upscale_threshold=None), plan=plan) is None
    if refusal:
        assert refusal.cause == "too small"
        named = float(refusal.fix.split("max_upscale_threshold to ")[1].split(" ")[0])
        assert refuse_size(source, replace(rules, max_upscale_threshold=named), plan=plan) is None


def test_enlargement_is_exact_where_one_edge_is_rounded() -> None:
    # 640 / 500 = 1.28 exactly; the other edge, 281 * 1.28 = 359.68, is rounded up to 360.
    assert enlargement((500, 281), plan_size((500, 281), SizeRules(480, "pixel_area"), multiple=32)) == 1.28
    rules = SizeRules(480, "pixel_area", maximum_image_size=240, target_downsample_size=960)
    assert enlargement((640, 360), plan_size((640, 360), rules, multiple=32)) == pytest.approx(2.0)
