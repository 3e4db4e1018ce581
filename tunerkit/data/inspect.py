"""Looks at every file of the datasets and decides what is used of it: one row per file, whatever happens.

A file that has not changed since it was looked at last is not opened again (see `media_memory`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunerkit import families
from tunerkit.config.settings import require_settings
from tunerkit.data.captions import CaptionRules
from tunerkit.data.decide import Decider, Rules, Trouble
from tunerkit.data.discover import Discovery, Found, caption_name, discover
from tunerkit.data.frames import FrameRules
from tunerkit.data.geometry import SizeRules
from tunerkit.data.media import Media, UnreadableMedia
from tunerkit.data.media_memory import MediaMemory, garbage_collection
from tunerkit.data.probe import read_media
from tunerkit.data.quarantine import Quarantine
from tunerkit.data.report import DatasetReport
from tunerkit.data.samples import ClipRow
from tunerkit.errors import ConfigError, DatasetError, Problem

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

PROBE_WORKERS = max(2, min(4, os.cpu_count() or 2))
"""Files that are looked at side by side. Reading happens outside Python's lock, so on a slow disk they wait together;
with more, or with processes instead, nothing was gained on a fast one."""

SAVE_SECONDS = 5.0
"""How often what was found is kept while files are looked at, so that a stopped program need not begin again."""

Purpose = Literal["train", "eval"]


@garbage_collection(False)
def inspect_dataset(config: TrainConfig, purpose: Purpose = "train") -> DatasetReport:
    """Decide about every file of the enabled datasets of a resolved config.

    Args:
        purpose: `train`: the datasets of videos and images. `eval`: those of `dataset_type = "eval"`, under the same
            rules but without repeats; a config without any gives a report without rows.

    Returns:
        A row per file, in the order of the datasets and then of the relative paths.

    Raises:
        DatasetError: a dataset's folder cannot be used; all that are wrong at once. A dataset whose files are all
            dropped raises nothing: see `DatasetReport.require_samples`.
        ConfigError: `model_family` is missing or unknown.
    """
    require_settings(config)
    datasets = config.media_datasets if purpose == "train" else config.eval_datasets
    if not datasets and purpose == "train":
        raise DatasetError(
            "data_backend_config names no dataset to train on. Fix: add an entry with dataset_type video or "
            "image and instance_data_dir, or remove its disabled = true."
        )
    if config.model_family is None:
        raise ConfigError([Problem("model_family", None, "is not set", f"use one of {', '.join(families.names())}")])
    family = families.get(config.model_family)
    plans: list[tuple[DatasetConfig, Rules, Path, Discovery]] = []
    wrong: list[str] = []
    for dataset in datasets:
        try:
            folder = _folder(dataset, config)
            plans.append((dataset, rules_of(dataset, config, family), folder, discover(folder, dataset.id)))
        except DatasetError as error:
            wrong.append(str(error))
    if wrong:
        raise DatasetError("\n".join(wrong))

    quarantine = Quarantine.of(config)
    rows: list[ClipRow] = []
    looked: dict[str, tuple[Path, MediaMemory]] = {}
    for dataset, rules, folder, discovery in plans:
        memory = MediaMemory.of(dataset, folder, config)
        looked[dataset.id] = folder, memory
        decider = Decider(rules, memory)
        rows += _limit(_decide_all(discovery.files, decider, quarantine), discovery.files, dataset.max_num_samples)
        rows += (_unreadable_folder(folder, decider) for folder in discovery.unreadable_folders)
    if any(dataset.has_masks for dataset in config.datasets):
        from tunerkit.data.mask_files import link_masks

        rows = link_masks(rows, config)
    if family.sound is not None and any(dataset.takes_sound for dataset in datasets):
        from tunerkit.data.sound import link_sounds

        rows = link_sounds(rows, config, family.sound, looked)
    return DatasetReport(rows)


def rules_of(dataset: DatasetConfig, config: TrainConfig, family: Family) -> Rules:
    """The rules of one dataset: its own settings first, then the run's, then the family's.

    Raises:
        DatasetError: the sizes that the model was trained at are asked for, and it has none.
    """
    captions = CaptionRules(
        dataset.caption_strategy,
        dataset.instance_prompt,
        dataset.prepend_instance_prompt,
        dataset.only_instance_prompt,
        dataset.disable_multiline_split,
    )
    size = _size_rules(dataset, config)
    # Asked for only where needed: a family may import its model library to answer.
    sizes = tuple(family.model_sizes(config)) if size.resolution_type == "model" else ()
    if size.resolution_type == "model" and not sizes:
        raise DatasetError(
            f"dataset '{dataset.id}': the model has no list of trained sizes. Fix: set resolution, and "
            f"resolution_type to pixel_area."
        )
    return Rules(
        dataset=dataset.id,
        dataset_type=dataset.dataset_type,
        frames=FrameRules(
            dataset.video.num_frames,
            dataset.video.min_frames,
            dataset.video.max_frames,
            dataset.video.frame_sampling,
            dataset.video.num_windows,
            dataset.video.frame_interval if dataset.video.bucket_strategy == "resolution_frames" else None,
        ),
        size=size,
        captions=captions,
        multiple=family.multiple(config),
        legal_frames=family.legal_frames,
        model_sizes=sizes,
        target_fps=float(dataset.video.frame_rate or config.framerate or family.framerate),
        repeats=0 if dataset.dataset_type == "eval" else dataset.repeats,
        is_i2v=family.image_to_video(config) if dataset.video.is_i2v is None else dataset.video.is_i2v,
    )


def _decide_all(files: Sequence[Found], decider: Decider, quarantine: Quarantine) -> list[ClipRow]:
    """A row per file, in their order; what was found is kept, also when the program is stopped on the way."""
    memory = decider.memory
    try:
        barred = {found.name: row for found in files if (row := _barred(found, decider, quarantine))}
        known = {found.name: memory.media(found.name, found.stamp, found.file) for found in files}
        if unknown := [found for found in files if known[found.name] is None and found.name not in barred]:
            _probe(unknown, known, memory)
        rows = [_row(found, known.pop(found.name), barred, decider) for found in files]
        memory.retain({found.name for found in files}, {caption_name(found.name) for found in files})
        return rows
    finally:
        memory.save()


def _row(found: Found, media: Media | UnreadableMedia | None, barred: dict[str, ClipRow], decider: Decider) -> ClipRow:
    return decider.decide(found, media) if media and found.name not in barred else barred[found.name]


def _barred(found: Found, decider: Decider, quarantine: Quarantine) -> ClipRow | None:
    """The row of a file that is not even looked at: a video among images, or one in quarantine."""
    trouble = None
    if found.kind == "video" and decider.rules.dataset_type == "image":
        trouble = Trouble(
            "it is a video in a dataset of images",
            "set dataset_type to video, where images are 1-frame clips, or move the file",
            "not an image",
        )
    elif reason := quarantine.reason_of(found.file, found.stamp):
        trouble = Trouble(
            f"in quarantine: {reason}",
            f"replace the file by one that plays, or take it off the list by removing its line from {quarantine.path}",
            "in quarantine",
        )
    return decider.dropped(found.file, found.kind, None, [trouble]) if trouble else None


@garbage_collection(True)
def _probe(files: Sequence[Found], known: dict[str, Media | UnreadableMedia | None], memory: MediaMemory) -> None:
    """Look at files side by side; what was found goes into `known` and into the memory."""
    pool = ThreadPoolExecutor(PROBE_WORKERS)
    try:
        waiting: dict[Future[tuple[Media | UnreadableMedia, bool]], Found] = {
            pool.submit(_look, found): found for found in files
        }
        saved = time.monotonic()
        for future in as_completed(waiting):
            found = waiting[future]
            media, lasting = future.result()
            known[found.name] = media
            if lasting:
                memory.remember(found.name, found.stamp, media)
            if time.monotonic() - saved > SAVE_SECONDS:
                memory.save()
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)


def _look(found: Found) -> tuple[Media | UnreadableMedia, bool]:
    """What a file holds or why it cannot be used, and whether that lasts as long as the file does not change."""
    try:
        return read_media(found.file, found.kind), True
    except UnreadableMedia as error:
        return error, True
    except Exception as error:
        # A reader can fail on a damaged file in ways nobody listed; one file must not stop the other thousand.
        unexpected = UnreadableMedia(
            found.file,
            f"reading it failed unexpectedly: {type(error).__name__}: {error}",
            "check that the file plays, export it again, or remove it",
        )
        return unexpected, False


def _limit(rows: list[ClipRow], files: Sequence[Found], limit: int | None) -> list[ClipRow]:
    """Keep `limit` used files, chosen by a hash of their relative paths: the same ones on every machine."""
    used = [place for place, row in enumerate(rows) if row.samples]
    if limit is None or len(used) <= limit:
        return rows
    drawn = sorted(used, key=lambda place: hashlib.sha256(os.fsencode(files[place].name)).digest())
    for place in drawn[limit:]:
        rows[place] = rows[place]._replace(
            decision="dropped",
            reason=f"not among the {limit} of {len(used)} usable files drawn for max_num_samples = {limit}",
            fix=f"set max_num_samples to {len(used)} or more, or remove it",
            samples=(),
            cause="over max_num_samples",
        )
    return rows


def _unreadable_folder(folder: Path, decider: Decider) -> ClipRow:
    trouble = Trouble(
        "the folder cannot be listed: no read permission",
        "give yourself read and execute permission (chmod u+rx), or move it away",
        "no permission",
    )
    return decider.dropped(folder, "video", None, [trouble])


def _folder(dataset: DatasetConfig, config: TrainConfig) -> Path:
    """Where a dataset's files lie; a repository is downloaded first."""
    if dataset.type == "huggingface":
        from tunerkit.data.hub import local_folder

        return local_folder(dataset, config)
    if dataset.instance_data_dir is None:
        raise DatasetError(
            f"dataset '{dataset.id}': instance_data_dir is not set. Fix: set instance_data_dir to the folder "
            f"that holds the clips."
        )
    return Path(dataset.instance_data_dir)


def _size_rules(dataset: DatasetConfig, config: TrainConfig) -> SizeRules:
    resolution, kind = config.resolution_of(dataset)
    return SizeRules(
        resolution=resolution or 0.0,
        resolution_type=kind,
        crop=dataset.crop,
        crop_aspect=dataset.crop_aspect,
        crop_style=dataset.crop_style,
        minimum_image_size=dataset.minimum_image_size,
        maximum_image_size=dataset.maximum_image_size,
        target_downsample_size=dataset.target_downsample_size,
        minimum_aspect_ratio=dataset.minimum_aspect_ratio,
        maximum_aspect_ratio=dataset.maximum_aspect_ratio,
        crop_aspect_buckets=tuple(dataset.crop_aspect_buckets or ()),
        max_upscale_threshold=dataset.max_upscale_threshold,
    )
