"""What the phases of a run beside its training step take, traced in the same way: encoding and rendering."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.config.precisions import TEXT, UNCHANGED
from tunerkit.dtypes import text_dtype, torch_dtype
from tunerkit.memory.offload_groups import leaves, offload
from tunerkit.memory.quantised_linear import quantise_layers
from tunerkit.memory.quantised_text import leave_out_unread, text_layers
from tunerkit.memory.vae_sizes import planned_memory
from tunerkit.planning.architectures import configuration, on_meta, sibling, transformer_on_meta, with_depth
from tunerkit.planning.batches import Stand
from tunerkit.planning.largest import Largest
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
LEFT_OVER = 4
"""Tensors of the latents' size in float32 that a pipeline still holds of its last pass when it decodes: the latents,
what the model was given, what it made, and what the sampler remembers."""
GUIDED_ALONE = ("kandinsky5-video",)
"""Families whose pipeline asks the model for each of the two texts that guidance compares alone."""


def traced(
    config: TrainConfig,
    name: str,
    modules: Sequence[torch.nn.Module],
    run: Callable[[], object],
    *,
    offloaded: bool = False,
    counted: bool = True,
    beside: Sequence[torch.nn.Module] = (),
    memory: int | None = None,
) -> tuple[Segment, int]:
    """What `run` takes, without gradients, on the meta device, and the bytes of weights that wait in RAM.

    Args:
        modules: what it runs.
        offloaded: whether their weights come from RAM layer by layer.
        counted: whether their weights are counted.
        beside: what else it runs, which is never offloaded.
        memory: bytes of a GPU that are there for all this. A VAE that works in parts takes longer ones where there is
            more; the shortest where None.
    """
    tracker = StorageTracker()
    device = planned_device(config)
    known = planned_memory(lambda: max(0, (memory or 0) - tracker.current))
    chosen = known if device == "cuda" else contextlib.nullcontext()  # on the CPU they are always of one length
    with as_on(device), chosen, torch.no_grad(), tracker:
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
        for module in beside:
            tracker.label(WEIGHTS, tensors_in(module))
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
        leave_out_unread(encoder)
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
    return int(sibling(family, "text").TOKENS) + INSTRUCTION_TOKENS[family.name]


def weights_of(config: TrainConfig, family: Family, components: tuple[str, ...], dtype: torch.dtype) -> int:
    """Bytes of the weights of some components in `dtype`."""
    total = 0
    for name in components:
        settings: Mapping[str, Any] = configuration(config, family, name)  # pyright: ignore[reportArgumentType]
        total += sum(p.nbytes for p in on_meta(settings, dtype).parameters())
    return total


# Clips -----------------------------------------------------------------------------------------------------------


def clip_encoding(
    config: TrainConfig, family: Family, largest: Largest, memory: int | None = None
) -> tuple[Segment, int]:
    """Encoding a batch of the largest clips the configured way, and the bytes of weights that wait in RAM meanwhile.

    Args:
        memory: bytes of the GPU for it, where known; see `memory_matters`.
    """
    from tunerkit.cache.encode import LatentEncoder

    vae = _vae(config, family)
    encoder = LatentEncoder(config.model_copy(update={"device": "cpu"}), family)
    encoder._vae = vae
    shape = (largest.frames, largest.height, largest.width, 3)
    clips = [torch.empty(shape, dtype=torch.uint8, device="meta") for _ in range(config.vae_batch_size)]
    run = partial(encoder._encode_at, 0, clips)
    return traced(config, "clip encoding", [vae], run, offloaded=config.group_offload_vae, memory=memory)


def feature_encoding(config: TrainConfig, family: Family, largest: Largest) -> Segment:
    """Making the features that hidden states are aligned with, of the frames of one of the largest clips."""
    from tunerkit.methods.crepa_teacher import frame_features, teacher_settings

    teacher = on_meta(teacher_settings(config), text_dtype(config)).eval()
    count = family.latent_frames(largest.frames)
    frames = torch.empty(count, largest.height, largest.width, 3, dtype=torch.uint8)  # as they are decoded
    at_once = config.crepa_encoder_frames_batch_size
    at_once = at_once if at_once > 0 else count
    run = partial(frame_features, teacher, frames, config.crepa_encoder_image_size, at_once)
    return traced(config, "feature encoding", [teacher], run)[0]


def teacher_bytes(config: TrainConfig) -> int:
    """Bytes of the image encoder's files, which are published in float32."""
    from tunerkit.methods.crepa_teacher import teacher_settings

    return sum(one.nbytes for one in on_meta(teacher_settings(config), torch.float32).parameters())


def memory_matters(config: TrainConfig) -> bool:
    """Whether what the VAE takes depends on the memory that there is."""
    on_gpu = planned_device(config) == "cuda"
    return on_gpu and config.vae_enable_patch_conv and not config.vae_enable_temporal_roll


def _vae(config: TrainConfig, family: Family) -> Any:
    """The VAE as the family makes it ready."""
    dtype = torch_dtype(config.vae_dtype or str(family.defaults["vae_dtype"]))
    vae = on_meta(configuration(config, family, "vae"), dtype)
    return family._ready(vae, config, torch.device("meta"))


# Rendering -------------------------------------------------------------------------------------------------------


def validation(
    config: TrainConfig, family: Family, settings: Mapping[str, Any], stand: Stand, memory: int | None = None
) -> list[Segment]:
    """What rendering takes beside what training keeps: a guided pass through the transformer, and the decoding.

    The pass takes no more with more blocks: what one leaves goes before the next one comes.

    Args:
        memory: bytes of the GPU that training leaves for it, where known; see `memory_matters`.
    """
    width, height = max(config.validation_sizes, key=lambda size: size[0] * size[1])
    frames = int(config.validation_num_video_frames or 1)
    fps = float(config.framerate or family.framerate)
    sound = frames / fps if family.sound is not None else None
    guided, alone = float(config.validation_guidance or 1.0) > 1.0, family.name in GUIDED_ALONE
    shown = Largest(width, height, frames, fps, 2 if guided and not alone else 1, sound)
    transformer = transformer_on_meta(with_depth(settings, RENDERED_BLOCKS), config, family)

    def denoise() -> None:
        transformer.eval()
        kept, drawn = _texts(config, stand, shown, 1), stand.drawn(shown)
        drawn.losses(family, transformer, torch.device("meta"))
        del kept

    denoised, _ = traced(config, "denoising", [transformer], denoise, counted=False)
    if guided and alone:
        denoised = replace(denoised, work=denoised.work * 2)
    return [denoised, _decoding(config, family, stand, shown, memory)]


def _texts(config: TrainConfig, stand: Stand, shown: Largest, times: int) -> list[dict[str, torch.Tensor]]:
    """The texts of a rendering as often as its pipeline holds them: each alone, and all as the model is given them; on
    the CPU those of the cache as well."""
    with torch.device("meta"):
        return [stand.text(shown) for _ in range(times + (planned_device(config) == "cpu"))]


def _decoding(config: TrainConfig, family: Family, stand: Stand, shown: Largest, memory: int | None) -> Segment:
    """The end of a stock pipeline: picture and sound from their latents, on the way to RAM.

    Args:
        shown: what went through the model at a time.
    """
    from diffusers.video_processor import VideoProcessor

    vae = _vae(config, family)
    heard: list[Any] = []
    if shown.sound is not None:  # in float32
        names = ("audio_vae", "vocoder")
        heard = [on_meta(configuration(config, family, name), torch.float32) for name in names]

    def decode() -> None:
        shape = stand.latent_shape(shown)
        kept = torch.empty(LEFT_OVER * shown.clips, *shape, device="meta"), _texts(config, stand, shown, 2)
        video = vae.decode(torch.empty(1, *shape, dtype=vae.dtype, device="meta")).sample
        [made] = VideoProcessor().postprocess_video(video, output_type="pt")
        if planned_device(config) == "cpu":  # it is in RAM already
            made = made.float()
        del kept, made, video
        if shown.sound is not None:
            audio_vae, vocoder = heard
            channels, length = audio_vae.config.latent_channels, stand.audio_latents(shown.sound)
            sound = torch.empty(1, channels, length, stand.audio_width // channels, device="meta")
            vocoder(audio_vae.decode(sound).sample)

    offloaded = config.group_offload_vae
    return traced(config, "decoding", [vae], decode, offloaded=offloaded, beside=heard, memory=memory)[0]
