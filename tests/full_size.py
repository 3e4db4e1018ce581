"""Models of full size without their memory: traced tensors, and a count of the bytes that would be in use."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import tunerkit as tk
from tunerkit.families.base import Audio, Batch, Family
from tunerkit.training.blocks import BlockRunner
from tunerkit.training.weights import add_adapter

LTX2_NEWER = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
LTX2_MODELS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "19B": ({}, (3840, 3840)),
    "22B": (LTX2_NEWER, (4096, 2048)),
}
"""By name: what differs from the class's defaults, and the widths of the cached text."""
KANDINSKY5_MODELS: dict[str, dict[str, Any]] = {
    "Lite": {
        "model_dim": 1792, "ff_dim": 7168, "time_dim": 512, "axes_dims": (16, 24, 24),
        "num_text_blocks": 2, "num_visual_blocks": 32,
    },
    "Pro": {
        "model_dim": 4096, "ff_dim": 16384, "time_dim": 1024, "axes_dims": (32, 48, 48),
        "num_text_blocks": 4, "num_visual_blocks": 60,
    },
}  # fmt: skip


def to_fake(module: torch.nn.Module) -> None:
    """Inside FakeTensorMode, replace meta tensors by traced CPU ones; casting has to happen before."""
    for name, p in list(module._parameters.items()):
        if p is not None:
            empty = torch.empty(p.shape, dtype=p.dtype)
            module._parameters[name] = torch.nn.Parameter(empty, requires_grad=p.requires_grad)
    for name, b in list(module._buffers.items()):
        if b is not None:
            module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
    for name, value in vars(module).items():  # tables that a module keeps as plain attributes
        if isinstance(value, torch.Tensor):
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype))
    for child in module.children():
        to_fake(child)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations make and that are alive; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.current -= size


@dataclass(frozen=True)
class Traced:
    """A traced training step: the model, the loss, bytes of the weights, most bytes alive at one time (0: unknown)."""

    transformer: Any
    loss: torch.Tensor
    weights: int
    peak: int


def ltx2_step(model: str, frames: int, *, fake: bool, blocks: int = 48) -> Traced:
    """One LoRA step of LTX-2 with sound at 768x512, 24 fps: see `traced_step`.

    Args:
        model: a name of `LTX2_MODELS`.
        frames: 8k + 1.
        blocks: fewer than the model has are traced in less time; all are alike.
    """
    from diffusers import LTX2VideoTransformer3DModel

    family = tk.family("ltxvideo2")
    settings, (width, audio_width) = LTX2_MODELS[model]
    dataset = {"id": "clips", "instance_data_dir": ".", "resolution": 512, "audio": {}}
    config = tk.TrainConfig(lora_rank=32, mixed_precision="bf16", datasets=[dataset])
    with torch.device("meta"):
        transformer: Any = LTX2VideoTransformer3DModel(rope_type="split", num_layers=blocks, **settings)
        add_adapter(transformer.to(torch.bfloat16), family, config)
    length = round(frames / 24 * 25)

    def batch() -> Batch:
        return Batch(
            latents=torch.empty(1, 128, family.latent_frames(frames), 16, 24),
            text={
                "prompt_embeds": torch.empty(1, 1024, width, dtype=torch.bfloat16),
                "audio_prompt_embeds": torch.empty(1, 1024, audio_width, dtype=torch.bfloat16),
            },
            fps=torch.empty(1),
            audio=Audio(torch.empty(1, length, 128), torch.empty(1, dtype=torch.bool)),
        )

    return traced_step(family, transformer, batch, fake=fake)


def kandinsky5_step(
    model: str,
    frames: int,
    size: tuple[int, int] = (768, 512),
    *,
    sparse: bool = False,
    from_image: bool = False,
    blocks: int | None = None,
) -> Traced:
    """One LoRA step of Kandinsky 5.0 Video on FakeTensors: see `traced_step`.

    Args:
        model: a name of `KANDINSKY5_MODELS`.
        frames: 4k + 1.
        size: width and height in pixels.
        sparse: with the attention of the 10 s and HD models.
        from_image: image to video.
        blocks: visual blocks, where not all that the model has; all are alike.
    """
    from diffusers import Kandinsky5Transformer3DModel

    from tunerkit.demo.kandinsky5 import SPARSE
    from tunerkit.families.kandinsky5.attention import use_nabla

    family = tk.family("kandinsky5-video")
    config = tk.TrainConfig(lora_rank=32, mixed_precision="bf16")
    settings = {**KANDINSKY5_MODELS[model], **(SPARSE if sparse else {})}
    if blocks is not None:
        settings["num_visual_blocks"] = blocks
    with torch.device("meta"):
        transformer: Any = Kandinsky5Transformer3DModel(
            in_visual_dim=16, out_visual_dim=16, in_text_dim=3584, visual_cond=True, **settings
        )
        for name, parameter in transformer.named_parameters():  # as from_pretrained loads it
            if not any(part in name for part in transformer._keep_in_fp32_modules):
                parameter.data = parameter.data.to(torch.bfloat16)
        add_adapter(transformer, family, config)
    if sparse:
        use_nabla(transformer)
    width, height = size

    def batch() -> Batch:
        latents = torch.empty(1, 16, family.latent_frames(frames), height // 8, width // 8)
        return Batch(
            latents=latents,
            text={
                "prompt_embeds": torch.empty(1, 200, 3584, dtype=torch.bfloat16),
                "pooled": torch.empty(1, 768, dtype=torch.bfloat16),
            },
            fps=torch.empty(1),
            first_frame=torch.empty(1, dtype=torch.bool) if from_image else None,
            image=latents[:, :, :1] if from_image else None,
        )

    return traced_step(family, transformer, batch, fake=True)


def traced_step(family: Family, transformer: Any, make_batch: Callable[[], Batch], *, fake: bool) -> Traced:
    """Forward and backward of a bf16 model on the meta device with its adapter, with gradient checkpointing.

    Args:
        make_batch: called where tensors have no content.
        fake: with FakeTensors, which choose the attention that a device has, and a count of the memory; else with
            tensors on the meta device, which is three times as fast.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    weights = sum(p.nbytes for p in transformer.parameters())
    memory = PeakMemory()
    with FakeTensorMode() if fake else torch.device("meta"), memory if fake else nullcontext():
        if fake:
            to_fake(transformer)
        BlockRunner(family.blocks(transformer), checkpointing=True).install(transformer)
        transformer.train()
        batch = make_batch()
        sound = {} if batch.audio is None else {"audio_noise": torch.empty_like(batch.audio.latents)}
        loss = family.loss(transformer, batch, sigma=torch.empty(1), noise=torch.empty_like(batch.latents), **sound)
        loss.backward()
    return Traced(transformer, loss, weights, memory.peak)
