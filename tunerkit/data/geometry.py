"""Which size a clip is trained at, how it is scaled and where it is cropped.

A size starts from the ideal one: the clip's own aspect, or with `crop` the one that `crop_aspect` says, at the asked
resolution.

- `pixel`: the shorter edge has `resolution` pixels. It is rounded to the nearest multiple that the model
  takes; the longer edge is the nearest multiple to (rounded shorter edge x aspect).
- `area`: width x height is `resolution` megapixels. `pixel_area`: it is `resolution` squared. Each edge is
  rounded to the multiple nearest to its ideal length, which keeps both the area and the aspect as near as
  multiples allow.
- `model`: of the sizes that the model was trained at, the one whose aspect is nearest, whatever `resolution` says.

The clip is then scaled, aspect kept, to cover that size, and the rest is cropped. So `crop = false` means
"keep the aspect", not "lose no pixel": what rounding to the multiple costs is cut off.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tunerkit.data.samples import Size

ResolutionType = Literal["pixel", "area", "pixel_area", "model"]
CropStyle = Literal["center", "random", "corner"]
CropAspect = Literal["square", "preserve", "closest", "random"]

USUAL_ASPECTS = (9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9)
"""Shapes for `closest` and `random` where no `crop_aspect_buckets` are given: those of film, photo and phone."""


@dataclass(frozen=True)
class SizeRules:
    """The size settings of a dataset, named as in the dataset document.

    Attributes:
        resolution: pixels (`pixel`, `pixel_area`) or megapixels (`area`); not used by `model`.
        crop: cut samples to the shape that `crop_aspect` says; without it the file's own aspect is kept.
        crop_aspect: `square`; `closest`, the one of `crop_aspect_buckets` whose ratio to the file's aspect is nearest
            to 1; `random`, one of them drawn from the file's content hash, the same on every run; `preserve`, the
            file's own.
        crop_aspect_buckets: width / height for `closest` and `random`; `USUAL_ASPECTS` where none are given.
        crop_style: `center`; `corner`, the lower right one; `random`, a place drawn from the file's content
            hash, the same on every run.
        minimum_image_size: smaller files are dropped. `pixel`: both edges; otherwise the area, in the unit of
            `resolution` (for `model` the edge of a square, as for `pixel_area`).
        maximum_image_size: larger files (shorter edge or area) are first scaled to `target_downsample_size`,
            then cropped, which with a target above `resolution` takes a part of the picture.
        minimum_aspect_ratio, maximum_aspect_ratio: width / height beyond which a file is dropped, unless it is cut
            to another shape.
        max_upscale_threshold: files that would be enlarged by more than this share are dropped: with 0.2 a file
            is scaled to at most 1.2 times its width and height. None = no limit, 0 = never enlarged.
    """

    resolution: float
    resolution_type: ResolutionType = "pixel_area"
    crop: bool = False
    crop_aspect: CropAspect = "square"
    crop_style: CropStyle = "center"
    minimum_image_size: float | None = None
    maximum_image_size: float | None = None
    target_downsample_size: float | None = None
    minimum_aspect_ratio: float = 0.25
    maximum_aspect_ratio: float = 4.0
    crop_aspect_buckets: tuple[float, ...] = ()
    max_upscale_threshold: float | None = None

    @property
    def square(self) -> bool:
        """Whether samples are cropped to squares."""
        return self.crop and self.crop_aspect == "square"

    @property
    def reshaped(self) -> bool:
        """Whether samples are cropped to another shape than the file's."""
        return self.crop and self.crop_aspect != "preserve"


class SizePlan(NamedTuple):
    """`size` is what the model sees, `resized` what the file is scaled to, `crop` the box's (x, y) in it."""

    size: Size
    resized: Size
    crop: tuple[int, int]


def plan_size(
    source: Size, rules: SizeRules, *, multiple: int, model_sizes: Sequence[Size] = (), digest: str = ""
) -> SizePlan:
    """Size, scaling and crop of one file.

    Args:
        source: (W, H) in pixels as displayed.
        multiple: width and height of the result are multiples of this.
        model_sizes: sizes the model was trained at; needed for `resolution_type = "model"` only.
        digest: content hash of the file, hexadecimal, for `crop_style` and `crop_aspect = "random"`.

    Raises:
        ValueError: `model` is asked for and there are no `model_sizes`.
    """
    size = target_size(target_aspect(source, rules, digest), rules, multiple, model_sizes)
    resized = _resized(source, size, rules)
    return SizePlan(size, resized, _crop_origin(resized, size, rules.crop_style, digest))


def target_aspect(source: Size, rules: SizeRules, digest: str = "") -> float:
    """Width / height that a sample is meant to have, before sizes are rounded to what the model takes."""
    aspect = source[0] / source[1]
    if not rules.reshaped:
        return aspect
    if rules.square:
        return 1.0
    choices = rules.crop_aspect_buckets or USUAL_ASPECTS
    if rules.crop_aspect == "closest":
        return min(choices, key=lambda choice: abs(math.log(choice / aspect)))
    # Hashed once more: the place of a random crop is drawn from the same digest.
    drawn = hashlib.blake2b(f"aspect {digest}".encode(), digest_size=8).digest()
    return choices[int.from_bytes(drawn, "big") % len(choices)]


def target_size(aspect: float, rules: SizeRules, multiple: int, model_sizes: Sequence[Size] = ()) -> Size:
    """The legal (W, H) nearest to what the settings ask for; `aspect` is width / height."""
    if rules.resolution_type == "model":
        if not model_sizes:
            raise ValueError('resolution_type = "model" needs a model with a list of trained sizes')
        return min(model_sizes, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))
    if rules.resolution_type == "pixel":
        shorter = _nearest_multiple(rules.resolution, multiple)
        longer = _nearest_multiple(shorter * max(aspect, 1 / aspect), multiple)
        return (longer, shorter) if aspect >= 1 else (shorter, longer)
    area = _pixels(rules.resolution, rules.resolution_type)
    return (
        _nearest_multiple(math.sqrt(area * aspect), multiple),
        _nearest_multiple(math.sqrt(area / aspect), multiple),
    )


class Refusal(NamedTuple):
    """Why a file is not used, what to change, and the reason in two words."""

    reason: str
    fix: str
    cause: str


def refuse_size(source: Size, rules: SizeRules, *, plan: SizePlan | None = None) -> Refusal | None:
    """Why a file of this size is dropped: shape, `minimum_image_size` or `max_upscale_threshold`; None where it is not.

    Args:
        plan: how the file would be used. Without it `max_upscale_threshold` is not looked at, and
            `minimum_image_size` is compared with the whole picture where a shape other than a square is cut from it.
    """
    return _refuse_shape(source, rules) or _refuse_small(source, rules, plan) or _refuse_enlarged(source, rules, plan)


def _refuse_shape(source: Size, rules: SizeRules) -> Refusal | None:
    width, height = source
    aspect = width / height
    if rules.reshaped or rules.minimum_aspect_ratio <= aspect <= rules.maximum_aspect_ratio:
        return None
    setting = "maximum_aspect_ratio" if aspect > rules.maximum_aspect_ratio else "minimum_aspect_ratio"
    limit = f"{setting} = {getattr(rules, setting):g}"
    return Refusal(
        f"extreme shape: {width}x{height} is {aspect:.3g} times as wide as high, {limit}",
        f"crop the file, or set {setting} to {aspect:.3g}",
        "extreme shape",
    )


def _refuse_small(source: Size, rules: SizeRules, plan: SizePlan | None) -> Refusal | None:
    minimum = rules.minimum_image_size
    if not minimum:
        return None
    width, height = source
    if rules.resolution_type == "pixel":
        found = min(source)
        needed = f"both edges at least {minimum:g} pixels"
        allowed = f"{min(source)}"
    else:
        # What is cut away does not count.
        found, what = width * height, "the picture"
        if rules.square:
            found, what = min(source) ** 2, "the square cut from it"
        elif rules.reshaped and plan is not None:
            found, what = _largest_area(source, plan.size), "the part cut from it"
        needed = f"{_pixels(minimum, rules.resolution_type):,.0f} pixels in {what}, here {found:,}"
        allowed = _largest_allowed(found, rules.resolution_type)
    if found >= _pixels(minimum, rules.resolution_type):
        return None
    return Refusal(
        f"too small: {width}x{height}, minimum_image_size = {minimum:g} ({rules.resolution_type}) needs {needed}",
        f"set minimum_image_size to {allowed} or less (files are scaled up if need be), or use a larger file",
        "too small",
    )


def _refuse_enlarged(source: Size, rules: SizeRules, plan: SizePlan | None) -> Refusal | None:
    if rules.max_upscale_threshold is None or plan is None:
        return None
    share = enlargement(source, plan) - 1
    if share <= rules.max_upscale_threshold + 1e-9:
        return None
    size = f"{plan.size[0]}x{plan.size[1]}"
    admits = math.ceil(share * 1000) / 1000
    return Refusal(
        f"too small: {source[0]}x{source[1]} would be enlarged {1 + share:.4g} x for {size}, "
        f"max_upscale_threshold = {rules.max_upscale_threshold:g} allows {1 + rules.max_upscale_threshold:g} x",
        f"set max_upscale_threshold to {admits:g} or more, lower resolution, or use a larger file",
        "too small",
    )


def enlargement(source: Size, plan: SizePlan) -> float:
    """How many times larger than the file the scaled picture is; below 1 it is smaller.

    One edge of `resized` is exact and the other rounded to a pixel, so the edge that decides is looked at.
    """
    covers = max(plan.size[0] / source[0], plan.size[1] / source[1])
    return max(covers, min(plan.resized[0] / source[0], plan.resized[1] / source[1]))


def size_remarks(source: Size, plan: SizePlan) -> list[str]:
    """What to know about the scaling: `upscaled 1.50 x`, `the crop keeps 56% of the picture`."""
    remarks = []
    if plan.resized[0] > source[0] and plan.resized[1] > source[1]:
        remarks.append(f"upscaled {enlargement(source, plan):.2f} x")
    kept = plan.size[0] * plan.size[1] / (plan.resized[0] * plan.resized[1])
    if kept < 0.9:
        remarks.append(f"the crop keeps {kept:.0%} of the picture")
    return remarks


def _resized(source: Size, size: Size, rules: SizeRules) -> Size:
    """Size of the scaled file: it covers `size`; larger only where `target_downsample_size` asks for it."""
    width, height = source
    scale = max(size[0] / width, size[1] / height)
    maximum, target = rules.maximum_image_size, rules.target_downsample_size
    if maximum and target and _measure(source, rules.resolution_type) > _pixels(maximum, rules.resolution_type):
        wanted = _pixels(target, rules.resolution_type) / _measure(source, rules.resolution_type)
        scale = max(scale, wanted if rules.resolution_type == "pixel" else math.sqrt(wanted))
    return max(size[0], round(width * scale)), max(size[1], round(height * scale))


def _crop_origin(resized: Size, size: Size, style: CropStyle, digest: str) -> tuple[int, int]:
    spare = (resized[0] - size[0], resized[1] - size[1])
    if style == "corner":
        return spare
    if style == "random":
        drawn = int(digest[:32] or "0", 16)
        x, drawn = drawn % (spare[0] + 1), drawn // (spare[0] + 1)
        return x, drawn % (spare[1] + 1)
    return spare[0] // 2, spare[1] // 2


def _nearest_multiple(length: float, multiple: int) -> int:
    """The multiple nearest to `length`, at least one; halves go up."""
    return max(1, math.floor(length / multiple + 0.5)) * multiple


def _pixels(value: float, resolution_type: ResolutionType) -> float:
    """A size setting as what `_measure` measures: an edge for `pixel`, otherwise an area."""
    if resolution_type == "pixel":
        return value
    return value * 1e6 if resolution_type == "area" else value * value


def _measure(source: Size, resolution_type: ResolutionType) -> float:
    return min(source) if resolution_type == "pixel" else source[0] * source[1]


def _largest_area(source: Size, shape: Size) -> int:
    """Pixels of the largest box in `source` with the aspect of `shape`, rounded down."""
    width = min(source[0], source[1] * shape[0] / shape[1])
    return int(width * width * shape[1] / shape[0])


def _largest_allowed(area: int, resolution_type: ResolutionType) -> str:
    """The largest `minimum_image_size` that `area` pixels satisfy."""
    if resolution_type == "area":
        return f"{math.floor(area / 1e6 * 1000) / 1000:g}"
    return f"{math.isqrt(area)}"
