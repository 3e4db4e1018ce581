"""Which frames are used: resampling by timestamps, the model's frame rule, and the reasons given."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from time import process_time

import pytest

from tunerkit.data.frames import (
    REMEMBERED_FRAMES,
    FrameRules,
    clip_end,
    decide_frames,
    frames_that_fit,
    nearest_frames,
    plan_frames,
)


def four_n_plus_one(count: int) -> int:
    return (count - 1) // 4 * 4 + 1


def eight_n_plus_one(count: int) -> int:
    return (count - 1) // 8 * 8 + 1


def constant(fps: float, frames: int) -> list[float]:
    return [index / fps for index in range(frames)]


def nearest_by_hand(times: list[Fraction], fps: Fraction, count: int) -> tuple[int, ...]:
    """The rule in exact arithmetic, frame by frame: nearest in time, the earlier one on a tie."""
    wanted = [times[0] + k / fps for k in range(count)]
    return tuple(min(range(len(times)), key=lambda i: (abs(times[i] - at), i)) for at in wanted)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Fraction(30), Fraction(16)),
        (Fraction(24000, 1001), Fraction(16)),
        (Fraction(60), Fraction(24)),
        (Fraction(25), Fraction(25)),
        (Fraction(12), Fraction(16)),
        (Fraction(30000, 1001), Fraction(25)),
    ],
)
def test_nearest_frames_equal_the_rule_in_exact_arithmetic(source: Fraction, target: Fraction) -> None:
    exact = [Fraction(3, 7) + index / source for index in range(200)]
    count = int(199 / source * target)
    assert nearest_frames([float(t) for t in exact], float(target), count) == nearest_by_hand(exact, target, count)


def test_same_rate_takes_every_frame_once() -> None:
    assert plan_frames(constant(16, 100), 16, 81, four_n_plus_one) == tuple(range(81))


def test_tie_takes_the_earlier_frame() -> None:
    # 60 -> 24: output frame 1 lies exactly between source frames 2 and 3.
    assert nearest_frames(constant(60, 60), 24, 5) == (0, 2, 5, 7, 10)


def test_slow_clip_repeats_frames() -> None:
    assert nearest_frames(constant(8, 8), 16, 8) == (0, 0, 1, 1, 2, 2, 3, 3)


def test_variable_frame_rate_follows_time_and_not_position() -> None:
    # Ten frames in the first second, then one that stays for a second, then ten more.
    times = [i / 10 for i in range(10)] + [1.0] + [2 + i / 10 for i in range(10)]
    assert nearest_frames(times, 10, 28)[10:22] == (10, 10, 10, 10, 10, 10, 11, 11, 11, 11, 11, 12)


def test_frames_that_fit_survives_rounded_timestamps() -> None:
    # 81 frames of 1/16 s in a container that counts milliseconds end at 5.062 s instead of 5.0625 s.
    assert frames_that_fit(0.0, 5.062, 16) == 81
    assert frames_that_fit(0.0, 6.0, 16) == 96
    assert frames_that_fit(10.0, 10.01, 16) == 1


def test_clip_end_uses_the_usual_distance_where_the_file_is_silent() -> None:
    assert clip_end([0.0, 0.1, 0.2, 0.7]) == pytest.approx(0.8)
    assert clip_end([0.0, 0.1], 0.4) == pytest.approx(0.5)
    assert clip_end([2.0]) == 2.0


def test_no_frame_lies_past_the_end_and_order_is_kept() -> None:
    times = constant(30000 / 1001, 97)
    indices = plan_frames(times, 24, 1000, eight_n_plus_one)
    assert len(indices) == 73  # 3.237 s at 24 fps = 77.7 frames: 78 fit, 73 = 8 * 9 + 1
    assert all(a <= b for a, b in pairwise(indices))
    assert indices[-1] < 97


def decide(frames: int, fps: float, rules: FrameRules, legal=four_n_plus_one, target: float = 16):
    times = constant(fps, frames)
    return decide_frames(times, end=frames / fps, source_fps=fps, target_fps=target, rules=rules, legal_frames=legal)


def test_reason_tells_the_whole_story() -> None:
    plan = decide(180, 30, FrameRules(81))
    assert plan.reason == "30 fps, 180 frames (6.00 s) -> 96 at 16 fps -> uses 81 (5.06 s)"
    assert len(plan.indices) == 81
    assert not plan.fix
    assert not plan.cause


def test_count_is_floored_to_what_the_model_takes_and_said() -> None:
    plan = decide(61, 24, FrameRules(61, 61), eight_n_plus_one, 24)
    assert len(plan.indices) == 57
    assert "the model takes 57 where 61 were asked" in plan.reason


@pytest.mark.parametrize(("frames", "used"), [(57, 57), (56, 0), (64, 57), (65, 57)])
def test_minimum_is_floored_like_the_asked_count(frames: int, used: int) -> None:
    assert len(decide(frames, 24, FrameRules(61, 61), eight_n_plus_one, 24).indices) == used


def test_short_clip_is_dropped_with_the_setting_that_admits_it() -> None:
    plan = decide(40, 30, FrameRules(81))
    assert plan.indices == ()
    assert plan.cause == "too short"
    assert "21 at 16 fps" in plan.reason
    assert "set video.min_frames to 21" in plan.fix
    # The fix is true.
    assert len(decide(40, 30, FrameRules(81, 21)).indices) == 21


def test_long_clip_is_dropped_only_with_max_frames() -> None:
    assert len(decide(600, 30, FrameRules(81)).indices) == 81
    plan = decide(600, 30, FrameRules(81, None, 100))
    assert plan.cause == "too long"
    assert "video.max_frames = 100" in plan.reason
    assert len(decide(600, 30, FrameRules(81, None, 320)).indices) == 81


def test_without_num_frames_a_clip_gives_up_to_five_seconds() -> None:
    assert len(decide(20, 16, FrameRules()).indices) == 17
    assert len(decide(400, 16, FrameRules()).indices) == 77  # 5 s = 80 frames, 77 = 4 * 19 + 1


def test_middle_takes_the_frames_around_the_middle_of_the_clip() -> None:
    plan = decide(180, 30, FrameRules(81, frame_sampling="middle"))
    # 96 output frames fit, 15 are left over: from frame 7, which is shown after 7/16 s, at source frame 13.125.
    assert len(plan.windows) == 1
    assert plan.indices[0] == 13
    assert plan.indices[-1] == 163  # 87/16 s x 30 = 163.125
    assert plan.reason == "30 fps, 180 frames (6.00 s) -> 96 at 16 fps -> uses 81 (5.06 s) from 0.44 s to 5.50 s"


def test_uniform_windows_reach_from_head_to_tail() -> None:
    plan = decide(160, 16, FrameRules(81, frame_sampling="uniform"))
    assert [window[0] for window in plan.windows] == [0, 26, 53, 79]  # 79/3 = 26.3, 158/3 = 52.7
    assert [window[-1] for window in plan.windows] == [80, 106, 133, 159]
    assert all(window == tuple(range(window[0], window[0] + 81)) for window in plan.windows)
    assert plan.indices == plan.windows[0]
    assert plan.reason.endswith("-> uses 4 windows of 81 (5.06 s)")


def test_random_has_the_same_windows() -> None:
    plan = decide(160, 16, FrameRules(81, frame_sampling="random", num_windows=3))
    assert plan.windows == decide(160, 16, FrameRules(81, frame_sampling="uniform", num_windows=3)).windows
    assert plan.reason.endswith("-> uses at each visit one of 3 windows of 81 (5.06 s)")


@pytest.mark.parametrize(("frames", "starts"), [(81, [0]), (82, [0, 1]), (83, [0, 1, 2]), (84, [0, 1, 2, 3])])
def test_short_clips_give_fewer_windows(frames: int, starts: list[int]) -> None:
    plan = decide(frames, 16, FrameRules(81, frame_sampling="uniform"))
    assert [window[0] for window in plan.windows] == starts


def test_a_single_window_lies_in_the_middle() -> None:
    plan = decide(101, 16, FrameRules(81, frame_sampling="uniform", num_windows=1))
    assert [window[0] for window in plan.windows] == [10]
    assert plan.reason.endswith("-> uses 81 (5.06 s) from 0.62 s to 5.69 s")


def test_windows_of_a_variable_rate_clip_follow_time() -> None:
    # A still of two seconds, then 24 frames a second: the last second starts at source frame 25.
    times = [0.0, *(2 + index / 24 for index in range(48))]
    rules = FrameRules(17, frame_sampling="uniform", num_windows=2)
    plan = decide_frames(times, end=4.0, source_fps=12.25, target_fps=16, rules=rules, legal_frames=four_n_plus_one)
    exact = [Fraction(0), *(2 + Fraction(index, 24) for index in range(48))]
    assert plan.windows == tuple(nearest_by_hand(exact, Fraction(16), 64)[start : start + 17] for start in (0, 47))


def test_head_is_what_it_was_without_windows() -> None:
    for frames, fps in ((180, 30), (97, 30000 / 1001), (240, 60)):
        plan = decide(frames, fps, FrameRules(81, 1))
        times = constant(fps, frames)
        assert plan.windows == (plan_frames(times, 16, 81, four_n_plus_one, end=frames / fps),)


def test_long_clips_are_decided_like_others() -> None:
    plan = decide(REMEMBERED_FRAMES + 100, 16, FrameRules(81, frame_sampling="uniform", num_windows=2))
    assert [window[0] for window in plan.windows] == [0, REMEMBERED_FRAMES + 100 - 81]


def test_clips_of_one_time_grid_are_decided_once() -> None:
    grids = [tuple(constant(30, frames)) for frames in range(150, 160)]
    rules = FrameRules(81, frame_sampling="uniform")
    began = process_time()
    for number in range(10_000):
        times = grids[number % 10]
        decide_frames(
            times, end=len(times) / 30, source_fps=30, target_fps=16, rules=rules, legal_frames=four_n_plus_one
        )
    assert process_time() - began < 0.3  # 30 us a clip, several times what it takes
