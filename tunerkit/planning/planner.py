"""`plan`: from settings to what every phase of their run takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunerkit import families
from tunerkit.config.groups.checkpoints import CheckpointSettings, TrackingSettings
from tunerkit.config.groups.data import DataSettings
from tunerkit.config.groups.validation import ValidationSettings
from tunerkit.config.prompts import validation_prompts
from tunerkit.errors import ConfigError, DatasetError, Problem
from tunerkit.planning.architectures import configuration, depth_of
from tunerkit.planning.batches import Largest, Stand, largest_batch, latent_bytes
from tunerkit.planning.result import GIB, DiskPlan, PhasePlan, Plan
from tunerkit.planning.seconds import Work
from tunerkit.project import resolve

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.planning.gpus import Gpu
    from tunerkit.planning.training import TracedStep

_IDLE = {
    *CheckpointSettings.model_fields, *TrackingSettings.model_fields, *DataSettings.model_fields,
    *ValidationSettings.model_fields, "datasets", "seed", "learning_rate", "max_train_steps", "num_train_epochs",
}  # fmt: skip
"""Settings that do not change what a step takes, beside what the largest batch says."""
_MODEL = ("pretrained_", "model_f", "ltx2_checkpoint", "revision", "device", "mixed_precision", "text_encoder_")
_VAE = (*_MODEL, "vae_", "group_offload_vae")
_MATTERS: dict[str, tuple[str, ...]] = {
    "download": _MODEL,
    "text": (*_MODEL, "group_offload_text"),
    "clips": _VAE,
    "validation": (*_VAE, "validation_", "base_model_", "framerate", "sparse_", "first_frame_", "audio_", "sound_"),
}
"""What the names begin with of those settings that change what a phase takes."""
_CACHE: dict[Any, Any] = {}
_MOST_CACHED = 256
_T = TypeVar("_T")

ASSUMPTIONS = (
    "Counted are tensors, rounded up to 512 bytes each. Not counted are CUDA's context (about 0.5 GiB), the "
    "allocator's fragmentation (some percent) and the workspaces of kernels.",
    "Attention runs in fused kernels (flash or memory-efficient); where a GPU has none, its scores come on top.",
    "A step is as it is from the second one on, when the optimizer has its state, with the largest batch.",
    "Texts are of their greatest length; validation compares two texts in one pass and decodes the whole video.",
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

    The trace goes through the code of the run itself. It takes seconds the first time, and less for each change.

    Args:
        config: settings as from `load_config`.
        vram_gib: memory of the GPU that the run is to fit, in GiB; that of the GPU named or found when None.
        samples: what is trained on, where it is known; else the clips are looked at, where there are any.
        gpu: name of a GPU, for example "RTX 4090", whose speed and memory are taken; the one found when None.

    Raises:
        ConfigError: a setting is wrong, `vram_gib` is not positive, or the GPU is not known.
        ModelError: a local base model cannot be read.
    """
    if vram_gib is not None and not vram_gib > 0:
        raise ConfigError([Problem("vram_gib", vram_gib, "is no size of a memory", "use GiB, for example 24")])
    config = resolve(config)
    family = families.get(str(config.model_family))
    samples = _samples(config) if samples is None else samples
    card, found = _card(config, gpu)
    vram = found if vram_gib is None else round(vram_gib * GIB)
    largest = largest_batch(config, family, samples)
    step = traced_training(config, family, largest)
    phases = tuple(_phases(config, family, largest, step))
    disk = _disk(config, family, largest, samples, step)
    return Plan(config, largest, phases, disk, vram, ASSUMPTIONS, card, samples)


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
    import torch

    if config.device == "cpu" or not torch.cuda.is_available():
        return None, None
    properties = torch.cuda.get_device_properties(config.device or 0)
    return gpus.find(properties.name), int(properties.total_memory)


# Phases ----------------------------------------------------------------------------------------------------------


def traced_training(config: TrainConfig, family: Family, largest: Largest) -> TracedStep:
    """The training step of settings; remembered.

    Raises:
        ConfigError: they do not fit the transformer.
    """
    from tunerkit.planning.training import training_step

    settings, stand = _model(config, family)
    return _cached(config, family, "step", largest, lambda: training_step(config, family, settings, stand, largest))


def _model(config: TrainConfig, family: Family) -> tuple[Mapping[str, Any], Stand]:
    def settings(component: Any) -> Mapping[str, Any]:
        return configuration(config, family, component)

    return settings("transformer"), Stand(config, family, settings)


def _cached(config: TrainConfig, family: Family, what: str, largest: Largest | None, make: Callable[[], _T]) -> _T:
    """What `make` gives, remembered for all settings that come to the same."""
    fields = type(config).model_fields
    begin = _MATTERS.get(what)
    names = {one for one in fields if (one.startswith(begin) if begin else one not in _IDLE)}
    values = config.model_dump(include=names, mode="json")
    key = (what, family.name, repr(sorted(values.items())), largest)
    if key not in _CACHE:
        if len(_CACHE) >= _MOST_CACHED:
            _CACHE.clear()
        _CACHE[key] = make()
    return _CACHE[key]


def _phases(config: TrainConfig, family: Family, largest: Largest, step: TracedStep) -> list[PhasePlan]:
    from tunerkit.planning import phases as traced

    text, text_host = _cached(config, family, "text", None, lambda: traced.text_encoding(config, family))
    clips, clips_host = _cached(config, family, "clips", largest, lambda: traced.clip_encoding(config, family, largest))
    kept = _kept(step)
    loaded = {"weights": kept.get("weights", 0), "adapter": kept.get("adapter", 0)}
    text_ram = text_host or text.parts.get("weights", 0)
    clips_ram = clips_host or clips.parts.get("weights", 0)
    found = [
        PhasePlan("text encoding", text.peak, text.parts, text_ram, text.work),
        PhasePlan("clip encoding", clips.peak, clips.parts, clips_ram, clips.work),
        PhasePlan("loading", sum(loaded.values()), loaded, step.host, Work(link=sum(loaded.values()))),
        PhasePlan("training step", step.largest.peak, step.largest.parts, step.host, step.work),
    ]
    if _renders(config):
        found.append(_rendering(config, family, step, kept))
    saved = checkpoint_bytes(config, step)
    found.append(PhasePlan("checkpoint", sum(kept.values()), kept, step.host + saved, Work()))
    return found


def _renders(config: TrainConfig) -> bool:
    return not config.validation_disable and bool(validation_prompts(config))


def _rendering(config: TrainConfig, family: Family, step: TracedStep, kept: Mapping[str, int]) -> PhasePlan:
    from tunerkit.planning import phases as traced

    settings, stand = _model(config, family)
    denoise, decode = _cached(
        config, family, "validation", None, lambda: traced.validation(config, family, settings, stand)
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
    local = Path(str(config.pretrained_model_name_or_path)).exists()
    download = 0 if local else _cached(config, family, "download", None, lambda: _download(config, family))
    _, stand = _model(config, family)
    cache = None
    if samples:
        texts = {caption for sample in samples for caption in sample.captions}
        text = sum(tensor.nbytes for tensor in stand.text(largest).values()) // largest.clips
        cache = sum(latent_bytes(stand, config, sample) for sample in samples) + text * len(texts)
    limit = config.checkpoints_total_limit
    made = -(-(config.max_train_steps or 0) // config.checkpoint_step_interval) or 1
    return DiskPlan(download, cache, checkpoint_bytes(config, step), min(made, limit) if limit else made)


def _download(config: TrainConfig, family: Family) -> int:
    """All parts of the base model in 16 bits, as they are published."""
    import torch

    from tunerkit.planning.phases import weights_of

    parts = dict.fromkeys(name for names in family.subfolders.values() for name in names if "tokenizer" not in name)
    return weights_of(config, family, (*parts,), torch.bfloat16)


def checkpoint_bytes(config: TrainConfig, step: TracedStep) -> int:
    """A checkpoint holds the trained weights in the optimizer's precision, its state and the EMA's weights."""
    parts = step.segments[-1].parts
    trained = parts.get("adapter", 0) if config.model_type == "lora" else parts.get("weights", 0)
    in_float32 = trained if config.model_type == "lora" or config.mixed_precision == "no" else 2 * trained
    masters = in_float32 > trained and not config.optimizer.startswith(("adamw_bf16", "optimi-"))
    own = 0 if masters else trained  # float32 masters are part of the optimizer's state
    return own + parts.get("optimizer state", 0) + (in_float32 if config.use_ema else 0)
