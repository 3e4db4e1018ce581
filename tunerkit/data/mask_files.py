"""Finds the mask of every clip in the mask datasets that its dataset names in `conditioning_data`.

A mask belongs to the clip of the same relative path, extension aside, and where no mask has that path to the only
clip of the same name. A clip without a usable mask is dropped and says so: nobody could tell from the result that a
clip was learned without the mask it was meant to have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tunerkit.data.discover import Found, discover
from tunerkit.data.masks import refuse_mask
from tunerkit.data.media import UnreadableMedia
from tunerkit.data.partners import Matches, Missing, Words, clip_key, discover_partners, report_unused
from tunerkit.data.probe import read_media
from tunerkit.data.samples import ClipRow, Mask, Source
from tunerkit.errors import DatasetError

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig

PROBE_WORKERS = 4
"""Masks that are looked at side by side; the reading happens outside Python's lock."""

ALL_WHITE = "an all-white mask says that everything is learned"
WORDS = Words("mask", "a mask {stem}.png or {stem}.mp4", ALL_WHITE)


def link_masks(rows: Sequence[ClipRow], config: TrainConfig) -> list[ClipRow]:
    """The rows, with a mask in every sample of the datasets that name mask datasets in `conditioning_data`.

    A row whose mask is missing, not the only one, unreadable or does not fit is dropped with the reason. Rows of
    other datasets pass through as they are. Masks that no clip of `rows` has are logged.

    Raises:
        DatasetError: `conditioning_data` names no enabled mask dataset, or the folder of one cannot be used; all that
            are wrong at once.
    """
    linked = {d.id: d for d in config.datasets if d.has_clips and d.conditioning_ids}
    sources = _mask_datasets(linked.values(), config)
    present = sorted({row.dataset for row in rows} & linked.keys())
    named = sorted({name for id_ in present for name in linked[id_].conditioning_ids})
    folders = discover_partners((sources[name] for name in named), config, _find_masks, "masks")

    chosen: dict[int, Found | Missing] = {}
    used: set[Path] = set()
    for id_ in present:
        mine = {number: row for number, row in enumerate(rows) if row.dataset == id_}
        masks = [folders[name] for name in linked[id_].conditioning_ids]
        matches = Matches.of({n: clip_key(row.file, linked[id_], config) for n, row in mine.items()}, masks, WORDS)
        used.update(matches.used)
        chosen.update({number: matches.choose(number, row) for number, row in mine.items() if row.samples})

    read = _read_all({found for found in chosen.values() if isinstance(found, Found)})
    for folder in folders.values():
        # Masks of a dataset that is not looked at now are no news.
        if all(id_ in present for id_, dataset in linked.items() if folder.dataset in dataset.conditioning_ids):
            report_unused(folder, used, "masks")
    result = list(rows)
    for number, found in chosen.items():
        row = rows[number]
        result[number] = _with_mask(row, found, read[found]) if isinstance(found, Found) else found.drop(row)
    return result


def _mask_datasets(datasets: Iterable[DatasetConfig], config: TrainConfig) -> dict[str, DatasetConfig]:
    """The mask datasets that some datasets name, by id."""
    known = {dataset.id: dataset for dataset in config.datasets}
    masks = [dataset.id for dataset in config.datasets if dataset.has_masks]
    wrong: list[str] = []
    for dataset in datasets:
        for name in dataset.conditioning_ids:
            trouble = _why_no_masks(known.get(name))
            if trouble:
                wrong.append(
                    f"dataset '{dataset.id}': conditioning_data = {name!r} {trouble}. Fix: name one of the mask "
                    f"datasets ({', '.join(masks) or 'there are none'}; all datasets: {', '.join(known)}), or remove "
                    "conditioning_data."
                )
    if wrong:
        raise DatasetError("\n".join(wrong))
    return {name: known[name] for name in masks}


def _why_no_masks(dataset: DatasetConfig | None) -> str:
    """What keeps a dataset from giving masks; empty when nothing does."""
    if dataset is None:
        return "is the id of no dataset"
    if dataset.dataset_type != "conditioning":
        return f"is a dataset of type {dataset.dataset_type}, not conditioning"
    if dataset.conditioning_type not in (None, "mask"):
        return f"has conditioning_type = {dataset.conditioning_type!r}; only masks are supported"
    return "is disabled" if dataset.disabled else ""


def _find_masks(folder: Path, dataset: str) -> tuple[tuple[Found, ...], tuple[Path, ...]]:
    discovery = discover(folder, dataset)
    return discovery.files, discovery.unreadable_folders


def _read_all(masks: set[Found]) -> dict[Found, Source | Missing]:
    ordered = sorted(masks, key=lambda found: found.file)
    with ThreadPoolExecutor(PROBE_WORKERS) as pool:
        return dict(zip(ordered, pool.map(_read, ordered), strict=True))


def _read(found: Found) -> Source | Missing:
    fix = f"replace the mask {found.file}; {ALL_WHITE}"
    try:
        source = read_media(found.file, found.kind).source
        if found.kind == "image" and _is_see_through(found.file):
            return Missing(
                f"mask {found.file.name} has transparent parts, which say neither learned nor ignored",
                f"save the mask {found.file} without transparency, white = learned and black = ignored; {ALL_WHITE}",
                "mask transparent",
            )
        return source
    except UnreadableMedia as error:
        return Missing(f"mask {found.file.name}: {error.reason}", f"{error.fix}, or {fix}", "mask unreadable")
    except Exception as error:
        # A reader can fail on a damaged file in ways nobody listed; one mask must not stop the other thousand.
        reason = f"mask {found.file.name}: reading it failed unexpectedly: {type(error).__name__}: {error}"
        return Missing(reason, fix, "mask unreadable")


def _is_see_through(file: Path) -> bool:
    with Image.open(file) as image:
        return image.has_transparency_data and int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 255


def _with_mask(row: ClipRow, found: Found, source: Source | Missing) -> ClipRow:
    """A used row with its mask, or dropped because of it."""
    if isinstance(source, Missing):
        return source.drop(row)
    # A GIF of one picture is a still.
    kind = "image" if source.codec == "gif" and source.frames == 1 else found.kind
    mask = Mask(found.file, kind, source.digest)
    for sample in row.samples:
        refusal = refuse_mask(mask, source, sample)
        if refusal is not None:
            fix = f"{refusal.fix} (masks are in {found.file.parent}; {ALL_WHITE})"
            return Missing(refusal.reason, fix, refusal.cause).drop(row)
    remark = f"mask {found.file.name}"
    clip = row.samples[0].source
    if kind == "video" and source.frames != clip.frames:
        remark += f" ({source.frames} frames where the clip has {clip.frames}: they go together by number)"
    samples = tuple(sample._replace(mask=mask) for sample in row.samples)
    return row._replace(reason=f"{row.reason}; {remark}", samples=samples)
