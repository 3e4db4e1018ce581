"""What is remembered of media files equals what opening them gives, and never outlives a change of the file."""

from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import av
import pytest
from data_clips import numbered_frame, write_clip, write_sound
from PIL import Image
from test_data_inspect import clip, config_of, dataset_of, row_of

from tunerkit.data import inspect
from tunerkit.data.discover import discover
from tunerkit.data.inspect import inspect_dataset
from tunerkit.data.media import Clock, Media, UnreadableMedia
from tunerkit.data.media_memory import MediaMemory
from tunerkit.data.probe import read_media
from tunerkit.data.quarantine import Quarantine
from tunerkit.data.report import DatasetReport

LONG_AGO = 1_600_000_000_123_456_789


def age(folder: Path) -> None:
    """Files written a moment ago are not remembered, because they may be written again within the same tick."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(LONG_AGO, LONG_AGO))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    return folder


def report_of(clips: Path, settings: dict[str, Any] | None = None, **dataset: Any) -> DatasetReport:
    return inspect_dataset(config_of(dataset_of(clips, **dataset), output_dir=clips.parent / "out", **settings or {}))


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The media files that are opened from now on."""
    names: list[str] = []
    for library in (av, Image):
        real = library.open

        def counted(file: Any, *args: Any, _real: Any = real, **options: Any) -> Any:
            names.append(Path(str(file)).name)
            return _real(file, *args, **options)

        monkeypatch.setattr(library, "open", counted)
    return names


def test_remembered_results_equal_fresh_ones_bit_for_bit(clips: Path) -> None:
    write_clip(clips / "steady.mp4", 40)
    write_clip(clips / "film.mkv", 40, fps=24)
    write_clip(clips / "vfr.mp4", 30, times=[n / 30 + (n % 7) * 0.0013 for n in range(30)])
    write_clip(clips / "slots.avi", 30, codec="mpeg4")
    write_clip(clips / "one.mp4", 1)
    Image.fromarray(numbered_frame(3)).save(clips / "still.png")
    data = (clips / "steady.mp4").read_bytes()
    (clips / "cut.mp4").write_bytes(data[: data.index(b"moov")])
    (clips / "text.mp4").write_bytes(b"no video")
    write_sound(clips / "sound.m4a").rename(clips / "sound.mp4")
    age(clips)

    files = discover(clips, "clips").files
    path = clips.parent / "memory.json"
    memory = MediaMemory(path, str(clips))
    fresh: dict[str, Any] = {}
    for found in files:
        try:
            fresh[found.name] = read_media(found.file)
        except UnreadableMedia as error:
            fresh[found.name] = error
        memory.remember(found.name, found.stamp, fresh[found.name])
    memory.save()

    again = MediaMemory(path, str(clips))
    assert len(files) == 9
    for found in files:
        restored, expected = again.media(found.name, found.stamp, found.file), fresh[found.name]
        if isinstance(expected, Media):
            assert isinstance(restored, Media)
            assert restored == expected
            assert [time.hex() for time in restored.times] == [time.hex() for time in expected.times]
        else:
            assert str(restored) == str(expected)
    assert MediaMemory(path, str(clips / "elsewhere")).media(files[0].name, files[0].stamp, files[0].file) is None


def test_a_clock_keeps_times_exactly_and_steady_ones_in_few_numbers() -> None:
    ticks = [100 + 1001 * n for n in range(500)]
    clock = Clock.of(ticks, 1 / 24_000)
    assert clock.runs == (1001, 499)
    assert clock.times == tuple(tick * (1 / 24_000) for tick in ticks)
    uneven = [0, 33, 66, 100, 133, 500]
    assert Clock.of(uneven, 0.001).times == tuple(tick * 0.001 for tick in uneven)
    assert Clock.of([7], 0.5).times == (3.5,)


def test_a_second_inspection_opens_no_file_and_says_the_same(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(clips, "a.mp4", caption="one\ntwo")
    clip(clips, "b.mp4", 5)
    (clips / "broken.mp4").write_bytes(b"\0" * 100)
    Image.fromarray(numbered_frame(3)).save(clips / "still.png")
    (clips / "still.txt").write_text("still")
    age(clips)
    names = opened(monkeypatch)
    first = report_of(clips)
    assert sorted(names) == ["a.mp4", "b.mp4", "broken.mp4", "still.png"]
    names.clear()
    assert report_of(clips).rows == first.rows
    assert names == []
    clip(clips, "new.mp4")
    (clips / "a.txt").write_text("another caption")
    assert row_of(report_of(clips), "a.mp4").samples[0].captions == ("another caption",)
    assert names == ["new.mp4", "new.mp4"]  # written and looked at


def test_a_replaced_file_is_probed_again(clips: Path) -> None:
    path = clip(clips, "a.mp4", 40)
    age(clips)
    first = report_of(clips).rows[0].source
    clip(clips, "a.mp4", 50)
    second = report_of(clips).rows[0].source
    assert first is not None
    assert second is not None
    assert (first.frames, second.frames) == (40, 50)
    path.write_bytes(b"")
    assert report_of(clips).rows[0].cause == "empty file"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_a_damaged_memory_only_costs_time(clips: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    clip(clips, "a.mp4")
    age(clips)
    rows = report_of(clips).rows
    (path,) = (clips.parent / "out" / "cache" / "media").iterdir()
    data = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"cut": data[:-9], "flipped": data.replace(b"40", b"41", 1), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, "tunerkit"):
        assert report_of(clips).rows == rows
    if damage == "folder":
        assert "cannot be kept" in caplog.text
    else:
        assert path.read_bytes() == data


def test_what_a_stopped_inspection_found_is_kept(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        clip(clips, name)
    age(clips)
    read, asked = inspect.read_media, []

    def stops(path: Path, kind: Any) -> Any:
        asked.append(path.name)
        if path.name == "c.mp4":
            raise KeyboardInterrupt
        return read(path, kind)

    monkeypatch.setattr(inspect, "PROBE_WORKERS", 1)
    monkeypatch.setattr(inspect, "read_media", stops)
    with pytest.raises(KeyboardInterrupt):
        report_of(clips)
    monkeypatch.setattr(inspect, "read_media", lambda path, kind: asked.append(path.name) or read(path, kind))
    asked.clear()
    assert len(report_of(clips).samples) == 3
    assert "c.mp4" in asked
    assert len(asked) < 3


def _fill(path: Path, root: str, first: int, source: Path) -> None:
    media = read_media(source)
    memory = MediaMemory(path, root)
    stamp = (media.source.size_bytes, media.source.mtime_ns)
    for number in range(first, first + 200, 10):
        for name in range(number, number + 10):
            memory.remember(str(name), stamp, media)
        memory.save()


def test_two_processes_may_write(clips: Path) -> None:
    source = clip(clips, "a.mp4")
    age(clips)
    path = clips.parent / "memory.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(path, str(clips), first, source)) for first in (0, 1000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    memory, media = MediaMemory(path, str(clips)), read_media(source)
    stamp = (media.source.size_bytes, media.source.mtime_ns)
    kept = [n for n in (*range(200), *range(1000, 1200)) if memory.media(str(n), stamp, source) == media]
    assert len(kept) >= 200  # whoever wrote last has all of its own
    assert list(path.parent.glob(".*tmp*")) == []


def test_quarantined_files_are_left_out_until_they_change(clips: Path) -> None:
    bad, good = clip(clips, "bad.mp4"), clip(clips, "good.mp4")
    config = config_of(dataset_of(clips), output_dir=clips.parent / "out", delete_problematic_images=True)
    Quarantine.of(config).add(bad, "frame 3 cannot be decoded")
    quarantine = Quarantine.of(config)
    assert quarantine.path is not None
    assert (quarantine.reason(bad), quarantine.reason(good)) == ("frame 3 cannot be decoded", None)
    row, other = inspect_dataset(config).rows
    assert (row.decision, row.cause, other.decision) == ("dropped", "in quarantine", "used")
    assert "frame 3 cannot be decoded" in row.reason
    assert str(quarantine.path) in row.fix
    assert bad.exists()

    with quarantine.path.open("ab") as file:
        file.write(b'{"file": "torn')
    quarantine.add(good, "too")
    assert Quarantine.of(config).reason(good) == "too"
    clip(clips, "bad.mp4", 45)
    assert [row.decision for row in inspect_dataset(config).rows] == ["used", "dropped"]
    assert len(report_of(clips).samples) == 2  # without the setting there is no quarantine


def test_quarantined_files_are_deleted_only_when_asked(clips: Path) -> None:
    bad = clip(clips, "bad.mp4")
    settings = {"delete_problematic_images": True, "delete_quarantined_files": True}
    Quarantine.of(config_of(dataset_of(clips), output_dir=clips.parent / "out", **settings)).add(bad, "broken")
    assert not bad.exists()


def test_max_num_samples_draws_the_same_files_everywhere(clips: Path) -> None:
    for number in range(6):
        clip(clips, f"{number}.mp4")
    clip(clips, "short.mp4", 3)
    report = report_of(clips, max_num_samples=2)
    assert len(report.samples) == 2
    assert [row.cause for row in report.dropped].count("over max_num_samples") == 4
    assert "set max_num_samples to 6" in next(row.fix for row in report.dropped if "max_num" in row.cause)
    elsewhere = clips.rename(clips.parent / "moved")
    assert [s.name for s in report_of(elsewhere, max_num_samples=2).samples] == [s.name for s in report.samples]
    assert len(report_of(elsewhere, max_num_samples=6).samples) == 6


def test_windows_become_samples(clips: Path) -> None:
    clip(clips, "a.mp4", 150)  # 5 s: 80 frames at 16 fps
    for sampling, alternatives in (("uniform", 1), ("random", 3)):
        samples = report_of(clips, video={"frame_sampling": sampling, "num_windows": 3}).samples
        assert [(s.window, s.alternatives) for s in samples] == [(n, alternatives) for n in range(3)]
        assert len({s.frame_indices for s in samples}) == 3


def test_eval_datasets_are_inspected_apart(clips: Path) -> None:
    clip(clips, "a.mp4")
    held_out = clips.parent / "held out"
    held_out.mkdir()
    clip(held_out, "b.mp4")
    datasets = [dataset_of(clips), dataset_of(held_out, id="eval", dataset_type="eval", repeats=5)]
    config = config_of(*datasets)
    assert [s.name for s in inspect_dataset(config).samples] == ["a.mp4"]
    assert [(s.name, s.repeats) for s in inspect_dataset(config, purpose="eval").samples] == [("b.mp4", 0)]
    assert inspect_dataset(config_of(datasets[0]), purpose="eval").rows == ()
