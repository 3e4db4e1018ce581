"""What the phases of a run beside its training step take, traced in the same way: encoding and rendering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.config.precisions import TEXT, UNCHANGED
from tunerkit.dtypes import text_dtype, torch_dtype
from tunerkit.memory.offload_groups import leaves, offload
from tunerkit.memory.quantised_linear import quantise_layers
from tunerkit.memory.quantised_text import text_layers
from tunerkit.planning.architectures import configuration, on_meta, transformer_on_meta, with_depth
from tunerkit.planning.batches import Largest, Stand
from tunerkit.planning.stand_ins import as_on
from tunerkit.planning.step import planned_device, tensors_in
from tunerkit.planning.tracker import WEIGHTS, Segment, StorageTracker

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

INSTRUCTION_TOKENS = {"sanavideo": 512, "kandinsky5-video": 128, "ltxvideo2": 0}
"""Tokens that a family puts before a text, at most."""
RENDERED_BLOCKS = 2
"""Blocks of the model that a rendering is traced with."""
GUIDED = 2
"""Videos that go through the model together where guidance compares two texts."""


def traced(
    config: TrainConfig,
    name: str,
    modules: Sequence[torch.nn.Module],
    run: Callable[[], object],
    *,
    offloaded: bool = False,
    counted: bool = True,
) -> tuple[Segment, int]:
    """What `run` takes, without gradients, on the meta device, and the bytes of weights that wait in RAM.

    Args:
        modules: what it runs.
        offloaded: whether their weights come from RAM layer by layer.
        counted: whether their weights are counted.
    """
    tracker = StorageTracker()
    with as_on(planned_device(config)), torch.no_grad(), tracker:
        for module in modules:
            if offloaded:
                with tracker.host():
                    prefetch = config.group_offload_use_stream
                    groups = offload(module, leaves(module), tracker.device, prefetch=prefetch, store=_as_it_is).groups
                tracker.to_host(group.master.buffer for group in groups)
            if counted:
                tracker.label(WEIGHTS, tensors_in(module))
            else:
                tracker.to_host(tensors_in(module))
        tracker.mark(name)
        run()
    return tracker.segments()[-1], tracker.host_bytes if counted else 0


def _as_it_is(buffer: torch.Tensor) -> torch.Tensor:
    return buffer


# Texts -----------------------------------------------------------------------------------------------------------


def text_encoding(config: TrainConfig, family: Family) -> tuple[Segment, int]:
    """Encoding one text, and the bytes of weights that wait in RAM meanwhile."""
    dtype = text_dtype(config)
    names = [name for name in ("text_encoder", "text_encoder_2") if name in family.subfolders["text"]]
    encoders = [on_meta(configuration(config, family, name), dtype) for name in names]  # pyright: ignore[reportArgumentType]
    for encoder, setting in zip(encoders, TEXT, strict=False):
        if (precision := getattr(config, setting)) != UNCHANGED:
            quantise_layers(encoder, text_layers(encoder), precision)
    connectors = None
    if family.name == "ltxvideo2":
        connectors = on_meta(configuration(config, family, "connectors"), dtype)
    tokens = _text_length(family)
    texts = config.text_encoder_batch_size if family.name == "sanavideo" else 1

    def run() -> None:
        for encoder in encoders:
            limit = getattr(encoder.config.get_text_config(), "max_position_embeddings", tokens)
            shape = (texts, min(tokens, limit))
            words, mask = (torch.ones(shape, dtype=torch.int64, device="meta") for _ in range(2))
            model = getattr(encoder, "model", encoder)
            model = getattr(model, "language_model", model)
            states = model(input_ids=words, attention_mask=mask, output_hidden_states=True).hidden_states
            if connectors is not None:
                connectors(torch.stack(states, dim=-1), mask, padding_side="left")

    modules = [*encoders, *([] if connectors is None else [connectors])]
    return traced(config, "text encoding", modules, run, offloaded=config.group_offload_text_encoder)


def _text_length(family: Family) -> int:
    from importlib import import_module

    module = import_module(f"{type(family).__module__.rpartition('.')[0]}.text")
    return int(module.TOKENS) + INSTRUCTION_TOKENS[family.name]


def weights_of(config: TrainConfig, family: Family, components: tuple[str, ...], dtype: torch.dtype) -> int:
    """Bytes of the weights of some components in `dtype`."""
    total = 0
    for name in components:
        settings: Mapping[str, Any] = configuration(config, family, name)  # pyright: ignore[reportArgumentType]
        total += sum(p.nbytes for p in on_meta(settings, dtype).parameters())
    return total


# Clips -----------------------------------------------------------------------------------------------------------


def clip_encoding(config: TrainConfig, family: Family, largest: Largest) -> tuple[Segment, int]:
    """Encoding a batch of the largest clips the configured way, and the bytes of weights that wait in RAM meanwhile."""
    from tunerkit.cache.encode import LatentEncoder

    vae = _vae(config, family)
    encoder = LatentEncoder(config.model_copy(update={"device": "cpu"}), family)
    encoder._vae = vae
    shape = (largest.frames, largest.height, largest.width, 3)
    clips = [torch.empty(shape, dtype=torch.uint8, device="meta") for _ in range(config.vae_batch_size)]
    run = partial(encoder._encode_at, 0, clips)
    return traced(config, "clip encoding", [vae], run, offloaded=config.group_offload_vae)


def _vae(config: TrainConfig, family: Family) -> Any:
    """The VAE as the family makes it ready."""
    dtype = torch_dtype(config.vae_dtype or str(family.defaults["vae_dtype"]))
    vae = on_meta(configuration(config, family, "vae"), dtype)
    return family._ready(vae, config, torch.device("meta"))


# Rendering -------------------------------------------------------------------------------------------------------


def validation(config: TrainConfig, family: Family, settings: Mapping[str, Any], stand: Stand) -> list[Segment]:
    """What rendering takes beside what training keeps: a guided pass through the transformer, and the decoding.

    The pass takes no more with more blocks: what one leaves goes before the next one comes.
    """
    width, height = max(config.validation_sizes, key=lambda size: size[0] * size[1])
    frames = int(config.validation_num_video_frames or 1)
    fps = float(config.framerate or family.framerate)
    sound = frames / fps if family.sound is not None else None
    shown = Largest(width, height, frames, fps, GUIDED, sound)
    transformer = transformer_on_meta(with_depth(settings, RENDERED_BLOCKS), config, family)

    def denoise() -> None:
        transformer.eval()
        drawn = stand.drawn(shown)
        drawn.losses(family, transformer, torch.device("meta"))

    vae = _vae(config, family)
    channels = stand.latent_shape(shown)

    def decode() -> None:
        vae.decode(torch.empty(1, *channels, dtype=vae.dtype, device="meta"))

    return [
        traced(config, "denoising", [transformer], denoise, counted=False)[0],
        traced(config, "decoding", [vae], decode)[0],
    ]
