"""Which device a run uses, giving its memory back between phases, and telling when it ran out."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from tunerkit.errors import ConfigError, Problem, TunerkitError

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

_ALLOCATION_FAILURES = (
    "out of memory",  # CUDA, HIP and MPS, where they raise a plain RuntimeError
    "not enough memory",  # DefaultCPUAllocator
    "can't allocate memory",  # the same allocator on other systems
    "_STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
)


def run_device(config: TrainConfig) -> torch.device:
    """The device named by `device`, else this process's GPU, else the CPU.

    Raises:
        ConfigError: if `device` is not usable here.
    """
    import os

    import torch

    wanted = config.device
    if wanted is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError([Problem("device", wanted, "no CUDA device is visible", "remove the setting or use 'cpu'")])
    return device


def free_memory() -> None:
    """Collect what is no longer referenced and return cached GPU memory to the driver."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation failed for lack of memory, of a GPU or of the machine."""
    if isinstance(error, TunerkitError):  # has been understood already
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILURES)
