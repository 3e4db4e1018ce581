"""Names of cache entries: one for each thing that shapes an entry, none for what does not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tunerkit as tk
from tunerkit.cache import keys
from tunerkit.cache.entries import FALLBACKS, Cache
from tunerkit.cache.keys import EntryNamer
from tunerkit.data.samples import Mask, Sample, Source

MakeConfig = Callable[..., tk.TrainConfig]

SANA = tk.family("sanavideo")

SOURCE = Source(1280, 720, 30.0, 120, 4.0, 0, False, "h264", 1000, 5, "ab" * 32)
SAMPLE = Sample(
    dataset="clips",
    file=Path("/a/clip.mp4"),
    kind="video",
    captions=("a cat",),
    source=SOURCE,
    frame_indices=tuple(range(17)),
    fps=16.0,
    size=(832, 480),
    resized=(854, 480),
    crop=(11, 0),
    repeats=0,
    is_i2v=False,
    mask=Mask(Path("/a/mask.png"), "image", "cd" * 32),
)


@pytest.fixture
def namer(make_config: MakeConfig) -> EntryNamer:
    return EntryNamer(tk.resolve(make_config()), tk.family("sanavideo"))


GEOMETRY = {
    "frames": {"frame_indices": tuple(range(1, 18))},
    "fewer frames": {"frame_indices": tuple(range(13))},
    "size": {"size": (480, 832)},
    "resized": {"resized": (855, 480)},
    "crop": {"crop": (10, 0)},
    "crop y": {"crop": (11, 1)},
}
OF_THE_CLIP = {
    "content": {"source": SOURCE._replace(digest="ac" * 32)},
    "rotation": {"source": SOURCE._replace(rotation=90)},
    "kind": {"kind": "image"},
}
OF_THE_MASK = {
    "mask content": {"mask": Mask(Path("/a/mask.png"), "image", "ce" * 32)},
    "mask kind": {"mask": Mask(Path("/a/mask.png"), "video", "cd" * 32)},
}
OF_NEITHER = {
    "date": {"source": SOURCE._replace(mtime_ns=99)},
    "place": {"file": Path("/b/other name.mp4")},
    "caption": {"captions": ("another",)},
    "rest": {"repeats": 3, "is_i2v": True, "fps": 24.0, "window": 2, "alternatives": 4},
    "mask's place": {"mask": Mask(Path("/b/x.png"), "image", "cd" * 32)},
}


def test_a_name_changes_with_what_shapes_its_entry_and_nothing_else(namer: EntryNamer) -> None:
    for changes, latents_change, mask_changes in (
        (GEOMETRY, True, True),
        (OF_THE_CLIP, True, False),
        (OF_THE_MASK, False, True),
        (OF_NEITHER, False, False),
    ):
        for what, change in changes.items():
            other = SAMPLE._replace(**change)  # pyright: ignore[reportArgumentType]
            assert (namer.latents(other) != namer.latents(SAMPLE)) == latents_change, what
            assert (namer.mask(other) != namer.mask(SAMPLE)) == mask_changes, what
    with pytest.raises(ValueError, match=r"clip\.mp4 has no mask"):
        namer.mask(SAMPLE._replace(mask=None))


def test_kinds_fallbacks_and_texts_never_share_a_name(namer: EntryNamer) -> None:
    assert namer.latents(SAMPLE, "") == namer.latents(SAMPLE)
    names = [
        *(namer.latents(SAMPLE, fallback) for fallback in ("", *FALLBACKS)),
        namer.mask(SAMPLE),
        *(namer.text(text, kind) for text in ("", "a", "a ", "\udcff", 'a"') for kind in ("positive", "negative")),
    ]
    assert len(set(names)) == len(names)
    assert all(len(name) == 64 and int(name, 16) >= 0 for name in names)


@pytest.mark.parametrize(
    ("change", "latents", "mask", "text"),
    [
        ({"vae_dtype": "bf16"}, True, False, False),
        ({"vae_enable_tiling": True}, True, False, False),
        ({"vae_enable_patch_conv": True}, True, False, False),
        ({"motion_score": 30}, False, False, True),
        ({"mixed_precision": "bf16"}, False, False, True),
        ({"learning_rate": 0.5, "seed": 9, "compress_disk_cache": True}, False, False, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_change_the_names_of_what_they_shape(
    make_config: MakeConfig, change: dict, latents: bool, mask: bool, text: bool
) -> None:
    other = EntryNamer(tk.resolve(make_config(**{"vae_dtype": "fp32", "mixed_precision": "no", **change})), SANA)
    base = EntryNamer(tk.resolve(make_config(vae_dtype="fp32", mixed_precision="no")), SANA)
    assert (other.latents(SAMPLE) != base.latents(SAMPLE)) == latents
    assert (other.mask(SAMPLE) != base.mask(SAMPLE)) == mask
    assert (other.text("a", "positive") != base.text("a", "positive")) == text


def test_weights_and_recipes_are_part_of_the_name(
    make_config: MakeConfig, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tk.resolve(make_config())

    def names() -> tuple[str, str, str]:
        namer = EntryNamer(config, SANA)
        return namer.latents(SAMPLE), namer.mask(SAMPLE), namer.text("a", "positive")

    def differ(before: tuple[str, ...]) -> list[bool]:
        return [old != new for old, new in zip(before, names(), strict=True)]

    before = names()
    with monkeypatch.context() as patch:
        patch.setattr(keys, "DECODE_RECIPE", keys.DECODE_RECIPE + 1)
        assert differ(before) == [True, True, False]
    with monkeypatch.context() as patch:
        patch.setattr(keys, "MASK_RECIPE", keys.MASK_RECIPE + 1)
        assert differ(before) == [False, True, False]
    for folder, expected in (("vae", [True, True, False]), ("text_encoder", [False, False, True])):
        before = names()
        weights = next((project / "model" / folder).glob("*.safetensors"))
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        assert differ(before) == expected, folder


def test_a_copied_dataset_keeps_its_names_and_changed_content_does_not(make_config: MakeConfig) -> None:
    config = tk.resolve(make_config())
    namer = EntryNamer(config, SANA)
    before = {sample.file.name: namer.latents(sample) for sample in tk.inspect_dataset(config).samples}
    clips = Path(next(iter(config.media_datasets)).instance_data_dir or "")
    shutil.copytree(clips, clips.with_name("copied"))
    for path in clips.with_name("copied").iterdir():
        os.utime(path, (1, 1))
    copied = tk.resolve(make_config(**{"datasets.0.instance_data_dir": str(clips.with_name("copied"))}))
    assert {s.file.name: namer.latents(s) for s in tk.inspect_dataset(copied).samples} == before

    first = next(iter(before))
    path = clips / first
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # the same size and date
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = {sample.file.name: namer.latents(sample) for sample in tk.inspect_dataset(config).samples}
    assert after.get(first) != before[first]
    assert {name for name in before if after.get(name) != before[name]} == {first}


class _Plain:
    """The constant parts of a name do not matter here."""

    name, temporal_compression = "plain", 4
    subfolders = {"vae": ("vae",), "text": ("text",)}

    def vae_recipe(self, _: object) -> dict[str, object]:
        return {}

    text_recipe = vae_recipe

    @staticmethod
    def identity(_config: tk.TrainConfig, component: str) -> dict[str, str]:
        return {"weights": component}


@pytest.fixture(scope="module")
def plain_namer(tmp_path_factory: pytest.TempPathFactory) -> EntryNamer:
    config = tk.TrainConfig(pretrained_model_name_or_path=str(tmp_path_factory.mktemp("model")))
    return EntryNamer(config, _Plain())  # pyright: ignore[reportArgumentType]


pair = st.tuples(st.integers(0, 200), st.integers(0, 200))
geometry = st.tuples(st.lists(st.integers(0, 120), min_size=1, max_size=6).map(tuple), pair, pair, pair)


@given(left=geometry, right=geometry)
def test_different_geometry_different_name(plain_namer: EntryNamer, left: tuple, right: tuple) -> None:
    keywords = ("frame_indices", "size", "resized", "crop")
    one, other = (SAMPLE._replace(**dict(zip(keywords, values, strict=True))) for values in (left, right))
    assert (plain_namer.latents(one) == plain_namer.latents(other)) == (left == right)
    assert (plain_namer.mask(one) == plain_namer.mask(other)) == (left == right)


def test_naming_and_looking_up_many_samples_is_fast(plain_namer: EntryNamer) -> None:
    samples = [
        SAMPLE._replace(source=SOURCE._replace(digest=f"{n:064x}"), frame_indices=tuple(range(n % 3, n % 3 + 81)))
        for n in range(10_000)
    ]
    started = time.perf_counter()
    names = [plain_namer.latents(sample) for sample in samples]
    assert time.perf_counter() - started < 0.5  # 0.04 s on a quiet core
    assert len(set(names)) == len(names)


def test_latents_are_found_under_the_configured_name_first_and_then_the_fallbacks(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = tk.resolve(make_config(cache_dir=str(tmp_path), **{"datasets.0.cache_dir_vae": None}))
    cache = Cache(config, SANA)
    sample = SAMPLE._replace(dataset=config.media_datasets[0].id)
    assert not cache.has_latents(sample)
    assert cache.without_latents([sample]) == [sample]
    for value, fallback in enumerate(("cpu", "tiled", "in parts", "")):
        cache.put_latents(sample, torch.full((2,), float(value)), fallback)
        assert cache.has_latents(sample)
        assert cache.latents(sample)[0] == value
        assert cache.without_latents([sample]) == []
    weights = torch.rand(1, 3, 4, 5)
    assert not cache.has_mask(sample)
    cache.put_mask(sample, weights)
    again = Cache(config, SANA)
    assert again.has_mask(sample)
    assert torch.equal(again.mask(sample), weights)


def test_stores_of_trained_and_evaluated_datasets_but_not_of_disabled_ones(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_config()
    first = base.media_datasets[0].model_dump()
    datasets = [
        {**first, "cache_dir_vae": str(tmp_path / "first")},
        {**first, "id": "second", "cache_dir_vae": str(tmp_path / "second")},
        {**first, "id": "held-out", "dataset_type": "eval", "cache_dir_vae": str(tmp_path / "eval")},
        {**first, "id": "off", "disabled": True, "cache_dir_vae": str(tmp_path / "off")},
    ]
    cache = Cache(tk.resolve(base.changed(datasets=datasets, compress_disk_cache=True)), SANA)
    assert set(cache.latent_stores) == {first["id"], "second", "held-out"}
    assert cache.latent_stores["held-out"].folder == tmp_path / "eval"
    assert all(store.compress for store in (cache.text_store, *cache.latent_stores.values()))
