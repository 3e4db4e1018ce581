"""Captions from text files, names and settings; every way in which one can be unusable has a true reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunerkit.data.captions import CaptionError, CaptionRules, read_captions


def captions_of(tmp_path: Path, data: bytes, **rules) -> tuple[str, ...]:
    (tmp_path / "clip.txt").write_bytes(data)
    return read_captions(tmp_path / "clip.mp4", CaptionRules(**rules))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a cat", ("a cat",)),
        (b"\xef\xbb\xbfa cat\r\n", ("a cat",)),
        (b"a cat\r\n\r\n  a dog  \n", ("a cat", "a dog")),
        (b"one\rtwo", ("one", "two")),
        ("ネコ 🐈\n".encode(), ("ネコ 🐈",)),
    ],
)
def test_text_file(tmp_path: Path, data: bytes, expected: tuple[str, ...]) -> None:
    assert captions_of(tmp_path, data) == expected


def test_whole_file_as_one_caption(tmp_path: Path) -> None:
    assert captions_of(tmp_path, b"a cat\r\n\r\na dog\n", disable_multiline_split=True) == ("a cat\n\na dog",)


def test_large_caption_is_kept_whole(tmp_path: Path) -> None:
    assert len(captions_of(tmp_path, b"word " * 200_000)[0]) == 999_999


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \r\n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"caf\xe9", "is not UTF-8: byte 0xe9 at position 3"),
        ("a cat".encode("utf-16"), "is UTF-16"),
        (b"a\0cat", "NUL bytes"),
    ],
)
def test_unusable_text_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(CaptionError, match=reason) as caught:
        captions_of(tmp_path, data)
    assert "clip.txt" in caught.value.reason
    assert "clip.txt" in caught.value.fix


def test_missing_text_file(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match=r"clip\.txt is missing"):
        read_captions(tmp_path / "clip.mp4", CaptionRules())


def test_folder_in_place_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").mkdir()
    with pytest.raises(CaptionError, match="cannot be read"):
        read_captions(tmp_path / "clip.mp4", CaptionRules())


def test_filename() -> None:
    rules = CaptionRules("filename")
    assert read_captions(Path("/x/a_red__fox-running.v2.mp4"), rules) == ("a red fox-running.v2",)
    with pytest.raises(CaptionError, match="holds no words"):
        read_captions(Path("/x/___.mp4"), rules)


def test_instance_prompts(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    assert read_captions(clip, CaptionRules("instanceprompt", "sks cat")) == ("sks cat",)
    assert read_captions(clip, CaptionRules("textfile", "sks", only_instance_prompt=True)) == ("sks",)
    assert captions_of(tmp_path, b"sits\nruns", instance_prompt=" sks ", prepend_instance_prompt=True) == (
        "sks sits",
        "sks runs",
    )
    assert captions_of(tmp_path, b"sits", instance_prompt="sks") == ("sits",)
