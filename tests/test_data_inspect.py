"""A row per file whatever happens: discovery, decisions, reasons and the report."""

from __future__ import annotations

import csv
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_clips import numbered_frame, read_number, write_clip, write_sound
from PIL import Image

from tunerkit.config.dataset_document import DatasetConfig, VideoSettings
from tunerkit.config.settings import TrainConfig
from tunerkit.data import inspect
from tunerkit.data.decode import decode
from tunerkit.data.discover import discover
from tunerkit.data.inspect import inspect_dataset
from tunerkit.data.report import DatasetReport
from tunerkit.data.samples import ClipRow
from tunerkit.errors import ConfigError, DatasetError


def config_of(*datasets: DatasetConfig, **settings: Any) -> TrainConfig:
    documents = [dataset.model_dump(exclude_unset=True) for dataset in datasets]
    return TrainConfig(**{"model_family": "sanavideo", **settings, "datasets": documents})


def dataset_of(folder: Path, **settings: Any) -> DatasetConfig:
    video = VideoSettings(**{"num_frames": 17, **settings.pop("video", {})})
    entry = {"id": "clips", "instance_data_dir": folder, "resolution": 64, "resolution_type": "pixel", **settings}
    return DatasetConfig(**entry, video=video)


def report_of(folder: Path, **settings: Any) -> DatasetReport:
    return inspect_dataset(config_of(dataset_of(folder, **settings)))


def clip(folder: Path, name: str, frames: int = 40, caption: str | bytes | None = "a clip", **encoding: Any) -> Path:
    path = write_clip(folder / name, frames, **encoding)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return path


def row_of(report: DatasetReport, name: str) -> ClipRow:
    return next(row for row in report.rows if row.file.name == name)


def test_video_and_image_become_samples(tmp_path: Path) -> None:
    clip(tmp_path, "b.mp4", 60, "one\ntwo", size=(256, 128))
    (tmp_path / "a").mkdir()
    Image.fromarray(numbered_frame(5)).save(tmp_path / "a" / "still.png")
    (tmp_path / "a" / "still.txt").write_text("a still")
    report = report_of(tmp_path, repeats=3, video={"is_i2v": True})
    still, video = report.samples
    assert (still.name, still.kind, still.bucket, still.captions) == ("still.png", "image", "128x64@1", ("a still",))
    assert not still.is_i2v
    assert (video.name, video.kind, video.bucket) == ("b.mp4", "video", "128x64@17")
    assert video.captions == ("one", "two")
    assert (video.repeats, video.is_i2v, video.fps, video.dataset) == (3, True, 16.0, "clips")
    assert video.frame_indices[:5] == (0, 2, 4, 6, 7)  # 30 fps seen every 1/16 s: 0, 1.875, 3.75, 5.625, 7.5
    assert report.rows[1].reason == (
        "30 fps, 60 frames (2.00 s) -> 32 at 16 fps -> uses 17 (1.06 s), 256x128 -> 128x64; "
        "asked: video.num_frames = 17, resolution = 64 (pixel); "
        "2 captions, one per line (disable_multiline_split joins them)"
    )
    assert [read_number(picture) for picture in decode(video)] == list(video.frame_indices)
    assert decode(still).shape == (1, 64, 128, 3)


def test_settings_of_a_dataset_win_over_those_of_the_run(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 60, size=(256, 128))
    own = dataset_of(tmp_path, video={"frame_rate": 30})
    sample = inspect_dataset(config_of(own, resolution=0.5, resolution_type="area")).samples[0]
    assert (sample.fps, sample.size, sample.frame_indices) == (30, (128, 64), tuple(range(17)))
    bare = dataset_of(tmp_path, resolution=None, resolution_type=None)
    assert inspect_dataset(config_of(bare, resolution=96)).samples[0].size == (128, 64)  # pixel_area: 135.8 x 67.9
    assert inspect_dataset(config_of(bare)).samples[0].size == (896, 448)  # the model's own
    assert "upscaled 3.50 x" in inspect_dataset(config_of(bare)).rows[0].reason


def test_size_settings_of_the_published_document(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 170, size=(1280, 720), options={"preset": "ultrafast"})
    clip(tmp_path, "small.mp4", 170, size=(320, 180))
    sizes = {"resolution": 480, "minimum_image_size": 480, "maximum_image_size": 480, "target_downsample_size": 480}
    report = report_of(
        tmp_path, **sizes, resolution_type="pixel_area", crop=False, video={"num_frames": 81, "min_frames": 81}
    )
    used, dropped = report.rows
    assert used.sample
    assert used.sample.bucket == "640x352@81"
    assert dropped.cause == "too small"
    assert "minimum_image_size = 480" in dropped.reason
    assert "320x180" in dropped.reason


def test_every_reason_of_a_file_is_told(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 10, caption=None)
    row = report_of(tmp_path, minimum_image_size=100).rows[0]
    assert row.cause == "too short, too small, no caption"
    assert "video.min_frames to 5" in row.fix
    assert "a.txt" in row.fix
    assert row.source
    assert row.source.frames == 10


def test_images_are_exempt_from_the_frame_minimum_and_videos_refused_among_images(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(1)).save(tmp_path / "a.png")
    clip(tmp_path, "b.mp4", 40)
    report = report_of(tmp_path, dataset_type="image", caption_strategy="filename", video={"min_frames": 17})
    assert [row.decision for row in report.rows] == ["used", "dropped"]
    assert report.samples[0].captions == ("a",)
    assert "set dataset_type to video" in report.rows[1].fix


def test_a_folder_of_nasty_files_gives_a_true_row_for_each(tmp_path: Path) -> None:
    good = clip(tmp_path, "good.mp4", 60)
    data = good.read_bytes()
    nasty: dict[str, str] = {}

    def put(name: str, content: bytes, words: str, caption: bytes | None = b"a caption") -> None:
        (tmp_path / name).write_bytes(content)
        if caption is not None:
            (tmp_path / name).with_suffix(".txt").write_bytes(caption)
        nasty[name] = words

    put("zero.mp4", b"", "0 bytes")
    put("cut.mp4", data[: data.index(b"moov")], "moov")
    put("text.mp4", b"no video", "text file")
    put("nocaption.mp4", data, "nocaption.txt is missing", None)
    put("empty.mp4", data, "empty.txt is empty", b"")
    put("blank.mp4", data, "blank.txt is empty", b"  \r\n ")
    put("latin.mp4", data, "not UTF-8", "café".encode("latin-1"))
    put("nul.mp4", data, "NUL", b"a\0b")
    put("picture.png", b"\x89PNG\r\n\x1a\n broken", "damaged, or of no known image format")
    write_sound(tmp_path / "sound.m4a").rename(tmp_path / "sound.mp4")
    nasty["sound.mp4"] = "only sound"
    clip(tmp_path, "one.mp4", 1)
    nasty["one.mp4"] = "1 frame "
    (tmp_path / "away.mkv").symlink_to(tmp_path / "nowhere.mkv")
    nasty["away.mkv"] = "link to a file that does not exist"
    os.mkfifo(tmp_path / "pipe.mp4")
    nasty["pipe.mp4"] = "not a regular file"
    fine = {"good.mp4"}
    for name, caption in {
        "bom.mp4": b"\xef\xbb\xbfwith a mark\r\n",
        "large.mp4": b"word " * 200_000,
        "日本 😀.mp4": "猫".encode(),
        "x" * 200 + ".mp4": b"long name",
        "wrong.avi": b"an mp4 under another name",
    }.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_bytes(caption)
        fine.add(name)
    raw = os.fsdecode(b"caf\xe9.mp4")  # a name that is no UTF-8
    (tmp_path / raw).write_bytes(data)
    (tmp_path / raw).with_suffix(".txt").write_text("coffee")
    fine.add(raw)
    (tmp_path / "good.mov").write_bytes(data)  # two files with one stem share a caption
    fine.add("good.mov")
    (tmp_path / "notes.md").write_text("no media")
    (tmp_path / ".hidden.mp4").write_bytes(data)
    (tmp_path / "loop").symlink_to(tmp_path)

    report = report_of(tmp_path)
    assert {row.file.name for row in report.rows} == fine | set(nasty)
    assert {sample.name for sample in report.require_samples()} == fine
    for name, words in nasty.items():
        row = row_of(report, name)
        assert row.decision == "dropped", name
        assert words in row.reason, name
        assert row.fix, name
        assert row.cause, name
    for table in (report.to_text(), report.summary(), report.to_html()):
        table.encode("utf-8")
    for sample in report.samples:
        assert decode(sample).shape == (17, 64, 128, 3)


def test_frame_counts_follow_the_interval_of_buckets_by_frames(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 170)  # 5.67 s: 91 frames at 16 fps
    video = {"num_frames": 81, "min_frames": 1, "frame_interval": 30}
    assert report_of(tmp_path, video=video).samples[0].bucket.endswith("@81")
    # 61 = 2 * 30 + 1, which is also of the form 4 n + 1
    report = report_of(tmp_path, video={**video, "bucket_strategy": "resolution_frames"})
    assert report.samples[0].bucket.endswith("@61")
    # Lowered below min_frames, the clip is not turned into a still: it is dropped, and the setting is named.
    [row] = report_of(
        tmp_path, video={"num_frames": 17, "bucket_strategy": "resolution_frames", "frame_interval": 20}
    ).rows
    assert row.decision == "dropped"
    assert "video.frame_interval = 20 lowers it to 1 frame, fewer than video.min_frames = 17" in row.reason
    assert "divisor of 16" in row.fix


def test_an_unexpected_failure_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path, "a.mp4")
    clip(tmp_path, "b.mp4")
    read = inspect.read_media

    def fails(path: Path, kind: Any) -> Any:
        if path.name == "a.mp4":
            raise RuntimeError("a library's own trouble")
        return read(path, kind)

    monkeypatch.setattr(inspect, "read_media", fails)
    report = report_of(tmp_path)
    assert "RuntimeError: a library's own trouble" in report.rows[0].reason
    assert [row.decision for row in report.rows] == ["dropped", "used"]


def test_order_is_by_dataset_and_then_by_relative_path(tmp_path: Path) -> None:
    for folder in ("second", "first"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        for name in ("z.mp4", "a.mp4", "sub/m.mp4"):
            clip(tmp_path / folder, name)
    report = inspect_dataset(config_of(dataset_of(tmp_path / "second", id="2"), dataset_of(tmp_path / "first", id="1")))
    found = [(s.dataset, s.file.relative_to(tmp_path).as_posix()) for s in report.samples]
    assert found == [
        ("2", "second/a.mp4"),
        ("2", "second/sub/m.mp4"),
        ("2", "second/z.mp4"),
        ("1", "first/a.mp4"),
        ("1", "first/sub/m.mp4"),
        ("1", "first/z.mp4"),
    ]


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "unset"])
def test_unusable_folders_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder: Path | None = tmp_path / "folder"
    assert folder
    if kind == "empty":
        folder.mkdir()
        (folder / "notes.txt").write_text("no clip")
    elif kind == "file":
        folder.write_text("x")
    entry = DatasetConfig(id="mine", instance_data_dir=None if kind == "unset" else folder, resolution=64)
    with pytest.raises(DatasetError, match=r"dataset 'mine': instance_data_dir.*Fix: "):
        inspect_dataset(config_of(entry))


def test_all_unusable_datasets_are_named_at_once(tmp_path: Path) -> None:
    wrong = [
        DatasetConfig(id="gone", instance_data_dir=tmp_path / "gone", resolution=64),
        DatasetConfig(id="homeless", resolution=64),
    ]
    with pytest.raises(DatasetError) as caught:
        inspect_dataset(config_of(*wrong))
    for words in ("'gone'", "does not exist", "'homeless'", "instance_data_dir is not set"):
        assert words in str(caught.value)
    with pytest.raises(DatasetError, match="no dataset to train on"):
        inspect_dataset(config_of())
    with pytest.raises(ConfigError, match="model_family"):
        inspect_dataset(config_of(wrong[0], model_family=None))


@contextmanager
def without_privileges() -> Iterator[None]:
    """Read permissions do not bind root, so as root the body runs as another user."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_missing_permissions_are_named(public_folder: Path) -> None:
    locked = clip(public_folder, "locked.mp4")
    clip(public_folder, "secret.mp4")
    clip(public_folder, "open.mp4")
    closed = public_folder / "closed"
    closed.mkdir()
    for path in (locked, public_folder / "secret.txt", closed):
        path.chmod(0)
    try:
        with without_privileges():
            report = report_of(public_folder)
        assert [sample.name for sample in report.samples] == ["open.mp4"]
        assert "no permission" in row_of(report, "locked.mp4").reason
        assert "secret.txt cannot be read: permission denied" in row_of(report, "secret.mp4").reason
        assert "cannot be listed" in row_of(report, "closed").reason
        public_folder.chmod(0)
        with without_privileges(), pytest.raises(DatasetError, match=r"instance_data_dir.*no read permission"):
            discover(public_folder, "mine")
    finally:
        for path in (public_folder, closed):
            path.chmod(stat.S_IRWXU)


def test_nothing_usable_stops_with_table_and_fix(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", 20)
    report = report_of(tmp_path)
    assert report.samples == ()
    with pytest.raises(DatasetError) as caught:
        report.require_samples()
    text = str(caught.value)
    assert "dataset 'clips' has no usable file" in text
    assert "a.mp4" in text
    assert text.splitlines()[-1].startswith("Fix: too short: set video.min_frames to 9")


def test_one_dataset_without_samples_stops_beside_a_good_one(tmp_path: Path) -> None:
    for name, frames in (("long", 60), ("short", 5)):
        (tmp_path / name).mkdir()
        clip(tmp_path / name, "a.mp4", frames)
    datasets = [dataset_of(tmp_path / name, id=name) for name in ("long", "short")]
    with pytest.raises(DatasetError, match="dataset 'short' has no usable file"):
        inspect_dataset(config_of(*datasets)).require_samples()


def test_report_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(5):
        clip(folder, f"short{number}.mp4", 5)
    clip(folder, "wide.mp4", 60, "one\ntwo", size=(256, 128))
    clip(folder, "<b>&.mp4", 60, "<script>")
    report = report_of(folder)

    summary = report.summary()
    assert "7 files: 2 used, 5 dropped." in summary
    assert "128x64@17 (2)" in summary
    assert "2.1 s of video, 3 captions" in summary  # 2 x 17 / 16
    assert "5 dropped (too short): short0.mp4, short1.mp4, short2.mp4 and 2 more; set video.min_frames to 1" in summary
    assert "\n" not in summary

    lines = report.to_text().splitlines()
    assert len(lines) == 1 + 7 + 5
    column = lines[0].index("decision")
    assert {line[column : column + 7].strip() for line in lines if line.startswith("clips")} == {"used", "dropped"}

    page = report.to_html()
    assert page == report._repr_html_()
    assert "&lt;b&gt;&amp;.mp4" in page
    assert "<b>&" not in page
    assert page.count("<tr>") == 8

    with report.to_csv(tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["decision"] for row in table] == [row.decision for row in report.rows]
    wide = next(row for row in table if row["file"].endswith("wide.mp4"))
    assert (wide["bucket"], wide["used_frames"], wide["captions"], wide["frames"]) == ("128x64@17", "17", "2", "60")

    report.show()
    shown = capsys.readouterr().out
    assert report.to_text() in shown
    assert summary in shown


def test_same_folder_gives_the_same_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        clip(tmp_path, f"{number}.mp4", int(rng.integers(35, 60)), size=(256, 128))
    first, second = (report_of(tmp_path, crop=True, crop_style="random") for _ in range(2))
    assert first.samples == second.samples
    assert first.rows == second.rows
