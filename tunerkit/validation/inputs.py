"""What a rendering starts from beside its prompt: a first frame, and a sound that the video is made to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.config.prompts import ValidationPrompt, free_name, safe_name, validation_prompts
from tunerkit.errors import ConfigError, Problem, TunerkitError

logger = logging.getLogger("tunerkit")

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.families.facts import SoundFormat


@dataclass(frozen=True)
class SamplePrompt(ValidationPrompt):
    """A prompt made of a sample of a dataset: its first caption, its first frame and its sound.

    Attributes:
        sample: where they come from.
        first_frame: whether the video starts from the sample's first frame.
        with_sound: whether the video is made to the sample's sound.
    """

    sample: Sample | None = None
    first_frame: bool = False
    with_sound: bool = False


@dataclass(frozen=True)
class FrameFromText(ValidationPrompt):
    """A prompt without a first frame, for a model that needs one: the frame is rendered from the same prompt."""


def prompts_of(config: TrainConfig, family: Family, samples: Sequence[Sample]) -> list[ValidationPrompt]:
    """The prompts of the settings, and with `validation_using_datasets` some made of `samples`.

    Where the model makes videos from a first frame only, prompts without one come as `FrameFromText`.

    Of a sample, a rendering takes what it was trained with: the first frame of a clip for image to video, and its
    sound. A sample with neither gives no prompt: there would be no difference from its caption as a prompt.
    """
    if config.validation_disable:
        return []
    prompts = validation_prompts(config)
    if family.image_to_video(config):
        prompts = [
            one if one.image is not None else FrameFromText(one.nickname, one.prompt, audio=one.audio)
            for one in prompts
        ]
    if not config.validation_using_datasets:
        return prompts
    usable = [
        sample
        for sample in samples
        if (config.eval_dataset_id in (None, sample.dataset))
        and sample.window == 0
        and (sample.is_i2v or (sample.sound is not None and not sample.sound.silent))
    ]
    if not usable:
        logger.warning(
            "validation_using_datasets: no clip has a first frame or a sound to render from (video.is_i2v, audio), so "
            "only the prompts are rendered"
        )
    taken = {prompt.nickname.lower() for prompt in prompts}
    for sample in usable[: config.num_eval_images]:
        name = free_name(safe_name(sample.file.stem), taken)
        sound = sample.sound
        prompts.append(
            SamplePrompt(
                name,
                sample.captions[0],
                sample=sample,
                first_frame=sample.is_i2v,
                with_sound=sound is not None and not sound.silent,
            )
        )
    return prompts


def starts_from_image(prompt: ValidationPrompt) -> bool:
    """Whether the rendering is image to video."""
    if isinstance(prompt, SamplePrompt):
        return prompt.first_frame
    return prompt.image is not None or isinstance(prompt, FrameFromText)


def follows_sound(prompt: ValidationPrompt) -> bool:
    """Whether the rendering is made to a given sound."""
    return prompt.audio is not None or (isinstance(prompt, SamplePrompt) and prompt.with_sound)


def source_names(prompt: ValidationPrompt) -> dict[str, str | None]:
    """File names of the first frame and of the sound, for the record of a rendering."""
    if isinstance(prompt, SamplePrompt) and prompt.sample is not None:
        sound = prompt.sample.sound
        return {
            "image": prompt.sample.name if prompt.first_frame else None,
            "audio": sound.file.name if sound is not None and prompt.with_sound else None,
        }
    return {
        "image": prompt.image.name if prompt.image else None,
        "audio": prompt.audio.name if prompt.audio else None,
    }


def first_frame(prompt: ValidationPrompt, width: int, height: int) -> Image.Image | None:
    """The given first frame, scaled to cover `width` x `height` and cropped around its centre; None without one."""
    from PIL import Image

    if isinstance(prompt, SamplePrompt) and prompt.sample is not None and prompt.first_frame:
        from tunerkit.data.decode import decode

        sample = prompt.sample
        single = sample._replace(frame_indices=sample.frame_indices[:1], frame_times=sample.frame_times[:1])
        return _fitted(Image.fromarray(decode(single)[0]), width, height)
    if prompt.image is None:
        return None
    try:
        return read_frame(prompt.image, width, height)
    except OSError as error:
        raise ConfigError(
            [Problem("validation_input", str(prompt.image), f"is not a readable image ({error})", "give a PNG or JPEG")]
        ) from error


def read_frame(path: Path, width: int, height: int) -> Image.Image:
    """The image in a file, upright, scaled to cover `width` x `height` and cropped around its centre.

    It comes as 8-bit RGB, laid over white where it is transparent.

    Raises:
        OSError: there is no readable image.
    """
    from PIL import Image, ImageOps

    from tunerkit.data.decode import to_rgb

    try:
        with Image.open(path) as image:
            return _fitted(to_rgb(ImageOps.exif_transpose(image)), width, height)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, of a damaged or huge image
        raise OSError(str(error)) from error


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def waveform(prompt: ValidationPrompt, seconds: float, sound: SoundFormat | None) -> np.ndarray | None:
    """The sound that the video is made to, float32 `[channels, samples]`, `seconds` long; None without one.

    Silence follows a sound that ends earlier.

    Raises:
        TunerkitError: there is a sound, and the model makes none, or the file cannot be decoded.
    """
    place: tuple[Path, float] | None = None
    if isinstance(prompt, SamplePrompt) and prompt.sample is not None and prompt.sample.sound and prompt.with_sound:
        place = prompt.sample.sound.file, prompt.sample.sound.start
    elif prompt.audio is not None:
        place = prompt.audio, 0.0
    if place is None:
        return None
    if sound is None:
        raise TunerkitError(
            f"validation_input: {place[0].name} is a sound, and this model renders without. Fix: remove audio from the "
            "entry"
        )
    from tunerkit.data.audio import decode_audio

    return decode_audio(*place, seconds, sample_rate=sound.sample_rate, channels=sound.channels)
