"""The frozen image encoder whose features hidden states are aligned with: DINOv2 (Oquab et al. 2023, arXiv 2304.07193).

Features are those of the clip's own frames, cut as the VAE saw them, so that nothing has to be decoded from latents. A
latent frame stands for several frames of the clip, and its features are those of the middle one: a mean over all of
them would smear what moves, and cost as many runs of the encoder as there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.config.crepa_rules import ENCODER, has_registers, published_width, teacher_model
from tunerkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample, Size

FEATURE_RECIPE = 1
"""Version of the features: it changes when the same frames would give others."""
CELL = 32
"""Pixels on a side of the cells that features are kept of, each the mean over a cell: a token of LTX-2, four tokens of
models with smaller ones. It keeps the files small."""
PATCH = 14
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in ImageNet, which the encoder's pictures are normalised by."""
CLASSES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
"""`model_type` -> class of transformers."""
_LAYERS = {384: 12, 768: 12, 1024: 24, 1536: 40}
"""Of the published encoders, by the width of a feature."""
_HEAD, _GATED = 64, 1536
"""Channels of a head of attention, and the width whose feed-forward layers are gated, of the published encoders."""


@dataclass(frozen=True)
class TeacherFacts:
    """What follows from the encoder's configuration: width of a feature, pixels on a side of a patch."""

    width: int
    patch: int = PATCH

    def grid(self, size: Size, image_size: int) -> tuple[int, int]:
        """Height and width of the grid of features of a clip of (width, height) pixels.

        Args:
            image_size: edge of the encoder's input in pixels; the grid has no more cells than it has patches.
        """
        most = max(1, image_size // self.patch)
        width, height = size
        return min(most, max(1, height // CELL)), min(most, max(1, width // CELL))


def teacher_facts(config: TrainConfig) -> TeacherFacts:
    """Of the encoder that the settings name; known by heart for the published ones.

    Raises:
        ModelError: its configuration cannot be read, or it is no DINOv2.
    """
    model = teacher_model(config.crepa_encoder)
    width = published_width(model)
    if width is not None:
        return TeacherFacts(width)
    settings = _configuration(model)
    return TeacherFacts(int(settings.hidden_size), int(settings.patch_size))


def teacher_settings(config: TrainConfig) -> dict[str, Any]:
    """`config.json` of the encoder that the settings name; known by heart for the published ones.

    Raises:
        ModelError: it cannot be read, or the encoder is no DINOv2.
    """
    model = teacher_model(config.crepa_encoder)
    width = published_width(model)
    if width is None:
        settings = _configuration(model)
        return {**settings.to_dict(), "architectures": [CLASSES[settings.model_type]]}
    kind = "dinov2_with_registers" if has_registers(model) else "dinov2"
    return {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "hidden_size": width,
        "num_hidden_layers": _LAYERS[width],
        "num_attention_heads": width // _HEAD,
        "use_swiglu_ffn": width == _GATED,
        "patch_size": PATCH,
        "image_size": 518,
    }


def check_teacher(config: TrainConfig) -> None:
    """The encoder that the settings name must be there, before anything is encoded.

    Raises:
        ModelError: it cannot be reached, is no DINOv2, or the weights in its folder are missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    model = teacher_model(config.crepa_encoder)
    _configuration(model)
    folder = Path(model)
    if not folder.is_dir():
        return
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelError(
            f"{ENCODER} = {model!r}: the folder holds no weights (model.safetensors). Fix: download the encoder "
            "again, or use its hub id"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{ENCODER} = {model!r}: {file.name} is damaged ({error}). Fix: download the encoder again"
            ) from error


def teacher_identity(config: TrainConfig) -> dict[str, Any]:
    """What names the encoder's weights: equal weights give equal identities.

    Raises:
        ModelError: its files are missing or cannot be reached.
    """
    from tunerkit.families.checkpoint_files import component_identity

    return component_identity(teacher_model(config.crepa_encoder), ("",), setting=ENCODER)


def load_teacher(config: TrainConfig, device: torch.device) -> Any:
    """The encoder on `device`, frozen, in the precision that texts are encoded in.

    Raises:
        ModelError: its files are missing, damaged or of another model.
    """
    import transformers

    from tunerkit.dtypes import text_dtype
    from tunerkit.families.checkpoint_files import load_component

    model = teacher_model(config.crepa_encoder)
    loader = getattr(transformers, CLASSES[_configuration(model).model_type])
    loaded = load_component(loader, model, ENCODER, "image encoder", unused=("mask_token",), dtype=text_dtype(config))
    return loaded.requires_grad_(False).eval().to(device)


def _configuration(model: str) -> Any:
    """The encoder's configuration.

    Raises:
        ModelError: it cannot be read, or is of another model.
    """
    from transformers import AutoConfig

    from tunerkit.families.checkpoint_files import readable

    if _is_path(model) and not Path(model).is_dir():
        raise ModelError(
            f"{ENCODER} = {model!r}: there is no such folder. Fix: correct the path, or use dinov2_vitg14, "
            "dinov2_vits14 or another DINOv2"
        )
    with readable(model, ENCODER, "image encoder"):
        settings = AutoConfig.from_pretrained(model)
    if settings.model_type not in CLASSES:
        raise ModelError(
            f"{ENCODER} = {model!r} is a {settings.model_type}, and features of a DINOv2 are aligned with. Fix: use "
            "dinov2_vitg14, dinov2_vits14 or another DINOv2"
        )
    return settings


def _is_path(model: str) -> bool:
    """Whether it can be no hub id, which is a name or "owner/name"."""
    return model.startswith((".", "~", "/")) or model.count("/") > 1 or "\\" in model


def middle_frames(frames: int, temporal_compression: int) -> list[int]:
    """Which of the `frames` of a clip stands for each latent frame.

    The VAEs are causal: latent frame 0 is frame 0 alone, latent frame j >= 1 frames (j - 1) r + 1 to j r at a temporal
    compression of r, of which the middle one is taken (of two, the later one).
    """
    later = range(1, frames, temporal_compression)
    return [0, *(min(first + temporal_compression // 2, frames - 1) for first in later)]


def teacher_sample(sample: Sample, temporal_compression: int) -> Sample:
    """The frames of `sample` that features are made of, as a sample of their own."""
    taken = middle_frames(len(sample.frame_indices), temporal_compression)
    times = sample.frame_times
    return sample._replace(
        frame_indices=tuple(sample.frame_indices[place] for place in taken),
        frame_times=tuple(times[place] for place in taken) if times else (),
    )


def frame_features(teacher: Any, frames: torch.Tensor, image_size: int, at_once: int) -> torch.Tensor:
    """The encoder's features of pictures, on the grid that is kept.

    Args:
        teacher: as from `load_teacher`.
        frames: uint8 `[T, H, W, 3]`, anywhere.
        image_size: edge in pixels that pictures are scaled to, whatever their shape.
        at_once: pictures per call of the encoder, at least 1.

    Returns:
        float16 `[T, h, w, E]` on the CPU, with `h` and `w` as `TeacherFacts.grid` gives them.
    """
    import torch

    from tunerkit.methods.crepa_similarity import resized

    patch = int(teacher.config.patch_size)
    _, height, width, _ = frames.shape
    grid = TeacherFacts(int(teacher.config.hidden_size), patch).grid((width, height), image_size)
    side = image_size // patch
    made = []
    with torch.no_grad():
        for pictures in _prepared(teacher, frames, image_size, at_once):
            tokens = teacher(pixel_values=pictures).last_hidden_state[:, 1 + _registers(teacher) :]
            made.append(resized(tokens.float().unflatten(1, (side, side)), *grid).half().cpu())
    return torch.cat(made)


def _registers(teacher: Any) -> int:
    """Tokens between that of the class and those of the patches."""
    return int(getattr(teacher.config, "num_register_tokens", 0))


def _prepared(teacher: Any, frames: torch.Tensor, image_size: int, at_once: int) -> Iterator[torch.Tensor]:
    """Pictures as the encoder takes them, `[n, 3, S, S]` on its device, `at_once` at a time."""
    import torch

    parameter = next(teacher.parameters())
    mean, deviation = (torch.tensor(values, device=parameter.device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    for part in frames.split(at_once):
        pictures = part.to(parameter.device).permute(0, 3, 1, 2).float() / 255.0
        scaled = torch.nn.functional.interpolate(
            pictures, (image_size, image_size), mode="bilinear", align_corners=False, antialias=True
        )
        yield ((scaled - mean) / deviation).to(parameter.dtype)
