"""Caching and training as the widgets show them, on the demo's real trainer, and the videos in a notebook."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import tunerkit as tk
import tunerkit_widgets as tw
from tunerkit.validation.video_files import write_mp4
from tunerkit_widgets import surroundings
from tunerkit_widgets.live_views import Progress, WidgetView
from tunerkit_widgets.previews import facts, poster, preview
from tunerkit_widgets.surroundings import show_widget
from tunerkit_widgets.videos import videos_html, videos_text

MakeConfig = Callable[..., tk.TrainConfig]


@pytest.fixture(autouse=True)
def closed_trainers() -> Iterator[None]:
    yield
    tw.close_trainers()


@pytest.fixture
def on_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook with somebody in front of it."""
    monkeypatch.setenv(surroundings.VARIABLE, "0")


def short(make_config: MakeConfig, **changes: Any) -> tk.TrainConfig:
    return make_config(**{"max_train_steps": 6, "checkpoint_step_interval": 100, **changes})


# Cache ---------------------------------------------------------------------------------------------------------


def test_caching_is_told_in_a_few_lines(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**{"datasets.demo-clips.cache_dir_vae": tmp_path / "vae"})
    result = tk.build_cache(config, progress=tw.CacheProgress())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Clips: 1 of {result.latents_encoded}"
    assert re.fullmatch(rf"Clips: {result.latents_encoded} encoded in \d+ s", lines[-1])
    assert len(lines) <= 6


def test_plain_lines_come_at_quarters_and_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = tw.CacheProgress(clock=lambda: now[0])
    for done in range(1, 1001):
        now[0] = done * 1.0  # 1000 s
        progress("clips", done, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert 15 <= len(lines) <= 25
    assert any(line == "Clips: 250 of 1000, 12 min 30 s left" for line in lines)


@pytest.mark.usefixtures("on_page")
def test_the_bar_ends_full_and_sends_little(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    sent: list[Any] = []  # every change of a value is a message to the page
    progress = tw.CacheProgress()
    progress("clips", 1, 20_000)
    for widget in shown[0].children:
        widget.observe(sent.append)
    for done in range(2, 20_001):
        progress("clips", done, 20_000)
    bar, line = shown[0].children
    assert (bar.value, bar.max, bar.bar_style) == (20_000, 20_000, "success")
    assert "20000 encoded" in line.value
    assert 0 < len(sent) < 200


# Training ------------------------------------------------------------------------------------------------------


def test_watching_records_what_the_trainer_logs(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = short(make_config, validation_disable=False, validation_step_interval=3)
    trainer = tw.open_trainer(config)
    history = tw.watch(trainer, evaluate_every=2)
    output = config.output_path

    assert [step for step, _ in history.losses] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in history.evaluations] == [0, 2, 4, 6]
    assert history.evaluations[-1][1] == trainer.evaluation_loss()
    assert history.losses == tw.TrainingHistory.read(output, 6).losses
    assert {video.step for video in history.videos} == {6}
    printed = capsys.readouterr().out
    assert "new run of 6 steps" in printed
    assert "step 6 of 6" in printed
    assert "All 6 steps are done" in printed
    assert f"videos rendered into {output / 'validation' / 'step-0'}" in printed

    # A second notebook on the same folder finds everything done.
    again = tw.watch(tw.open_trainer(config), evaluate_every=2)
    assert (again.losses, again.evaluations, again.session_steps) == (history.losses, history.evaluations, 0)
    assert "complete" in capsys.readouterr().out
    found = tw.find_videos(output)
    assert {(video.path, video.frames, video.fps) for video in found} == {
        (video.path, video.frames, video.fps) for video in history.videos
    }
    assert {video.path.parent.name for video in tw.current_videos(trainer, again)} == {"step-6"}

    rows = dict(tw.summarize(trainer, history).rows)
    assert rows["Steps"] == "6 / 6"
    assert "pytorch_lora_weights.safetensors" in rows["Result"]
    assert f"{history.evaluations[0][1]:.4f} → {history.evaluations[-1][1]:.4f}" in str(tw.summarize(trainer, history))


def test_stopping_saves_and_running_again_goes_on(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = short(make_config)
    trainer = tw.open_trainer(config)
    live = tw.LiveTraining(trainer, evaluate_every=0)
    original = trainer.step

    def step_and_stop() -> tk.StepResult:
        if trainer.global_step == 1:
            live.stop()
        return original()

    trainer.step = step_and_stop  # type: ignore[method-assign]
    assert asyncio.run(live.run_async()).stopped
    assert trainer.global_step == 2
    assert (config.output_path / "checkpoint-2").is_dir()
    assert "Stopped after step 2; a checkpoint is saved." in capsys.readouterr().out

    resumed = tw.open_trainer(config)
    assert "resumed after step 2 of 6" in capsys.readouterr().out
    history = tw.watch(resumed)
    assert [step for step, _ in history.losses] == [1, 2, 3, 4, 5, 6]
    assert history.stopped is None


def test_an_interrupt_saves_and_is_one_line(make_config: MakeConfig) -> None:
    config = short(make_config)
    trainer = tw.open_trainer(config)
    original = trainer.step

    def step_and_interrupt() -> tk.StepResult:
        result = original()
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    trainer.step = step_and_interrupt  # type: ignore[method-assign]
    with pytest.raises(tw.TrainingStopped, match="Stopped after step 3; a checkpoint is saved") as raised:
        tw.watch(trainer, evaluate_every=0)
    assert raised.value._render_traceback_() == [str(raised.value)]
    assert (config.output_path / "checkpoint-3").is_dir()


def test_opening_again_keeps_steps_that_had_no_checkpoint(make_config: MakeConfig) -> None:
    config = short(make_config)
    first = tw.open_trainer(config)
    straight = [result.loss for result in first.steps(3)]
    second = tw.open_trainer(config)  # the first one still has the folder locked
    assert second.global_step == 3
    history = tw.watch(second, evaluate_every=0)
    assert [loss for _, loss in history.losses[:3]] == straight


@pytest.mark.usefixtures("on_page")
def test_the_page_shows_the_true_end_state(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda value, **_: shown.append(value))
    trainer = tw.open_trainer(short(make_config, validation_disable=False, validation_step_interval=3))
    live = tw.LiveTraining(trainer, evaluate_every=3)
    seen = _final_states(monkeypatch)
    ids: list[str] = []
    monkeypatch.setattr(
        "tunerkit_widgets.live_views.show_widget",
        lambda widget, plain: (ids.append(widget.model_id), show_widget(widget, plain))[1],
    )
    live.run()
    bar, state, plot, gallery = seen
    assert (bar, state.split(" · ")[0]) == ((6, 6), "step 6 of 6")
    assert bytes(plot).startswith(b"\x89PNG")
    assert gallery.count("<video src='data:video/mp4;base64,") == 6
    view = shown[0]["application/vnd.jupyter.widget-view+json"]
    assert (view["model_id"], shown[0]["text/plain"]) == (ids[0], "step 0 of 6")


@pytest.mark.usefixtures("on_page")
def test_the_stop_button_stops_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pressed: list[int] = []
    view = WidgetView(lambda: pressed.append(1))
    click = {"content": {"data": {"method": "custom", "content": {"event": "click"}}}, "buffers": []}
    view.button._handle_msg(click)
    assert pressed == [1]
    assert view.button.disabled
    assert "stopping" in view.message.value

    def fail(*_: object) -> bytes:
        raise RuntimeError("no canvas")

    monkeypatch.setattr("tunerkit_widgets.live_views.loss_png", fail)
    view.update(Progress(1, 2), tw.TrainingHistory())  # a drawing that fails does not end the training
    assert "RuntimeError: no canvas" in view.message.value


def test_progress_in_words() -> None:
    assert Progress(0, 10).line() == "step 0 of 10"
    fast = Progress(5, 605, loss=0.25, lr=1e-4, speed=10.0)
    assert fast.line() == "step 5 of 605 · loss 0.2500 · learning rate 1.00e-04 · 10.00 steps/s · 1 min 0 s left"
    assert "4.00 s/step" in replace(fast, speed=0.25).line()


# Videos --------------------------------------------------------------------------------------------------------


@pytest.fixture
def large_video(tmp_path: Path) -> Path:
    """33 frames of 416x240 with a moving pattern."""
    y, x = np.mgrid[0:240, 0:416]
    frames = [np.stack([(x + 5 * t) % 256, (y + 3 * t) % 256, (x * y // 64 + t) % 256], axis=-1) for t in range(33)]
    folder = tmp_path / "validation" / "step-4"
    return write_mp4(folder / "fox-416x240-7.mp4", np.stack(frames).astype(np.uint8), 16.0)


@pytest.mark.parametrize("room", [10_000_000, 60_000, 20_000])
def test_previews_fit_and_keep_every_frame(large_video: Path, tmp_path: Path, room: int) -> None:
    data = preview(large_video, room)
    assert len(data) <= room
    assert (data == large_video.read_bytes()) is (room > 1_000_000)
    copy = tmp_path / "preview.mp4"
    copy.write_bytes(data)
    assert facts(copy) == (33, 16.0)
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.width % 2 == stream.height % 2 == 0
        assert stream.width / stream.height == pytest.approx(416 / 240, rel=0.03)
    assert data.index(b"moov") < data.index(b"mdat")


def test_poster_is_the_first_frame(large_video: Path) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(poster(large_video, 160)))
    assert (picture.format, picture.size) == ("JPEG", (160, 92))
    with av.open(str(large_video)) as container:
        first = next(container.decode(video=0)).to_image().resize(picture.size)
    difference = np.asarray(first, dtype=float) - np.asarray(picture, dtype=float)
    assert np.abs(difference).mean() < 12


def test_videos_stand_beside_the_base_model_and_play_without_files(large_video: Path) -> None:
    base = large_video.parent.parent / "step-0" / large_video.name
    base.parent.mkdir()
    base.write_bytes(large_video.read_bytes())
    (found,) = tw.find_videos(large_video.parents[2])
    assert (found.nickname, found.seed, found.step, found.frames, found.size) == ("fox", 7, 4, 33, (416, 240))
    html = videos_html([replace(found, prompt="a <fox> 'runs'")], max_bytes=100_000)
    sources = re.findall(r"<video src='data:video/mp4;base64,([^']+)'", html)
    assert len(sources) == 2
    for source in sources:
        with av.open(io.BytesIO(base64.b64decode(source)), "r") as container:
            assert sum(1 for _ in container.decode(video=0)) == 33
    assert html.index("base model") < html.index("step 4")
    assert "a &lt;fox&gt; &#x27;runs&#x27;" in html
    assert "<fox>" not in html
    assert len(html) < 150_000
    assert html.count("poster='data:image/jpeg;base64,") == 2
    assert str(large_video) in videos_text([found])
    assert len(re.findall("<video", videos_html([found], base=False))) == 1


def test_a_table_with_too_many_videos_has_fewer_rows_and_says_so(large_video: Path) -> None:
    (found,) = tw.find_videos(large_video.parents[2])
    html = videos_html([replace(found, seed=seed) for seed in range(9)], base=False, max_bytes=44_000)
    assert html.count("<video") == 4
    assert "5 more prompts" in html
    assert "No videos" in videos_html([])


# Helpers -------------------------------------------------------------------------------------------------------


def _final_states(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the widgets of a view say when it is closed."""
    seen: list[Any] = []
    original = WidgetView.close

    def close(self: WidgetView, *arguments: Any) -> None:
        self._show_state.flush()
        self._show_plot.flush()
        seen.extend([(self.bar.value, self.bar.max), self.state.value, self.plot.value, self.gallery.value])
        original(self, *arguments)

    monkeypatch.setattr(WidgetView, "close", close)
    return seen
