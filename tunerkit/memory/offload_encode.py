"""Text encoders and VAEs that encode layer by layer: each layer's weights are on the device only while it computes.

diffusers' own group offloading is not used: it would take these models for being where their first weight waits, and
bring nothing to a VAE, whose `encode` is not its forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from tunerkit.memory.disk import OnDisk
from tunerkit.memory.offload import Offloader
from tunerkit.memory.offload_groups import in_ram, leaves, offload

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

CPU = torch.device("cpu")
_OFFLOADERS: WeakKeyDictionary[torch.nn.Module, Offloader] = WeakKeyDictionary()


def load_offloaded(load: Callable[[torch.device], Any], config: TrainConfig, device: torch.device) -> Any:
    """What `load` loads on the CPU, to compute on `device`.

    Args:
        load: gives a module, or something with `components`.

    Raises:
        TunerkitError: `group_offload_to_disk_path` cannot be written to.
    """
    loaded = load(CPU)
    for name, module in _parts(loaded):
        path = config.group_offload_to_disk_path
        store = in_ram(device) if path is None else OnDisk(path, name)
        module.requires_grad_(False)
        _OFFLOADERS[module] = offload(
            module, leaves(module), device, prefetch=config.group_offload_use_stream, store=store
        )
    return loaded


def stay_on_cpu(loaded: Any) -> None:
    """Move what was loaded, offloaded or not, to the CPU for good."""
    for _, module in _parts(loaded):
        if (offloader := _OFFLOADERS.pop(module, None)) is not None:
            offloader.remove()
    loaded.to(CPU)


def _parts(loaded: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    components = {"vae": loaded} if isinstance(loaded, torch.nn.Module) else loaded.components
    for name, component in components.items():
        if isinstance(component, torch.nn.Module):
            yield name, component
