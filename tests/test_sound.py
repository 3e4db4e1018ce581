"""The decision about the sound of a clip: which file, which span of it, and a true reason where there is none."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from data_clips import numbered_frame, write_clip
from PIL import Image
from test_audio import tone_with_click, write_talkie
from test_data_inspect import row_of
from test_media_memory import age, opened

from tunerkit.config.settings import TrainConfig
from tunerkit.data import sound as sound_module
from tunerkit.data.audio import decode_sound, read_sound
from tunerkit.data.inspect import inspect_dataset
from tunerkit.data.media import UnreadableMedia
from tunerkit.data.probe import content_digest
from tunerkit.data.report import DatasetReport
from tunerkit.data.samples import Sample, Sound
from tunerkit.errors import ConfigError, DatasetError

RATE = 16_000
CODECS = {
    ".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus", ".m4a": "aac", ".aac": "aac",
    ".opus": "libopus", ".mkv": "aac",
}  # fmt: skip


def talkie(path: Path, seconds: float = 2.0, frames: int = 50, **more: Any) -> Path:
    """A clip of 25 frames per second with sound that has a click at 1.5 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_talkie(path, tone_with_click(RATE, seconds, 2, 1.5), RATE, frames=frames, **more)


def mute(path: Path, frames: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, frames, fps=25, size=(64, 64))


def sound_file(path: Path, seconds: float = 2.0, click: float = 1.5) -> Path:
    """A file with sound only, mono, of the codec that its name promises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 48_000 if CODECS[path.suffix] == "libopus" else RATE
    waveform = tone_with_click(rate, seconds, 1, click)
    with av.open(str(path), "w", format="adts" if path.suffix == ".aac" else None) as out:
        stream: Any = out.add_stream(CODECS[path.suffix], rate=rate, layout="mono")
        size = stream.codec_context.frame_size or 1024
        convert = av.AudioResampler(stream.codec_context.format.name, "mono", rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout="mono")
        frame.sample_rate = rate
        for piece in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


def report_of(tmp_path: Path, *more: dict[str, Any], family: str = "ltxvideo2", **clips: Any) -> DatasetReport:
    """The clips in `clips`, 17 frames of each; `more` are further datasets."""
    video = {"num_frames": 17, **clips.pop("video", {})}
    dataset = {
        "id": "clips", "instance_data_dir": tmp_path / "clips", "resolution": 64, "resolution_type": "pixel",
        "caption_strategy": "instanceprompt", "instance_prompt": "x", "video": video, **clips,
    }  # fmt: skip
    settings: dict[str, Any] = {"model_family": family, "framerate": 25, "output_dir": tmp_path / "out"}
    return inspect_dataset(TrainConfig(**settings, datasets=[dataset, *more]))


def voices(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    return {"id": "voices", "dataset_type": "audio", "instance_data_dir": tmp_path / "voices", **settings}


def click_in(sample: Sample) -> float | None:
    """Seconds from the beginning of the sample's picture to the click in its sound; None where there is none."""
    assert sample.sound is not None
    waveform = decode_sound(sample.sound, sample_rate=RATE, channels=1)[0]
    assert len(waveform) == round(sample.seconds * RATE)
    place = int(np.abs(waveform).argmax())
    return place / RATE if abs(waveform[place]) > 0.3 else None


# The clip's own sound --------------------------------------------------------------------------------------------


def test_every_window_has_its_own_span(tmp_path: Path) -> None:
    clip = talkie(tmp_path / "clips" / "a.mp4")
    report = report_of(tmp_path, audio={}, video={"frame_sampling": "uniform", "num_windows": 3})
    assert len(report.samples) == 3
    for sample in report.samples:
        start = sample.frame_times[0]
        assert sample.sound == Sound(clip, content_digest(clip), round(start, 6), 17 / 25)
        click, expected = click_in(sample), 1.5 - start
        assert click == (pytest.approx(expected, abs=0.002) if 0 <= expected < 17 / 25 else None)
        assert sample.bucket == "64x64@17+0.68s"
    assert {click_in(sample) is None for sample in report.samples} == {True, False}
    assert "sound" not in report.rows[0].reason
    assert report.rows[0].reason.startswith("25 fps")
    assert "3 with sound, 0 silent" in report.summary()


@pytest.mark.parametrize(
    "changes",
    [{}, {"audio": {"auto_split": False}}, {"audio": {}, "family": "sanavideo"}],
    ids=["not asked", "switched off", "a model without sound"],
)
def test_without_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    clip = talkie(tmp_path / "clips" / "a.mp4")
    files = opened(monkeypatch)
    report = report_of(tmp_path, **changes)
    assert report.samples[0].sound is None
    assert files == [clip.name]  # nobody looked for sound
    assert "with sound" not in report.summary()


def test_a_clip_without_sound_is_dropped_or_silent(tmp_path: Path) -> None:
    talkie(tmp_path / "clips" / "a.mp4")
    mute(tmp_path / "clips" / "mute.mp4")
    row = row_of(report_of(tmp_path, audio={}), "mute.mp4")
    assert (row.decision, row.cause, row.reason) == ("dropped", "no sound", "the clip has no sound")
    assert "audio.allow_zero_audio" in row.fix
    report = report_of(tmp_path, audio={"allow_zero_audio": True})
    row = row_of(report, "mute.mp4")
    [sample] = row.samples
    assert sample.sound is not None
    assert (sample.sound.silent, sample.sound.seconds) == (True, 17 / 25)
    assert "silence stands in for it (audio.allow_zero_audio), without a share in the loss" in row.reason
    assert not decode_sound(sample.sound, sample_rate=RATE, channels=2).any()
    assert "1 with sound, 1 silent" in report.summary()
    with report.to_csv(tmp_path / "table.csv").open(newline="") as file:
        told = {Path(line["file"]).name: (line["sound"], line["sound_file"]) for line in csv.DictReader(file)}
    assert told == {"a.mp4": ("yes", str(tmp_path / "clips" / "a.mp4")), "mute.mp4": ("silent", "")}
    assert "silent" in report.to_text()


def test_sound_that_does_not_last_as_long_as_the_picture(tmp_path: Path) -> None:
    talkie(tmp_path / "clips" / "short.mp4", seconds=0.3)
    talkie(tmp_path / "clips" / "late.mp4", seconds=1.0, late=0.45)
    talkie(tmp_path / "clips" / "fine.mp4", seconds=0.65)
    report = report_of(tmp_path, audio={})
    # 17 / 25 = 0.68 s of picture; the encoder ends on a whole frame of 64 ms
    assert "sound ends 0.4 s before the picture: silence fills up" in row_of(report, "short.mp4").reason
    assert "sound starts 0.4 s after the picture: silence fills up" in row_of(report, "late.mp4").reason
    assert "silence" not in row_of(report, "fine.mp4").reason


@pytest.mark.parametrize("sampling", ["uniform", "random"])
def test_windows_beyond_the_sound(tmp_path: Path, sampling: str) -> None:
    talkie(tmp_path / "clips" / "a.mp4", seconds=1.0)
    video = {"frame_sampling": sampling, "num_windows": 3}
    every = report_of(tmp_path, video=video).samples
    beyond = [sample.frame_times[0] > 1.1 for sample in every]
    assert beyond == [False, False, True]
    row = report_of(tmp_path, audio={}, video=video).rows[0]
    assert [sample.window for sample in row.samples] == [0, 1]
    assert {sample.alternatives for sample in row.samples} == {2 if sampling == "random" else 1}
    assert "1 of 3 windows: left out for want of sound; to keep them set audio.allow_zero_audio" in row.reason
    row = report_of(tmp_path, audio={"allow_zero_audio": True}, video=video).rows[0]
    assert [sample.sound and sample.sound.silent for sample in row.samples] == beyond
    assert "1 of 3 windows: silence stands in" in row.reason


def test_a_picture_that_begins_after_the_sound_has_ended(tmp_path: Path) -> None:
    talkie(tmp_path / "clips" / "a.mp4", seconds=0.5)
    row = report_of(tmp_path, audio={}, video={"frame_sampling": "middle"}).rows[0]
    assert row.cause == "no sound"
    assert "its sound lasts from" in row.reason
    row = report_of(tmp_path, audio={"allow_zero_audio": True}, video={"frame_sampling": "middle"}).rows[0]
    assert row.samples[0].sound
    assert row.samples[0].sound.silent


def test_stills_are_trained_without_sound(tmp_path: Path) -> None:
    talkie(tmp_path / "clips" / "a.mp4")
    Image.fromarray(numbered_frame(3, 64, 64)).save(tmp_path / "clips" / "still.png")
    row = row_of(report_of(tmp_path, audio={}), "still.png")
    assert row.samples[0].sound is None
    assert row.samples[0].bucket == "64x64@1"
    assert row.reason.endswith("a still: trained without sound")


def test_max_duration(tmp_path: Path) -> None:
    talkie(tmp_path / "clips" / "a.mp4")
    row = report_of(tmp_path, audio={"max_duration_seconds": 1.5}).rows[0]
    assert (row.decision, row.cause) == ("dropped", "sound too long")
    assert "its sound lasts 2.0 s, longer than audio.max_duration_seconds = 1.5" in row.reason
    assert report_of(tmp_path, audio={"max_duration_seconds": 2.5}).samples


def test_another_format_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.mp4", "b.mp4"):
        talkie(tmp_path / "clips" / name)
    sound_module._told.clear()
    with caplog.at_level(logging.INFO, "tunerkit"):
        report_of(tmp_path, audio={"sample_rate": 44_100, "channels": 1})
        report_of(tmp_path, audio={"sample_rate": 44_100, "channels": 1})
    told = [record.message for record in caplog.records if "audio.sample_rate" in record.message]
    assert len(told) == 1
    assert "16000 Hz with 2 channels" in told[0]


def test_what_was_found_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talkie(tmp_path / "clips" / "a.mp4")
    sound_file(tmp_path / "voices" / "b.wav")
    (tmp_path / "voices" / "c.wav").write_text("nothing")
    for name in ("b.mp4", "c.mp4"):
        talkie(tmp_path / "more" / name)
    age(tmp_path)
    more = {"id": "more", "instance_data_dir": tmp_path / "more", "s2v_datasets": "voices", "resolution": 64}
    more |= {"caption_strategy": "filename", "resolution_type": "pixel", "video": {"num_frames": 17}}
    first = report_of(tmp_path, more, voices(tmp_path), audio={})
    files = opened(monkeypatch)
    second = report_of(tmp_path, more, voices(tmp_path), audio={})
    assert second.rows == first.rows
    assert [row.decision for row in first.rows] == ["used", "used", "dropped"]
    assert not files
    talkie(tmp_path / "clips" / "a.mp4", seconds=0.3)
    assert "sound ends" in report_of(tmp_path, more, voices(tmp_path), audio={}).rows[0].reason


# Sound files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CODECS)
def test_how_long_a_sound_file_lasts(tmp_path: Path, suffix: str) -> None:
    track = read_sound(sound_file(tmp_path / f"a{suffix}", seconds=2.0))
    assert track.begins == pytest.approx(0, abs=0.07)
    assert track.seconds == pytest.approx(2.0, abs=0.13)  # two frames that the encoder adds


def test_sound_files_go_by_path_and_then_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips, sounds = tmp_path / "clips", tmp_path / "voices"
    for name in ("a.mp4", "sub/a.mp4", "b.mp4"):
        mute(clips / name)
    for name in ("a.wav", "sub/a.flac", "elsewhere/b.mp3", "nobody.wav"):
        sound_file(sounds / name)
    with caplog.at_level(logging.WARNING, "tunerkit"):
        report = report_of(tmp_path, voices(tmp_path), s2v_datasets="voices")
    found = {row.file.relative_to(clips).as_posix(): row for row in report.rows}
    expected = {"a.mp4": "a.wav", "sub/a.mp4": "sub/a.flac", "b.mp4": "elsewhere/b.mp3"}
    for clip, name in expected.items():
        [sample] = found[clip].samples
        assert sample.sound
        assert (sample.sound.file, sample.sound.digest) == (sounds / name, content_digest(sounds / name))
        assert f"; sound {Path(name).name}" in found[clip].reason
        later = sample._replace(sound=sample.sound._replace(start=sample.sound.start + 1))
        assert click_in(later) == pytest.approx(0.5, abs=0.002)
    assert {row.dataset for row in report.rows} == {"clips"}
    assert "elsewhere/b.mp3" not in caplog.text
    assert "1 of 4 sound files" in caplog.text
    assert "nobody.wav" in caplog.text
    assert "b.mp3" in report.to_text()


@pytest.mark.parametrize("mode", ["beginning", "end", "random"])
def test_a_sound_file_longer_than_the_clip(tmp_path: Path, mode: str) -> None:
    mute(tmp_path / "clips" / "a.mp4")
    sound_file(tmp_path / "voices" / "a.wav", seconds=5.0, click=4.5)
    video = {"frame_sampling": "uniform", "num_windows": 3}
    report = report_of(
        tmp_path, voices(tmp_path, audio={"truncation_mode": mode}), s2v_datasets=["voices"], video=video
    )
    shifts = {round(s.sound.start - s.frame_times[0], 4) for s in report.samples if s.sound}
    assert len(shifts) == 1  # windows stay in time with each other
    [shift] = shifts
    if mode == "random":
        assert 0 < shift < 3
        assert report_of(tmp_path, voices(tmp_path, audio={"truncation_mode": mode}), s2v_datasets="voices").samples
    else:
        assert shift == pytest.approx({"beginning": 0, "end": 3}[mode], abs=0.001)
    if mode == "end":
        assert f"sound a.wav, from 3.00 s on (audio.truncation_mode = {mode})" in report.rows[0].reason
        assert click_in(report.samples[-1]) == pytest.approx(1.5 - report.samples[-1].frame_times[0], abs=0.002)


def test_a_missing_partner(tmp_path: Path) -> None:
    talkie(tmp_path / "clips" / "a.mp4")
    sound_file(tmp_path / "voices" / "other.wav")
    row = report_of(tmp_path, voices(tmp_path), s2v_datasets="voices").rows[0]
    assert (row.decision, row.cause, row.reason) == ("dropped", "no sound file", "no sound file for a.mp4")
    assert "a.wav" in row.fix
    assert str(tmp_path / "voices") in row.fix
    assert "audio.allow_zero_audio" in row.fix
    silent: dict[str, Any] = {"audio": {"allow_zero_audio": True}}
    plain: dict[str, Any] = {}
    for clips, partner in ((silent, plain), (plain, silent)):
        [sample] = report_of(tmp_path, voices(tmp_path, **partner), s2v_datasets="voices", **clips).samples
        assert sample.sound
        assert sample.sound.silent  # never the clip's own sound by guess


def test_unclear_partners_are_dropped_even_where_silence_is_allowed(tmp_path: Path) -> None:
    audio = {"allow_zero_audio": True}
    for name in ("a.mp4", "x/b.mp4", "y/b.mp4"):
        mute(tmp_path / "clips" / name)
    for name in ("a.wav", "a.mp3", "b.wav"):
        sound_file(tmp_path / "voices" / name)
    rows = report_of(tmp_path, voices(tmp_path), s2v_datasets="voices", audio=audio).rows
    assert [row.cause for row in rows] == ["several sound files", "unclear sound file", "unclear sound file"]
    assert "a.mp3" in rows[0].reason
    assert "a.wav" in rows[0].reason


@pytest.mark.parametrize("content", [b"", b"no music at all", b"RIFF\0\0\0\0WAVEfmt "])
def test_a_sound_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    mute(tmp_path / "clips" / "a.mp4")
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "a.wav").write_bytes(content)
    row = report_of(tmp_path, voices(tmp_path), s2v_datasets="voices", audio={"allow_zero_audio": True}).rows[0]
    assert row.decision == "dropped"
    assert "sound a.wav" in row.reason
    assert str(tmp_path / "voices" / "a.wav") in row.fix


def test_a_picture_under_a_sound_files_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableMedia, match="holds no sound"):
        read_sound(mute(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    ("named", "partner", "words"),
    [
        ("nothing", {}, "nothing is the id of no dataset"),
        ("voices", {"dataset_type": "video"}, "is a dataset of type video, not audio"),
        ("voices", {"disabled": True}, "is disabled"),
    ],
)
def test_ids_that_give_no_sound(tmp_path: Path, named: str, partner: dict[str, Any], words: str) -> None:
    mute(tmp_path / "clips" / "a.mp4")
    sound_file(tmp_path / "voices" / "a.wav")
    mute(tmp_path / "voices" / "v.mp4")
    with pytest.raises(ConfigError, match=words):
        report_of(tmp_path, voices(tmp_path, **partner), s2v_datasets=named)


def test_a_folder_without_sound_files(tmp_path: Path) -> None:
    mute(tmp_path / "clips" / "a.mp4")
    (tmp_path / "voices").mkdir()
    with pytest.raises(DatasetError, match=r"dataset 'voices': .* holds no sound file \(.*\.opus .*\.wav\)"):
        report_of(tmp_path, voices(tmp_path), s2v_datasets="voices")
