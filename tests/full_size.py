"""Models of full size without their memory: traced tensors, and a count of the bytes that would be in use."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import tunerkit as tk
from tunerkit.families.base import Audio, Batch

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


def to_fake(module: torch.nn.Module) -> None:
    """Inside FakeTensorMode, replace meta tensors by traced CPU ones; casting has to happen before."""
    for name, p in list(module._parameters.items()):
        if p is not None:
            empty = torch.empty(p.shape, dtype=p.dtype)
            module._parameters[name] = torch.nn.Parameter(empty, requires_grad=p.requires_grad)
    for name, b in list(module._buffers.items()):
        if b is not None:
            module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
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


def ltx2_step(model: str, frames: int, *, fake: bool) -> Traced:
    """One LoRA step of LTX-2 with sound and gradient checkpointing at 768x512, 24 fps.

    Args:
        model: a name of `LTX2_MODELS`.
        frames: 8k + 1.
        fake: with FakeTensors, which choose the attention that a device has, and a count of the memory; else with
            tensors on the meta device, which is three times as fast.
    """
    from diffusers import LTX2VideoTransformer3DModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tunerkit.training.blocks import BlockRunner
    from tunerkit.training.weights import add_adapter

    family = tk.family("ltxvideo2")
    settings, (width, audio_width) = LTX2_MODELS[model]
    dataset = {"id": "clips", "instance_data_dir": ".", "resolution": 512, "audio": {}}
    config = tk.TrainConfig(lora_rank=32, mixed_precision="bf16", datasets=[dataset])
    with torch.device("meta"):
        transformer: Any = LTX2VideoTransformer3DModel(rope_type="split", **settings)
        add_adapter(transformer.to(torch.bfloat16), family, config)
    length = round(frames / 24 * 25)
    weights = sum(p.nbytes for p in transformer.parameters())
    memory = PeakMemory()
    with FakeTensorMode() if fake else torch.device("meta"), memory if fake else nullcontext():
        if fake:
            to_fake(transformer)
        BlockRunner(family.blocks(transformer), checkpointing=True).install(transformer)
        transformer.train()
        batch = Batch(
            latents=torch.empty(1, 128, family.latent_frames(frames), 16, 24),
            text={
                "prompt_embeds": torch.empty(1, 1024, width, dtype=torch.bfloat16),
                "audio_prompt_embeds": torch.empty(1, 1024, audio_width, dtype=torch.bfloat16),
            },
            fps=torch.empty(1),
            audio=Audio(torch.empty(1, length, 128), torch.empty(1, dtype=torch.bool)),
        )
        loss = family.loss(
            transformer,
            batch,
            sigma=torch.empty(1),
            noise=torch.empty_like(batch.latents),
            audio_noise=torch.empty(1, length, 128),
        )
        loss.backward()
    return Traced(transformer, loss, weights, memory.peak)
