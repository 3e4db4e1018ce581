"""Offloaded weights: the same training bit for bit, while what is not brought is NaN, and never more on the device than
planned. How offloading goes together with other settings, `test_memory_combinations.py` looks at."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_models import BLOCKS, CPU, engine_of, plain, same, trained
from poisoned import poison

import tunerkit as tk
from tunerkit.memory.offload_groups import in_ram, leaves, offload
from tunerkit.training.blocks import BlockRunner


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    poison(monkeypatch)


SWAP = {"musubi_blocks_to_swap": BLOCKS - 1}
STREAM = {"enable_group_offload": True, "group_offload_use_stream": True}
LEAVES = {"enable_group_offload": True, "group_offload_type": "leaf_level"}

# The same training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.3}], ids=["dora", "dropout"])
@pytest.mark.parametrize("way", [SWAP, LEAVES], ids=["swap", "leaves"])
def test_other_adapters_train_as_without(way: dict[str, Any], settings: dict[str, Any]) -> None:
    """In float32, with gradients of two micro-batches."""
    settings = {"mixed_precision": "no", "micro_batches": 2, **settings}
    assert same(trained(*engine_of("sanavideo", **settings, **way)), plain("sanavideo", **settings))


def test_rendering_and_evaluation_bring_weights_too() -> None:
    outputs = []
    for settings in ({}, SWAP, STREAM, {**LEAVES, "group_offload_use_stream": True}):
        engine, [batch] = engine_of("sanavideo", **settings)
        with engine.rendering(ema=False):
            outputs.append([batch().losses(engine.family, engine.transformer, CPU).total for _ in range(2)])
        offloader: Any = engine.offloader
        if offloader is not None:
            assert offloader.alive == 0
            assert offloader.most[False] <= 2
    assert all(output == outputs[0] for output in outputs)


def test_an_error_within_a_block_leaves_nothing_behind() -> None:
    engine, batches = engine_of("sanavideo", **STREAM)
    inner = engine.family.blocks(engine.transformer)[1].attn2

    def fail(*_: Any) -> None:
        raise MemoryError

    hook = inner.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        engine.step(batches, 0, 1e-2)
    hook.remove()
    gc.collect()
    offloader: Any = engine.offloader
    assert offloader.alive == 0
    assert same(trained(engine, batches), plain("sanavideo"))


class Reordered(torch.nn.Module):
    """Layers that run in another order than they are listed in."""

    ORDER = (2, 0, 3, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in self.ORDER)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in self.ORDER:
            x = self.layers[number](x)
        return x


def test_prefetching_learns_the_order() -> None:
    root = Reordered()
    offloader: Any = offload(root, leaves(root), CPU, prefetch=True, store=in_ram(CPU))
    counts = []
    for _ in range(3):
        root(torch.randn(2, 4))
        counts.append(offloader.brought)
    assert counts[0] > 4  # wrong guesses
    assert counts[2] - counts[1] == counts[1] - counts[0] == 4


def test_parts_that_run_by_themselves_release_what_an_error_left() -> None:
    """A VAE encodes without its forward, whose end would release everything."""
    root = Reordered()
    offloader: Any = offload(root, leaves(root), CPU, prefetch=False, store=in_ram(CPU))
    with pytest.raises(RuntimeError):
        root.layers[0](torch.randn(2, 5))
    root.layers[1](torch.randn(2, 4))
    gc.collect()
    assert offloader.alive == 0
    assert all(torch.isnan(parameter).all() for parameter in root.layers.parameters())


def test_trained_weights_never_move_and_saved_weights_are_whole() -> None:
    engine, batches = engine_of("sanavideo", **SWAP)
    live = dict(engine.weights.live)
    engine.step(batches, 0, 1e-2)
    named = dict(engine.transformer.named_parameters())
    assert all(named[name] is parameter for name, parameter in live.items())
    without, _ = engine_of("sanavideo")
    assert list(engine.transformer.state_dict()) == list(without.transformer.state_dict())


# Which blocks, which weights ---------------------------------------------------------------------------------------


def test_shared_and_trained_weights_stay() -> None:
    layers = [torch.nn.Linear(4, 4) for _ in range(4)]
    root = torch.nn.Sequential(*layers)
    layers[2].weight = layers[1].weight
    for layer in layers[:3]:
        layer.requires_grad_(False)
    kept = [layers[0].weight, layers[1].weight, layers[3].weight, layers[3].bias]
    x = torch.randn(2, 4)
    before = root(x)
    offload(root, leaves(root), CPU, prefetch=True, store=in_ram(CPU))
    assert all(any(one is each for each in root.parameters()) for one in kept)
    assert torch.isnan(layers[1].bias).all()
    assert torch.isnan(layers[2].bias).all()
    with torch.no_grad():
        assert torch.equal(root(x), before)


def test_offloading_needs_checkpointing() -> None:
    offloader = offload(torch.nn.Sequential(), [], CPU, prefetch=False, store=in_ram(CPU))
    with pytest.raises(ValueError, match="checkpointed"):
        BlockRunner([], checkpointing=False, offloader=offloader)


# Disk --------------------------------------------------------------------------------------------------------------


def test_files_are_mapped_and_gone_with_the_engine(tmp_path: Path) -> None:
    settings = {**STREAM, "group_offload_to_disk_path": tmp_path / "offload"}
    engine, _ = engine_of("sanavideo", **settings)
    [folder] = (tmp_path / "offload").iterdir()
    files = sorted(folder.iterdir())
    assert len(files) == BLOCKS
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(files[0]) in maps.read_text(encoding="utf-8")
    another, _ = engine_of("sanavideo", **settings)  # in the same folder, at the same time
    assert len(list((tmp_path / "offload").iterdir())) == 2
    del engine, another, folder
    gc.collect()
    assert list((tmp_path / "offload").iterdir()) == []


def test_one_block_has_to_stay() -> None:
    with pytest.raises(tk.ConfigError, match=f"musubi_blocks_to_swap = {BLOCKS}: the transformer has {BLOCKS} blocks"):
        engine_of("sanavideo", musubi_blocks_to_swap=BLOCKS)
