"""Sound in the cache: what is encoded, under which name, in how little memory, and what becomes of failures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tunerkit as tk
from tunerkit import families
from tunerkit.cache.encode import EncodingError, encode_sounds
from tunerkit.cache.entries import Cache
from tunerkit.cache.keys import EntryNamer
from tunerkit.cache.repair import rebuild_sound
from tunerkit.cache.store import CacheEntryError
from tunerkit.data import audio as audio_module
from tunerkit.data.audio import decode_audio
from tunerkit.data.media import UnreadableMedia
from tunerkit.data.samples import Sample, Sound
from tunerkit.errors import TunerkitError
from tunerkit.families.facts import SoundFormat
from tunerkit.families.sana_video.family import SanaVideo

MakeConfig = Callable[..., tk.TrainConfig]

RATE, HOP = 16_000, 640


class HopMeans(torch.nn.Module):
    """An audio VAE whose latents are the means of 640 samples, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))


class Talking(SanaVideo):
    """Sana, if it had sound; counts its loads and remembers the sizes of its batches."""

    sound = SoundFormat(RATE, 2)
    subfolders = {**SanaVideo.subfolders, "audio_vae": ("vae",)}

    def __init__(self) -> None:
        self.loads, self.batches, self.asked = 0, list[tuple[int, ...]](), list[str]()
        self.version, self.most = 1, 10**9

    def identity(self, config: tk.TrainConfig, component: Any) -> dict[str, Any]:
        self.asked.append(component)
        return super().identity(config, component)

    def sound_recipe(self, config: tk.TrainConfig) -> dict[str, Any]:  # noqa: ARG002
        return {"version": self.version}

    def load_audio_vae(self, config: tk.TrainConfig, device: torch.device) -> HopMeans:  # noqa: ARG002
        self.loads += 1
        return HopMeans().to(device)

    def encode_sound(self, vae: Any, waveforms: torch.Tensor) -> torch.Tensor:
        self.batches.append(tuple(waveforms.shape))
        if len(waveforms) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        hops = waveforms.shape[-1] // HOP
        return waveforms[..., : hops * HOP].unflatten(-1, (hops, HOP)).mean(-1).transpose(1, 2) * vae.scale


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Talking:
    talking = Talking()
    monkeypatch.setitem(families._families(), "sanavideo", talking)
    return talking


@pytest.fixture
def talks(project: Path, make_config: MakeConfig, family: Talking) -> MakeConfig:
    """The demo's settings with sound; keywords change the dataset."""
    assert family.sound

    def make(**dataset: Any) -> tk.TrainConfig:
        path = project / "multidatabackend.json"
        documents = json.loads(path.read_text())
        documents[0] |= {"audio": {"auto_split": True}, "vae_batch_size": 3, **dataset}
        path.write_text(json.dumps(documents))
        return tk.resolve(make_config())

    return make


def by_hand(sample: Sample) -> np.ndarray:
    assert sample.sound is not None
    waveform = decode_audio(sample.sound.file, sample.sound.start, sample.seconds, sample_rate=RATE, channels=2)
    length = waveform.shape[1] // HOP * HOP
    return 2 * waveform[:, :length].astype(np.float64).reshape(2, -1, HOP).mean(-1).T


def test_every_clip_gets_its_latents_once(talks: MakeConfig, family: Talking) -> None:
    config = talks()
    phases: list[tuple[str, int, int]] = []
    result = tk.build_cache(config, progress=lambda *told: phases.append(told))
    samples = tk.inspect_dataset(config).samples
    count = len(samples)
    assert (result.sounds_encoded, result.sounds_reused, result.latents_reused) == (count, 0, count)
    assert f"sound: {count} encoded, 0 already cached" in str(result)
    assert phases == [("sound", done, count) for done in range(1, count + 1)]
    assert family.loads == 1
    length = round(samples[0].seconds * RATE)
    assert set(family.batches) <= {(n, 2, length) for n in (1, 2, 3)}
    assert len(family.batches) == -(-count // 3)
    cache = Cache(config, family)
    for sample in samples:
        latents = cache.sound(sample)
        assert latents.dtype == torch.float32
        np.testing.assert_allclose(latents.numpy(), by_hand(sample), atol=1e-6)
    assert abs(by_hand(samples[0])).max() > 1e-3
    again = tk.build_cache(config, progress=False)
    assert (again.sounds_encoded, again.sounds_reused, family.loads) == (0, count, 1)


def test_without_sound_nobody_asks_for_the_audio_vae(talks: MakeConfig, family: Talking) -> None:
    result = tk.build_cache(talks(audio=None), progress=False)
    assert (result.sounds_encoded, result.sounds_reused, family.loads) == (0, 0, 0)
    assert "audio_vae" not in family.asked
    assert "sound" not in str(result)


def test_silence_is_encoded_once(talks: MakeConfig, family: Talking) -> None:
    config = talks()
    samples = [
        sample._replace(sound=Sound(sample.file, "", 0.0, sample.seconds, silent=True))
        for sample in tk.inspect_dataset(config).samples
    ]
    report = tk.inspect_dataset(config)
    rows = [row._replace(samples=(sample,)) for row, sample in zip(report.rows, samples, strict=True)]
    result = tk.build_cache(config, report=type(report)(rows), progress=False)
    assert (result.sounds_encoded, result.sounds_reused) == (len(samples), 0)
    assert [batch[0] for batch in family.batches] == [1]
    assert not Cache(config, family).sound(samples[-1]).any()


def test_names(talks: MakeConfig, family: Talking, monkeypatch: pytest.MonkeyPatch) -> None:
    config = talks()
    sample = tk.inspect_dataset(config).samples[0]
    sound = Sound(Path("/a/clip.mp4"), "ab" * 32, 1.25, 2.0)

    def name(sound: Sound) -> str:
        return EntryNamer(config, family).sound(sample._replace(sound=sound))

    base = name(sound)
    changes: list[dict[str, Any]] = [{"digest": "ac" * 32}, {"start": 1.250001}, {"seconds": 2.04}, {"silent": True}]
    others = {name(sound._replace(**change)) for change in changes}
    others.add(EntryNamer(config, family).latents(sample))
    family.version = 2
    others.add(name(sound))
    family.version = 1
    monkeypatch.setattr(Talking, "sound", SoundFormat(RATE, 1))
    others.add(name(sound))
    monkeypatch.setattr(Talking, "sound", SoundFormat(RATE, 2))
    monkeypatch.setattr(Talking, "identity", lambda *_: {"weights": "others"})
    others.add(name(sound))
    monkeypatch.undo()
    assert len(others | {base}) == len(changes) + 5
    assert name(sound._replace(file=Path("/b/moved.mp4"), start=1.25 + 1e-9)) == base
    silent = sound._replace(silent=True)
    assert name(silent) == name(silent._replace(digest="x", start=7.0))
    with pytest.raises(ValueError, match="has no sound"):
        EntryNamer(config, family).sound(sample._replace(sound=None))


# Failures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose sound does not decode."""
    refused: list[Path] = []
    real = audio_module.decode_audio

    def decode(file: Path, *args: Any, **settings: Any) -> np.ndarray:
        if file in refused:
            raise UnreadableMedia(file, "none of its sound can be decoded", "export it again", "damaged sound")
        return real(file, *args, **settings)

    monkeypatch.setattr(audio_module, "decode_audio", decode)
    return refused


def test_a_clip_whose_sound_does_not_decode_is_left_out(talks: MakeConfig, refusing: list[Path], project: Path) -> None:
    config = talks()
    samples = tk.inspect_dataset(config).samples
    refusing.append(samples[1].file)
    config = config.model_copy(update={"delete_problematic_images": True})
    result = tk.build_cache(config, progress=False)
    [failure] = result.failures
    assert failure.file == samples[1].file
    assert failure.reason == "its sound: none of its sound can be decoded. Fix: export it again"
    assert result.sounds_encoded == len(samples) - 1
    assert samples[1].file.exists()  # nothing is wrong with the picture: no quarantine, no deletion
    assert not list(project.rglob("*quarantine*"))
    refusing.clear()
    assert tk.build_cache(config, progress=False).sounds_encoded == 1  # and nothing but it is made again


def test_every_clip_of_a_broken_sound_is_left_out(talks: MakeConfig, refusing: list[Path], tmp_path: Path) -> None:
    config = talks()
    report = tk.inspect_dataset(config)
    shared = Sound(tmp_path / "song.wav", "ab" * 32, 0.0, report.samples[0].seconds)
    refusing.append(shared.file)
    rows = [row._replace(samples=tuple(s._replace(sound=shared) for s in row.samples)) for row in report.rows[:2]]
    result = tk.build_cache(config, report=type(report)([*rows, *report.rows[2:]]), progress=False)
    assert {failure.file for failure in result.failures} == {row.file for row in rows}
    assert str(shared.file) in result.failures[0].reason
    assert result.sounds_encoded == len(report.rows) - 2


def test_values_that_are_not_numbers_are_not_cached(talks: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Talking, "encode_sound", lambda _, __, waveforms: waveforms[..., :1] * float("nan"))
    config = talks()
    result = tk.build_cache(config, progress=False)
    assert len(result.failures) == len(tk.inspect_dataset(config).rows)
    assert "NaN" in result.failures[0].reason
    assert result.sounds_encoded == 0


def test_interrupted_and_continued(talks: MakeConfig) -> None:
    config = talks(vae_batch_size=1)
    count = len(tk.inspect_dataset(config).samples)

    def interrupt(phase: str, done: int, _: int) -> None:
        if (phase, done) == ("sound", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tk.build_cache(config, progress=interrupt)
    result = tk.build_cache(config, progress=False)
    assert 0 < result.sounds_encoded <= count - 2
    assert result.sounds_encoded + result.sounds_reused == count


# Memory ------------------------------------------------------------------------------------------------------------


def test_halves_of_the_batch(talks: MakeConfig, family: Talking) -> None:
    config = talks()
    family.most = 1
    result = tk.build_cache(config, progress=False)
    assert not result.failures
    cache = Cache(config, family)
    for sample in tk.inspect_dataset(config).samples:
        np.testing.assert_allclose(cache.sound(sample).numpy(), by_hand(sample), atol=1e-6)


class Elsewhere(HopMeans):
    """On a device without memory until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty((), device="meta"))

    def to(self, *_: Any, **__: Any) -> Elsewhere:
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        return self


class Tight(Talking):
    def encode_sound(self, vae: Any, waveforms: torch.Tensor) -> torch.Tensor:
        if waveforms.device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode_sound(vae, waveforms)


def test_the_cpu_comes_last(caplog: pytest.LogCaptureFixture) -> None:
    waveforms = [torch.rand(2, 2 * HOP) for _ in range(3)]
    with caplog.at_level(logging.WARNING, "tunerkit"):
        encoded = encode_sounds(Elsewhere(), Tight(), waveforms)
    for waveform, latents in zip(waveforms, encoded, strict=True):
        assert isinstance(latents, torch.Tensor)
        torch.testing.assert_close(latents, 2 * waveform.unflatten(1, (2, HOP)).mean(-1).T)
    assert caplog.text.count("goes to the CPU") == 1
    tight = Tight()
    tight.most = 0
    [trouble] = encode_sounds(HopMeans(), tight, waveforms[:1])
    assert isinstance(trouble, EncodingError)
    assert "out of memory" in str(trouble)


def test_one_bad_sound_does_not_spoil_its_batch() -> None:
    class Picky(Talking):
        def encode_sound(self, vae: Any, waveforms: torch.Tensor) -> torch.Tensor:
            if (waveforms > 1).any():
                raise RuntimeError("too loud")
            return super().encode_sound(vae, waveforms)

    waveforms = [torch.full((2, HOP), level) for level in (0.1, 7.0, 0.3)]
    first, second, third = encode_sounds(HopMeans(), Picky(), waveforms)
    assert isinstance(first, torch.Tensor)
    assert isinstance(third, torch.Tensor)
    assert isinstance(second, EncodingError)
    assert "too loud" in str(second)


# Repair and census -------------------------------------------------------------------------------------------------


def test_a_damaged_entry_is_made_again(talks: MakeConfig, family: Talking) -> None:
    config = talks()
    tk.build_cache(config, progress=False)
    sample = tk.inspect_dataset(config).samples[0]
    cache = Cache(config, family)
    before = cache.sound(sample)
    path = cache.latent_stores[sample.dataset].path(cache.namer.sound(sample))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CacheEntryError):
        cache.sound(sample)
    assert torch.equal(rebuild_sound(config, family, cache, sample), before)
    assert torch.equal(cache.sound(sample), before)
    with sample.file.open("ab") as file:
        file.write(b"more")
    with pytest.raises(TunerkitError, match="was changed since the run began"):
        rebuild_sound(config, family, cache, sample)
    sample.file.unlink()
    with pytest.raises(TunerkitError, match="cannot be encoded again"):
        rebuild_sound(config, family, cache, sample)


def test_census(talks: MakeConfig, family: Talking) -> None:
    config = talks()
    tk.build_cache(config, progress=False)
    samples = tk.inspect_dataset(config).samples
    cache = Cache(config, family)
    cache.latent_stores[samples[0].dataset].path(cache.namer.sound(samples[0])).unlink()
    row = next(row for row in tk.cache_report(config).rows if row.kind == "sound")
    assert (row.needed, row.missing, row.stale) == (len(samples) - 1, 1, 0)
    plain = talks(audio=None)
    report = tk.cache_report(plain)
    stale = [entry for entry in report.stale if entry.kind == "sound"]
    assert len(stale) == len(samples) - 1
    assert any(f"{samples[1].file.name} from 0.00 s" in entry.what for entry in stale)
