"""What lies in the cache folders of a run, what of it the run needs, what is missing, and the removal of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.cache.census_report import (
    FEATURES,
    LATENTS,
    LEFTOVERS,
    MASKS,
    MEDIA_MEMORY,
    SOUNDS,
    TEXT,
    UNKNOWN,
    CacheReport,
    CacheRow,
    StaleEntry,
    one_line,
)
from tunerkit.cache.entries import FALLBACKS, Cache
from tunerkit.cache.store import Entry, Store, read_facts
from tunerkit.config.crepa_rules import needs_features
from tunerkit.errors import TunerkitError

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample

KINDS = (TEXT, LATENTS, MASKS, SOUNDS, FEATURES, MEDIA_MEMORY, UNKNOWN, LEFTOVERS)
"""In the order in which they are listed."""


def cache_report(config: TrainConfig, keep: Sequence[TrainConfig] = ()) -> CacheReport:
    """Count what lies in the cache folders of `config`, and tell the needed from the stale. Changes nothing.

    Args:
        config: the run whose folders are looked at.
        keep: other configurations that use the same folders; what they need is not stale.

    Raises:
        TunerkitError: the datasets or the model of a configuration cannot be looked at; then nobody can tell what is
            stale.
    """
    return _survey(_needs(config), [_needs(other) for other in keep])


def prune_cache(config: TrainConfig, keep: Sequence[TrainConfig] = ()) -> CacheReport:
    """Delete what `cache_report` with the same arguments calls stale; the result says what was freed.

    Only files with the names that tunerkit gives are deleted. Entries of other configurations in the same folders are
    stale unless these are given as `keep`: the clips at another resolution, for example.

    Raises:
        TunerkitError: as `cache_report`; nothing is deleted then.
    """
    needs, others = _needs(config), [_needs(other) for other in keep]
    freed, failures = [], []
    for entry in _survey(needs, others).stale:
        try:
            entry.path.unlink(missing_ok=True)
            freed.append(entry)
        except OSError as error:
            failures.append(f"{entry.path} ({error.strerror or error})")
    return replace(_survey(needs, others), freed=tuple(freed), failures=tuple(failures))


# What a configuration needs ------------------------------------------------------------------------------------


@dataclass
class _Folder:
    """A folder of a configuration: `wanted` holds, for each thing it needs, the names that would do, best first."""

    datasets: tuple[str, ...] = ()
    wanted: dict[tuple[str, ...], str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Needs:
    folders: Mapping[Path, _Folder]
    memory: Path
    dropped: int


def _needs(config: TrainConfig) -> _Needs:
    from tunerkit import families
    from tunerkit.cache.build import needed_texts
    from tunerkit.project import resolve

    try:
        config = resolve(config)
        family = families.get(str(config.model_family))
        family.check_checkpoint(config)
        samples, dropped = _samples(config)
        cache = Cache(config, family)
        texts = needed_texts(config, samples)
    except TunerkitError as error:
        raise TunerkitError(
            f"what the cache of {config.output_dir} is needed for cannot be told, so nothing in it is called stale and "
            f"nothing deleted: {error}"
        ) from error
    folders: dict[Path, _Folder] = {}
    for dataset, store in cache.latent_stores.items():
        folder = folders.setdefault(_real(store.folder), _Folder())
        folder.datasets += (dataset,)
    text_folder = folders.setdefault(_real(cache.text_store.folder), _Folder())
    for text, kind in texts:
        text_folder.wanted[(cache.namer.text(text, kind),)] = TEXT
    aligned = {dataset.id for dataset in config.media_datasets} if needs_features(config) else set()
    for sample in samples:
        wanted = folders[_real(cache.latent_stores[sample.dataset].folder)].wanted
        wanted[tuple(cache.namer.latents(sample, fallback) for fallback in ("", *FALLBACKS))] = LATENTS
        if sample.mask is not None:
            wanted[(cache.namer.mask(sample),)] = MASKS
        if sample.sound is not None:
            wanted[(cache.namer.sound(sample),)] = SOUNDS
        if sample.dataset in aligned:
            wanted[(cache.namer.features(sample),)] = FEATURES
    return _Needs(folders, config.cache_path / "media", dropped)


def _samples(config: TrainConfig) -> tuple[list[Sample], int]:
    """The samples of all datasets, and the number of files that are not used.

    Raises:
        TunerkitError: a dataset has no usable file, or a folder of it cannot be listed.
    """
    from tunerkit.data.inspect import inspect_dataset

    reports = [inspect_dataset(config)]
    if config.eval_datasets:
        reports.append(inspect_dataset(config, purpose="eval"))
    samples: list[Sample] = []
    for report in reports:
        samples += report.require_samples()
        for row in report.dropped:
            if row.file.is_dir():
                raise TunerkitError(f"dataset '{row.dataset}': {row.file}: {row.reason}. Fix: {row.fix}")
    return samples, sum(len(report.dropped) for report in reports)


def _real(folder: Path) -> Path:
    """One name per folder, so that two configurations that reach it in different ways meet."""
    return folder.resolve()


# What lies in the folders --------------------------------------------------------------------------------------


def _survey(needs: _Needs, others: Sequence[_Needs]) -> CacheReport:
    rows: list[CacheRow] = []
    stale: list[StaleEntry] = []
    for path, folder in needs.folders.items():
        foreign = [other.folders[path].wanted for other in others if path in other.folders]
        counted = _Counted(path, folder)
        counted.count(foreign)
        rows += counted.rows()
        stale += counted.stale
    remembered = [file.stat().st_size for file in _files_below(needs.memory)]
    if remembered:
        rows.append(CacheRow(MEDIA_MEMORY, (), needs.memory, needed=len(remembered), size=sum(remembered)))
    order = {kind: place for place, kind in enumerate(KINDS)}
    rows.sort(key=lambda row: order[row.kind])
    stale.sort(key=lambda entry: -entry.size)
    return CacheReport(tuple(rows), tuple(stale), needs.dropped)


class _Counted:
    """The files of one folder, sorted into kinds and uses."""

    def __init__(self, path: Path, folder: _Folder) -> None:
        self._path, self._folder = path, folder
        self._numbers: dict[str, Counter[str]] = {}
        self.stale: list[StaleEntry] = []

    def count(self, foreign: Iterable[Mapping[tuple[str, ...], str]]) -> None:
        """Look at every file; `foreign` is what other configurations want of this folder."""
        store = Store(self._path)
        entries = list(store.entries())
        there = {entry.name for entry in entries if not entry.torn}
        needed: dict[str, str] = {}
        for names, kind in self._folder.wanted.items():
            name = _first(names, there)
            if name is None:
                self._of(kind)["missing"] += 1
            else:
                needed[name] = kind
        kept: dict[str, str] = {}
        for wanted in foreign:
            kept.update({name: kind for names, kind in wanted.items() if (name := _first(names, there))})
        for entry in entries:
            if entry.torn:
                self._stale(UNKNOWN, f"{entry.path.name}, empty or cut off", entry)
            elif entry.name in needed:
                self._add(needed[entry.name], "needed", entry)
            elif entry.name in kept:
                self._add(kept[entry.name], "kept", entry)
            else:
                self._stale(*_described(entry), entry)
        for entry in store.leftovers():
            self._stale(LEFTOVERS, f"{entry.path.name}, left by a killed process", entry)

    def rows(self) -> Iterator[CacheRow]:
        for kind, numbers in self._numbers.items():
            datasets = () if kind == TEXT else self._folder.datasets
            yield CacheRow(kind, datasets, self._path, **numbers)

    def _of(self, kind: str) -> Counter[str]:
        return self._numbers.setdefault(kind, Counter())

    def _add(self, kind: str, use: str, entry: Entry) -> None:
        self._of(kind).update({use: 1, "size": entry.size})

    def _stale(self, kind: str, what: str, entry: Entry) -> None:
        self._add(kind, "stale", entry)
        self._of(kind)["stale_size"] += entry.size
        self.stale.append(StaleEntry(kind, entry.path, entry.size, what))


def _first(names: Iterable[str], there: set[str]) -> str | None:
    return next((name for name in names if name in there), None)


def _described(entry: Entry) -> tuple[str, str]:
    """Kind of an entry and what it was made of, from the facts in its header."""
    facts = read_facts(entry.path)
    if "text" in facts:
        text = one_line(str(facts["text"]))
        return TEXT, f"'{text[:60]}{'...' if len(text) > 60 else ''}' ({facts.get('as', '')})"
    kinds = {"mask": MASKS, "sound": SOUNDS, "features": FEATURES, "file": LATENTS}
    key = next((key for key in kinds if key in facts), None)
    if key is None:
        return UNKNOWN, entry.path.name
    kind = kinds[key]
    details = [str(facts[key]), *(str(facts[more]) for more in ("bucket", "seconds", "fallback") if more in facts)]
    return kind, one_line(", ".join(details))


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
