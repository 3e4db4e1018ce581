"""Videos rendered during the training, previews, and evaluation loss."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="validation")


class ValidationSettings(Settings):
    """What is rendered, when, and how."""

    validation_prompt: str | None = _setting(None, "Prompt rendered at every validation.")
    user_prompt_library: Path | None = _setting(None, "JSON file with further prompts: {nickname: prompt}.")
    validation_input: Path | None = _setting(None, "JSON file with a list of {'image', 'prompt'} for image to video.")
    validation_prompt_library: bool = _setting(False, "Render a built-in list of prompts as well.")
    validation_negative_prompt: str | None = _setting(
        None, "What the rendered videos should avoid; the family's when not set."
    )
    validation_guidance: float | None = _setting(
        None, "Guidance scale; 1 = off, the family's when not set.", ge=0, le=30
    )
    validation_audio_guidance: float | None = _setting(
        None, "Guidance scale of the sound; the family's when not set.", ge=0, le=30
    )
    validation_guidance_stack: Literal["cfg", "full"] = _setting(
        "cfg", "Plain guidance, or all terms that the model's authors sample with: better, up to twice as slow."
    )
    validation_guidance_rescale: float = _setting(0.0, "Rescaling of the guided prediction.", ge=0, le=1)
    validation_num_inference_steps: int | None = _setting(
        None, "Sampling steps; the family's when not set.", ge=1, le=1000
    )
    validation_resolution: str | None = _setting(
        None, "Sizes to render, WIDTHxHEIGHT separated by commas; the family's when not set."
    )
    validation_num_video_frames: int | None = _setting(
        None, "Frames to render; the family's when not set.", ge=1, le=10000
    )
    validation_seed: NonNegativeInt | list[NonNegativeInt] | None = _setting(
        None, "Seed or seeds of the rendered videos; seed when not set."
    )
    validation_seed_source: Literal["cpu", "gpu"] = _setting("cpu", "Where the starting noise is drawn.")
    num_validation_images: int = _setting(1, "Videos per prompt and size, with consecutive seeds.", ge=1)
    validation_step_interval: int | None = _setting(
        None, "Steps between validations; 0 or unset = only when asked for.", ge=0
    )
    validation_epoch_interval: int | None = _setting(None, "Epochs between validations.", ge=0)
    validation_on_startup: bool = _setting(False, "Validate before the first step.")
    validation_disable: bool = _setting(False, "Never render.")
    validation_disable_unconditional: bool = _setting(True, "Do not render the empty prompt.")
    disable_benchmark: bool = _setting(False, "Do not render the base model at step 0 for comparison.")
    validation_preview: bool = _setting(
        False,
        "Show each video while it is rendered, small and in rough colours that are fitted to a few clips; sharper with "
        "a Tiny AutoEncoder as the trainer's preview_decoder.",
    )
    validation_preview_steps: int = _setting(1, "Sampling steps between previews.", ge=1)
    validation_using_datasets: bool | None = _setting(
        None, "Render from first frames and sounds of the evaluation clips; without any, of the training clips."
    )
    validation_adapter_path: str | None = _setting(None, "Another adapter to render with.")
    validation_external_script: str | None = _setting(None, "Program to run instead of rendering.")
    evaluation_type: Literal["none", "clip"] | None = _setting(None, "Score of the rendered videos.")
    eval_dataset_id: str | None = _setting(None, "Id of the only dataset that evaluation uses.")
    num_eval_images: int = _setting(4, "Clips of each dataset that evaluation uses.", ge=1)
    eval_steps_interval: int | None = _setting(
        None, "Steps between evaluations of the loss; about twenty in the run when not set, 0 = never.", ge=0
    )
    eval_epoch_interval: float | None = _setting(
        None, "Epochs between evaluations of the loss, beside those of eval_steps_interval; 0.5 = twice an epoch.", ge=0
    )
    eval_timesteps: int = _setting(
        8, "Noise levels that the loss of each clip is evaluated at; 8 show the trend.", ge=1, le=1000
    )
    eval_loss_disable: bool = _setting(False, "Do not evaluate the loss.")
    eval_dataset_pooling: bool = _setting(False, "Evaluate all datasets as if they were one, without a loss for each.")
