"""Latents of the first frame alone, beside those of the clip: in the cache, in repairs, in batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from config_documents import write
from safetensors import safe_open
from safetensors.torch import load_file

import tunerkit as tk
from tunerkit.cache.encode import EncodingError, LatentEncoder
from tunerkit.cache.entries import Cache
from tunerkit.cache.store import CacheEntryError, NonFiniteEntryError, Store
from tunerkit.data.decode import decode
from tunerkit.data.samples import Sample
from tunerkit.families.kandinsky5.family import FAMILY, Kandinsky5
from tunerkit.training import batches
from tunerkit.training.batches import BatchSource
from tunerkit.training.state import Fingerprint

T2V = "t2v-lite-sft-5s"


@pytest.fixture(scope="module")
def pristine(kandinsky5_projects: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-to-video project with its cache filled. The demo's own VAE averages colours and sees nothing but the
    frames of one latent; with random weights its norms make every latent depend on the whole clip."""
    shared = kandinsky5_projects("i2v-lite-5s").parent
    folder = shutil.copytree(shared, tmp_path_factory.mktemp("first-frame") / "project")
    shutil.rmtree(folder / "cache" / "vae")
    write(folder / "config.json", {**json.loads((folder / "config.json").read_text()), "vae_dtype": "fp32"})
    vae = stock_vae(folder)
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    vae.save_pretrained(folder / "model" / "vae")
    result = tk.build_cache(tk.load_config(folder / "config.json", validation_disable=True), progress=False)
    assert not result.failures
    return folder


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "project")


@pytest.fixture
def config(project: Path) -> tk.TrainConfig:
    return settings(project)


def settings(project: Path, **changes: object) -> tk.TrainConfig:
    return tk.resolve(tk.load_config(project / "config.json", **{"validation_disable": True, **changes}))


def stock_vae(project: Path) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo.from_pretrained(project / "model", subfolder="vae").eval()


def directly(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Latents `[C, t, h, w]` of uint8 `[T, H, W, 3]`: the mode of the stock class times the scaling factor."""
    pixels = frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mode()[0] * vae.config.scaling_factor


def samples_of(config: tk.TrainConfig) -> list[Sample]:
    return list(tk.inspect_dataset(config).samples)


def entry_of(cache: Cache, sample: Sample) -> Path:
    return cache.latent_stores[sample.dataset].path(cache.namer.latents(sample))


def source_of(config: tk.TrainConfig) -> BatchSource:
    return BatchSource(config, FAMILY, Cache(config, FAMILY), samples_of(config))


def text_bytes(source: BatchSource, sample: Sample) -> int:
    return sum(tensor.nbytes for tensor in source.cache.text(sample.captions[0], "positive").values())


# The cache -----------------------------------------------------------------------------------------------------


def test_both_are_those_of_the_stock_vae_and_not_the_same(config: tk.TrainConfig, project: Path) -> None:
    vae, cache = stock_vae(project), Cache(config, FAMILY)
    for sample in samples_of(config)[:2]:
        frames = torch.from_numpy(decode(sample))
        entry = load_file(entry_of(cache, sample))
        assert entry.keys() == {"latents", "first_frame"}
        clip, first = entry["latents"], entry["first_frame"]
        assert first.shape == (clip.shape[0], 1, *clip.shape[2:])
        torch.testing.assert_close(clip, directly(vae, frames), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(first, directly(vae, frames[:1]), rtol=1e-5, atol=1e-5)
        assert float((clip[:, :1] - first).abs().max()) > 1e-3


def test_text_to_video_stores_both_so_that_image_to_video_finds_them(config: tk.TrainConfig, project: Path) -> None:
    vae = project / "cache" / "vae"
    before = {path.relative_to(vae): path.read_bytes() for path in vae.rglob("*.safetensors")}
    shutil.rmtree(vae)
    text_to_video = config.changed(model_flavour=T2V)
    assert not any(sample.is_i2v for sample in samples_of(text_to_video))
    assert tk.build_cache(text_to_video, progress=False).latents_encoded == len(before)
    assert before == {path.relative_to(vae): path.read_bytes() for path in vae.rglob("*.safetensors")}
    assert tk.build_cache(config, progress=False).latents_encoded == 0


def test_other_families_store_the_clip_alone(pristine_project: Path) -> None:
    keys = set()
    for path in (pristine_project / "cache" / "vae").rglob("*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            keys |= set(stored.keys())
    assert keys == {"latents"}
    assert not tk.family("ltxvideo2").encodes_first_frame


def test_a_single_frame_is_stored_as_both(config: tk.TrainConfig, tmp_path: Path) -> None:
    [result] = LatentEncoder(config, FAMILY).encode([torch.full((1, 32, 32, 3), 90, dtype=torch.uint8)])
    assert not isinstance(result, EncodingError)
    tensors, _ = result
    assert torch.equal(tensors["latents"], tensors["first_frame"])
    store = Store(tmp_path / "store")
    store.put("ab", tensors, {})
    assert store.get("ab").keys() == {"latents", "first_frame"}


def test_first_frames_that_are_not_finite_are_not_written(config: tk.TrainConfig) -> None:
    cache, sample = Cache(config, FAMILY), samples_of(config)[0]
    entry = entry_of(cache, sample)
    before, clip = entry.read_bytes(), cache.clip(sample)
    clip["first_frame"][0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteEntryError, match=f"first_frame of file = {sample.file.name}"):
        cache.put_latents(sample, clip["latents"], first_frame=clip["first_frame"])
    assert entry.read_bytes() == before


def test_an_entry_without_the_first_frame_is_removed_and_made_anew(config: tk.TrainConfig) -> None:
    cache, sample = Cache(config, FAMILY), samples_of(config)[0]
    entry, clip = entry_of(cache, sample), cache.clip(sample)
    whole = entry.read_bytes()
    cache.put_latents(sample, clip["latents"])
    with pytest.raises(CacheEntryError, match="it holds no first_frame"):
        cache.clip(sample)
    assert not entry.exists()  # else what a fallback makes would not be found behind it
    assert tk.build_cache(config, progress=False).latents_encoded == 1
    assert entry.read_bytes() == whole


# Little memory -------------------------------------------------------------------------------------------------


class TightKandinsky(Kandinsky5):
    """Its VAE has room for so many pixel positions at a time, and for any number once it is tiled."""

    def __init__(self, room: int) -> None:
        self.room = room

    def load_vae(self, config: tk.TrainConfig, device: torch.device) -> Any:
        vae = super().load_vae(config, device)
        encode = vae.encode

        def encode_if_it_fits(pixels: torch.Tensor) -> Any:
            if pixels[:, 0].numel() > self.room and not vae.use_tiling:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return encode(pixels)

        vae.encode = encode_if_it_fits
        return vae

    def save_vae_memory(self, vae: Any, how: str) -> None:
        if how == "tiled":
            tile(vae)
        else:
            super().save_vae_memory(vae, how)


def tile(vae: Any) -> None:
    """Tiles of 32 pixels, so that the small clips of the tests have several."""
    vae.enable_tiling(
        tile_sample_min_height=32,
        tile_sample_min_width=32,
        tile_sample_stride_height=24,
        tile_sample_stride_width=24,
    )


@pytest.mark.parametrize(
    ("room", "fallback"), [(5 * 64 * 64, ""), (64 * 64, "tiled")], ids=["half of the batch", "tiles"]
)
def test_clip_and_first_frame_take_the_same_rung(
    config: tk.TrainConfig, project: Path, room: int, fallback: str
) -> None:
    """With room for the first frame only, it goes in tiles all the same: the entry's name says how it was made."""
    source = torch.Generator().manual_seed(1)
    clips = [torch.randint(0, 256, (5, 64, 64, 3), generator=source).byte() for _ in range(2)]
    vae, whole = stock_vae(project), stock_vae(project)
    if fallback:
        tile(vae)
        assert float((directly(vae, clips[0][:1]) - directly(whole, clips[0][:1])).abs().max()) > 0.05
    for clip, result in zip(clips, LatentEncoder(config, TightKandinsky(room)).encode(clips), strict=True):
        assert not isinstance(result, EncodingError)
        tensors, how = result
        assert how == fallback
        torch.testing.assert_close(tensors["latents"], directly(vae, clip), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tensors["first_frame"], directly(vae, clip[:1]), rtol=1e-4, atol=1e-5)


# Batches -------------------------------------------------------------------------------------------------------


def test_batches_hold_the_first_frames_of_their_clips(config: tk.TrainConfig) -> None:
    source = source_of(config)
    drawn = source.make(0)
    clips = [source.cache.clip(source.samples[index]) for index in drawn.draw.indices]
    batch = drawn.batch
    assert batch.first_frame is not None
    assert batch.first_frame.tolist() == [True] * len(clips)
    assert batch.first_frame_method == "in_place"
    assert torch.equal(batch.latents, torch.stack([clip["latents"] for clip in clips]))
    assert batch.image is not None
    assert torch.equal(batch.image, torch.stack([clip["first_frame"] for clip in clips]))
    single = source.single(source.samples[0])
    assert single.first_frame is not None
    assert single.image is not None
    assert torch.equal(single.image[0], source.cache.clip(source.samples[0])["first_frame"])


@pytest.mark.parametrize(
    "changes", [{"model_flavour": T2V}, {"first_frame_conditioning_probability": 0.0}], ids=lambda c: next(iter(c))
)
def test_batches_without_a_given_first_frame_hold_none(config: tk.TrainConfig, changes: dict[str, Any]) -> None:
    source = source_of(config.changed(**changes))
    batch = source.make(0).batch
    assert batch.image is None
    assert batch.first_frame is None
    assert (source.single(source.samples[0]).image is None) == ("model_flavour" in changes)


def test_batches_of_some_given_first_frames_hold_all(config: tk.TrainConfig) -> None:
    source = source_of(config.changed(first_frame_conditioning_probability=0.5))
    given = {True: 0, False: 0}
    for number in range(20):
        batch = source.make(number).batch
        given[batch.first_frame is not None] += 1
        assert (batch.image is None) == (batch.first_frame is None)
        assert batch.image is None or len(batch.image) == len(batch.latents)
    assert all(given.values())


def test_batches_tell_how_the_first_frame_is_given(config: tk.TrainConfig) -> None:
    source = source_of(config.changed(first_frame_conditioning_method="channels"))
    assert source.make(0).batch.first_frame_method == "channels"
    assert source.single(source.samples[0]).first_frame_method == "channels"


def test_entries_are_read_once_for_both(config: tk.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = source_of(config), []
    get = Store.get

    def counted(self: Store, name: str, *needed: Any) -> dict[str, torch.Tensor]:
        read.append(name)
        return get(self, name, *needed)

    monkeypatch.setattr(Store, "get", counted)
    drawn = source.make(0)
    names = [source.cache.namer.latents(source.samples[index]) for index in drawn.draw.indices]
    assert sorted(set(read) & set(names)) == sorted(name for name in read if name in names) == sorted(names)


@pytest.mark.parametrize("damage", ["truncated", "without first_frame", "without latents"])
def test_damage_in_the_middle_of_a_training_changes_nothing(config: tk.TrainConfig, damage: str) -> None:
    source = source_of(config)
    expected, cache = source.make(0).batch, source.cache
    sample = source.samples[source.plan.draw(0).indices[0]]
    entry, clip = entry_of(cache, sample), cache.clip(sample)
    whole = entry.read_bytes()
    if damage == "truncated":
        entry.write_bytes(whole[:-100])
    else:
        left = {key: tensor for key, tensor in clip.items() if key != damage.split()[-1]}
        cache.latent_stores[sample.dataset].put(cache.namer.latents(sample), left, {})
    found = source_of(config).make(0).batch
    assert expected.image is not None
    assert found.image is not None
    assert torch.equal(found.latents, expected.latents)
    assert torch.equal(found.image, expected.image)
    assert entry.read_bytes() == whole


def test_both_are_held_where_the_folder_takes_no_more_files(
    config: tk.TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(config)
    expected = source.make(0).batch
    entry_of(source.cache, source.samples[source.plan.draw(0).indices[0]]).unlink()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "_write", full)
    fresh = source_of(config)
    for _ in range(2):  # made, then held
        image = fresh.make(0).batch.image
        assert image is not None
        assert expected.image is not None
        assert torch.equal(image, expected.image)


# Captions of unequal length ------------------------------------------------------------------------------------


def test_captions_of_a_batch_keep_their_own_tokens(config: tk.TrainConfig) -> None:
    source = source_of(config.changed(caption_dropout_probability=0.0))
    lengths = set()
    for number in range(6):
        drawn = source.make(number)
        text = drawn.batch.text
        own = [
            source.cache.text(source.samples[index].captions[0], "positive")["prompt_embeds"]
            for index in drawn.draw.indices
        ]
        lengths |= {len(embeds) for embeds in own}
        for place, embeds in enumerate(own):
            assert torch.equal(text["prompt_embeds"][place, : len(embeds)], embeds)
            assert not text["prompt_embeds"][place, len(embeds) :].any()
    assert len(lengths) > 1  # so the demo's captions do differ


@pytest.mark.parametrize(("short_of", "reads"), [(0, 2), (1, 4)], ids=["both fit", "one byte short"])
def test_texts_stay_in_memory_by_their_own_sizes(
    config: tk.TrainConfig, monkeypatch: pytest.MonkeyPatch, short_of: int, reads: int
) -> None:
    source = source_of(config)
    by_size = sorted(source.samples, key=lambda sample: text_bytes(source, sample))
    small, large = by_size[0], by_size[-1]
    sizes = text_bytes(source, small), text_bytes(source, large)
    assert sizes[0] < sizes[1]
    monkeypatch.setattr(batches, "TEXT_BYTES", sum(sizes) - short_of)
    whole, asked = Cache.text, []

    def counted(self: Cache, *entry: Any) -> dict[str, torch.Tensor]:
        asked.append(entry)
        return whole(self, *entry)

    monkeypatch.setattr(Cache, "text", counted)
    for sample in (small, large, small, large):
        source.single(sample)
    assert len(asked) == reads


# Resuming ------------------------------------------------------------------------------------------------------


def test_the_way_to_give_a_first_frame_is_part_of_a_run_only_where_it_is_not_the_usual_one(
    config: tk.TrainConfig, tmp_path: Path
) -> None:
    samples = samples_of(config)

    def run(**changes: object) -> Fingerprint:
        return Fingerprint.of(config.changed(**changes), samples, 1)

    usual, other = run(), run(first_frame_conditioning_method="channels")
    assert usual.facts["conditioning"] == [0.1, 1.0]  # as in checkpoints from before there was a choice
    assert usual.compare(run(first_frame_conditioning_method="in_place").facts, tmp_path) == []
    [warning] = other.compare(usual.facts, tmp_path)
    assert "first-frame conditioning changed" in warning
    assert len(usual.compare(other.facts, tmp_path)) == 1
    assert other.compare(other.facts, tmp_path) == []
