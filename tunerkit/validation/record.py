"""What a rendering is called, and what is recorded of it: everything beside the trained weights that shapes a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.files import read_json
from tunerkit.validation.inputs import source_names

if TYPE_CHECKING:
    from tunerkit.config.prompts import ValidationPrompt
    from tunerkit.config.settings import TrainConfig

RECORD = "renderings.json"
"""In each round's folder: what shaped each video."""


def stem_of(prompt: ValidationPrompt, width: int, height: int, seed: int) -> str:
    """The file name of a rendering, without its ending."""
    return f"{prompt.nickname}-{width}x{height}-{seed}"


def facts_of(config: TrainConfig, prompt: ValidationPrompt, width: int, height: int, seed: int) -> dict[str, Any]:
    """Everything beside the trained weights, and a first frame that is yet to be rendered, that shapes a video."""
    return {
        "prompt": prompt.prompt,
        **source_names(prompt),
        "negative_prompt": config.validation_negative_prompt or "",
        "size": [width, height],
        "frames": config.validation_num_video_frames,
        "fps": config.framerate,
        "steps": config.validation_num_inference_steps,
        "guidance": [
            config.validation_guidance,
            config.validation_audio_guidance,
            config.validation_guidance_stack,
        ],
        "seed": seed,
        "sparse_attention": config.sparse_attention,
        "first_frame_method": config.first_frame_conditioning_method,
        "model": Path(str(config.pretrained_model_name_or_path)).name,
    }


def read_record(folder: Path) -> dict[str, Any]:
    """File name -> what shaped the video, of one round; empty where nothing was recorded."""
    path = folder / RECORD
    return read_json(path) if path.is_file() else {}
