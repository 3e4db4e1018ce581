"""What must be true of the datasets, alone and together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.config.paths import dataset_path_key
from tunerkit.config.problems import choice_fix, entry_key
from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig

LARGEST_MEGAPIXELS = 20.0
SMALLEST_EDGE = 16.0


def dataset_problems(config: TrainConfig) -> Iterator[Problem]:
    """What is wrong between datasets, then within each of them."""
    yield from _entries(config)
    yield from _probabilities(config)
    yield from _cache_folders(config)
    yield from _unused_masks(config)
    for index, dataset in enumerate(config.datasets):
        place = entry_key("datasets", index)
        if not dataset.disabled:
            yield from _repository(dataset, place)
        if dataset.has_clips:
            yield from _conditioning(config, dataset, place)
            yield from _sound(config, dataset, place)
            yield from _captions(dataset, place)
            yield from _frames(dataset, place)
            yield from _sizes(config, dataset, place)
            yield from _shapes(dataset, place)
            yield from _nested(config, dataset, place)


def dataset_notes(config: TrainConfig) -> Iterator[Note]:
    """Settings of datasets that do less than they seem to."""
    for index, dataset in enumerate(config.datasets):
        if dataset.has_clips:
            yield from _idle_settings(dataset, entry_key("datasets", index))


def _entries(config: TrainConfig) -> Iterator[Problem]:
    counts = Counter(dataset.id for dataset in config.datasets)
    seen: set[str] = set()
    for index, dataset in enumerate(config.datasets):
        if dataset.id.strip() in ("", ".", ".."):
            message = "is no name for a folder, and the dataset's cache is called by it"
            yield Problem(dataset_path_key(index, "id"), dataset.id, message, "write a name of letters or digits")
        if counts[dataset.id] > 1 and dataset.id in seen:
            key = dataset_path_key(index, "id")
            yield Problem(key, dataset.id, "is the id of another dataset too", "give every dataset its own id")
        seen.add(dataset.id)
    defaults = [
        (index, dataset)
        for index, dataset in enumerate(config.datasets)
        if dataset.dataset_type == "text_embeds" and dataset.default and not dataset.disabled
    ]
    for index, dataset in defaults[1:]:
        yield Problem(
            dataset_path_key(index, "default"),
            True,
            f"{dataset.id} is a second default text_embeds entry beside {defaults[0][1].id}",
            "keep default on one of them",
        )


def _cache_folders(config: TrainConfig) -> Iterator[Problem]:
    """Folders of cached latents may be shared neither with each other nor with text embeddings."""
    owners: dict[Path, str] = {}
    for index, dataset in enumerate(config.datasets):
        if dataset.disabled:
            continue
        key = "cache_dir" if dataset.dataset_type == "text_embeds" else "cache_dir_vae"
        folder: Path | None = getattr(dataset, key)
        if folder is None:
            continue
        both_text = key == "cache_dir" and owners.get(folder, "").endswith(".cache_dir")
        if folder in owners and not both_text:
            yield Problem(
                dataset_path_key(index, key),
                str(folder),
                f"is the folder of {owners[folder]} too",
                "give every dataset a cache folder of its own",
            )
        owners.setdefault(folder, dataset_path_key(index, key))


def _probabilities(config: TrainConfig) -> Iterator[Problem]:
    trained = [(index, dataset) for index, dataset in enumerate(config.datasets) if dataset.is_media]
    if trained and not any(dataset.probability for _, dataset in trained):
        yield Problem(
            dataset_path_key(trained[0][0], "probability"),
            0.0,
            "leaves nothing to train on: no dataset has a probability above 0",
            "set it to 1, or remove it",
        )


def _unused_masks(config: TrainConfig) -> Iterator[Problem]:
    """A dataset of masks that no clips name would be left out without a word."""
    used = {name for dataset in config.datasets if dataset.has_clips for name in dataset.conditioning_ids}
    if used - {dataset.id for dataset in config.datasets}:
        return  # a name is misspelt, which is said already
    for index, dataset in enumerate(config.datasets):
        if dataset.has_masks and dataset.id not in used:
            yield Problem(
                dataset_path_key(index, "id"),
                dataset.id,
                "holds masks, and no dataset of clips names it, so nothing would be masked",
                f"set conditioning_data = {dataset.id} in the dataset of the clips, or disabled = true here",
            )


def _repository(dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    """A dataset on the hub needs its name; a local one has none."""
    if dataset.type == "huggingface" and not dataset.dataset_name:
        yield Problem(
            f"{place}.dataset_name",
            None,
            "is not set, and type = huggingface asks for it",
            "write owner/name of the datasets repository, for example sayakpaul/video-dataset-disney-organized",
        )
    if dataset.type == "local" and dataset.dataset_name:
        yield Problem(
            f"{place}.dataset_name",
            dataset.dataset_name,
            "is set, and type = local reads instance_data_dir only",
            "set type to huggingface, or remove dataset_name",
        )


def _conditioning(config: TrainConfig, dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    """The ids of `conditioning_data` must be those of mask datasets."""
    known = {other.id: other for other in config.datasets}
    masks = [other.id for other in config.datasets if other.has_masks]
    fix = (
        choice_fix("", masks, "Mask datasets")
        if masks
        else (
            "add a dataset with dataset_type = conditioning and conditioning_type = mask, or remove conditioning_data"
        )
    )
    for name in dataset.conditioning_ids:
        other = known.get(name)
        if other is None:
            message = f"{name} is the id of no dataset"
        elif other.disabled:
            message = f"{name} is disabled, so the clips would be trained without their masks"
        elif other.dataset_type != "conditioning":
            message = f"{name} is a dataset of type {other.dataset_type}, not conditioning"
        elif other.conditioning_type not in (None, "mask"):
            message = (
                f"{name} has conditioning_type = {other.conditioning_type}; clips can be conditioned by masks only"
            )
        else:
            continue
        yield Problem(f"{place}.conditioning_data", name, message, fix)


def _sound(config: TrainConfig, dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    """The ids of `s2v_datasets` must be those of datasets of sound; sound is trained with its picture."""
    known = {other.id: other for other in config.datasets}
    sounds = [other.id for other in config.datasets if other.dataset_type == "audio" and not other.disabled]
    for name in dataset.sound_ids:
        other = known.get(name)
        if other is None:
            message = f"{name} is the id of no dataset"
        elif other.disabled:
            message = f"{name} is disabled, so the clips would be trained without their sound"
        elif other.dataset_type != "audio":
            message = f"{name} is a dataset of type {other.dataset_type}, not audio"
        else:
            continue
        add = "add a dataset with dataset_type = audio, or remove s2v_datasets"
        yield Problem(
            f"{place}.s2v_datasets", name, message, choice_fix("", sounds, "Datasets of sound") if sounds else add
        )
    if dataset.audio is not None and dataset.audio.audio_only:
        yield Problem(
            f"{place}.audio.audio_only",
            True,
            "sound cannot be trained without its picture",
            "set it to false; with audio_loss_weight and sound_conditioning_probability the terms are weighed",
        )


def _captions(dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    if dataset.instance_prompt and dataset.instance_prompt.strip():
        return
    for key, asks in (
        ("caption_strategy", dataset.caption_strategy == "instanceprompt"),
        ("prepend_instance_prompt", dataset.prepend_instance_prompt),
        ("only_instance_prompt", dataset.only_instance_prompt),
    ):
        if asks:
            value = getattr(dataset, key)
            yield Problem(f"{place}.{key}", value, "needs instance_prompt, which is not set", "set instance_prompt")


def _frames(dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    """Either order of num_frames and min_frames makes sense; a longest clip below the shortest does not."""
    video = dataset.video
    shortest = video.min_frames or video.num_frames
    if dataset.dataset_type == "video" and video.max_frames and shortest and video.max_frames < shortest:
        name = "min_frames" if video.min_frames else "num_frames"
        yield Problem(
            f"{place}.video.max_frames",
            video.max_frames,
            f"is below {name} = {shortest}, so every clip is either too short or too long",
            f"set it to {shortest} or more, or remove it",
        )


def _sizes(config: TrainConfig, dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    resolution, kind = config.resolution_of(dataset)
    own = "resolution" if dataset.resolution is not None else ""
    values = [(f"{place}.resolution" if own else "resolution", resolution)]
    values += [
        (f"{place}.{key}", getattr(dataset, key))
        for key in ("minimum_image_size", "maximum_image_size", "target_downsample_size")
    ]
    for key, value in values:
        if value is not None:
            yield from _unit(key, value, kind)
    low, high, target = dataset.minimum_image_size, dataset.maximum_image_size, dataset.target_downsample_size
    if high is not None and target is None:
        yield Problem(
            f"{place}.maximum_image_size",
            high,
            "does not say to which size larger clips are scaled",
            f"set target_downsample_size too, for example {high:g}",
        )
    if high is not None and target is not None and target > high:
        yield Problem(
            f"{place}.target_downsample_size",
            target,
            f"is above maximum_image_size = {high:g}",
            f"set it to {high:g} or less",
        )
    if low is not None and high is not None and low > high:
        yield Problem(
            f"{place}.minimum_image_size", low, f"is above maximum_image_size = {high:g}", f"set it to {high:g} or less"
        )
    if kind != "model" and resolution is None:
        yield Problem(
            f"{place}.resolution_type", kind, "needs a resolution, which is not set", "set resolution, or use model"
        )


def _unit(key: str, value: float, kind: str) -> Iterator[Problem]:
    """Pixels where megapixels are meant, or the other way round."""
    if kind == "area" and value > LARGEST_MEGAPIXELS:
        yield Problem(
            key,
            value,
            f"is a number of megapixels with resolution_type = area, at most {LARGEST_MEGAPIXELS:g}",
            f"set resolution_type to pixel_area, or write {(value * value) / 1e6:.2g}",
        )
    if kind in ("pixel", "pixel_area") and value < SMALLEST_EDGE:
        yield Problem(
            key,
            value,
            f"is a number of pixels with resolution_type = {kind}, at least {SMALLEST_EDGE:g}",
            f"set resolution_type to area, or write {round((value * 1e6) ** 0.5)}",
        )


def _shapes(dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    if dataset.minimum_aspect_ratio > dataset.maximum_aspect_ratio:
        yield Problem(
            f"{place}.minimum_aspect_ratio",
            dataset.minimum_aspect_ratio,
            f"is above maximum_aspect_ratio = {dataset.maximum_aspect_ratio:g}, so every clip would be dropped",
            f"set it to {dataset.maximum_aspect_ratio:g} or less",
        )
    wrong = [ratio for ratio in dataset.crop_aspect_buckets or () if not 0.1 <= ratio <= 10]
    if wrong:
        yield Problem(
            f"{place}.crop_aspect_buckets",
            wrong[0],
            "is no shape: an entry is width / height, from 0.1 to 10",
            "write for example [0.5625, 1.0, 1.7778]",
        )


def _nested(config: TrainConfig, dataset: DatasetConfig, place: str) -> Iterator[Problem]:
    """Folders inside each other: the run would train on its own renderings, or take clips for their own masks."""
    folder = dataset.instance_data_dir
    if folder is None:
        return
    if config.output_dir is not None and config.output_dir.is_relative_to(folder):
        yield Problem(
            f"{place}.instance_data_dir",
            str(folder),
            f"holds output_dir ({config.output_dir}), so rendered videos would be trained on",
            "put the clips into a folder of their own, or output_dir elsewhere",
        )
    for other in config.datasets:
        if other.has_masks and other.id in dataset.conditioning_ids and other.instance_data_dir == folder:
            yield Problem(
                f"{place}.conditioning_data",
                other.id,
                "has the same folder as the clips, so every clip would be its own mask",
                "put the masks into a folder of their own",
            )


def _idle_settings(dataset: DatasetConfig, place: str) -> Iterator[Note]:
    if dataset.target_downsample_size and not dataset.maximum_image_size:
        yield Note(
            f"{place}.target_downsample_size",
            "has no effect without maximum_image_size, which says from which size on clips are scaled down",
        )
    if dataset.crop_aspect_buckets and dataset.crop_aspect not in ("closest", "random"):
        yield Note(f"{place}.crop_aspect_buckets", "has no effect without crop_aspect = closest or random")
    if dataset.sound_ids and dataset.audio is not None and dataset.audio.auto_split:
        yield Note(f"{place}.audio.auto_split", "s2v_datasets counts: the clips' own sound is not used")
    if dataset.dataset_type == "eval" and dataset.repeats:
        yield Note(f"{place}.repeats", "has no effect: an evaluation looks at each clip once")
