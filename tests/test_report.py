"""The table of decisions: its columns, and the pictures that a notebook shows."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from data_clips import read_number
from PIL import Image
from test_data_inspect import clip, report_of

from tunerkit.data import report as report_module
from tunerkit.data.report import HEADINGS
from tunerkit.data.thumbnails import thumbnail


def picture_of(address: str) -> np.ndarray:
    kind, _, data = address.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_columns_say_what_was_found_and_what_is_used(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 60, "one\ntwo", size=(256, 128))
    clip(tmp_path, "b.mp4", 60, None)
    report = report_of(tmp_path, repeats=2)
    used, dropped = (dict(zip(HEADINGS, report._cells(row), strict=True)) for row in report.rows)
    assert used | {"reason": ""} == {
        "dataset": "clips", "file": "a.mp4", "found size": "256x128", "fps": "30", "frames": "60",
        "duration": "2.00 s", "audio": "no", "used frames": "17", "span": "0.00-1.06 s", "sound": "none",
        "used size": "128x64", "crop box": "128x64 at 0,0 of 128x64", "bucket": "128x64@17", "repeats": "2",
        "caption": "one (+ 1)", "decision": "used", "reason": "",
    }  # fmt: skip
    assert "asked: video.num_frames = 17, resolution = 64 (pixel)" in used["reason"]
    assert (dropped["caption"], dropped["bucket"], dropped["decision"]) == ("no caption", "-", "dropped")
    with report.to_csv(tmp_path / "table.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["windows"], row["span"], row["used_seconds"]) == ("1", "0.00-1.06 s", "1.062")


def test_thumbnail_is_the_middle_used_frame(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 150)
    report = report_of(tmp_path, video={"frame_sampling": "middle"})
    sample = report.samples[0]
    picture = picture_of(thumbnail(report.rows[0]))
    assert picture.shape == (64, 128, 3)
    assert read_number(picture) == sample.frame_indices[8]
    (tmp_path / "a.mp4").unlink()
    assert thumbnail(report.rows[0]) == ""


def test_thumbnails_are_small_and_cropped(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 60, size=(512, 256))
    report = report_of(tmp_path, resolution=256, crop=True)
    assert picture_of(thumbnail(report.rows[0])).shape == (96, 96, 3)


def test_long_tables_show_dropped_files_first_and_count_the_rest(tmp_path: Path) -> None:
    for number in range(5):
        clip(tmp_path, f"a{number}.mp4")
    clip(tmp_path, "z.mp4", 3)
    report = report_of(tmp_path)
    page = report.to_html(rows=2, thumbnails=True)
    assert re.findall(r"[az]\d?\.mp4(?=</td>)", page) == ["z.mp4", "a0.mp4"]
    assert "and 4 more files" in page
    assert page.count("<img") == 1
    assert "<img" not in report.to_html()
    assert "more file" not in report.to_html(rows=6)


def test_show_in_a_notebook_has_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    clip(tmp_path, "a.mp4")
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(report_module, "_in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda data, **_: shown.append(data))
    report = report_of(tmp_path)
    report.show()
    assert shown[0]["text/html"].count("<img") == 1
    report.show(rows=0)
    assert "and 1 more file;" in shown[1]["text/html"]
