"""Caching, the summary of a run, and videos as notebooks show them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable
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
from tunerkit_widgets.previews import facts, poster, preview
from tunerkit_widgets.videos import _rendering, videos_html, videos_text

MakeConfig = Callable[..., tk.TrainConfig]


@pytest.fixture
def on_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook with somebody in front of it."""
    monkeypatch.setenv(surroundings.VARIABLE, "0")


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


# Summary -------------------------------------------------------------------------------------------------------


def test_a_run_in_one_table(tmp_path: Path) -> None:
    """Losses by tenths, time, memory and files, from what a run leaves in its folder."""
    metrics = [
        {"step": step, "loss": 2.0 / step, "seconds": 0.5, "parts": {"video": 1.5 / step, "audio": 0.5 / step}}
        for step in range(1, 21)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + '\n{"step": 21, "lo')
    points = [{"step": step, "loss": 1.0 - step / 40} for step in (0, 10, 10, 20)]
    (tmp_path / "evaluation.jsonl").write_text("\n".join([*map(json.dumps, points), ""]))
    status = {"state": "done", "step": 20, "total_steps": 20, "pid": os.getpid()}
    memory = {"device": "cuda", "used": 2**30, "peak": 3 * 2**30, "total": 12 * 2**30}
    (tmp_path / "status.json").write_text(json.dumps({**status, "memory": memory}))
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(bytes(2048))
    summary = tw.summarize(tk.attach(tmp_path))
    rows = dict(summary.rows)
    assert rows["Steps"] == "20 / 20"
    assert rows["Time of the steps"] == "10 s, 0.50 s each"
    assert rows["Training loss, first and last tenth"] == f"1.5000 → {(2 / 19 + 2 / 20) / 2:.4f}"
    assert rows["of it, audio"] == f"0.3750 → {(0.5 / 19 + 0.5 / 20) / 2:.4f}"
    assert rows["Evaluation loss (fixed noise), first and last tenth"] == "1.0000 → 0.5000 (-50%)"
    assert rows["Memory at most"] == "3.0 / 12.0 GiB (25%), cuda"
    assert rows["Result"].endswith("pytorch_lora_weights.safetensors (2 KiB)")
    assert "1.0000 → 0.5000" in str(summary)

    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "evaluation.jsonl").unlink()
    early = dict(tw.summarize(tk.attach(tmp_path)).rows)
    assert set(early) == {"Steps", "Memory at most", "Result"}


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
    found = _rendering(large_video)
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
    found = _rendering(large_video)
    html = videos_html([replace(found, seed=seed) for seed in range(9)], base=False, max_bytes=44_000)
    assert html.count("<video") == 4
    assert "5 more prompts" in html
    assert "No videos" in videos_html([])
