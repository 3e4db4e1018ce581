"""The cache: nothing stale, nothing done twice, nothing torn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.cache.entries import Cache
from tunerkit.cache.store import CacheEntryError, Store

MakeConfig = Callable[..., tk.TrainConfig]


def first_sample(config: tk.TrainConfig):
    return tk.inspect_dataset(config).samples[0]


def test_second_build_does_nothing(make_config: MakeConfig, project: Path) -> None:
    config = make_config()
    before = {path: path.stat().st_mtime_ns for path in (project / "cache").rglob("*.safetensors")}
    result = tk.build_cache(config, progress=False)
    assert result.texts_encoded == result.latents_encoded == 0
    assert result.latents_reused == len(tk.inspect_dataset(config).samples)
    assert result.seconds < 2.0
    assert before == {path: path.stat().st_mtime_ns for path in (project / "cache").rglob("*.safetensors")}


def test_latents_are_those_of_the_decoded_clip(make_config: MakeConfig) -> None:
    """Decoded with the data room, encoded with the stock VAE class, normalised by hand."""
    from diffusers import AutoencoderKLWan

    from tunerkit.data.decode import decode

    config = make_config()
    sample = first_sample(config)
    cached = Cache(tk.resolve(config), tk.family("sanavideo")).latents(sample)
    vae: Any = AutoencoderKLWan.from_pretrained(str(config.pretrained_model_name_or_path), subfolder="vae")
    pixels = torch.from_numpy(decode(sample)).permute(3, 0, 1, 2)[None].double() / 127.5 - 1
    with torch.no_grad():
        mode = vae.encode(pixels.float()).latent_dist.mode()[0].double()
    mean = torch.tensor(vae.config.latents_mean, dtype=torch.float64).view(-1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(cached.double(), (mode - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"datasets.0.resolution": 96},
        {"datasets.0.video.num_frames": 13, "datasets.0.video.min_frames": 13},
        {"framerate": 12, "datasets.0.video.num_frames": 9, "datasets.0.video.min_frames": 9},
        {"vae_dtype": "bf16"},
        {"vae_enable_tiling": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_that_shapes_latents_is_part_of_the_name(make_config: MakeConfig, change: dict) -> None:
    family = tk.family("sanavideo")
    names = []
    for config in (make_config(), make_config(**change)):
        resolved = tk.resolve(config)
        names.append(Cache(resolved, family).namer.latents(first_sample(resolved)))
    assert names[0] != names[1]


@pytest.mark.parametrize("change", [{"motion_score": 30}, {"mixed_precision": "bf16"}], ids=lambda c: next(iter(c)))
def test_every_setting_that_shapes_text_is_part_of_the_name(make_config: MakeConfig, change: dict) -> None:
    family = tk.family("sanavideo")
    names = [Cache(tk.resolve(c), family).namer.text("a", "positive") for c in (make_config(), make_config(**change))]
    assert names[0] != names[1]
    namer = Cache(tk.resolve(make_config()), family).namer
    assert namer.text("a", "positive") != namer.text("a", "negative")


def test_replaced_clip_and_replaced_vae_are_noticed_and_a_moved_project_is_not(
    make_config: MakeConfig, project: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(project, moved)
    result = tk.build_cache(tk.load_config(moved / "config.json", validation_disable=True), progress=False)
    assert result.latents_encoded == result.texts_encoded == 0

    samples = tk.inspect_dataset(make_config()).samples
    shutil.copyfile(samples[1].file, samples[0].file)  # another clip under the same name
    result = tk.build_cache(make_config(), progress=False)
    assert result.latents_encoded == 0  # the content is known: it is the second clip's
    names = [
        Cache(tk.resolve(make_config()), tk.family("sanavideo")).namer.latents(s)
        for s in tk.inspect_dataset(make_config()).samples[:2]
    ]
    assert names[0] == names[1]

    weights = next((project / "model" / "vae").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    result = tk.build_cache(make_config(), progress=False)
    assert result.latents_encoded > 0
    assert result.texts_encoded == 0


def test_store_finds_damage_names_the_file_and_removes_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tensors = {"latents": torch.randn(2, 3), "mask": torch.tensor([1, 0]), "text": torch.randn(4).bfloat16()}
    store.put("ab12", tensors, {"file": "clip.mp4"})
    read = store.get("ab12")
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in tensors.items())

    path = store.path("ab12")
    whole = path.read_bytes()
    for broken in (whole[:-5], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(CacheEntryError, match="ab12"):
            store.get("ab12")
        assert not path.exists()
    with pytest.raises(CacheEntryError, match="is gone"):
        store.get("ab12")


def test_one_bad_clip_is_reported_and_the_rest_is_trained(make_config: MakeConfig) -> None:
    clip = first_sample(make_config()).file
    clip.write_bytes(clip.read_bytes()[:2000])
    report = tk.inspect_dataset(make_config())
    assert any(row.file == clip and row.decision == "dropped" for row in report.rows)
    trainer = tk.Trainer(make_config(max_train_steps=1)).prepare()
    names = {sample.file for sample in trainer.loaded.source.samples}
    trainer.close()
    assert clip not in names
    assert names


def test_clips_of_equal_content_count_and_fail_together(make_config: MakeConfig, project: Path) -> None:
    config = tk.resolve(make_config())
    one, two, three = [sample.file for sample in tk.inspect_dataset(config).samples[:3]]
    for copy in (two, three):
        shutil.copyfile(one, copy)
    shutil.rmtree(project / "cache" / "vae")
    report = tk.inspect_dataset(config)
    count = len(report.samples)
    result = tk.build_cache(config, report=report, progress=False)
    assert (result.latents_encoded, result.latents_reused) == (count, 0)
    assert f"clips: {count} encoded, 0 already cached, 0 failed" in str(result)
    assert len(list((project / "cache" / "vae").rglob("*.safetensors"))) == count - 2

    shutil.rmtree(project / "cache" / "vae")
    for file in (one, two, three):  # damaged after they were looked at
        file.write_bytes(file.read_bytes()[:3000])
    result = tk.build_cache(config, report=report, progress=False)
    assert {failure.file for failure in result.failures} == {one, two, three}
    assert (result.latents_encoded, result.latents_reused) == (count - 3, 0)


def test_text_and_vae_are_never_in_memory_together(make_config: MakeConfig, project: Path, monkeypatch) -> None:
    import gc
    import weakref

    shutil.rmtree(project / "cache")
    family = tk.family("sanavideo")
    alive: list[weakref.ref] = []
    seen: list[int] = []

    def watched(name: str):
        original = getattr(type(family), name)

        def load(self, config, device):
            gc.collect()
            seen.append(sum(ref() is not None for ref in alive))
            loaded = original(self, config, device)
            alive.append(weakref.ref(getattr(loaded, "text_encoder", loaded)))
            return loaded

        monkeypatch.setattr(type(family), name, load)

    watched("load_text_encoder")
    watched("load_vae")
    tk.build_cache(make_config(), progress=False)
    gc.collect()
    assert seen == [0, 0]
    assert all(ref() is None for ref in alive)
