"""Miniatures of the three transformers with a batch of clips, engines that train them, and what some steps give."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import tunerkit as tk
from tunerkit.config.precisions import UNCHANGED
from tunerkit.data.sampler import Draw
from tunerkit.families.batch import Audio, Batch
from tunerkit.memory.quantised_linear import quantise_layers
from tunerkit.training.batches import Drawn
from tunerkit.training.engine import Engine

CPU = torch.device("cpu")
BLOCKS, CLIPS = 5, 2
SWAP = {"musubi_blocks_to_swap": 3}
STREAM = {"enable_group_offload": True, "group_offload_use_stream": True}
Batches = list[Callable[[], Drawn]]
Outcome = tuple[list[float], list[float], dict[str, torch.Tensor]]
"""Losses and gradient norms of some steps, and the trained weights after them."""


class Size(NamedTuple):
    """How large a miniature is: its blocks, half its width, clips of a batch."""

    blocks: int = BLOCKS
    half_width: int | None = None
    clips: int = CLIPS


USUAL = Size()


def sana(size: Size = USUAL) -> tuple[Any, Batch]:
    from diffusers import SanaVideoTransformer3DModel

    half, clips = size.half_width or 12, size.clips
    model = SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=half, num_layers=size.blocks,
        num_cross_attention_heads=2, cross_attention_head_dim=half, cross_attention_dim=2 * half, caption_channels=8,
        sample_size=30, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(clips, 6, 8), "prompt_attention_mask": torch.ones(clips, 6, dtype=torch.long)}
    return model, Batch(torch.randn(clips, 4, 2, 4, 6), text, torch.full((clips,), 16.0))


def kandinsky(size: Size = USUAL) -> tuple[Any, Batch]:
    from diffusers import Kandinsky5Transformer3DModel

    half, clips = size.half_width or 24, size.clips
    edge = (half - 8) // 2
    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=8, model_dim=2 * half,
        ff_dim=2 * half, num_text_blocks=1, num_visual_blocks=size.blocks - 1, axes_dims=(8, edge, edge),
        visual_cond=True,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(clips, 6, 8), "pooled": torch.randn(clips, 8)}
    return model, Batch(torch.randn(clips, 4, 2, 4, 6), text, torch.full((clips,), 24.0))


def ltx2(size: Size = USUAL) -> tuple[Any, Batch]:
    from diffusers import LTX2VideoTransformer3DModel

    half, clips = size.half_width or 12, size.clips
    model = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=half, cross_attention_dim=2 * half,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=size.blocks, caption_channels=8, rope_type="split",
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(clips, 6, 8), "audio_prompt_embeds": torch.randn(clips, 6, 8)}
    audio = Audio(torch.randn(clips, 5, 4), torch.ones(clips, dtype=torch.bool))
    return model, Batch(torch.randn(clips, 4, 2, 4, 6), text, torch.full((clips,), 24.0), audio=audio)


MINIATURES: dict[str, Callable[..., tuple[Any, Batch]]] = {
    "sanavideo": sana, "kandinsky5-video": kandinsky, "ltxvideo2": ltx2,
}  # fmt: skip
FAMILIES = tuple(MINIATURES)


@functools.cache
def _base(family: str, size: Size, mixed_precision: str, base_precision: str) -> tuple[Any, Batch]:
    """A miniature whose weights are all random, as a run loads it, and a batch; to be copied."""
    torch.manual_seed(0)
    model, batch = MINIATURES[family](size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    if mixed_precision == "bf16":  # as from_pretrained loads it
        kept = tuple(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            if not any(part in name for part in kept):
                parameter.data = parameter.data.to(torch.bfloat16)
    if base_precision != UNCHANGED:
        quantise_layers(model, tk.family(family).quantised_layers(model), base_precision)
    return model, batch


def engine_of(
    family: str, precision: str = "bf16", *, size: Size = USUAL, micro_batches: int = 2, **settings: Any
) -> tuple[Engine, Batches]:
    """An engine on a miniature, and the micro-batches of a step.

    Args:
        precision: `mixed_precision`, or that of a quantised base model, which is bf16 beside it.

    Raises:
        ConfigError: the settings are refused.
    """
    if precision not in ("no", "fp32", "bf16"):
        settings = {"base_model_precision": precision, **settings}
        precision = "bf16"
    sound = {"audio": {}} if tk.family(family).sound else {}
    config = tk.TrainConfig(**{
        "mixed_precision": precision, "lora_rank": 2, "learning_rate": 1e-2, "lora_init_type": "gaussian",
        "datasets": [{"id": "clips", "instance_data_dir": ".", **sound}], **settings,
    })  # fmt: skip
    model, batch = _base(family, size, config.mixed_precision, config.base_model_precision)
    source = torch.Generator().manual_seed(1)
    noise = torch.randn(batch.latents.shape, generator=source)
    audio = None if batch.audio is None else torch.randn(batch.audio.latents.shape, generator=source)

    def drawn(number: int) -> Drawn:
        sigma = torch.tensor([0.3] * (size.clips - 1) + [0.2 * number])
        return Drawn(Draw(number, 0, tuple(range(size.clips))), batch, sigma, noise, audio_noise=audio)

    batches: Batches = [functools.partial(drawn, number) for number in range(1, micro_batches + 1)]
    return Engine(config, tk.family(family), copy.deepcopy(model), CPU), batches


def trained(engine: Engine, batches: Batches, steps: int = 2) -> Outcome:
    updates = [engine.step(batches, number, 1e-2) for number in range(steps)]
    weights = {name: value.clone() for name, value in engine.weights.state().items()}
    return [update.loss for update in updates], [update.grad_norm for update in updates], weights


def same(one: Outcome, other: Outcome) -> bool:
    """Whether they are equal, bit for bit."""
    return one[:2] == other[:2] and all(torch.equal(value, other[2][name]) for name, value in one[2].items())
