"""One entry of the dataset document: a folder of clips, or a cache of text embeddings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from tunerkit.config.fields import Settings, setting
from tunerkit.config.groups.data import ResolutionType

_setting = partial(setting, group="data")

DatasetType = Literal[
    "video",
    "image",
    "text_embeds",
    "image_embeds",
    "audio",
    "conditioning",
    "conditioning_image_embeds",
    "eval",
    "distillation_cache",
]
MEDIA_TYPES: tuple[DatasetType, ...] = ("video", "image")
"""Types whose files are trained on."""
CLIP_TYPES: tuple[DatasetType, ...] = (*MEDIA_TYPES, "eval")
"""Types whose files are decided about, captioned and encoded."""


class VideoSettings(Settings):
    """How frames are taken from a clip. Counts are frames at the run's framerate, after resampling."""

    num_frames: int | None = _setting(
        None, "Frames of a sample; what the clip has, up to 5 seconds, when not set.", ge=1
    )
    min_frames: int | None = _setting(None, "Shorter clips are dropped; num_frames when not set.", ge=1)
    max_frames: int | None = _setting(None, "Longer clips are dropped.", ge=1)
    frame_rate: float | None = _setting(
        None, "Frames per second to resample to, where framerate is not set.", gt=0, le=240
    )
    bucket_strategy: Literal["aspect_ratio", "resolution_frames"] = _setting(
        "aspect_ratio", "Group clips by shape, or by shape and number of frames."
    )
    frame_interval: int | None = _setting(
        None, "With resolution_frames: frame counts are lowered to k * interval + 1.", ge=1
    )
    is_i2v: bool | None = _setting(
        None, "Train image to video: the first frame is given; when not set, as the model's flavour was trained."
    )
    frame_sampling: Literal["head", "middle", "uniform", "random"] = _setting(
        "head",
        "Which frames of a longer clip are taken: the first ones, the middle, num_windows evenly spread windows that "
        "are all visited, or one of them drawn at each visit.",
    )
    num_windows: int = _setting(
        4, "With frame_sampling uniform or random: windows taken of a clip, fewer where it is short.", ge=1, le=64
    )


class AudioSettings(Settings):
    """How the sound of a clip is taken."""

    auto_split: bool = _setting(True, "Take the sound out of the video files.")
    sample_rate: int = _setting(16000, "Samples per second.", ge=1000)
    channels: int | None = _setting(None, "Channels; the family's when not set.", ge=1, le=8)
    bucket_strategy: str = _setting("duration", "How sound is grouped.")
    duration_interval: float = _setting(3.0, "Step in seconds of the grouped durations.", gt=0)
    truncation_mode: Literal["beginning", "end", "random"] = _setting("beginning", "Which part of long sound is kept.")
    max_duration_seconds: float | None = _setting(None, "Longest sound.", gt=0)
    allow_zero_audio: bool = _setting(False, "Use clips without sound as silent ones.")
    audio_only: bool = _setting(False, "Train on the sound alone.")


class DatasetConfig(Settings):
    """One dataset, as it stands in the dataset document."""

    id: str = _setting(
        ...,
        "Write a unique name without slashes; it is part of cache folder names.",
        pattern=r"^[^/\\\x00-\x1f]+$",
        max_length=120,
    )
    type: Literal["local", "huggingface"] = _setting(
        "local", "Where the files lie: in instance_data_dir, or in a datasets repository that is downloaded first."
    )
    dataset_name: str | None = _setting(
        None, "With huggingface: the repository, as owner/name on the hub or a folder of this machine."
    )
    revision: str | None = _setting(None, "With huggingface: branch, tag or commit of the repository.")
    dataset_type: DatasetType = _setting("video", "What the files are.")
    disabled: bool = _setting(False, "Leave this dataset out.")
    default: bool = _setting(False, "For text_embeds: the entry that is used.")

    instance_data_dir: Path | None = _setting(None, "Folder of the clips and captions.")
    cache_dir: Path | None = _setting(None, "Folder of the cached text embeddings.")
    cache_dir_vae: Path | None = _setting(None, "Folder of the cached latents.")

    caption_strategy: Literal["textfile", "filename", "instanceprompt"] = _setting(
        "textfile", "Where captions come from: <clip>.txt, the file's name, or instance_prompt."
    )
    instance_prompt: str | None = _setting(None, "Trigger words or a caption for all clips.")
    prepend_instance_prompt: bool = _setting(False, "Put instance_prompt in front of every caption.")
    only_instance_prompt: bool = _setting(False, "Use instance_prompt instead of the captions.")
    disable_multiline_split: bool = _setting(False, "Take a caption file as one caption instead of one per line.")
    caption_shuffle: dict[str, Any] | None = _setting(None, "Shuffled variants of the captions.")
    caption_filter_list: str | list[str] | None = _setting(None, "Rules that change captions.")

    resolution: float | None = _setting(None, "Size of the samples; see resolution_type.", gt=0, le=16384)
    resolution_type: ResolutionType | None = _setting(
        None, "Meaning of resolution: pixel, area (megapixels), pixel_area or model."
    )
    minimum_image_size: float | None = _setting(None, "Smaller clips are dropped (unit as resolution).", gt=0)
    maximum_image_size: float | None = _setting(
        None, "Larger clips are scaled to target_downsample_size before cropping.", gt=0
    )
    target_downsample_size: float | None = _setting(None, "Size that larger clips are scaled to first.", gt=0)
    crop: bool = _setting(False, "Crop to crop_aspect; false = keep the clip's shape as far as sizes allow.")
    crop_aspect: Literal["square", "preserve", "random", "closest"] = _setting("square", "Shape to crop to.")
    crop_aspect_buckets: list[float] | None = _setting(None, "Aspect ratios for random and closest.")
    crop_style: Literal["center", "random", "corner"] = _setting("center", "Which part a crop keeps.")
    minimum_aspect_ratio: float = _setting(0.25, "Narrower clips (width / height) are dropped.", gt=0)
    maximum_aspect_ratio: float = _setting(4.0, "Wider clips (width / height) are dropped.", gt=0)
    max_upscale_threshold: float | None = _setting(None, "Clips that would be enlarged more are dropped.", ge=0)

    repeats: int = _setting(0, "Further passes over the dataset per epoch; 0 = each clip once.", ge=0)
    probability: float = _setting(1.0, "How often this dataset is drawn from, relative to the others.", ge=0)
    max_num_samples: int | None = _setting(None, "Use no more clips than this.", ge=1)
    start_epoch: int | None = _setting(None, "First epoch that uses this dataset.", ge=0)
    start_step: int | None = _setting(None, "First step that uses this dataset.", ge=0)
    end_epoch: int | None = _setting(None, "Last epoch that uses this dataset.", ge=0)
    end_step: int | None = _setting(None, "Last step that uses this dataset.", ge=0)
    train_batch_size: int | None = _setting(None, "Batch size of this dataset.", ge=1)
    vae_batch_size: int | None = _setting(None, "Clips of this dataset encoded at a time.", ge=1)
    text_encoder_batch_size: int | None = _setting(None, "Captions encoded at a time.", ge=1)
    is_regularisation_data: bool = _setting(False, "Prior-preservation clips: trained without the adapter's subject.")
    disable_validation: bool = _setting(False, "Do not take validation inputs from this dataset.")
    timestep_sampling_offset: float | None = _setting(None, "Shift of the timesteps drawn for this dataset.")

    conditioning_type: str | None = _setting(None, "Role of a conditioning dataset: mask, reference, ...")
    conditioning_data: str | list[str] | None = _setting(None, "Ids of the conditioning datasets of this one.")
    conditioning: dict[str, Any] | list[dict[str, Any]] | None = _setting(None, "Conditioning to generate.")
    source_dataset_id: str | None = _setting(None, "Dataset that this one was made from.")
    s2v_datasets: str | list[str] | None = _setting(None, "Ids of the datasets with the sound of this one.")
    text_embeds: str | None = _setting(None, "Id of the text_embeds entry of this dataset.")
    image_embeds: str | None = _setting(None, "Id of the image_embeds entry of this dataset.")
    vae_cache_ondemand: bool = _setting(False, "Encode a clip when it is first used.")
    vae_cache_disable: bool = _setting(False, "Encode clips anew every time.")

    video: VideoSettings = _setting(VideoSettings, "How frames are taken from a clip.")
    audio: AudioSettings | None = _setting(None, "How the sound of a clip is taken; unset = without sound.")

    @property
    def is_media(self) -> bool:
        """Whether files of this dataset are trained on."""
        return not self.disabled and self.dataset_type in MEDIA_TYPES

    @property
    def has_clips(self) -> bool:
        """Whether files of this dataset are encoded, for training or evaluation."""
        return not self.disabled and self.dataset_type in CLIP_TYPES

    @property
    def has_masks(self) -> bool:
        """Whether files of this dataset say which parts of other clips are learned."""
        mask = self.conditioning_type in (None, "mask")
        return not self.disabled and self.dataset_type == "conditioning" and mask

    @property
    def takes_sound(self) -> bool:
        """Whether the clips come with sound: their own, or that of the `s2v_datasets`."""
        own = self.audio is not None and self.audio.auto_split
        return not self.disabled and (own or bool(self.sound_ids))

    @property
    def sound_ids(self) -> tuple[str, ...]:
        """Ids of the datasets with the sound of this one."""
        given = self.s2v_datasets or ()
        return (given,) if isinstance(given, str) else tuple(given)

    @property
    def conditioning_ids(self) -> tuple[str, ...]:
        """Ids of the conditioning datasets of this one."""
        given = self.conditioning_data or ()
        return (given,) if isinstance(given, str) else tuple(given)
