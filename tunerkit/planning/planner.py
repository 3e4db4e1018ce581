"""`plan`: from settings to what every phase of their run takes."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunerkit import families
from tunerkit.config.crepa_rules import ENCODER, needs_features, published_width, teacher_model
from tunerkit.config.groups.checkpoints import CheckpointSettings, TrackingSettings
from tunerkit.config.groups.data import DataSettings
from tunerkit.config.groups.validation import ValidationSettings
from tunerkit.config.prompts import validation_prompts
from tunerkit.errors import ConfigError, DatasetError, Problem
from tunerkit.planning import remembered
from tunerkit.planning.largest import Largest, largest_batch, of_sample
from tunerkit.planning.remembered import Figures
from tunerkit.planning.result import CONTEXT_GIB, GIB, DiskPlan, PhasePlan, Plan
from tunerkit.planning.seconds import Work
from tunerkit.project import resolve

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.planning.batches import Stand
    from tunerkit.planning.gpus import Gpu
    from tunerkit.planning.training import TracedStep

_IDLE = {
    *CheckpointSettings.model_fields, *TrackingSettings.model_fields, *DataSettings.model_fields,
    *ValidationSettings.model_fields, "datasets", "seed", "learning_rate", "max_train_steps", "num_train_epochs",
}  # fmt: skip
"""Settings that do not change what a step takes, beside what the largest batch says."""
_MODEL = ("pretrained_", "model_f", "ltx2_checkpoint", "revision", "device", "mixed_precision", "text_encoder_")
_VAE = (*_MODEL, "vae_", "group_offload_vae", "group_offload_use_stream")
_MATTERS: dict[str, tuple[str, ...]] = {
    "download": _MODEL,
    "text": (*_MODEL, "group_offload_text", "group_offload_use_stream"),
    "clips": _VAE,
    "features": ("device", "mixed_precision", "crepa_"),
    "teacher": ("crepa_",),
    "validation": (*_VAE, "validation_", "base_model_", "framerate", "sparse_", "first_frame_", "audio_", "sound_"),
}
"""What the names begin with of those settings that change what a phase takes."""
_NOT_STEP = ("vae_", "group_offload_vae", "group_offload_text", "text_encoder_")
"""What the names begin with of settings that change other phases, but not the training step."""
_ON_DISK = ("max_train_steps", "checkpoint_step_interval", "checkpoints_total_limit")
"""Settings that change how many checkpoints there are."""
_WORDS = {"validation_prompt", "validation_negative_prompt", "validation_prompt_library"}
"""Settings of validation of which only matters whether anything is rendered."""
_CACHE: dict[Any, Any] = {}
_MOST_CACHED = 256
_T = TypeVar("_T")

ASSUMPTIONS = (
    "Counted are tensors, rounded up to 512 bytes each. Not counted are CUDA's context (about 0.5 GiB), the "
    "allocator's fragmentation (some percent) and the workspaces of kernels.",
    "Attention runs in fused kernels (flash or memory-efficient); where a GPU has none, its scores come on top.",
    "A step is as it is from the second one on, when the optimizer has its state, with the largest batch.",
    "Texts are of their greatest length; validation compares two texts in one pass and decodes the whole video.",
    "Weights in group_offload_to_disk_path are taken to come as fast as from RAM, which most disks are not.",
    "RAM is that of tensors; Python and the libraries take about 2 GiB more, and cached texts up to 1 GiB.",
)


def plan(
    config: TrainConfig,
    vram_gib: float | None = None,
    *,
    samples: Sequence[Sample] | None = None,
    gpu: str | None = None,
) -> Plan:
    """What a run with these settings takes of the GPU, the machine and the disk, traced without weights or GPU.

    The trace goes through the code of the run itself. It takes seconds the first time, and less for each change. What
    was planned once is remembered on disk, and is there at once the next time.

    Args:
        config: settings as from `load_config`.
        vram_gib: memory of the GPU that the run is to fit, in GiB; that of the GPU named or found when None.
        samples: what is trained on, where it is known; else the clips are looked at, where there are any.
        gpu: name of a GPU, for example "RTX 4090", whose speed and memory are taken; the one found when None.

    Raises:
        ConfigError: a setting is wrong, `vram_gib` is no positive number, or the GPU is not known.
        ModelError: a local base model cannot be read.
    """
    if vram_gib is not None and not _is_size(vram_gib):
        raise ConfigError([Problem("vram_gib", vram_gib, "is no size of a memory", "use GiB, for example 24")])
    config = resolve(config)
    family = families.get(str(config.model_family))
    samples = _samples(config) if samples is None else samples
    card, found = _card(config, gpu)
    vram = found if vram_gib is None else round(vram_gib * GIB)
    largest = largest_batch(config, family, samples)
    asked = _question(config, family, largest, samples, vram)
    figures = remembered.recall(asked) if asked else None
    if figures is None:
        room = None if vram is None else vram - round(CONTEXT_GIB * GIB)
        figures = _figures(config, family, largest, samples, room)
        if asked:
            remembered.remember(asked, figures)
    return Plan(config, largest, figures.phases, figures.disk, vram, ASSUMPTIONS, card, samples, figures.blocks)


def _is_size(gib: Any) -> bool:
    return isinstance(gib, int | float) and not isinstance(gib, bool) and 0 < gib < math.inf


def _question(
    config: TrainConfig, family: Family, largest: Largest, samples: Sequence[Sample], vram: int | None
) -> str | None:
    """What is asked, for `remembered`; None where the answer depends on a repository that may change."""
    model = str(config.pretrained_model_name_or_path)
    own = {facts.repo for facts in family.flavours.values()}
    begin = tuple({one for names in _MATTERS.values() for one in names})
    fields = {name for name in type(config).model_fields if name not in _IDLE or name.startswith(begin)}
    values = config.model_dump(include={*fields, *_ON_DISK} - _WORDS, mode="json")
    try:
        for name, value in values.items():
            if (name.startswith(_MODEL[0]) or name == ENCODER) and isinstance(value, str):
                values[name] = remembered.model_identity(value) or value
    except OSError:
        return None
    if values[f"{_MODEL[0]}model_name_or_path"] == model and model not in own:
        return None
    encoder = config.crepa_encoder
    if needs_features(config) and values[ENCODER] == encoder and published_width(teacher_model(encoder)) is None:
        return None
    kinds = Counter(repr(of_sample(config, sample)) for sample in samples)
    captions = {caption for sample in samples for caption in sample.captions}
    more = {
        "family": family.name, "largest": largest, "vram": vram, "kinds": sorted(kinds.items()),
        "captions": len(captions), "renders": _renders(config), "sound": config.trains_sound,
    }  # fmt: skip
    return remembered.question({**values, **more})


def _figures(
    config: TrainConfig, family: Family, largest: Largest, samples: Sequence[Sample], memory: int | None
) -> Figures:
    from tunerkit.planning.architectures import depth_of

    step = traced_training(config, family, largest)
    phases = tuple(_phases(config, family, largest, step, memory))
    settings, _ = _model(config, family)
    return Figures(phases, _disk(config, family, largest, samples, step), depth_of(settings))


def _samples(config: TrainConfig) -> Sequence[Sample]:
    from tunerkit.data.inspect import inspect_dataset

    try:
        return inspect_dataset(config).samples
    except DatasetError:  # training will say it; the settings are enough for a plan
        return ()


def _card(config: TrainConfig, name: str | None) -> tuple[Gpu | None, int | None]:
    """The GPU named or found, as far as its speed is known, and its bytes of memory."""
    from tunerkit.planning import gpus

    if name is not None:
        card = gpus.gpu(name)
        return card, round(card.memory_gib * GIB)
    if config.device == "cpu" or not _driver_is_here():
        return None, None
    import torch

    if not torch.cuda.is_available():
        return None, None
    properties = torch.cuda.get_device_properties(config.device or 0)
    return gpus.find(properties.name), int(properties.total_memory)


def _driver_is_here() -> bool:
    """Whether a GPU can be here at all, without torch, which takes seconds to load: there is a device of a driver."""
    if sys.platform != "linux":
        return sys.platform != "darwin"
    return any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "nvidia0", "dxg", "kfd"))


# Phases ----------------------------------------------------------------------------------------------------------


def traced_training(config: TrainConfig, family: Family, largest: Largest) -> TracedStep:
    """The training step of settings; remembered.

    Raises:
        ConfigError: they do not fit the transformer.
    """
    from tunerkit.planning.training import swapped_step, training_step

    settings, stand = _model(config, family)
    if config.musubi_blocks_to_swap:
        return swapped_step(config, family, settings, lambda one: traced_training(one, family, largest))
    return _cached(config, family, "step", largest, lambda: training_step(config, family, settings, stand, largest))


def _model(config: TrainConfig, family: Family) -> tuple[Mapping[str, Any], Stand]:
    from tunerkit.planning.architectures import configuration
    from tunerkit.planning.batches import Stand

    def settings(component: Any) -> Mapping[str, Any]:
        return configuration(config, family, component)

    return settings("transformer"), Stand(config, family, settings)


def _cached(
    config: TrainConfig,
    family: Family,
    what: str,
    largest: Largest | None,
    make: Callable[[], _T],
    memory: int | None = None,
) -> _T:
    """What `make` gives, remembered for all settings, and bytes of memory, that come to the same."""
    fields = type(config).model_fields
    begin = _MATTERS.get(what)
    names = {
        one
        for one in fields
        if (one.startswith(begin) if begin else one not in _IDLE and not one.startswith(_NOT_STEP))
    }
    values = config.model_dump(include=names, mode="json")
    key = (what, family.name, repr(sorted(values.items())), largest, memory)
    if key not in _CACHE:
        if len(_CACHE) >= _MOST_CACHED:
            _CACHE.clear()
        _CACHE[key] = make()
    return _CACHE[key]


def _phases(
    config: TrainConfig, family: Family, largest: Largest, step: TracedStep, memory: int | None
) -> list[PhasePlan]:
    """The phases of a run where `memory` bytes of a GPU are there for tensors; None = not known."""
    from tunerkit.planning import phases as traced

    memory = memory if traced.memory_matters(config) else None
    text, text_host = _cached(config, family, "text", None, lambda: traced.text_encoding(config, family))
    clips, clips_host = _cached(
        config, family, "clips", largest, lambda: traced.clip_encoding(config, family, largest, memory), memory
    )
    kept = _kept(step)
    loaded = {"weights": kept.get("weights", 0), "adapter": kept.get("adapter", 0)}
    text_ram = text_host or text.parts.get("weights", 0)
    clips_ram = clips_host or clips.parts.get("weights", 0)
    found = [
        PhasePlan("text encoding", text.peak, text.parts, text_ram, text.work),
        PhasePlan("clip encoding", clips.peak, clips.parts, clips_ram, clips.work),
    ]
    if needs_features(config):
        seen = _cached(config, family, "features", largest, lambda: traced.feature_encoding(config, family, largest))
        found.append(PhasePlan("feature encoding", seen.peak, seen.parts, seen.parts.get("weights", 0), seen.work))
    found += [
        PhasePlan("loading", sum(loaded.values()), loaded, step.host, Work(link=sum(loaded.values()))),
        PhasePlan("training step", step.largest.peak, step.largest.parts, step.host, step.work),
    ]
    if _renders(config):
        found.append(_rendering(config, family, step, kept, memory))
    saved = checkpoint_bytes(config, step)
    found.append(PhasePlan("checkpoint", sum(kept.values()), kept, step.host + saved, Work()))
    return found


def _renders(config: TrainConfig) -> bool:
    return not config.validation_disable and bool(validation_prompts(config))


def _rendering(
    config: TrainConfig, family: Family, step: TracedStep, kept: Mapping[str, int], memory: int | None
) -> PhasePlan:
    from tunerkit.planning import phases as traced
    from tunerkit.planning.architectures import depth_of

    settings, stand = _model(config, family)
    kept = {name: size for name, size in kept.items() if name != "gradients"}  # they are dropped before
    left = None if memory is None else max(0, memory - sum(kept.values()))
    denoise, decode = _cached(
        config, family, "validation", None, lambda: traced.validation(config, family, settings, stand, left), left
    )
    vae = decode.parts.get("weights", 0)
    active = max(denoise.parts.get("activations", 0), decode.parts.get("activations", 0))
    weights = max(one.parts.get("weights", 0) for one in step.segments)  # with those that are on their way
    parts = {**kept, "weights": weights + vae, "activations": active}
    passes = depth_of(settings) / traced.RENDERED_BLOCKS
    return PhasePlan("validation", sum(parts.values()), parts, step.host + vae, denoise.work * passes + decode.work)


def _kept(step: TracedStep) -> dict[str, int]:
    """What stays on the device between two steps: the gradients of the last one, too."""
    return {name: size for name, size in step.segments[-1].parts.items() if name != "activations"}


# Disk ------------------------------------------------------------------------------------------------------------


def _disk(
    config: TrainConfig, family: Family, largest: Largest, samples: Sequence[Sample], step: TracedStep
) -> DiskPlan:
    from tunerkit.planning.batches import latent_bytes
    from tunerkit.planning.phases import teacher_bytes

    local = Path(str(config.pretrained_model_name_or_path)).exists()
    download = 0 if local else _cached(config, family, "download", None, lambda: _download(config, family))
    if needs_features(config) and not Path(teacher_model(config.crepa_encoder)).exists():
        download += _cached(config, family, "teacher", None, lambda: teacher_bytes(config))
    _, stand = _model(config, family)
    cache = None
    if samples:
        texts = {caption for sample in samples for caption in sample.captions}
        text = sum(tensor.nbytes for tensor in stand.text(largest).values()) // largest.clips
        cache = sum(latent_bytes(stand, config, sample) for sample in samples) + text * len(texts)
    limit = config.checkpoints_total_limit
    made = -(-(config.max_train_steps or 0) // config.checkpoint_step_interval) or 1
    checkpoints = min(made, limit) if limit else made
    return DiskPlan(download, cache, checkpoint_bytes(config, step), checkpoints, step.on_disk)


def _download(config: TrainConfig, family: Family) -> int:
    """All parts of the base model as they are published.

    RAM has nothing to do with it: files are mapped, and each weight is converted when it is read.
    """
    import torch

    from tunerkit.planning.architectures import published_in_float32
    from tunerkit.planning.phases import weights_of

    names = {name for names in family.subfolders.values() for name in names if "tokenizer" not in name}
    wide = names & set(published_in_float32(config, family))
    in_half = weights_of(config, family, (*sorted(names - wide),), torch.bfloat16)
    return in_half + weights_of(config, family, (*sorted(wide),), torch.float32)


def checkpoint_bytes(config: TrainConfig, step: TracedStep) -> int:
    """A checkpoint holds the trained weights in the optimizer's precision, its state and the EMA's weights."""
    parts = step.segments[-1].parts
    trained = parts.get("adapter", 0) if config.model_type == "lora" else parts.get("weights", 0)
    in_float32 = trained if config.model_type == "lora" or config.mixed_precision == "no" else 2 * trained
    masters = in_float32 > trained and not config.optimizer.startswith(("adamw_bf16", "optimi-"))
    own = 0 if masters else trained  # float32 masters are part of the optimizer's state
    return own + parts.get("optimizer state", 0) + (in_float32 if config.use_ema else 0)
