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
from tunerkit.planning.architectures import transformer_on_meta, with_depth
from tunerkit.planning.batches import Stand
from tunerkit.planning.largest import Largest
from tunerkit.training.blocks import BlockRunner
from tunerkit.training.weights import add_adapter


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


def traced_step(family_name: str, flavour: str, largest: Largest, *, blocks: int, fake: bool = True) -> Traced:
    """Forward and backward of a published bf16 model with a LoRA adapter of rank 32 and gradient checkpointing.

    Args:
        largest: what the batch is like.
        blocks: how many of those that are alike.
        fake: with FakeTensors, which choose the attention that a device has, and a count of the memory; else with
            tensors on the meta device, which is three times as fast.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    family = tk.family(family_name)
    settings = with_depth(family.published_config(flavour, "transformer"), blocks)
    dataset = {"id": "clips", "instance_data_dir": ".", **({} if family.sound is None else {"audio": {}})}
    config = tk.TrainConfig(
        model_family=family_name,
        model_flavour=flavour,
        lora_rank=32,
        mixed_precision="bf16",
        sparse_attention=False,  # which blocks of it are computed depends on the data
        datasets=[dataset],
    )

    def settings_of(component: Any) -> Any:
        return settings if component == "transformer" else family.published_config(flavour, component)

    transformer = transformer_on_meta(settings, config, family)
    with torch.device("meta"):
        add_adapter(transformer, family, config)
    weights = sum(p.nbytes for p in transformer.parameters())
    memory = PeakMemory()
    with FakeTensorMode() if fake else torch.device("meta"), memory if fake else nullcontext():
        if fake:
            to_fake(transformer)
        BlockRunner(family.blocks(transformer), checkpointing=True).install(transformer)
        transformer.train()
        batch = Stand(config, family, settings_of).batch(largest)
        sound = {} if batch.audio is None else {"audio_noise": torch.empty_like(batch.audio.latents)}
        sigma = torch.empty(largest.clips)
        loss = family.loss(transformer, batch, sigma=sigma, noise=torch.empty_like(batch.latents), **sound)
        loss.backward()
    return Traced(transformer, loss, weights, memory.peak)
