"""Looks at every file of the datasets and decides what is used of it: one row per file, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit import families
from tunerkit.config.settings import require_settings
from tunerkit.data.captions import CaptionError, CaptionRules, read_captions
from tunerkit.data.discover import Discovery, Found, discover
from tunerkit.data.frames import FramePlan, FrameRules, decide_frames
from tunerkit.data.geometry import SizeRules, plan_size, refuse_size, size_remarks
from tunerkit.data.probe import Media, UnreadableMedia, read_media
from tunerkit.data.report import DatasetReport
from tunerkit.data.samples import ClipRow, Kind, Sample, Size, Source
from tunerkit.errors import ConfigError, DatasetError, Problem

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

PROBE_WORKERS = max(2, min(4, os.cpu_count() or 2))
"""Files that are looked at side by side; the reading happens outside Python's lock."""


@dataclass(frozen=True)
class Rules:
    """Everything that decides about the files of one dataset."""

    dataset: str
    dataset_type: str
    frames: FrameRules
    size: SizeRules
    captions: CaptionRules
    multiple: int
    legal_frames: Callable[[int], int]
    model_sizes: tuple[Size, ...]
    target_fps: float
    repeats: int
    is_i2v: bool


@dataclass(frozen=True)
class Trouble:
    """One reason why a file is dropped."""

    reason: str
    fix: str
    cause: str


def inspect_dataset(config: TrainConfig) -> DatasetReport:
    """Decide about every file of the enabled video and image datasets of a resolved config.

    Returns:
        A row per file, in the order of the datasets and then of the relative paths.

    Raises:
        DatasetError: a dataset's folder cannot be used; all that are wrong at once. A dataset whose files are all
            dropped raises nothing: see `DatasetReport.require_samples`.
        ConfigError: `model_family` is missing or unknown.
    """
    require_settings(config)
    if not config.media_datasets:
        raise DatasetError(
            "data_backend_config names no dataset to train on. Fix: add an entry with dataset_type video or "
            "image and instance_data_dir, or remove its disabled = true."
        )
    if config.model_family is None:
        raise ConfigError([Problem("model_family", None, "is not set", f"use one of {', '.join(families.names())}")])
    family = families.get(config.model_family)
    plans: list[tuple[Rules, Discovery]] = []
    wrong: list[str] = []
    for dataset in config.media_datasets:
        try:
            plans.append((rules_of(dataset, config, family), _discover(dataset)))
        except DatasetError as error:
            wrong.append(str(error))
    if wrong:
        raise DatasetError("\n".join(wrong))

    rows: list[ClipRow] = []
    with ThreadPoolExecutor(PROBE_WORKERS) as pool:
        for rules, discovery in plans:
            rows += pool.map(decide, discovery.files, [rules] * len(discovery.files))
            rows += (_unreadable_folder(folder, rules) for folder in discovery.unreadable_folders)
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
        frames=FrameRules(dataset.video.num_frames, dataset.video.min_frames, dataset.video.max_frames),
        size=size,
        captions=captions,
        multiple=family.size_multiple,
        legal_frames=_legal_frames(dataset, family),
        model_sizes=sizes,
        target_fps=float(dataset.video.frame_rate or config.framerate or family.framerate),
        repeats=dataset.repeats,
        is_i2v=dataset.video.is_i2v,
    )


def decide(found: Found, rules: Rules) -> ClipRow:
    """The decision about one file. Never raises: trouble of any kind becomes a row that says what it is."""
    try:
        if found.kind == "video" and rules.dataset_type == "image":
            raise UnreadableMedia(
                found.file,
                "it is a video in a dataset of images",
                "set dataset_type to video, where images are 1-frame clips, or move the file",
                "not an image",
            )
        return _decide_readable(found, read_media(found.file, found.kind), rules)
    except UnreadableMedia as error:
        return _dropped(found.file, found.kind, None, rules, [Trouble(error.reason, error.fix, error.cause)])
    except Exception as error:
        # A reader can fail on a damaged file in ways nobody listed; one file must not stop the other thousand.
        unexpected = Trouble(
            f"reading it failed unexpectedly: {type(error).__name__}: {error}",
            "check that the file plays, export it again, or remove it",
            "unreadable",
        )
        return _dropped(found.file, found.kind, None, rules, [unexpected])


def _decide_readable(found: Found, media: Media, rules: Rules) -> ClipRow:
    source = media.source
    displayed = (source.width, source.height)
    frames = _plan_frames(found.kind, media, rules)
    size = plan_size(
        displayed,
        rules.size,
        multiple=rules.multiple,
        model_sizes=rules.model_sizes,
        digest=source.digest,
    )
    troubles: list[Trouble] = []
    if frames.cause and media.damaged:
        troubles.append(Trouble(frames.reason, "copy or download the file again", "damaged"))
    elif frames.cause:
        troubles.append(Trouble(frames.reason, frames.fix, frames.cause))
    refusal = refuse_size(displayed, rules.size)
    if refusal:
        troubles.append(Trouble(*refusal))
    captions: tuple[str, ...] = ()
    try:
        captions = read_captions(found.file, rules.captions)
    except CaptionError as error:
        troubles.append(Trouble(error.reason, error.fix, error.cause))
    if troubles:
        return _dropped(found.file, found.kind, source, rules, troubles, media.remarks)

    sample = Sample(
        dataset=rules.dataset,
        file=found.file,
        kind=found.kind,
        captions=captions,
        source=source,
        frame_indices=frames.indices,
        fps=rules.target_fps,
        size=size.size,
        resized=size.resized,
        crop=size.crop,
        repeats=rules.repeats,
        # With a single frame nothing would be left to learn from.
        is_i2v=rules.is_i2v and len(frames.indices) > 1,
        frame_times=tuple(media.times[index] for index in frames.indices) if media.timed else (),
    )
    scaled = f"{source.width}x{source.height} -> {size.size[0]}x{size.size[1]}"
    remarks = [*size_remarks(displayed, size), *media.remarks, *_training_remarks(sample, rules)]
    reason = "; ".join([f"{frames.reason}, {scaled}", *remarks])
    return ClipRow(rules.dataset, found.file, found.kind, "used", reason, "", source, sample)


def _training_remarks(sample: Sample, rules: Rules) -> list[str]:
    """What a person may not expect of how the sample is trained."""
    remarks = []
    if len(sample.captions) > 1:
        remarks.append(f"{len(sample.captions)} captions, one per line (disable_multiline_split joins them)")
    if rules.is_i2v and not sample.is_i2v:
        remarks.append("a still has no next frame: trained as text to image, not as image to video")
    return remarks


def _plan_frames(kind: Kind, media: Media, rules: Rules) -> FramePlan:
    if kind == "image" or (media.source.codec == "gif" and len(media.times) == 1):  # a GIF of one frame is a still
        return FramePlan((0,), "image, 1 frame")
    return decide_frames(
        media.times,
        end=media.end,
        source_fps=media.source.fps,
        target_fps=rules.target_fps,
        rules=rules.frames,
        legal_frames=rules.legal_frames,
    )


def _dropped(
    file: Path,
    kind: Kind,
    source: Source | None,
    rules: Rules,
    troubles: list[Trouble],
    remarks: tuple[str, ...] = (),
) -> ClipRow:
    return ClipRow(
        dataset=rules.dataset,
        file=file,
        kind=kind,
        decision="dropped",
        reason="; ".join([*(trouble.reason for trouble in troubles), *remarks]),
        fix="; ".join(trouble.fix for trouble in troubles),
        source=source,
        sample=None,
        cause=", ".join(dict.fromkeys(trouble.cause for trouble in troubles)),
    )


def _unreadable_folder(folder: Path, rules: Rules) -> ClipRow:
    trouble = Trouble(
        "the folder cannot be listed: no read permission",
        "give yourself read and execute permission (chmod u+rx), or move it away",
        "no permission",
    )
    return _dropped(folder, "video", None, rules, [trouble])


def _discover(dataset: DatasetConfig) -> Discovery:
    if dataset.instance_data_dir is None:
        raise DatasetError(
            f"dataset '{dataset.id}': instance_data_dir is not set. Fix: set instance_data_dir to the folder "
            f"that holds the clips."
        )
    return discover(Path(dataset.instance_data_dir), dataset.id)


def _legal_frames(dataset: DatasetConfig, family: Family) -> Callable[[int], int]:
    """The family's frame rule; with buckets by frames also lowered to `k * video.frame_interval + 1`."""
    interval = dataset.video.frame_interval
    if dataset.video.bucket_strategy != "resolution_frames" or not interval:
        return family.legal_frames
    return lambda count: family.legal_frames((max(1, count) - 1) // interval * interval + 1)


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
    )
