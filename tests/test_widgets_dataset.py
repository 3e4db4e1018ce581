"""The dataset browser without kernel and browser: messages as the page would send them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from test_data_inspect import clip, config_of, dataset_of
from widget_messages import wait

import tunerkit as tk
import tunerkit_widgets
from tunerkit_widgets import surroundings
from tunerkit_widgets.dataset_browser import DatasetBrowser
from tunerkit_widgets.dataset_browser_rows import Bucket, bucket_rows, buckets

SECONDS = 20.0


@pytest.fixture
def on_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook with somebody in front of it."""
    monkeypatch.setenv(surroundings.VARIABLE, "0")


class Page:
    """What the page sends, and what it has been sent."""

    def __init__(self, browser: DatasetBrowser, monkeypatch: pytest.MonkeyPatch) -> None:
        self.browser = browser
        self.got: list[tuple[dict[str, Any], Any]] = []
        monkeypatch.setattr(browser.widget, "send", lambda content, buffers=None: self.got.append((content, buffers)))

    def send(self, kind: str, **content: Any) -> None:
        message = {"method": "custom", "content": {"kind": kind, **content}}
        self.browser.widget._handle_msg({"content": {"data": message}, "buffers": []})

    def ask(self, kind: str, **content: Any) -> dict[str, Any]:
        """Send a message, and what is answered at once."""
        self.got.clear()
        self.send(kind, **content)
        return self.got[0][0]

    def select(self, number: int) -> None:
        data = {"method": "update", "state": {"selected": number}, "buffer_paths": []}
        self.browser.widget._handle_msg({"content": {"data": data}, "buffers": []})

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.browser.widget.table["rows"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clip(tmp_path, "a.mp4", 150, "one\ntwo", size=(256, 64))
    clip(tmp_path, 'b "quoted" <b>&日本.mp4', 40, "<script>alert(1)</script>")
    clip(tmp_path, "c.mp4", 40, None)
    clip(tmp_path, "d.mp4", 3, "too short")
    return tmp_path


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch, on_page: None) -> Iterator[Page]:  # noqa: ARG001
    settings = {"resolution": 64, "crop": True, "video": {"frame_sampling": "middle"}}
    browser = DatasetBrowser(config_of(dataset_of(folder, **settings)))
    wait(lambda: browser.widget.first)
    yield Page(browser, monkeypatch)
    browser.pictures.close()


def text_of(page: Page, number: int) -> str:
    return page.browser.report.rows[number].file.with_suffix(".txt").read_text()


def test_every_file_is_there_with_what_is_used_of_it(page: Page) -> None:
    first, quoted, bare, short = page.rows
    assert [row["used"] for row in page.rows] == [True, True, False, False]
    assert (first["bucket"], first["frames"], first["size"], first["fps"]) == ("64x64@17", 17, (64, 64), 16.0)
    assert (first["resized"], first["crop"], first["captions"]) == ((256, 64), (96, 0), ["one", "two"])
    ((start, end),) = first["spans"]
    assert 0 < start < end < first["length"] == pytest.approx(5.0)
    assert quoted["name"] == 'b "quoted" <b>&日本.mp4'
    assert quoted["captions"] == ["<script>alert(1)</script>"]
    assert (bare["uncaptioned"], bare["cause"], short["uncaptioned"]) == (True, "no caption", False)
    assert "c.txt" in bare["fix"]
    assert short["captions"] == ["too short"]
    json.dumps(page.browser.widget.table)


def test_the_picture_is_the_middle_used_frame_in_its_crop(page: Page, folder: Path) -> None:
    page.send("pictures", rows=[0, 3, 99, "x"])
    wait(lambda: len(page.got) == 2)
    pictures = {content["row"]: buffers[0] for content, buffers in page.got}
    shown = np.asarray(Image.open(io.BytesIO(pictures[0])).convert("L"))
    assert shown.shape == (64, 64)
    assert Image.open(io.BytesIO(pictures[3])).size == (128, 64)  # of a dropped file its first frame
    sample = page.browser.report.samples[0]
    source = np.zeros((64, 256), np.uint8)
    for bit in range(8):
        if sample.frame_indices[8] >> bit & 1:
            source[:, 32 * bit : 32 * (bit + 1)] = 255
    assert np.abs(shown.astype(int) - source[:, 96:160]).mean() < 12
    assert page.browser.widget.first[0] == pictures[0]
    (folder / "a.mp4").unlink()  # kept in memory
    assert page.ask("pictures", rows=[0])["row"] == 0


def test_a_preview_is_the_used_frames_as_h264(page: Page) -> None:
    page.send("videos", rows=[1, 2])
    wait(lambda: len(page.got) == 2)
    made = {content["row"]: buffers[0] for content, buffers in page.got}
    assert made[2] == b""  # nothing is used of it
    with av.open(io.BytesIO(made[1]), "r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate or 0)) == ("h264", "yuv420p", 16)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    indices = page.browser.report.rows[1].samples[0].frame_indices
    assert len(frames) == len(indices) == 17
    assert frames[0].shape == (64, 64, 3)


def test_what_nobody_waits_for_any_more_is_not_made(page: Page) -> None:
    made: list[int] = []
    pictures = page.browser.pictures
    release = threading.Event()
    pictures.made = lambda kind, row: (release.wait(SECONDS), b"")[1]  # type: ignore[method-assign] # noqa: ARG005
    row = page.browser.report.rows[2]
    pictures._kept.clear()
    pictures.ask("picture", [(number, row) for number in range(50)], lambda number, _: made.append(number))
    pictures.ask("picture", [(7, row)], lambda number, _: made.append(number))
    release.set()
    wait(lambda: not pictures._waiting)
    assert 7 in made
    assert len(made) <= 3  # with those that had been begun


def test_the_chosen_clip_is_known(page: Page) -> None:
    assert page.browser.selected is None
    page.select(1)
    assert page.browser.selected is page.browser.report.rows[1]
    page.select(-1)
    assert page.browser.selected is None


def test_a_caption_is_saved_and_put_back(page: Page) -> None:
    opened = page.ask("open", row=0)
    assert (opened["kind"], opened["text"], opened["file"], opened["fixed"]) == ("caption", "one\ntwo", "a.txt", "")
    saved = page.ask("save", row=0, text="three", version=opened["version"])
    assert (saved["kind"], saved["edits"], text_of(page, 0)) == ("saved", 1, "three")
    assert page.browser.changed
    # The page leaves the field before it knows what the first save wrote.
    assert page.ask("save", row=0, text="four", version=opened["version"])["kind"] == "saved"
    wait(lambda: page.rows[0]["captions"] == ["four"])
    assert page.browser.report.samples[0].captions == ("four",)
    assert page.ask("undo")["files"] == ["a.txt"]
    page.send("undo")
    assert (text_of(page, 0), page.browser.changed) == ("one\ntwo", False)


def test_a_file_changed_by_somebody_else_is_not_overwritten(page: Page) -> None:
    opened = page.ask("open", row=0)
    page.browser.report.rows[0].file.with_suffix(".txt").write_text("theirs")
    conflict = page.ask("save", row=0, text="mine", version=opened["version"])
    assert (conflict["kind"], conflict["text"], text_of(page, 0)) == ("conflict", "theirs", "theirs")
    assert not page.browser.changed
    assert page.ask("save", row=0, text="mine", version=conflict["version"])["kind"] == "saved"
    assert text_of(page, 0) == "mine"


def test_a_clip_without_caption_is_used_once_it_has_one(page: Page) -> None:
    page.select(2)
    opened = page.ask("open", row=2)
    page.send("save", row=2, text="a clip", version=opened["version"])
    wait(lambda: page.rows[2]["used"])
    assert page.browser.selected is page.browser.report.rows[2]
    assert page.browser.widget.table["turn"] == 1
    page.send("undo")
    wait(lambda: not page.rows[2]["used"])
    assert not page.browser.report.rows[2].file.with_suffix(".txt").exists()


def test_many_captions_are_counted_before_they_are_changed(page: Page) -> None:
    words = {"tool": "replace", "words": "T", "replacement": "<t>", "match_case": False}
    counted = page.ask("count", rows=[0, 1], ticket=5, **words)
    assert (counted["files"], counted["places"], counted["ticket"]) == (2, 4, 5)
    assert counted["example"] == ["one\ntwo", "one\n<t>wo"]
    assert text_of(page, 0) == "one\ntwo"
    assert page.ask("change", rows=[0], **words)["files"] == 1  # only the files that are shown
    assert [text_of(page, 0), text_of(page, 1)] == ["one\n<t>wo", "<script>alert(1)</script>"]
    assert page.ask("change", rows=[0], tool="prefix", words="ohwx")["edits"] == 2
    assert text_of(page, 0) == "ohwx one\nohwx <t>wo"


def test_captions_from_names_are_shown_and_not_edited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(surroundings.VARIABLE, "0")
    config = config_of(dataset_of(folder, caption_strategy="filename"))
    for source, words in ((config, "caption_strategy = filename"), (tk.inspect_dataset(config), "DatasetBrowser(conf")):
        page = Page(DatasetBrowser(source), monkeypatch)
        opened = page.ask("open", row=0)
        assert (opened["text"], words in opened["fixed"]) == ("a", True)
        assert page.ask("save", row=0, text="x", version="")["kind"] == "error"
        assert text_of(page, 0) == "one\ntwo"
        page.browser.pictures.close()


def test_an_error_in_a_callback_is_shown(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk <full>")

    monkeypatch.setattr("tunerkit.data.caption_files.CaptionFiles.write", fail)
    opened = page.ask("open", row=0)
    answer = page.ask("save", row=0, text="x", version=opened["version"])
    assert "OSError: disk &lt;full&gt;" in answer["html"]


def test_buckets_count_visits_and_batches_of_an_epoch(tmp_path: Path) -> None:
    for name, count in (("much", 5), ("little", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            clip(tmp_path / name, f"{number}.mp4", 40)
    much = dataset_of(tmp_path / "much", id="much", repeats=1)
    little = dataset_of(tmp_path / "little", id="little", probability=0.5)
    config = config_of(much, little, train_batch_size=4)
    report = tk.inspect_dataset(config)
    # 10 visits in 3 batches, and of 3 visits in 1 batch the half.
    assert bucket_rows(buckets(report, config)) == [("128x64@17", "8", "11.5", "3.5")]
    config.datasets[1].probability = 1.0
    (bucket,) = buckets(report, config)  # now drawn from together: 13 visits, 4 batches
    assert (bucket.visits, bucket.batches) == (13, 4)
    from tunerkit.training.batches import batch_plan

    assert batch_plan(config, report.samples).batches_per_epoch == bucket.batches
    assert buckets(report, None) == [Bucket("128x64@17", 8, bucket.visits)]


def test_where_nobody_can_click_the_tables_are_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(surroundings.VARIABLE, "1")
    browser = DatasetBrowser(config_of(dataset_of(folder)))
    assert (browser.widget, browser.selected, browser.changed) == (None, None, False)
    browser._ipython_display_()
    assert "Visits per epoch" in capsys.readouterr().out
    html = browser.static()
    assert "&lt;b&gt;&amp;日本.mp4" in html
    assert html.count("data:image/jpeg;base64,") == 2
    assert "Batches per epoch</th>" in html


@pytest.mark.usefixtures("on_page")
def test_many_clips_are_one_model_and_fast(tmp_path: Path) -> None:
    first = clip(tmp_path, "0.mp4", 40, "a clip")
    for number in range(1, 500):
        (tmp_path / f"{number}.mp4").write_bytes(first.read_bytes())
        (tmp_path / f"{number}.txt").write_text(f"clip number {number}")
    report = tk.inspect_dataset(config_of(dataset_of(tmp_path)))
    from tunerkit_widgets import dataset_browser_view as view

    models: list[Any] = []
    view.DatasetView.on_widget_constructed(models.append)
    try:
        started = time.thread_time()  # of this thread alone: the pictures are made in others
        browser = DatasetBrowser(report)
        assert time.thread_time() - started < 0.5
    finally:
        view.DatasetView.on_widget_constructed(None)
    assert [type(model).__name__ for model in models if not type(model).__name__.startswith("Layout")] == [
        "DatasetView"
    ]
    assert len(models) <= 2
    assert len(browser.widget.first) <= 16
    browser.pictures.close()


def test_the_browser_is_imported_without_its_view() -> None:
    code = "import sys, tunerkit_widgets.dataset_browser as b; print({'torch', 'anywidget', 'av'} & set(sys.modules))"
    folders = os.pathsep.join(str(Path(module.__file__ or "").parents[1]) for module in (tk, tunerkit_widgets))
    environment = {**os.environ, "PYTHONPATH": folders}
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert printed.stdout == "set()\n"


def test_every_text_of_the_page_is_there() -> None:
    """The page's scripts ask for texts by the second part of their key."""
    from tunerkit_widgets.dataset_browser_view import SCRIPTS, words

    script = "".join((Path(tunerkit_widgets.__file__).parent / name).read_text() for name in SCRIPTS)
    assert set(re.findall(r"""say\("(\w+)\"""", script)) <= set(words())
    quoted = set(re.findall(r"""["'](\w+)["']""", script)) | set(re.findall(r"(\w+):", script))
    assert {name for name in words() if not name.startswith("badge_")} <= quoted
