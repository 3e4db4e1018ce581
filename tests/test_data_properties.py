"""What must hold for every size, clip, setting and order: checked on drawn cases against rules written out here."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunerkit.data.frames import FrameRules, decide_frames
from tunerkit.data.geometry import SizeRules, plan_size, refuse_size
from tunerkit.data.sampler import BatchPlan
from tunerkit.data.samples import Sample, Source

bounded = settings(max_examples=150, deadline=None, derandomize=True)

MULTIPLES = st.sampled_from([16, 32, 128])
FRAME_STEPS = st.sampled_from([4, 8])
MODEL_SIZES = ((448, 896), (480, 832), (640, 640), (832, 480), (896, 448))


@st.composite
def size_rules(draw: st.DrawFn) -> SizeRules:
    kind: Any = draw(st.sampled_from(["pixel", "area", "pixel_area", "model"]))
    unit = 1e-6 if kind == "area" else 1.0

    def setting(edge: int) -> float:
        return edge * edge * unit if kind == "area" else float(edge)

    edges = st.integers(16, 1280)
    larger = draw(st.none() | edges)
    return SizeRules(
        setting(draw(edges)),
        kind,
        crop=draw(st.booleans()),
        crop_aspect=draw(st.sampled_from(["square", "preserve", "closest", "random"])),
        crop_style=draw(st.sampled_from(["center", "corner", "random"])),
        maximum_image_size=larger and setting(larger),
        target_downsample_size=larger and setting(draw(edges)),
        crop_aspect_buckets=tuple(draw(st.lists(st.floats(0.3, 3.0), max_size=4))),
        max_upscale_threshold=draw(st.none() | st.floats(0, 2)),
    )


@bounded
@given(
    width=st.integers(2, 4096),
    height=st.integers(2, 4096),
    rules=size_rules(),
    multiple=MULTIPLES,
    digest=st.binary(min_size=32, max_size=32),
)
def test_sizes_are_legal_covered_and_not_enlarged_beyond_the_limit(
    width: int, height: int, rules: SizeRules, multiple: int, digest: bytes
) -> None:
    sizes = tuple((w // multiple * multiple, h // multiple * multiple) for w, h in MODEL_SIZES)
    plan = plan_size((width, height), rules, multiple=multiple, model_sizes=sizes, digest=digest.hex())
    assert plan == plan_size((width, height), rules, multiple=multiple, model_sizes=sizes, digest=digest.hex())
    for edge, scaled, start in zip(plan.size, plan.resized, plan.crop, strict=True):
        assert edge >= multiple
        assert edge % multiple == 0
        assert 0 <= start <= scaled - edge  # the scaled picture covers the box
    # Both edges are scaled by one factor, to the nearest pixel.
    assert abs(plan.resized[0] * height - plan.resized[1] * width) <= 0.5001 * (width + height)
    limit = rules.max_upscale_threshold
    if refuse_size((width, height), rules, plan=plan) is None and limit is not None:
        assert plan.size[0] <= width * (1 + limit) * (1 + 1e-9)
        assert plan.size[1] <= height * (1 + limit) * (1 + 1e-9)
        assert plan.resized[0] <= width * (1 + limit) + 1
        assert plan.resized[1] <= height * (1 + limit) + 1
    if limit is not None and plan.resized[0] <= width and plan.resized[1] <= height:
        refusal = refuse_size((width, height), rules, plan=plan)
        assert refusal is None or "max_upscale_threshold" not in refusal.reason


@bounded
@given(
    source=st.tuples(st.integers(64, 4096), st.integers(64, 4096)),
    edge=st.integers(16, 1024),
    kind=st.sampled_from(["pixel", "area", "pixel_area"]),
    multiple=MULTIPLES,
)
def test_no_legal_size_is_nearer_to_the_asked_one(source: tuple[int, int], edge: int, kind: Any, multiple: int) -> None:
    resolution = edge * edge / 1e6 if kind == "area" else float(edge)
    size = plan_size(source, SizeRules(resolution, kind), multiple=multiple).size
    legal = range(multiple, 70_000, multiple)
    aspect = source[0] / source[1]
    if kind == "pixel":
        short = min(size)
        assert abs(short - edge) <= min(abs(other - edge) for other in legal) + 1e-6
        ideal = (short * aspect, short) if aspect >= 1 else (short, short / aspect)
    else:
        ideal = (edge * math.sqrt(aspect), edge / math.sqrt(aspect))
    for found, wanted in zip(size, ideal, strict=True):
        assert abs(found - wanted) <= min(abs(other - wanted) for other in legal) + 1e-6


@st.composite
def clip_times(draw: st.DrawFn) -> tuple[float, ...]:
    """Timestamps of a clip at a constant or a wandering rate, not always from 0."""
    fps = draw(st.sampled_from([8.0, 16.0, 24000 / 1001, 25.0, 30.0, 50.0, 60.0]))
    start = draw(st.sampled_from([0.0, 0.021, 7.5]))
    if draw(st.booleans()):
        return tuple(start + index / fps for index in range(draw(st.integers(1, 400))))
    gaps = draw(st.lists(st.sampled_from([0.5, 1.0, 1.0, 3.0]), min_size=1, max_size=200))
    times = [start]
    for gap in gaps:
        times.append(times[-1] + gap / fps)
    return tuple(times)


@bounded
@given(
    times=clip_times(),
    target=st.sampled_from([12.0, 16.0, 24.0, 24000 / 1001, 25.0]),
    step=FRAME_STEPS,
    num_frames=st.none() | st.integers(1, 200),
    min_frames=st.none() | st.integers(1, 100),
    sampling=st.sampled_from(["head", "middle", "uniform", "random"]),
    num_windows=st.integers(1, 9),
)
def test_windows_are_legal_even_and_inside_the_clip(
    times: tuple[float, ...],
    target: float,
    step: int,
    num_frames: int | None,
    min_frames: int | None,
    sampling: Any,
    num_windows: int,
) -> None:
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)] or [1 / 30]
    end = times[-1] + gaps[-1]
    rules = FrameRules(num_frames, min_frames, None, sampling, num_windows)
    plan = decide_frames(
        times,
        end=end,
        source_fps=len(times) / (end - times[0]),
        target_fps=target,
        rules=rules,
        legal_frames=lambda count: (count - 1) // step * step + 1,
    )
    if plan.cause:
        assert plan.windows == ()
        assert plan.cause == "too short"
        return
    count = len(plan.indices)
    assert count % step == 1
    assert count <= (num_frames or 5 * target + 1)
    assert len(plan.windows) == 1 if sampling in ("head", "middle") else 1 <= len(plan.windows) <= num_windows
    fit = max(1, math.floor((end - times[0]) * target + 0.5 + 1e-6))
    starts = _starts(fit - count, sampling, num_windows)
    assert len(plan.windows) == len(starts) == len(set(starts))
    for window, start in zip(plan.windows, starts, strict=True):
        assert 0 <= start <= fit - count
        assert len(window) == count
        for place, index in enumerate(window):
            wanted = times[0] + (start + place) / target
            assert wanted <= end + 0.5 / target
            # Neighbours are enough: the distance to a moment falls and then rises along the clip.
            around = times[max(0, index - 1) : index + 2]
            assert abs(times[index] - wanted) <= min(abs(time - wanted) for time in around) + 2e-6
            if wanted <= times[-1]:
                assert abs(times[index] - wanted) <= max(gaps) / 2 + 2e-6


def _starts(spare: int, sampling: str, num_windows: int) -> list[int]:
    """First output frames of the windows, where `spare` frames are left over."""
    if sampling == "head":
        return [0]
    windows = min(num_windows, spare + 1)
    if sampling == "middle" or windows == 1:
        return [spare // 2]
    return [math.floor(Fraction(place * spare, windows - 1) + Fraction(1, 2)) for place in range(windows)]


SOURCE = Source(640, 360, 16.0, 100, 6.25, 0, False, "h264", 1, 1, "ab" * 32)


@st.composite
def datasets(draw: st.DrawFn) -> list[Sample]:
    """Up to three datasets of clips in up to three buckets; some clips have windows to draw from."""
    samples: list[Sample] = []
    for dataset in range(draw(st.integers(1, 3))):
        repeats = draw(st.integers(0, 3))
        for clip in range(draw(st.integers(1, 12))):
            edge = draw(st.sampled_from([32, 64, 96]))
            size = (edge, 64)
            name, alternatives = f"d{dataset}", draw(st.sampled_from([1, 1, 3]))
            made = Sample(
                name,
                Path(f"/{name}/{clip}.mp4"),
                "video",
                ("x",),
                SOURCE,
                (0,),
                16.0,
                size,
                size,
                (0, 0),
                repeats,
                False,
            )
            samples += [made._replace(window=number, alternatives=alternatives) for number in range(alternatives)]
    return samples


ORDERS = {
    "samples": datasets(),
    "batch_size": st.integers(1, 5),
    "seed": st.integers(0, 2**31),
    "sampling": st.sampled_from(["auto-weighting", "uniform"]),
    "odds": st.lists(st.sampled_from([0.1, 0.25, 0.7, 1.0, 2.0]), min_size=3, max_size=3),
    "fill": st.booleans(),
}


def order(samples: list[Sample], batch_size: int, seed: int, sampling: Any, odds: list[float], fill: bool) -> BatchPlan:
    probabilities = {f"d{number}": value for number, value in enumerate(odds)}
    return BatchPlan(samples, batch_size, seed, probabilities=probabilities, sampling=sampling, fill=fill)


@bounded
@given(samples=datasets(), batch_size=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_an_epoch_is_every_visit_of_every_clip(samples: list[Sample], batch_size: int, seed: int) -> None:
    plan = BatchPlan(samples, batch_size, seed)
    for epoch in range(2):
        batches = [plan.draw(epoch * plan.batches_per_epoch + place) for place in range(plan.batches_per_epoch)]
        assert {batch.epoch for batch in batches} == {epoch}
        assert all(1 <= len(batch.indices) <= batch_size for batch in batches)
        assert all(len({samples[index].bucket for index in batch.indices}) == 1 for batch in batches)
        visits = Counter(samples[index].file for batch in batches for index in batch.indices)
        assert visits == {sample.file: sample.repeats + 1 for sample in samples}


@bounded
@given(**ORDERS, begin=st.integers(0, 500), processes=st.integers(1, 5))
def test_resumed_and_shared_orders_are_the_same_order(
    samples: list[Sample],
    batch_size: int,
    seed: int,
    sampling: Any,
    odds: list[float],
    fill: bool,
    begin: int,
    processes: int,
) -> None:
    straight = order(samples, batch_size, seed, sampling, odds, fill)
    drawn = [straight.draw(number) for number in range(begin + 12)]
    resumed = order(samples, batch_size, seed, sampling, odds, fill)
    assert [resumed.draw(number) for number in range(begin, begin + 12)] == drawn[begin:]
    shared: dict[int, Any] = {}
    for rank in range(processes):
        own = order(samples, batch_size, seed, sampling, odds, fill)
        for number in range(rank, 12, processes):
            assert number not in shared
            shared[number] = own.draw(number)
    assert [shared[number] for number in range(12)] == drawn[:12]
    assert [draw.epoch for draw in drawn] == sorted(draw.epoch for draw in drawn)
    if fill:
        assert all(len(draw.indices) == batch_size for draw in drawn)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**{key: value for key, value in ORDERS.items() if key not in ("fill", "batch_size")})
def test_shares_of_datasets_are_their_probabilities(
    samples: list[Sample], seed: int, sampling: Any, odds: list[float]
) -> None:
    plan = order(samples, 1, seed, sampling, odds, fill=False)
    visits = Counter({clip.dataset: 0 for clip in samples})
    for clip in {clip.file: clip for clip in samples}.values():
        visits[clip.dataset] += clip.repeats + 1
    odds_of = {f"d{number}": Fraction(str(value)) for number, value in enumerate(odds)}
    weights = {name: odds_of[name] * (count if sampling == "auto-weighting" else 1) for name, count in visits.items()}
    epochs = 40
    batches = plan.first_batch(epochs)
    drawn = Counter(samples[plan.draw(number).indices[0]].dataset for number in range(batches))
    for name, weight in weights.items():
        # Every dataset is less than a batch behind what is due to it; datasets of one pool may be an epoch apart.
        due = batches * weight / sum(weights.values())
        assert abs(drawn[name] - due) <= len(weights) + visits[name]
    if len(set(odds)) == 3 or sampling == "uniform":
        for name, weight in weights.items():
            assert abs(drawn[name] - batches * weight / sum(weights.values())) <= len(weights)
