"""Miniatures of the three transformers with a batch of two clips, and an engine that trains one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tunerkit as tk
from tunerkit.data.sampler import Draw
from tunerkit.families.batch import Audio, Batch
from tunerkit.training.batches import Drawn
from tunerkit.training.engine import Engine

CPU = torch.device("cpu")
SWAP = {"musubi_blocks_to_swap": 3}
STREAM = {"enable_group_offload": True, "group_offload_use_stream": True}


def sana() -> tuple[Any, Batch]:
    from diffusers import SanaVideoTransformer3DModel

    model = SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=5,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8,
        sample_size=30, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(2, 6, 8), "prompt_attention_mask": torch.ones(2, 6, dtype=torch.long)}
    return model, Batch(torch.randn(2, 4, 2, 4, 6), text, torch.full((2,), 16.0))


def kandinsky() -> tuple[Any, Batch]:
    from diffusers import Kandinsky5Transformer3DModel

    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=8, model_dim=48, ff_dim=48,
        num_text_blocks=1, num_visual_blocks=4, axes_dims=(8, 8, 8), visual_cond=True,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(2, 6, 8), "pooled": torch.randn(2, 8)}
    return model, Batch(torch.randn(2, 4, 2, 4, 6), text, torch.full((2,), 24.0))


def ltx2() -> tuple[Any, Batch]:
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=5, caption_channels=8, rope_type="split",
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(2, 6, 8), "audio_prompt_embeds": torch.randn(2, 6, 8)}
    audio = Audio(torch.randn(2, 5, 4), torch.tensor([True, True]))
    return model, Batch(torch.randn(2, 4, 2, 4, 6), text, torch.full((2,), 24.0), audio=audio)


MINIATURES: dict[str, Callable[[], tuple[Any, Batch]]] = {"sanavideo": sana, "kandinsky5-video": kandinsky}
MINIATURES["ltxvideo2"] = ltx2
BLOCKS = 5


def engine_of(family: str, precision: str, **settings: Any) -> tuple[Engine, list[Callable[[], Drawn]]]:
    """An engine on a miniature whose weights are all random, and the batches of a step."""
    torch.manual_seed(0)
    model, batch = MINIATURES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    quantised, precision = precision == "int8", "bf16" if precision == "int8" else precision
    if precision == "bf16":  # as from_pretrained loads it
        kept = tuple(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            if not any(part in name for part in kept):
                parameter.data = parameter.data.to(torch.bfloat16)
    one = tk.family(family)
    if quantised:
        from tunerkit.memory.quantised_linear import quantise_layers

        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        quantise_layers(model, [name for name in names if "transformer_blocks" in name], "int8")
    dataset = {"id": "clips", "instance_data_dir": ".", **({"audio": {}} if batch.audio else {})}
    config = tk.TrainConfig(
        mixed_precision=precision, lora_rank=2, learning_rate=1e-2, lora_init_type="gaussian",
        datasets=[dataset], **settings,
    )  # fmt: skip
    noise = torch.randn_like(batch.latents)
    sound = None if batch.audio is None else torch.randn_like(batch.audio.latents)

    def drawn(number: int) -> Drawn:
        return Drawn(Draw(number, 0, (0,)), batch, torch.tensor([0.3, 0.2 * number]), noise, audio_noise=sound)

    return Engine(config, one, model, CPU), [lambda n=n: drawn(n) for n in (1, 2)]


def trained(engine: Engine, batches: list[Callable[[], Drawn]], steps: int = 2) -> tuple[Any, ...]:
    """Losses and gradient norms of some steps, and the trained weights after them."""
    updates = [engine.step(batches, number, 1e-2) for number in range(steps)]
    weights = {name: value.clone() for name, value in engine.weights.state().items()}
    return [update.loss for update in updates], [update.grad_norm for update in updates], weights


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[:2] == other[:2] and all(torch.equal(value, other[2][name]) for name, value in one[2].items())
