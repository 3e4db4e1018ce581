"""Miniatures of the three transformers, engines that train on them, and what a few steps of training give."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

import tunerkit as tk
from tunerkit.config.precisions import UNCHANGED
from tunerkit.data.sampler import Draw
from tunerkit.families.batch import Audio, Batch
from tunerkit.memory.quantised_linear import quantise_layers
from tunerkit.training.batches import Drawn
from tunerkit.training.engine import Engine

CPU = torch.device("cpu")
BLOCKS = 3
Batches = list[Callable[[], Drawn]]
Outcome = tuple[list[float], list[float], dict[str, torch.Tensor]]
"""Losses and gradient norms of some steps, and the trained weights after them."""


def sana() -> tuple[Any, Batch]:
    from diffusers import SanaVideoTransformer3DModel

    model = SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=32, num_layers=BLOCKS,
        num_cross_attention_heads=2, cross_attention_head_dim=32, cross_attention_dim=64, caption_channels=8,
        sample_size=30, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(1, 6, 8), "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long)}
    return model, Batch(torch.randn(1, 4, 2, 4, 6), text, torch.full((1,), 16.0))


def kandinsky5() -> tuple[Any, Batch]:
    from diffusers import Kandinsky5Transformer3DModel

    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=8, model_dim=64, ff_dim=64,
        num_text_blocks=1, num_visual_blocks=BLOCKS - 1, axes_dims=(8, 12, 12), visual_cond=True,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(1, 6, 8), "pooled": torch.randn(1, 8)}
    return model, Batch(torch.randn(1, 4, 2, 4, 6), text, torch.full((1,), 24.0))


def ltx2() -> tuple[Any, Batch]:
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=32, cross_attention_dim=64,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=BLOCKS, caption_channels=8, rope_type="split",
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(1, 6, 8), "audio_prompt_embeds": torch.randn(1, 6, 8)}
    audio = Audio(torch.randn(1, 5, 4), torch.tensor([True]))
    return model, Batch(torch.randn(1, 4, 2, 4, 6), text, torch.full((1,), 24.0), audio=audio)


MINIATURES = {"sanavideo": sana, "kandinsky5-video": kandinsky5, "ltxvideo2": ltx2}
FAMILIES = tuple(MINIATURES)


@functools.cache
def _base(family: str, mixed_precision: str, base_precision: str) -> tuple[Any, Batch]:
    """A miniature whose weights are all random, as a run loads it, and a batch; to be copied."""
    torch.manual_seed(0)
    model, batch = MINIATURES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    if mixed_precision == "bf16":
        kept = tuple(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            if not any(part in name for part in kept):
                parameter.data = parameter.data.to(torch.bfloat16)
    if base_precision != UNCHANGED:
        quantise_layers(model, tk.family(family).quantised_layers(model), base_precision)
    return model, batch


def engine_of(family: str, *, micro_batches: int = 1, **settings: Any) -> tuple[Engine, Batches]:
    """An engine on a miniature, and the micro-batches of a step.

    Raises:
        ConfigError: the settings are refused.
    """
    one = tk.family(family)
    sound = {"audio": {}} if one.sound else {}
    config = tk.TrainConfig(
        lora_rank=2, peft_lora_target_modules=one.lora_targets(tk.TrainConfig())[:1], lora_init_type="gaussian",
        learning_rate=1e-2, datasets=[{"id": "clips", "instance_data_dir": ".", **sound}], **settings,
    )  # fmt: skip
    model, batch = _base(family, config.mixed_precision, config.base_model_precision)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch.latents.shape, generator=generator)
    audio = None if batch.audio is None else torch.randn(batch.audio.latents.shape, generator=generator)

    def drawn(number: int) -> Drawn:
        return Drawn(Draw(number, 0, (0,)), batch, torch.tensor([0.2 + 0.2 * number]), noise, audio_noise=audio)

    batches: Batches = [functools.partial(drawn, number) for number in range(micro_batches)]
    return Engine(config, one, copy.deepcopy(model), CPU), batches


def trained(engine: Engine, batches: Batches, steps: int = 2) -> Outcome:
    updates = [engine.step(batches, number, 1e-2) for number in range(steps)]
    weights = {name: value.clone() for name, value in engine.weights.state().items()}
    return [update.loss for update in updates], [update.grad_norm for update in updates], weights


@functools.cache
def _plain(family: str, settings: tuple[tuple[str, Any], ...]) -> Outcome:
    return trained(*engine_of(family, **dict(settings)))


def plain(family: str, **settings: Any) -> Outcome:
    """What training with these settings gives; worked out once."""
    return _plain(family, tuple(sorted(settings.items())))


def same(one: Outcome, other: Outcome) -> bool:
    """Whether they are equal, bit for bit."""
    return one[:2] == other[:2] and all(torch.equal(value, other[2][name]) for name, value in one[2].items())
