"""Filling the cache: bad files, full disks, interrupts, and several processes at once."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_clips import numbered_frame, read_number, write_clip
from test_sound_cache import Talking

import tunerkit as tk
from tunerkit import families
from tunerkit.cache import claims as claims_module
from tunerkit.cache.claims import Claims, divided
from tunerkit.cache.decode_ahead import DecodeAhead, decode_together
from tunerkit.cache.entries import Cache
from tunerkit.cache.repair import rebuild_latents, rebuild_text
from tunerkit.data.media import SoundTrack
from tunerkit.data.media_memory import MediaMemory
from tunerkit.data.probe import read_media
from tunerkit.errors import TunerkitError

MakeConfig = Callable[..., tk.TrainConfig]


def test_windows_of_one_clip_are_decoded_in_one_pass_and_are_right(make_config: MakeConfig, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "long.mp4", 60, fps=16, size=(128, 64))
    sample = tk.inspect_dataset(make_config()).samples[0]
    base = sample._replace(file=clip, size=(128, 64), resized=(128, 64), crop=(0, 0))
    spans = [tuple(range(start, start + 9)) for start in (0, 5, 40)]
    windows = [
        base._replace(frame_indices=span, frame_times=tuple(i / 16 for i in span), window=n)
        for n, span in enumerate(spans)
    ]
    seen: list[int] = []
    with DecodeAhead(iter([*windows, windows[0]._replace(file=tmp_path / "none.mp4")])) as decoded:
        for item in decoded:
            assert item is not None
            if isinstance(item[1], torch.Tensor):
                assert [read_number(frame) for frame in item[1].numpy()] == list(item[0].frame_indices)
                seen.append(item[0].window)
            else:
                assert "none.mp4" in str(item[1])
    assert seen == [0, 1, 2]
    beyond = windows[2]._replace(frame_indices=(70,), frame_times=(70 / 16,))
    good, bad = decode_together([windows[0], beyond])
    assert isinstance(good, torch.Tensor)
    assert isinstance(bad, Exception)


def test_decoding_ahead_is_bounded_in_bytes(make_config: MakeConfig, monkeypatch) -> None:
    sample = tk.inspect_dataset(make_config()).samples[0]
    size = len(sample.frame_indices) * sample.size[0] * sample.size[1] * 3
    monkeypatch.setattr("tunerkit.cache.decode_ahead.AHEAD_BYTES", 2 * size)
    taken = 0

    def source():
        nonlocal taken
        for number in range(6):
            taken += 1
            yield sample._replace(crop=(0, 0), fps=sample.fps + number, file=sample.file, window=0, repeats=number)

    monkeypatch.setattr("tunerkit.cache.decode_ahead.TOGETHER_BYTES", 0)
    with DecodeAhead(source()) as decoded:
        for done, _ in enumerate(decoded):
            assert taken - done <= 4  # two wait, one is looked at next, one is with the caller


def test_full_disk_ends_the_job_with_the_folder_and_keeps_what_is_whole(
    make_config: MakeConfig, monkeypatch, project: Path
) -> None:
    vae = project / "cache" / "vae"
    before = {path.relative_to(vae): path.read_bytes() for path in vae.rglob("*.safetensors")}
    shutil.rmtree(vae)
    whole = Cache.put_latents
    written: list[int] = []

    def put(self: Cache, *args: Any, **kwargs: Any) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(1)
        whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "put_latents", put)
        with pytest.raises(TunerkitError, match="No space left on device") as error:
            tk.build_cache(make_config(), progress=False)
    assert str(vae) in str(error.value)
    left = {path.relative_to(vae): path.read_bytes() for path in vae.rglob("*") if path.is_file()}
    assert len(left) == 2
    assert tk.build_cache(make_config(), progress=False).latents_encoded == len(before) - 2
    assert before == {path.relative_to(vae): path.read_bytes() for path in vae.rglob("*") if path.is_file()}


def test_interrupt_ends_threads_and_leaves_only_whole_entries(make_config: MakeConfig, project: Path) -> None:
    vae = project / "cache" / "vae"
    before = {path.relative_to(vae): path.read_bytes() for path in vae.rglob("*.safetensors")}
    shutil.rmtree(vae)

    def interrupt(phase: str, done: int, _: int) -> None:
        if (phase, done) == ("clips", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tk.build_cache(make_config(), progress=interrupt)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tunerkit-")]
    left = {path.relative_to(vae): path.read_bytes() for path in vae.rglob("*") if path.is_file()}
    assert 2 <= len(left) < len(before)
    assert left.items() <= before.items()
    assert not (vae / claims_module.FOLDER).exists()


def test_claims_are_exclusive_and_abandoned_ones_are_taken(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / claims_module.FOLDER
    folder.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = claims_module.machine()
    owners = {
        "alive": {"machine": here, "process": os.getppid()},
        "dead": {"machine": here, "process": ended.pid},
        "elsewhere": {"machine": "another", "process": 1},
        "made-elsewhere": {"machine": "another", "process": 1},
    }
    for name, owner in owners.items():
        (folder / name).write_text(json.dumps(owner))
    there = {"made-elsewhere"}
    found: list[str] = []
    with Claims([tmp_path]) as held:
        assert not (folder / "dead").exists()
        source = divided([*owners, "free"], held, lambda name: (tmp_path, name), there.__contains__, found.append)
        assert {next(source), next(source)} == {"dead", "free"}
        assert next(source) is None
        there.add("alive")  # its process finishes; the one of the other machine falls silent
        monkeypatch.setattr(claims_module, "SILENT_SECONDS", 0.0)
        time.sleep(0.01)
        assert next(source) == "elsewhere"
        assert next(source, "end") == "end"
        assert sorted(found) == ["alive", "made-elsewhere"]
        for name in ("alive", "made-elsewhere"):
            (folder / name).unlink(missing_ok=True)
    assert list(tmp_path.iterdir()) == []


def test_rebuilt_entries_are_those_that_were_lost(make_config: MakeConfig, caplog) -> None:
    config, family = tk.resolve(make_config()), tk.family("sanavideo")
    cache = Cache(config, family)
    sample = tk.inspect_dataset(config).samples[0]
    path = cache.latent_stores[sample.dataset].path(cache.namer.latents(sample))
    text_path = cache.text_store.path(cache.namer.text(sample.captions[0], "positive"))
    whole = path.read_bytes(), text_path.read_bytes()
    path.unlink()
    text_path.unlink()
    with caplog.at_level(logging.WARNING, "tunerkit"):
        clip = rebuild_latents(config, family, cache, sample)
        tensors = rebuild_text(config, family, cache, sample.captions[0], "positive")
    assert (path.read_bytes(), text_path.read_bytes()) == whole
    assert clip.keys() == {"latents"}
    assert torch.equal(clip["latents"], Cache(config, family).latents(sample))
    assert tensors.keys() == cache.text(sample.captions[0], "positive").keys()
    assert str(sample.file) in caplog.text
    assert str(path) in caplog.text
    other = tk.inspect_dataset(config).samples[1].file
    shutil.copyfile(other, sample.file)
    with pytest.raises(TunerkitError, match="was changed since the run began"):
        rebuild_latents(config, family, cache, sample)
    sample.file.unlink()
    with pytest.raises(TunerkitError, match="No such file"):
        rebuild_latents(config, family, cache, sample)


@pytest.mark.parametrize("delete", [False, True])
def test_only_the_second_setting_deletes_a_bad_clip(
    make_config: MakeConfig, project: Path, caplog, delete: bool
) -> None:
    shutil.rmtree(project / "cache" / "vae")
    config = tk.resolve(make_config(delete_problematic_images=True, delete_quarantined_files=delete))
    report = tk.inspect_dataset(config)
    clip = report.samples[0].file
    clip.write_bytes(clip.read_bytes()[:3000])  # damaged after it was looked at
    result = tk.build_cache(config, report=report, progress=False)
    assert [failure.file for failure in result.failures] == [clip]
    assert clip.exists() is not delete
    assert ("is deleted" in caplog.text) is delete
    if not delete:
        from tunerkit.data.quarantine import Quarantine

        assert Quarantine.of(config).reason(clip)


def test_masks_are_cached_with_the_clips_and_later(make_config: MakeConfig, project: Path, tmp_path: Path) -> None:
    from PIL import Image

    from tunerkit.data.probe import content_digest
    from tunerkit.data.report import DatasetReport
    from tunerkit.data.samples import Mask

    config, family = tk.resolve(make_config()), tk.family("sanavideo")
    report = tk.inspect_dataset(config)
    masked, still = [], tmp_path
    for number, row in enumerate(report.rows):
        sample, still = row.samples[0], tmp_path / f"mask-{number}.png"
        Image.new("L", (sample.source.width, sample.source.height), 255).save(still)
        still.write_bytes(still.read_bytes() + bytes([number]))  # equal masks would share an entry
        mask = Mask(still, "image", content_digest(still))
        masked.append(row._replace(samples=(sample._replace(mask=mask),)))
    report = DatasetReport(masked)
    cache = Cache(config, family)
    for clear in (False, True):
        if clear:
            shutil.rmtree(project / "cache" / "vae")
        result = tk.build_cache(config, report=report, progress=False)
        assert not result.failures
        cache = Cache(config, family)
        sample = report.samples[-1]
        weights, latents = cache.mask(sample), cache.latents(sample)
        assert weights.shape == (1, *latents.shape[1:])
        assert torch.equal(weights, torch.ones_like(weights))
    still.write_bytes(b"no picture")
    shutil.rmtree(project / "cache" / "vae")
    result = tk.build_cache(config, report=report, progress=False)
    assert [failure.file for failure in result.failures] == [report.samples[-1].file]
    assert "mask" in result.failures[0].reason
    # All black: the clip would be trained on for nothing.
    Image.new("L", (sample.source.width, sample.source.height), 0).save(still)
    shutil.rmtree(project / "cache" / "vae")
    result = tk.build_cache(config, report=report, progress=False)
    assert [failure.file for failure in result.failures] == [report.samples[-1].file]
    assert "black" in result.failures[0].reason


def test_clips_of_equal_content_have_masks_of_their_own(make_config: MakeConfig, project: Path, tmp_path: Path) -> None:
    from PIL import Image

    from tunerkit.data.probe import content_digest
    from tunerkit.data.report import DatasetReport
    from tunerkit.data.samples import Mask

    config, family = tk.resolve(make_config()), tk.family("sanavideo")
    files = [sample.file for sample in tk.inspect_dataset(config).samples[:3]]
    for copy in files[1:]:
        shutil.copyfile(files[0], copy)
    report = tk.inspect_dataset(config)
    rows = {row.file: row for row in report.rows}
    for number, file in enumerate(files):
        [sample] = rows[file].samples
        still = tmp_path / f"mask-{number}.png"
        Image.new("L", (sample.source.width, sample.source.height), (51, 255, 7)[number]).save(still)
        mask = Mask(still, "image", content_digest(still))
        rows[file] = rows[file]._replace(samples=(sample._replace(mask=mask),))
        if number == 2:
            still.write_bytes(b"no picture")
    shutil.rmtree(project / "cache" / "vae")
    result = tk.build_cache(config, report=DatasetReport(list(rows.values())), progress=False)
    assert [failure.file for failure in result.failures] == [files[2]]
    cache = Cache(config, family)
    dark, white = (cache.mask(rows[file].samples[0]) for file in files[:2])
    torch.testing.assert_close(dark, torch.full_like(dark, 0.2))
    assert white.eq(1).all()


def test_what_is_remembered_of_files_does_not_depend_on_their_order(tmp_path: Path) -> None:
    files = [write_clip(tmp_path / f"{fps}.mp4", 9, fps=fps, size=(64, 64)) for fps in (12, 24, 30)]
    for file in files:
        os.utime(file, (1_600_000_000.5, 1_600_000_000.5))
    written = []
    for order in (1, -1):
        memory = MediaMemory(path := tmp_path / f"memory{order}.json", str(tmp_path))
        for file in files[::order]:
            media = read_media(file)
            stamp = (media.source.size_bytes, media.source.mtime_ns)
            memory.remember(file.name, stamp, media)
            memory.remember_sound(file.name, stamp, SoundTrack(0.0, 0.3, "ab" * 32))
            memory.remember_caption(file.name, stamp, file.name)
            memory.save()
            assert MediaMemory(path, str(tmp_path)).media(file.name, stamp, file) == media
        written.append(path.read_bytes())
    assert written[0] == written[1]


# Several processes ---------------------------------------------------------------------------------------------

CLIPS = 18


@pytest.fixture(scope="module")
def many_clips(pristine_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo project with many small clips and no cache; `clean/` is what one run makes."""
    folder = tmp_path_factory.mktemp("filling") / "project"
    shutil.copytree(pristine_project, folder, ignore=shutil.ignore_patterns("cache", "clips", "output"))
    for number in range(CLIPS):
        pictures = [np.roll(numbered_frame(number * 9 + n), number, axis=1) for n in range(9)]
        write_clip(folder / "clips" / f"clip-{number:02}.mp4" if number else _made(folder / "clips"), pictures, fps=16)
        (folder / "clips" / f"clip-{number:02}.txt").write_text(f"Bars that spell {number}.")
    changes = {"datasets.0.video.num_frames": 9, "datasets.0.video.min_frames": 9, "validation_disable": True}
    tk.load_config(folder / "config.json", **changes).save(folder / "filling.json")
    tk.build_cache(tk.load_config(folder / "filling.json"), progress=False)
    (folder / "cache").rename(folder / "clean")
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder / "clip-00.mp4"


def _start(project: Path, seconds: float, *more: str) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("cache_filling_run.py")
    command = [sys.executable, str(script), str(project / "filling.json"), str(seconds), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_share_the_sound(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families._families(), "sanavideo", Talking())
    changes = {"datasets.0.audio.auto_split": True, "vae_batch_size": 1, "validation_disable": True}
    tk.load_config(project / "config.json", **changes).save(project / "filling.json")
    clips = _content(project / "cache" / "vae").keys()

    def sounds() -> dict[Path, bytes]:
        return {path: data for path, data in _content(project / "cache" / "vae").items() if path not in clips}

    processes = [_start(project, 0.3, "sound") for _ in range(2)]
    done = [json.loads(_output(process)) for process in processes]
    filled = sounds()
    count = len(filled)
    assert count == len(tk.inspect_dataset(tk.load_config(project / "filling.json")).samples)
    assert count <= sum(result["sounds"] for result in done) <= count + 2
    shutil.rmtree(project / "cache" / "vae")
    assert tk.build_cache(tk.load_config(project / "filling.json"), progress=False).sounds_encoded == count
    assert sounds() == filled


@pytest.mark.slow
def test_three_processes_share_the_work_and_one_is_killed(many_clips: Path) -> None:
    cache, draw = many_clips / "cache", random.Random(1)
    processes = [_start(many_clips, 0.2) for _ in range(3)]
    victim = draw.choice(processes)
    entries = draw.randrange(1, CLIPS)
    while victim.poll() is None and len(list(cache.rglob("*.safetensors"))) < entries:
        time.sleep(0.005)
    time.sleep(draw.random() * 0.2)
    victim.kill()
    victim.communicate()
    done = [json.loads(_output(process)) for process in processes if process is not victim]
    assert all(result["latents"] > 0 for result in done), "one process did everything"
    assert sum(result["latents"] for result in done) <= CLIPS + 2
    config = tk.load_config(many_clips / "filling.json")
    assert not tk.build_cache(config, progress=False).failures
    assert _content(cache) == _content(many_clips / "clean")
    assert {path.name for path in (cache / "vae").iterdir()} == {p.name for p in (many_clips / "clean/vae").iterdir()}


def _output(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out.splitlines()[-1]
