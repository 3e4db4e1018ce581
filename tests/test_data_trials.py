"""What the data side must survive: damaged, stale, colliding entries, bad clips, moved folders, two processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from test_trials import losses, train

import tunerkit as tk
from tunerkit.cache.entries import Cache
from tunerkit.cache.store import NonFiniteEntryError
from tunerkit.data.samples import Sample

MakeConfig = Callable[..., tk.TrainConfig]


def cache_of(config: tk.TrainConfig) -> Cache:
    return Cache(tk.resolve(config), tk.family("sanavideo"))


def latent_file(config: tk.TrainConfig, sample: Sample) -> Path:
    cache = cache_of(config)
    return cache.latent_stores[sample.dataset].path(cache.namer.latents(sample))


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors*")}


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "deleted", "text in it"])
@pytest.mark.parametrize("kind", ["latents", "text"])
def test_a_bad_cache_entry_is_made_anew_while_training(
    make_config: MakeConfig, tmp_path: Path, kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = losses(train(make_config(output_dir=str(tmp_path / "whole"), max_train_steps=3)))

    config = make_config(output_dir=str(tmp_path / "bad"), max_train_steps=3)
    trainer = tk.Trainer(config).prepare(progress=False)
    source = trainer.loaded.source
    drawn = source.samples[source.plan.draw(0).indices[0]]
    if kind == "latents":
        files = [latent_file(config, drawn)]
    else:
        cache = cache_of(config)
        texts = [(caption, "positive") for caption in drawn.captions] + [("", "negative")]
        files = [cache.text_store.path(cache.namer.text(text, as_)) for text, as_ in texts]  # pyright: ignore[reportArgumentType]
    whole = {file: file.read_bytes() for file in files}
    for file, content in whole.items():
        if damage == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "one bit flipped":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "deleted":
            file.unlink()
        else:
            file.write_text("<html>quota exceeded</html>")
    with caplog.at_level("WARNING", logger="tunerkit"):
        for _ in trainer.steps():
            pass
    trainer.close()

    assert losses(tmp_path / "bad") == expected
    read = [file for file in files if file.exists() and file.read_bytes() == whole[file]]
    assert read, "no entry was made anew"
    assert any(file.name in message or drawn.name in message for file in read for message in caplog.messages)


def test_what_cannot_be_made_anew_says_so_and_keeps_the_training(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(max_train_steps=9, checkpoint_step_interval=100)).prepare(progress=False)
    for _ in trainer.steps(1):
        pass
    for sample in trainer.loaded.source.samples:
        latent_file(trainer.config, sample).unlink(missing_ok=True)
        sample.file.unlink()
    trainer.loaded.source._next = None
    with pytest.raises(tk.TunerkitError, match="could not be made anew"):
        for _ in trainer.steps():
            pass
    assert list(trainer.config.output_path.glob("checkpoint-*"))
    trainer.close()


def test_latents_that_are_not_finite_are_neither_cached_nor_trained_on(make_config: MakeConfig, tmp_path: Path) -> None:
    expected = losses(train(make_config(output_dir=str(tmp_path / "whole"), max_train_steps=3)))
    config = make_config(output_dir=str(tmp_path / "out"), max_train_steps=3)
    trainer = tk.Trainer(config).prepare(progress=False)
    cache = trainer.loaded.source.cache
    for sample in trainer.loaded.source.samples:
        file = latent_file(config, sample)
        latents = cache.latents(sample)
        latents[0, 0, 0, 0] = torch.nan
        with pytest.raises(NonFiniteEntryError, match=sample.file.name):
            cache.put_latents(sample, latents)
        with safe_open(file, framework="pt") as stored:
            header = stored.metadata()
        file.write_bytes(save({"latents": latents}, metadata=header))  # behind the cache's back
    for _ in trainer.steps():
        pass
    trainer.close()
    assert losses(tmp_path / "out") == expected


def test_clips_that_are_replaced_are_encoded_anew(make_config: MakeConfig) -> None:
    """Every clip gets another content under its old name: no latent of before is used."""
    config = make_config()
    samples = tk.inspect_dataset(config).samples
    before = {sample.file: cache_of(config).latents(sample) for sample in samples}
    flipped = {sample.file: sample.file.read_bytes() for sample in samples}
    files = sorted(flipped)
    for file, other in zip(files, [*files[1:], files[0]], strict=True):
        if file.suffix == other.suffix:
            file.write_bytes(flipped[other])
    tk.build_cache(config, progress=False)
    now = tk.inspect_dataset(config).samples
    changed = [s for s in now if s.file in before and flipped[s.file] != s.file.read_bytes()]
    assert changed
    for sample in changed:
        latents = cache_of(config).latents(sample)
        assert latents.shape != before[sample.file].shape or not torch.equal(latents, before[sample.file])


def test_resolution_and_precision_make_new_entries_and_keep_the_old(make_config: MakeConfig, project: Path) -> None:
    old = entries(project / "cache")
    larger = tk.build_cache(make_config(**{"datasets.0.resolution": 96}), progress=False)
    assert larger.latents_encoded > 0
    assert larger.texts_encoded == 0
    half = tk.build_cache(make_config(mixed_precision="bf16"), progress=False)
    assert half.texts_encoded > 0
    assert entries(project / "cache").items() >= old.items()
    again = tk.build_cache(make_config(), progress=False)
    assert again.latents_encoded == again.texts_encoded == 0


def test_two_clips_with_one_stem_have_their_own_latents(make_config: MakeConfig) -> None:
    config = make_config()
    first, second, *_ = (s for s in tk.inspect_dataset(config).samples if s.kind == "video")
    twin = first.file.with_suffix(".mov")
    shutil.copyfile(second.file, twin)
    tk.build_cache(config, progress=False)
    by_file = {sample.file: sample for sample in tk.inspect_dataset(config).samples}
    assert {first.file, twin} <= set(by_file)
    cache = cache_of(config)
    assert not torch.equal(cache.latents(by_file[first.file]), cache.latents(by_file[twin]))


def test_a_moved_dataset_keeps_its_cache(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    moved = tmp_path / "moved" / "clips"
    folder = config.datasets[0].instance_data_dir
    assert folder is not None
    shutil.copytree(folder, moved)  # new times, new inodes, another path
    result = tk.build_cache(make_config(**{"datasets.0.instance_data_dir": str(moved)}), progress=False)
    assert result.latents_encoded == result.texts_encoded == 0
    assert result.latents_reused > 0


@pytest.mark.slow
def test_two_processes_share_a_cache_and_refuse_to_share_an_output_folder(project: Path, tmp_path: Path) -> None:
    shutil.rmtree(project / "cache")
    script = (
        "import sys, tunerkit as tk\n"
        "config = tk.load_config(sys.argv[1], validation_disable=True, max_train_steps=2, output_dir=sys.argv[2],"
        " cache_dir=sys.argv[3])\n"
        "trainer = tk.Trainer(config).prepare(progress=False)\n"
        "print([r.loss for r in trainer.steps()])\n"
        "if len(sys.argv) > 4: input()\n"
    )
    cache = str(tmp_path / "cache")
    arguments = [sys.executable, "-c", script, str(project / "config.json")]
    runs = [
        subprocess.Popen([*arguments, str(tmp_path / name), cache], stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    printed = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert printed[0] == printed[1]
    assert not [path for path in Path(cache).rglob("*") if path.name.startswith(".") or "lock" in path.name]

    holder = subprocess.Popen(
        [*arguments, str(tmp_path / "a"), cache, "hold"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()  # it has stepped and holds the folder
    with pytest.raises(tk.TunerkitError, match="in use by process"):
        tk.Trainer(tk.load_config(project / "config.json", output_dir=str(tmp_path / "a"))).prepare(progress=False)
    holder.communicate("\n", timeout=60)
