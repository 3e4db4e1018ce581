"""Captions written beside their clips: as the strategy reads them, never over somebody else's, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_data_inspect import clip, config_of, dataset_of, row_of

from tunerkit.data import caption_files
from tunerkit.data.caption_files import CaptionConflictError, CaptionFiles
from tunerkit.data.inspect import inspect_dataset
from tunerkit.data.report import DatasetReport
from tunerkit.errors import DatasetError


def opened(folder: Path, **settings: Any) -> tuple[CaptionFiles, DatasetReport]:
    config = config_of(dataset_of(folder, **settings))
    return CaptionFiles(config), inspect_dataset(config)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"old", b"one\ntwo"),
        (b"old\n", b"one\ntwo\n"),
        (b"old\r\nlines\r\n", b"one\r\ntwo\r\n"),
        (b"\xef\xbb\xbfold\n", b"\xef\xbb\xbfone\ntwo\n"),
        (None, b"one\ntwo\n"),
    ],
)
def test_a_written_caption_is_read_again_and_undone_to_the_byte(
    tmp_path: Path, before: bytes | None, after: bytes
) -> None:
    file = clip(tmp_path, "a.mp4", caption=before).with_suffix(".txt")
    files, report = opened(tmp_path)
    row = report.rows[0]
    written = files.write(row, "one\ntwo", files.read(row).version)
    assert file.read_bytes() == after
    assert (written.text, files.changed, files.edits) == ("one\ntwo", True, 1)
    sample = opened(tmp_path)[1].rows[0].sample
    assert sample is not None
    assert sample.captions == files.captions(row, written.text) == ("one", "two")
    assert files.undo() == ((file,), ())
    assert (file.read_bytes() if file.exists() else None) == before
    assert not files.changed
    assert files.undo() == ((), ())


def test_writing_what_is_there_is_no_edit(tmp_path: Path) -> None:
    file = clip(tmp_path, "a.mp4", caption=b"one\r\n").with_suffix(".txt")
    before = file.stat().st_mtime_ns
    files, report = opened(tmp_path)
    files.write(report.rows[0], "one")
    assert not files.changed
    assert file.stat().st_mtime_ns == before


def test_somebody_elses_change_is_neither_overwritten_nor_undone(tmp_path: Path) -> None:
    file = clip(tmp_path, "a.mp4", caption="old").with_suffix(".txt")
    files, report = opened(tmp_path)
    row = report.rows[0]
    read = files.read(row)
    file.write_text("theirs")
    with pytest.raises(CaptionConflictError, match=r"a\.txt has been changed since it was read") as raised:
        files.write(row, "mine", read.version)
    assert raised.value.found.text == "theirs"
    files.write(row, "mine", raised.value.found.version)
    file.write_text("theirs again")
    assert files.undo() == ((), (file,))
    assert file.read_text() == "theirs again"


def test_one_undo_puts_back_a_change_of_many(tmp_path: Path) -> None:
    for name, caption in (("a", "a dog. A DOG"), ("b", "a cat\nthe dog (old)"), ("c", "nothing")):
        clip(tmp_path, f"{name}.mp4", caption=caption)
    clip(tmp_path, "d.mp4", caption=None)
    files, report = opened(tmp_path)
    texts = {file.name: file.read_text() for file in tmp_path.glob("*.txt")}
    changes = files.replacements(report.rows, "dog", r"\1 (wolf)", match_case=False)
    assert [(change.row.file.name, change.places) for change in changes] == [("a.mp4", 2), ("b.mp4", 1)]
    assert [len(files.replacements(report.rows, word, "x")) for word in ("DOG", "d.g", "")] == [1, 0, 0]
    assert {file.name: file.read_text() for file in tmp_path.glob("*.txt")} == texts  # nothing is written yet
    files.apply(changes)
    assert (tmp_path / "a.txt").read_text() == r"a \1 (wolf). A \1 (wolf)"
    assert (tmp_path / "b.txt").read_text() == "a cat\nthe \\1 (wolf) (old)"
    prefixes = files.prefixes(report.rows, " ohwx, ")
    assert [change.places for change in prefixes] == [1, 2, 1]
    files.apply(prefixes)
    assert (tmp_path / "b.txt").read_text() == "ohwx, a cat\nohwx, the \\1 (wolf) (old)"
    assert files.prefixes(report.rows, "ohwx,") == []
    files.undo()
    assert len(files.undo().restored) == 2
    assert {file.name: file.read_text() for file in tmp_path.glob("*.txt")} == texts


def test_a_prefix_goes_once_where_lines_are_one_caption(tmp_path: Path) -> None:
    clip(tmp_path, "a.mp4", caption="one\ntwo")
    files, report = opened(tmp_path, disable_multiline_split=True)
    assert files.prefixes(report.rows, "x")[0].text == "x one\ntwo"
    assert files.captions(report.rows[0], "one\ntwo\n") == ("one\ntwo",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"caption_strategy": "filename"}, "caption_strategy = filename"),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "x"}, "caption_strategy = instanceprompt"),
        ({"only_instance_prompt": True, "instance_prompt": "x"}, "only_instance_prompt"),
    ],
)
def test_captions_from_elsewhere_are_not_written(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    file = clip(tmp_path, "a.mp4", caption="old").with_suffix(".txt")
    files, report = opened(tmp_path, **settings)
    assert words in files.why_fixed(report.rows[0])
    with pytest.raises(DatasetError, match=words):
        files.write(report.rows[0], "new")
    assert files.replacements(report.rows, "old", "new") == []
    assert file.read_text() == "old"


def test_a_text_in_another_encoding_is_left_as_it_is(tmp_path: Path) -> None:
    file = clip(tmp_path, "a.mp4", caption="año".encode("latin-1")).with_suffix(".txt")
    files, report = opened(tmp_path)
    assert "not UTF-8" in files.why_fixed(row_of(report, "a.mp4"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        files.write(report.rows[0], "new")
    assert file.read_bytes() == "año".encode("latin-1")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path, "a.mp4", caption="old")
    files, report = opened(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(caption_files, "write_atomically", refuse)
    with pytest.raises(DatasetError, match=r"a\.txt cannot be written: permission denied. Fix:"):
        files.write(report.rows[0], "new")
    assert not files.changed
