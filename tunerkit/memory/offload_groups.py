"""Which weights of a transformer are offloaded while it trains, as the settings say, and where the rest goes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from tunerkit.config.memory_rules import check_depth
from tunerkit.memory.disk import OnDisk
from tunerkit.memory.masters import Pinned, Store
from tunerkit.memory.offload import Group, Offloader

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

logger = logging.getLogger("tunerkit")


def place_transformer(
    transformer: Any, blocks: Sequence[torch.nn.Module], config: TrainConfig, device: torch.device
) -> Offloader | None:
    """Put a transformer where it trains: on `device`, but for the frozen weights that the settings offload.

    Args:
        transformer: on the CPU, with its adapter.
        blocks: its blocks in the order in which they run.

    Returns:
        What brings the offloaded weights; None where all stay on the device.

    Raises:
        ConfigError: more blocks are to be swapped than can be.
    """
    if not (config.musubi_blocks_to_swap or config.enable_group_offload):
        transformer.to(device)
        return None
    units = list(_units(transformer, blocks, config))
    offloader = offload(transformer, units, device, prefetch=_prefetches(config), store=_store(config, device))
    logger.info(
        "%.1f GB of frozen weights wait %s; at most %.1f GB of them are on %s at one time",
        offloader.bytes / 1e9,
        "on disk" if config.group_offload_to_disk_path and config.enable_group_offload else "in RAM",
        offloader.most_on_device / 1e9,
        device,
    )
    if device.type == "cpu":
        logger.warning("%s computes in RAM as well: offloading saves nothing there, and streams do not exist", device)
    return offloader


def offload(
    root: torch.nn.Module,
    units: Iterable[Sequence[torch.nn.Module]],
    device: torch.device,
    *,
    prefetch: bool,
    store: Store,
) -> Offloader:
    """Offload the frozen weights of `units`, each a list of modules that run one after the other; move everything else
    of `root` to `device`. A weight that several modules share stays on the device."""
    shared = Counter(id(p) for module in root.modules() for p in module._parameters.values() if p is not None)
    groups: list[Group] = []
    for modules in units:
        places = [place for module in modules for place in _frozen(module, shared)]
        if places:
            groups.append(Group(modules, places, store))
    for group in groups:
        group.take_out()
    root.to(device)
    for group in groups:
        group.release()
    return Offloader(root, groups, device, prefetch=prefetch)


def swapped_blocks(count: int, swapped: int) -> list[int]:
    """Numbers of the `swapped` of `count` blocks that are swapped: spread evenly, so that one is copied while others,
    which stay on the device, compute."""
    return [(2 * place + 1) * count // (2 * swapped) for place in range(swapped)]


def _units(
    transformer: torch.nn.Module, blocks: Sequence[torch.nn.Module], config: TrainConfig
) -> Iterator[Sequence[torch.nn.Module]]:
    if config.musubi_blocks_to_swap:
        check_depth(config, len(blocks))
        for number in swapped_blocks(len(blocks), config.musubi_blocks_to_swap):
            yield [blocks[number]]
    elif config.group_offload_type == "leaf_level":
        yield from leaves(transformer)
    else:
        size = config.group_offload_blocks_per_group
        for first in range(0, len(blocks), size):
            yield blocks[first : first + size]


def leaves(root: torch.nn.Module) -> Iterator[Sequence[torch.nn.Module]]:
    """Each module of `root` without modules inside, alone; an adapted layer counts as one, since some adapters compute
    with the weight of the layer inside.

    The one with the first parameter is left out: where that is, models say that they are.
    """
    first = next(root.parameters(), None)

    def inside(module: torch.nn.Module) -> Iterator[Sequence[torch.nn.Module]]:
        children = list(module.children())
        if children and not isinstance(module, BaseTunerLayer):
            for child in children:
                yield from inside(child)
        elif not any(parameter is first for parameter in module.parameters()):
            yield [module]

    yield from inside(root)


def _frozen(module: torch.nn.Module, shared: Counter[int]) -> Iterator[tuple[torch.nn.Module, str]]:
    """Module and name of each frozen parameter in `module` that no other module has."""
    for inner in module.modules():
        for name, parameter in inner._parameters.items():
            if parameter is not None and not parameter.requires_grad and shared[id(parameter)] == 1:
                yield inner, name


def _prefetches(config: TrainConfig) -> bool:
    return bool(config.musubi_blocks_to_swap) or config.group_offload_use_stream


def _store(config: TrainConfig, device: torch.device) -> Store:
    if config.enable_group_offload and config.group_offload_to_disk_path:
        return OnDisk(config.group_offload_to_disk_path, "transformer")
    return in_ram(device)


def in_ram(device: torch.device) -> Store:
    """A store that keeps weights in RAM, locked there where a GPU copies from it."""
    return Pinned() if device.type == "cuda" and torch.cuda.is_available() else (lambda buffer: buffer)
