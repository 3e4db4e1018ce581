"""The census of the cache: what is needed, stale and missing, counted by hand, and nothing else ever deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tunerkit as tk
from tunerkit.cache.census import cache_report, prune_cache
from tunerkit.cache.census_report import size_text
from tunerkit.cache.entries import Cache
from tunerkit.cache.store import Store

MakeConfig = Callable[..., tk.TrainConfig]
COARSER = {"datasets.0.video.num_frames": 9, "datasets.0.video.min_frames": 9}


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.rglob("*.safetensors*") if path.is_file()}


def cache_of(config: tk.TrainConfig) -> Cache:
    return Cache(tk.resolve(config), tk.family("sanavideo"))


def row(report, kind: str):
    (found,) = [row for row in report.rows if row.kind == kind]
    return found


def test_a_full_cache_has_nothing_stale_and_nothing_missing(make_config: MakeConfig, project: Path) -> None:
    with_prompts = tk.load_config(project / "config.json")
    report = cache_report(with_prompts)
    there = files(project / "cache")
    assert report.missing == 0
    assert report.stale == ()
    samples = tk.inspect_dataset(make_config()).samples
    assert row(report, "latents").needed == len({cache_of(make_config()).namer.latents(s) for s in samples})
    assert row(report, "latents").entries + row(report, "text").entries == len(there)
    assert row(report, "latents").size + row(report, "text").size == sum(there.values())
    assert "Nothing is stale. Nothing is missing." in report.summary()
    assert files(project / "cache") == there


def test_stale_is_what_a_run_does_not_read(make_config: MakeConfig, project: Path) -> None:
    """Brute force: the files that a build of the other configuration alone would make are the needed ones."""
    old, new = make_config(), make_config(**COARSER)
    with_both = project / "cache"
    tk.build_cache(new, progress=False)
    alone = project / "alone"
    fresh = {"cache_dir": str(alone), "datasets.0.cache_dir_vae": None}
    if any(d.dataset_type == "text_embeds" for d in new.datasets):
        fresh |= {
            f"datasets.{i}.cache_dir": None for i, d in enumerate(new.datasets) if d.dataset_type == "text_embeds"
        }
    tk.build_cache(make_config(**COARSER, **fresh), progress=False)
    needed = {path.name for path in files(alone)}
    expected = {path: size for path, size in files(with_both).items() if path.name not in needed}
    assert expected

    report = cache_report(new)
    assert {entry.path: entry.size for entry in report.stale} == expected
    assert report.stale_size == sum(expected.values())
    names = {sample.file.name for sample in tk.inspect_dataset(old).samples}
    told = [entry.what.split(",")[0] for entry in report.stale if entry.kind == "latents"]
    assert told
    assert set(told) <= names
    assert {entry.kind for entry in report.stale} == {"latents", "text"}  # the prompts of the validation

    assert cache_report(new, keep=[old, tk.load_config(project / "config.json")]).stale == ()
    kept = prune_cache(new, keep=[old])
    assert {entry.kind for entry in kept.freed} == {"text"}
    assert row(kept, "latents").kept > 0
    before = files(with_both)
    freed = prune_cache(new)
    assert freed.freed_size == sum(before.values()) - sum(files(with_both).values()) > 0
    assert {path.name for path in files(with_both)} == needed
    assert freed.stale == ()
    assert f"Freed: {len(freed.freed)} files" in freed.summary()
    result = tk.build_cache(new, progress=False)
    assert result.latents_encoded == result.texts_encoded == 0


def test_missing_entries_are_counted_and_fallbacks_count_as_there(make_config: MakeConfig) -> None:
    config = make_config()
    cache = cache_of(config)
    samples = tk.inspect_dataset(config).samples
    store = cache.latent_stores[samples[0].dataset]
    for sample in samples[:2]:
        store.path(cache.namer.latents(sample)).unlink()
    assert cache_report(config).missing == 2
    cache.put_latents(samples[0], torch.zeros(2), "cpu")
    report = cache_report(config)
    assert row(report, "latents").missing == 1
    assert "Missing: 1 latents" in report.summary()
    assert "cpu" not in {entry.what for entry in report.stale}
    cache.put_latents(samples[0], torch.zeros(2), "tiled")  # better than on the CPU, which is not read any more
    assert [entry.what for entry in cache_report(config).stale if entry.kind == "latents"] == [
        f"{samples[0].file.name}, {samples[0].bucket}, cpu"
    ]


def test_only_our_own_files_are_deleted(project: Path) -> None:
    config = tk.load_config(project / "config.json")
    store = next(iter(cache_of(config).latent_stores.values()))
    compressed = Store(store.folder, compress=True)
    name = "ab" * 32
    compressed.put(name, {"weights": torch.ones(3)}, {"mask": "m\n<b>.png", "bucket": "1x1@1"})
    unknown = store.folder / "cd" / f"{'cd' * 32}.safetensors"
    torn = store.folder / f".{name}.safetensors.tmp-0123456789ab-7-7"
    fresh = store.folder / f".{name}.safetensors.tmp-0123456789ab-8-8"
    mine = [
        store.folder / "notes.txt",
        store.folder / "model.safetensors",
        store.folder / "ab" / "ab12.safetensors",
        store.folder / "ab" / f"{name}.pt",
        fresh,
    ]
    for path in (unknown, torn, *mine):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"something")
    os.utime(torn, (0, 0))
    report = cache_report(config)
    assert {entry.path for entry in report.stale} == {compressed.path(name), unknown, torn}
    assert {entry.kind for entry in report.stale} == {"masks", "unknown", "leftovers"}
    assert "m <b>.png, 1x1@1" in report.to_text()
    assert "m &lt;b&gt;.png" in report._repr_html_()
    freed = prune_cache(config)
    assert {entry.path for entry in freed.freed} == {entry.path for entry in report.stale}
    assert not [entry.path for entry in freed.freed if entry.path.exists()]
    assert all(path.read_bytes() == b"something" for path in mine)
    assert freed.missing == 0


def test_what_cannot_be_deleted_is_said(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    stale = cache_report(config).stale
    assert stale, "the demo's validation prompts are not needed without validation"

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    report = prune_cache(config)
    assert report.freed == ()
    assert report.stale == stale
    assert len(report.failures) == len(stale)
    assert f"{stale[0].path} (Permission denied)" in report.summary()


def test_the_command_says_what_it_freed_and_fails_where_it_could_not(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunerkit.cli import main

    command = ["cache", str(project / "config.json"), "--prune", "validation_disable=true"]
    config = tk.load_config(project / "config.json", validation_disable=True)
    stale = cache_report(config).stale
    assert stale
    with monkeypatch.context() as patch:

        def refuse(path: Path, **_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        patch.setattr(Path, "unlink", refuse)
        assert main(command) == 1
    out = capsys.readouterr().out
    assert "freed: 0 files, 0 B" in out
    assert out.count("(Permission denied)") == len(stale)
    assert all(f"  {entry.path} (Permission denied)" in out for entry in stale)
    assert "Fix: " in out
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"freed: {len(stale)} files, {size_text(sum(entry.size for entry in stale))}" in out
    assert "could not" not in out


def test_report_and_build_agree_on_what_is_no_entry(make_config: MakeConfig) -> None:
    config = make_config()
    cache = cache_of(config)
    samples = tk.inspect_dataset(config).samples[:3]
    store = cache.latent_stores[samples[0].dataset]
    empty, cut, folder = (store.path(cache.namer.latents(sample)) for sample in samples)
    whole = folder.read_bytes()
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:20])
    folder.unlink()
    folder.mkdir()
    report = cache_report(config)
    assert report.missing == 3
    torn = [entry for entry in report.stale if entry.kind == "unknown"]
    assert {entry.path for entry in torn} == {empty, cut}
    assert all("empty or cut off" in entry.what for entry in torn)
    with pytest.raises(tk.TunerkitError, match=f"a folder stands where cache file {folder} .* delete that folder"):
        tk.build_cache(config, progress=False)
    folder.rmdir()
    assert tk.build_cache(config, progress=False).latents_reused < len(tk.inspect_dataset(config).samples)
    assert folder.read_bytes() == whole
    assert cache_report(config).missing == 0
    assert all(torch.isfinite(cache_of(config).latents(sample)).all() for sample in samples)


@pytest.mark.parametrize("trouble", ["empty folder", "no folder", "no model", "no VAE"])
def test_nothing_is_called_stale_when_the_needs_cannot_be_told(
    make_config: MakeConfig, project: Path, trouble: str
) -> None:
    config = make_config()
    clips = Path(config.media_datasets[0].instance_data_dir or "")
    if trouble == "empty folder":
        for path in clips.iterdir():
            path.unlink()
    elif trouble == "no folder":
        clips.rename(clips.with_name("away"))
    else:
        shutil.rmtree(project / "model" / ("vae" if trouble == "no VAE" else ""))
    before = files(project / "cache")
    for call in (cache_report, prune_cache):
        with pytest.raises(tk.TunerkitError, match=r"cannot be told.*nothing deleted"):
            call(config)
    assert files(project / "cache") == before


def test_nothing_is_deleted_when_the_needs_of_a_kept_configuration_cannot_be_told(
    make_config: MakeConfig, project: Path
) -> None:
    config = make_config()
    clips = Path(config.media_datasets[0].instance_data_dir or "")
    clips.rename(project / "elsewhere")
    moved = make_config(**{"datasets.0.instance_data_dir": str(project / "elsewhere")})
    assert cache_report(moved).stale
    before = files(project / "cache")
    with pytest.raises(tk.TunerkitError, match=r"(?s)cannot be told.*instance_data_dir"):
        prune_cache(moved, keep=[config])
    assert files(project / "cache") == before


def test_the_table(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    report = cache_report(make_config())
    report.show()
    shown = capsys.readouterr().out
    assert shown == f"{report.to_text()}\n{report.summary()}\n"
    head, *lines = report.to_text().splitlines()
    assert head.split() == ["kind", "entries", "size", "needed", "stale", "stale", "size", "missing", "where"]
    assert len(lines) >= len(report.rows)
    assert all(str(row.folder) in line for row, line in zip(report.rows, lines, strict=False))
    assert repr(report).startswith("CacheReport(")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (1 << 54, "16384.0 TiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size_text(count) == text
