"""The dashboard without kernel and browser: a run that is told what to be, clicks as a page would send them."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_run import GIB, FakeRun, click, video

import tunerkit as tk
from tunerkit_widgets import dashboard, surroundings
from tunerkit_widgets.dashboard import Superseded, TrainingDashboard, follow, follow_blocking
from tunerkit_widgets.dashboard_controls import COMMANDS
from tunerkit_widgets.dashboard_plain import PlainLines
from tunerkit_widgets.dashboard_run import RunReader
from tunerkit_widgets.history import TrainingHistory
from tunerkit_widgets.loss_plot import loss_png, with_peaks


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "output")


@pytest.fixture
def on_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook with somebody in front of it, where each look at the run is drawn."""
    monkeypatch.setenv(surroundings.VARIABLE, "0")
    monkeypatch.setattr(dashboard, "EVERY_SECONDS", 0.001)


@pytest.fixture
def displays(monkeypatch: pytest.MonkeyPatch) -> list[Display]:
    """What was put on the page."""
    shown: list[Display] = []

    def display(what: Any, _: str) -> Display:
        shown.append(Display(what))
        return shown[-1]

    monkeypatch.setattr("tunerkit_widgets.dashboard.show_widget", display)
    return shown


@dataclass
class Display:
    """A place on the page: what it shows at first, and what it was changed to."""

    first: Any
    later: Any = None

    def update(self, what: Any, **_: Any) -> None:
        self.later = what


def view_of(shown: TrainingDashboard) -> Any:
    assert shown._view is not None
    return shown._view


def enabled(shown: TrainingDashboard) -> set[str]:
    return {name for name, button in view_of(shown).controls.buttons.items() if not button.disabled}


# What is shown -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_page")
def test_the_numbers_of_a_running_training_are_on_the_page(run: FakeRun) -> None:
    run.train(30, parts={"video": 0.25, "sound": 0.125})
    run.be(step=28)  # written less often than the metrics
    view = view_of(TrainingDashboard(run))
    assert "training" in view.chip.value
    assert "role='status'" in view.chip.value
    assert (view.bar.value, view.bar.max) == (30, 100)
    assert "step 30 of 100 (30%)" in view.step.value
    facts = view.facts.value
    for words in ("0.0333", "smoothed 0.", "video 0.2500", "sound 0.1250", "1.00e-04", "2.00 steps/s", "50 s"):
        assert words in facts
    for words in ("GPU memory", "6.0 GiB", "peak 7.0 GiB of 24.0 GiB", "120.0 GiB"):
        assert words in facts
    assert bytes(view.plot.value).startswith(b"\x89PNG")


@pytest.mark.usefixtures("on_page")
def test_the_memory_stands_beside_the_planned_one(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    plan: Any = SimpleNamespace(peak=8 * GIB)
    shown = TrainingDashboard(run, plan)
    assert "peak 7.0 GiB (planned 8.0 GiB) of 24.0 GiB" in view_of(shown).facts.value
    assert "peak 7.0 GiB (planned 8.0 GiB) of 24.0 GiB" in shown.static()
    run.be(device="cpu")  # the machine's memory: not what was planned
    assert "peak 7.0 GiB of 24.0 GiB" in shown.static()
    run.be(device="NVIDIA L4", state="done")
    plain = PlainLines(run, plan=plan)
    plain.open()
    plain.close()
    assert "GPU memory: peak 7.0 GiB (planned 8.0 GiB)" in capsys.readouterr().out
    run.be(memory_peak=None)
    assert "planned" not in shown.static()


@pytest.mark.usefixtures("on_page")
def test_ram_is_shown_where_there_is_no_gpu_and_a_full_disk_is_marked(run: FakeRun) -> None:
    run.be(device="cpu", disk_free=2 * GIB, seconds_per_step=4.0)
    facts = view_of(TrainingDashboard(run)).facts.value
    assert "RAM" in facts
    assert "GPU" not in facts
    assert "4.00 s/step" in facts
    assert re.search(r"error-color1[^>]*>2\.0 GiB", facts)


@pytest.mark.usefixtures("on_page")
def test_before_the_first_step_the_activity_is_shown(run: FakeRun) -> None:
    run.be(state="preparing", activity="encoding clips 5 of 8", total_steps=0, seconds_left=None, memory_used=None)
    view = view_of(TrainingDashboard(run))
    assert "preparing" in view.chip.value
    assert "encoding clips 5 of 8" in view.step.value
    assert "–" in view.facts.value
    assert view.plot.layout.display == "none"


@pytest.mark.usefixtures("on_page")
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("starting", {"stop"}),
        ("preparing", {"stop"}),
        ("running", {"pause", "stop", "save_now", "validate_now"}),
        ("paused", {"resume", "stop", "save_now", "validate_now"}),
        ("validating", {"pause", "stop"}),
        ("saving", {"pause", "stop"}),
        ("done", set()),
        ("stopped", set()),
        ("failed", set()),
        ("died", set()),
    ],
)
def test_buttons_are_enabled_where_they_make_sense(run: FakeRun, state: str, expected: set[str]) -> None:
    run.be(state=state)
    shown = TrainingDashboard(run)
    assert enabled(shown) == expected
    assert all(button.description for button in view_of(shown).controls.buttons.values())


@pytest.mark.usefixtures("on_page")
@pytest.mark.parametrize("off", [False, True])
def test_a_run_that_never_renders_has_no_button_for_it(run: FakeRun, off: bool) -> None:
    run.config.validation_disable = off
    button = view_of(TrainingDashboard(run)).controls.buttons["validate_now"]
    assert (button.layout.display == "none") is off


@pytest.mark.usefixtures("on_page")
def test_a_click_is_sent_and_said_until_it_has_happened(run: FakeRun) -> None:
    shown = TrainingDashboard(run)
    view = view_of(shown)
    click(view.controls.buttons["pause"])
    assert run.sent == ["pause"]
    assert "Pausing" in view.note.value
    assert enabled(shown) == {"stop", "save_now", "validate_now"}
    run.be(state="paused")
    shown._update()
    assert "Pausing" not in view.note.value
    click(view.controls.buttons["resume"])
    assert "Resuming" in view.note.value
    run.be(state="running")
    shown._update()
    assert "pause" in enabled(shown)

    click(view.controls.buttons["save_now"])
    assert "save_now" not in enabled(shown)
    run.report("checkpoint", step=12)
    shown._update()
    assert "Last checkpoint: step 12." in view.note.value
    assert "save_now" in enabled(shown)
    click(view.controls.buttons["validate_now"])
    assert run.sent == ["pause", "resume", "save_now", "validate_now"]


@pytest.mark.usefixtures("on_page")
def test_stop_asks_first_in_the_place_of_the_buttons(run: FakeRun) -> None:
    controls = view_of(TrainingDashboard(run)).controls
    click(controls.buttons["stop"])
    assert run.sent == []
    assert controls.confirm in controls.widget.children
    assert controls.buttons["stop"] not in controls.widget.children
    click(controls.keep)
    assert controls.buttons["stop"] in controls.widget.children
    assert run.sent == []
    click(controls.buttons["stop"])
    click(controls.confirm)
    assert run.sent == ["stop"]
    assert controls.buttons["stop"].disabled
    assert "Stopping" in controls.waiting


@pytest.mark.usefixtures("on_page")
def test_an_error_of_a_click_is_shown(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("disk <full>")

    monkeypatch.setattr(run, "pause", fail)
    view = view_of(TrainingDashboard(run))
    click(view.controls.buttons["pause"])
    assert "OSError: disk &lt;full&gt;" in view.faults.value


@pytest.mark.usefixtures("on_page")
@pytest.mark.parametrize("state", ["failed", "died"])
def test_a_broken_run_shows_cause_fix_and_log(run: FakeRun, state: str) -> None:
    run.lines = ["loading <model>", "out of memory"]
    run.be(state=state, error="CUDA out of memory in step 3", hint="train_batch_size = 1")
    shown = TrainingDashboard(run)
    for words in (
        "role='alert'",
        "CUDA out of memory in step 3",
        "To fix it: train_batch_size = 1",
        "loading &lt;model",
    ):
        assert words in view_of(shown).trouble.value
        assert words in shown.static()
    run.be(error=None, hint=None)
    shown._update()
    assert ("without a word" if state == "died" else "without a message") in view_of(shown).trouble.value


@pytest.mark.usefixtures("on_page")
def test_warnings_of_this_process_are_shown(run: FakeRun) -> None:
    run.report("warning", words="an old <one>", at=500.0)
    run.report("warning", words="3 clips are too short")
    warnings = view_of(TrainingDashboard(run)).warnings.value
    assert "3 clips are too short" in warnings
    assert "old" not in warnings


@pytest.mark.usefixtures("on_page")
def test_videos_are_drawn_once_a_round(run: FakeRun) -> None:
    run.rendered = [video(run.output_dir, 10)]
    shown = TrainingDashboard(run)
    view = view_of(shown)
    first = view.videos.value
    assert "<video src='data:video/mp4;base64," in first
    looked = run.videos_read
    for _ in range(5):
        run.train(1)
        shown._update()
    assert run.videos_read == looked
    assert view.videos.value == first
    run.rendered.append(video(run.output_dir, 20))
    run.report("video", step=20)
    shown._update()
    assert "step 20" in view.videos.value


# Following -----------------------------------------------------------------------------------------------------


def to_the_end(run: FakeRun, steps: int, **last: Any) -> Iterator[None]:
    for _ in range(steps):
        run.train(1)
        yield
    run.be(**{"state": "done", **last})
    yield


@pytest.mark.usefixtures("on_page")
def test_follow_ends_with_the_run_and_freezes(run: FakeRun, displays: list[Display]) -> None:
    run.rendered = [video(run.output_dir, 10)]
    run.points = [{"step": 0, "loss": 2.0}, {"step": 100, "loss": 1.0}]
    run.script = to_the_end(run, 100)
    asyncio.run(follow(run))
    (place,) = displays
    final = place.later["text/html"]
    for words in ("done", "step 100 of 100 (100%)", "1 min 40 s", "2.0000 in the first tenth", "0.0100"):
        assert words in final
    for address in ("<img src='data:image/png;base64,", "<video src='data:video/mp4;base64,"):
        assert address in final
    assert "<script" not in final
    assert "http" not in final
    assert place.later["text/plain"].startswith("done · step 100 of 100")
    assert place.first.comm is None or place.first._model_id is None  # the widgets are closed


@pytest.mark.usefixtures("on_page")
def test_a_failed_run_is_frozen_and_raised(run: FakeRun, displays: list[Display]) -> None:
    run.script = to_the_end(run, 3, state="failed", error="out of memory", hint="fewer frames")
    with pytest.raises(tk.RunFailedError, match="out of memory") as raised:
        asyncio.run(follow(run))
    assert raised.value._render_traceback_() == [f"the training in {run.output_dir} failed: out of memory"]
    assert "To fix it: fewer frames" in displays[0].later["text/html"]


@pytest.mark.usefixtures("on_page")
def test_after_an_interrupt_the_view_says_how_to_attach_again(run: FakeRun, displays: list[Display]) -> None:
    def interrupted() -> Iterator[None]:
        yield
        raise KeyboardInterrupt

    run.script = interrupted()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(follow(run))
    (place,) = displays
    assert place.later is None
    words = " ".join(str(getattr(child, "value", "")) for child in place.first.children)
    assert "Not live" in words
    assert "await tw.follow(tk.attach(" in words
    assert str(run.output_dir) in words


@pytest.mark.usefixtures("on_page", "displays")
def test_a_newer_view_ends_the_older_one(run: FakeRun) -> None:
    older, newer = TrainingDashboard(run), TrainingDashboard(run)
    older.open()
    newer.open()
    run.train(5)
    with pytest.raises(Superseded):
        older.tick(run.status)
    newer.tick(run.status)
    older.close()
    assert "newer one" in view_of(older).warnings.value
    assert enabled(older) == set()
    assert view_of(older).bar.value == 0
    newer._show.flush()
    assert view_of(newer).bar.value == 5


@pytest.mark.usefixtures("on_page", "displays")
def test_a_superseded_follow_returns(run: FakeRun) -> None:
    def overtaken() -> Iterator[None]:
        yield
        TrainingDashboard(run).open()
        yield

    run.script = overtaken()
    asyncio.run(follow(run))
    assert run.state.state == "running"


@pytest.mark.usefixtures("on_page", "displays")
def test_follow_blocking_raises_too(run: FakeRun) -> None:
    run.be(state="died", error="gone")
    with pytest.raises(tk.RunFailedError):
        follow_blocking(run)
    run.be(state="stopped", error=None)
    follow_blocking(run)


# Cost ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_page")
def test_twenty_thousand_steps_leave_the_true_end_and_cost_little(run: FakeRun, displays: list[Display]) -> None:
    total, updates = 20_000, []

    def fast() -> Iterator[None]:
        for _ in range(total // 50):
            run.train(50, loss=lambda step: 9.0 if step == 7777 else 1.0 + 0.1 * (step % 7))
            yield
        run.be(state="done")
        yield

    run.be(total_steps=total)
    run.script = fast()
    shown = TrainingDashboard(run)
    view_of(shown).step.observe(updates.append, "value")
    shown.open()
    started = time.monotonic()
    asyncio.run(run.finished(shown.tick, every=0.0))
    seconds = time.monotonic() - started
    reader = shown.reader
    shown.close()
    assert "step 20000 of 20000 (100%)" in displays[0].later["text/html"]
    assert [step for step, _ in reader.history.losses] == list(range(1, total + 1))
    assert run.rows_read == total
    assert len(updates) <= 4 * seconds + 3
    assert 9.0 in {loss for _, loss in with_peaks(reader.history.losses)}


def test_thinning_keeps_peaks_and_ends() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random(30_000)
    losses[[1234, 20_001]] = 5.0, -5.0
    curve = list(enumerate(losses.tolist()))
    kept = with_peaks(curve, 1000)
    assert len(kept) <= 1002
    assert kept == sorted(set(kept))
    assert {curve[0], curve[-1], curve[1234], curve[20_001]} <= set(kept)
    assert with_peaks(curve[:900], 1000) == curve[:900]


def test_the_picture_has_all_curves_on_a_clear_ground() -> None:
    from PIL import Image

    losses = [(step, 1.0 + (step % 5) / 5) for step in range(1, 3001)]
    parts = {"video": losses, "sound": losses}
    points = [(step, 2.0 - step / 3000) for step in range(0, 3001, 100)]
    plain = loss_png(TrainingHistory(losses=losses, evaluations=points))
    picture = np.asarray(Image.open(io.BytesIO(plain)).convert("RGBA"), dtype=int)
    assert picture.shape == (270, 648, 4)
    assert len(plain) < 40_000
    assert picture[0, 0, 3] == 0
    for colour in ((0x1F, 0x6F, 0xB4), (0xD9, 0x5F, 0x02)):
        assert (np.abs(picture[..., :3] - colour).sum(axis=-1) < 40).any()
    assert Image.open(io.BytesIO(loss_png(TrainingHistory(losses=losses, parts=parts)))).size == (648, 450)
    assert Image.open(io.BytesIO(loss_png(TrainingHistory()))).size == (648, 270)


def test_a_resumed_process_starts_the_curves_anew(run: FakeRun) -> None:
    run.train(30)
    reader = RunReader(run)
    run.be(state="preparing", pid=4712, started=3000.0)
    reader.read()
    run.rows = run.rows[:20]  # it goes on from checkpoint-20
    run.be(state="running", step=20)
    run.train(1, loss=lambda _: 0.5)
    reader.read()
    assert [step for step, _ in reader.history.losses] == list(range(1, 22))
    assert reader.loss == 0.5


# Headless ------------------------------------------------------------------------------------------------------


def test_headless_prints_some_lines_and_each_validation(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> Iterator[None]:
        for clip in range(1, 9):
            run.be(state="preparing", activity=f"encoding clips {clip} of 8")
            yield
        for step in range(1, 201):
            run.be(state="running", activity=None)
            run.train(1)
            if step % 100 == 0:
                run.be(state="validating")
                run.rendered = [video(run.output_dir, step)]
                run.report("video", step=step)
            yield
        run.be(state="done")
        yield

    run.be(state="starting", total_steps=200)
    run.script = script()
    asyncio.run(follow_quickly(run))
    lines = capsys.readouterr().out.splitlines()
    assert "Following" in lines[0]
    assert sum("encoding clips" in line for line in lines) == 1
    assert 10 <= sum("step " in line and "rendered" not in line for line in lines) <= 16
    assert [line.split(":")[0] for line in lines if "rendered" in line] == ["step 100", "step 200"]
    assert any(line.startswith("All 200 steps are done") for line in lines)


async def follow_quickly(run: FakeRun) -> None:
    lines = PlainLines(run)
    lines.open()
    await run.finished(lines.tick, every=0.0)
    lines.close()


def test_headless_fails_with_the_run(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.script = to_the_end(run, 1, state="failed", error="no memory", hint="fewer frames")
    with pytest.raises(tk.RunFailedError):
        asyncio.run(follow(run))
    assert "To fix it: fewer frames" in capsys.readouterr().out


def test_long_silence_is_broken(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = PlainLines(run, clock=lambda: now[0])
    run.train(1)
    lines.open()
    for now[0] in (10.0, 100.0, 121.0, 130.0):
        lines.tick(run.status)
    assert len(capsys.readouterr().out.splitlines()) == 3
    lines.close()
    assert "await tw.follow(tk.attach(" in capsys.readouterr().out


def test_headless_has_no_widget_but_html(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.train(7)
    shown = TrainingDashboard(run)
    assert shown.widget is None
    assert "<table>" in shown.static()
    assert "alt='Loss curves; training" in shown.static()
    shown._ipython_display_()
    assert capsys.readouterr().out.startswith("training · step 7 of 100 (7%) · Loss 0.1429 (smoothed")


def test_every_command_is_a_method_of_the_run() -> None:
    assert all(callable(getattr(FakeRun, name)) for name in COMMANDS)
