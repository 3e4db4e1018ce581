"""Finds the mask of every clip in the mask datasets that its dataset names in `conditioning_data`.

A mask belongs to the clip of the same relative path, extension aside, and where no mask has that path to the only
clip of the same name. A clip without a usable mask is dropped and says so: nobody could tell from the result that a
clip was learned without the mask it was meant to have.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tunerkit.data.discover import Found, discover
from tunerkit.data.hub import local_folder, possible_folders
from tunerkit.data.masks import refuse_mask
from tunerkit.data.media import UnreadableMedia
from tunerkit.data.probe import read_media
from tunerkit.data.samples import ClipRow, Mask, Source
from tunerkit.errors import DatasetError

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig

PROBE_WORKERS = 4
"""Masks that are looked at side by side; the reading happens outside Python's lock."""

LISTED = 5
"""Names in a message about unused masks."""

ALL_WHITE = "an all-white mask says that everything is learned"

logger = logging.getLogger("tunerkit")


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
    folders = _discover_masks((name for id_ in present for name in linked[id_].conditioning_ids), sources, config)

    chosen: dict[int, Found | _Missing] = {}
    used: set[Path] = set()
    for id_ in present:
        mine = {number: row for number, row in enumerate(rows) if row.dataset == id_}
        masks = [folders[name] for name in linked[id_].conditioning_ids]
        matches = _Matches.of({n: _key(row.file, linked[id_], config) for n, row in mine.items()}, masks)
        used.update(matches.used)
        chosen.update({number: matches.choose(number, row) for number, row in mine.items() if row.samples})

    read = _read_all({found for found in chosen.values() if isinstance(found, Found)})
    for folder in folders.values():
        # Masks of a dataset that is not looked at now are no news.
        if all(id_ in present for id_, dataset in linked.items() if folder.dataset in dataset.conditioning_ids):
            _report_unused(folder, used)
    result = list(rows)
    for number, found in chosen.items():
        row = rows[number]
        result[number] = _with_mask(row, found, read[found]) if isinstance(found, Found) else _dropped(row, found)
    return result


@dataclass(frozen=True)
class _MaskFolder:
    """The files of a mask dataset."""

    dataset: str
    folder: Path
    files: tuple[Found, ...]


@dataclass(frozen=True)
class _Missing:
    """Why a clip has no mask."""

    reason: str
    fix: str
    cause: str


@dataclass(frozen=True)
class _Matches:
    """The masks of the clips of one dataset.

    Attributes:
        folders: the mask folders, for messages.
        masks: number of a row -> every mask that belongs to it.
        shared: number of a row -> how many clips of its name, in other folders, a mask found by name might mean.
        used: masks that belong to at least one clip.
    """

    folders: str
    masks: dict[int, tuple[Found, ...]]
    shared: dict[int, int]
    used: frozenset[Path]

    @classmethod
    def of(cls, clips: dict[int, str], folders: list[_MaskFolder]) -> _Matches:
        """Match clips, given by their key, with the masks of some folders."""
        by_path: dict[str, list[Found]] = defaultdict(list)
        by_name: dict[str, list[Found]] = defaultdict(list)
        paths = set(clips.values())
        for folder in folders:
            for found in folder.files:
                key = _relative_key(found.file, folder.folder)
                by_path[key].append(found)
                if key not in paths:  # else it is the mask of that clip, whatever others are called
                    by_name[_name_of(key)].append(found)
        namesakes: dict[str, set[str]] = defaultdict(set)
        for key in paths - by_path.keys():
            namesakes[_name_of(key)].add(key)
        masks = {n: tuple(by_path.get(key) or by_name.get(_name_of(key), ())) for n, key in clips.items()}
        shared = {n: len(namesakes[_name_of(key)]) for n, key in clips.items() if key not in by_path}
        used = frozenset(found.file for several in masks.values() for found in several)
        return cls(", ".join(str(folder.folder) for folder in folders), masks, shared, used)

    def choose(self, number: int, row: ClipRow) -> Found | _Missing:
        """The mask of a row, or why it has none."""
        name, stem = row.file.name, row.file.stem
        match self.masks[number]:
            case ():
                return _Missing(
                    f"no mask for {name}",
                    f"put a mask {stem}.png or {stem}.mp4 into {self.folders}; {ALL_WHITE}",
                    "no mask",
                )
            case (mask,) if self.shared.get(number, 1) > 1:
                return _Missing(
                    f"mask {mask.file.name} could belong to {self.shared[number]} clips of that name",
                    f"put masks into the same sub-folders of {self.folders} as the clips; {ALL_WHITE}",
                    "unclear mask",
                )
            case (mask,):
                return mask
            case masks:
                return _Missing(
                    f"{len(masks)} masks for {name}: {', '.join(str(found.file) for found in masks)}",
                    f"keep one of them in {self.folders}; {ALL_WHITE}",
                    "several masks",
                )


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


def _discover_masks(
    names: Iterable[str], sources: dict[str, DatasetConfig], config: TrainConfig
) -> dict[str, _MaskFolder]:
    folders: dict[str, _MaskFolder] = {}
    wrong: list[str] = []
    for name in dict.fromkeys(sorted(names)):
        try:
            folders[name] = _discover_folder(sources[name], config)
        except DatasetError as error:
            wrong.append(str(error))
    if wrong:
        raise DatasetError("\n".join(wrong))
    return folders


def _discover_folder(dataset: DatasetConfig, config: TrainConfig) -> _MaskFolder:
    if dataset.type == "huggingface":
        folder = local_folder(dataset, config)
    elif dataset.instance_data_dir is not None:
        folder = Path(dataset.instance_data_dir)
    else:
        raise DatasetError(
            f"dataset '{dataset.id}': instance_data_dir is not set. Fix: set instance_data_dir to the folder that "
            "holds the masks."
        )
    discovery = discover(folder, dataset.id)
    if discovery.unreadable_folders:
        names = ", ".join(str(path) for path in discovery.unreadable_folders)
        logger.warning("dataset '%s': no permission to look for masks in %s", dataset.id, names)
    return _MaskFolder(dataset.id, folder, discovery.files)


def _key(file: Path, dataset: DatasetConfig, config: TrainConfig) -> str:
    """A clip's path below the folder of its dataset, without extension."""
    folders = possible_folders(dataset, config)
    return _relative_key(file, next((folder for folder in folders if file.is_relative_to(folder)), file.parent))


def _relative_key(file: Path, folder: Path) -> str:
    # Some systems write an accented letter as two characters, others as one.
    return unicodedata.normalize("NFC", file.relative_to(folder).with_suffix("").as_posix())


def _name_of(key: str) -> str:
    return key.rpartition("/")[2]


def _read_all(masks: set[Found]) -> dict[Found, Source | _Missing]:
    ordered = sorted(masks, key=lambda found: found.file)
    with ThreadPoolExecutor(PROBE_WORKERS) as pool:
        return dict(zip(ordered, pool.map(_read, ordered), strict=True))


def _read(found: Found) -> Source | _Missing:
    fix = f"replace the mask {found.file}; {ALL_WHITE}"
    try:
        source = read_media(found.file, found.kind).source
        if found.kind == "image" and _is_see_through(found.file):
            return _Missing(
                f"mask {found.file.name} has transparent parts, which say neither learned nor ignored",
                f"save the mask {found.file} without transparency, white = learned and black = ignored; {ALL_WHITE}",
                "mask transparent",
            )
        return source
    except UnreadableMedia as error:
        return _Missing(f"mask {found.file.name}: {error.reason}", f"{error.fix}, or {fix}", "mask unreadable")
    except Exception as error:
        # A reader can fail on a damaged file in ways nobody listed; one mask must not stop the other thousand.
        reason = f"mask {found.file.name}: reading it failed unexpectedly: {type(error).__name__}: {error}"
        return _Missing(reason, fix, "mask unreadable")


def _is_see_through(file: Path) -> bool:
    with Image.open(file) as image:
        return image.has_transparency_data and int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 255


def _with_mask(row: ClipRow, found: Found, source: Source | _Missing) -> ClipRow:
    """A used row with its mask, or dropped because of it."""
    if isinstance(source, _Missing):
        return _dropped(row, source)
    # A GIF of one picture is a still.
    kind = "image" if source.codec == "gif" and source.frames == 1 else found.kind
    mask = Mask(found.file, kind, source.digest)
    for sample in row.samples:
        refusal = refuse_mask(mask, source, sample)
        if refusal is not None:
            fix = f"{refusal.fix} (masks are in {found.file.parent}; {ALL_WHITE})"
            return _dropped(row, _Missing(refusal.reason, fix, refusal.cause))
    remark = f"mask {found.file.name}"
    clip = row.samples[0].source
    if kind == "video" and source.frames != clip.frames:
        remark += f" ({source.frames} frames where the clip has {clip.frames}: they go together by number)"
    samples = tuple(sample._replace(mask=mask) for sample in row.samples)
    return row._replace(reason=f"{row.reason}; {remark}", samples=samples)


def _dropped(row: ClipRow, why: _Missing) -> ClipRow:
    return row._replace(decision="dropped", reason=why.reason, fix=why.fix, cause=why.cause, samples=())


def _report_unused(folder: _MaskFolder, used: set[Path]) -> None:
    unused = [found.file.relative_to(folder.folder).as_posix() for found in folder.files if found.file not in used]
    if unused:
        more = f" and {len(unused) - LISTED} more" if len(unused) > LISTED else ""
        logger.warning(
            "dataset '%s': %d of %d masks in %s belong to no clip: %s%s",
            folder.dataset,
            len(unused),
            len(folder.files),
            folder.folder,
            ", ".join(unused[:LISTED]),
            more,
        )
