"""How much memory this process holds, and what to change when there is too little."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tunerkit.config.settings import TrainConfig

logger = logging.getLogger("tunerkit")

PLANNING_SECONDS = 60.0
"""How long whoever has run out of memory waits for better advice, at most."""
_GIB = 2**30
_FEWER_FRAMES = 0.61
"""Roughly the step between the frame counts people train with: 121, 73; 81, 49; 49, 29."""
_EDGES = (128, 160, 192, 256, 320, 384, 480, 512, 576, 640, 704, 768, 896, 1024)
"""Usual edge lengths in pixels, as steps to go down."""


def measured_memory(device: str | None) -> dict[str, Any]:
    """Memory of this process: `device`, and `used`, `peak` and `total` in bytes (None where not known).

    Args:
        device: the device of the run as torch names it, for example "cuda:0"; None or another: the machine's memory.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if device is not None and device.startswith("cuda") and cuda is not None and cuda.is_initialized():
        properties = cuda.get_device_properties(device)
        return {
            "device": properties.name,
            "used": cuda.memory_allocated(device),
            "peak": cuda.max_memory_allocated(device),
            "total": properties.total_memory,
        }
    return {"device": "cpu", **_machine_memory()}


def _machine_memory() -> dict[str, int | None]:
    try:
        import resource
    except ImportError:  # Windows
        return {"used": None, "peak": None, "total": None}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        used = int(Path("/proc/self/statm").read_text().split()[1]) * page
    except OSError:
        used = None
    # Linux counts the peak in larger steps than the present use.
    return {"used": used, "peak": max(peak, used or 0), "total": os.sysconf("SC_PHYS_PAGES") * page}


def memory_hint(config: TrainConfig) -> str:
    """What to change in resolved settings so that they need less memory.

    On a GPU that is what a plan for its memory finds; where there is none, the first thing that can be changed, and the
    next. Whatever goes wrong meanwhile goes no further.
    """
    if hint := _planned_hint(config):
        return hint
    ways = list(_ways(config))
    if not ways:
        return "use a GPU with more memory, or a smaller model"
    return ways[0] if len(ways) == 1 else f"{ways[0]}; if that is not enough, {ways[1]}"


def _planned_hint(config: TrainConfig) -> str:
    """What makes a run fit its GPU by a plan; empty where it fits as it is, or cannot be planned in time."""
    try:
        total = _gpu_memory(config)
        if total is None:
            return ""
        # Not at the top: planning goes through the code of training, which imports this module.
        from tunerkit.planning.planner import plan

        with _at_most(PLANNING_SECONDS):
            changes = plan(config, total / _GIB).changes
    except Exception as error:  # only the advice is lost
        logger.debug("no plan: %s", error)
        return ""
    if not changes or not changes[-1].fits:
        return ""
    ways = "; ".join(f"set {_written(change.settings)} ({change.meaning})" for change in changes)
    return f"{ways}: by its plan, the run then takes {changes[-1].plan.peak / _GIB:.1f} of {total / _GIB:.1f} GiB"


def _gpu_memory(config: TrainConfig) -> int | None:
    """Bytes of the memory of the GPU that a run is on; None on another device."""
    from tunerkit.devices import run_device

    device = run_device(config)
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Ends what computes with tensors inside, also with those without content, after this time.

    Raises:
        TimeoutError: the time is over.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    end = time.monotonic() + seconds

    class Deadline(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if time.monotonic() > end:
                raise TimeoutError(f"not done after {seconds:g} s")
            return func(*args, **(kwargs or {}))

    with Deadline():
        yield


def _written(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value, default=str)}" for name, value in settings.items())


def _ways(config: TrainConfig) -> Iterator[str]:
    """The changes that are left, the cheapest for the result first."""
    if config.train_batch_size > 1:
        yield f"set train_batch_size = 1 (it is {config.train_batch_size})"
    if not config.gradient_checkpointing:
        yield "set gradient_checkpointing = true"
    yield from _fewer_frames(config)
    yield from _smaller(config)
    if config.model_type == "full":
        yield "set model_type = lora"


def _fewer_frames(config: TrainConfig) -> Iterator[str]:
    from tunerkit import families

    family = families.get(str(config.model_family))
    frames = max((dataset.video.num_frames or 0 for dataset in config.media_datasets), default=0)
    fewer = family.legal_frames(int(frames * _FEWER_FRAMES))
    if 1 < fewer < frames:
        yield f"lower video.num_frames of the datasets: {frames} -> {fewer} frames"


def _smaller(config: TrainConfig) -> Iterator[str]:
    from tunerkit import families

    sizes = [config.resolution_of(dataset) for dataset in config.media_datasets]
    areas = [size for size, kind in sizes if size is not None and kind == "area"]
    if areas:
        yield f"lower resolution: {max(areas):g} -> {0.6 * max(areas):.2g} megapixels"
        return
    edges = [size for size, kind in sizes if size is not None and kind != "model"]
    if edges:
        below = [edge for edge in _EDGES if edge < max(edges)]
        if below:
            yield f"lower resolution: {max(edges):g} -> {below[-1]} pixels"
        return
    areas = [width * height for width, height in families.get(str(config.model_family)).model_sizes(config)]
    below = [edge for edge in _EDGES if edge * edge < 0.9 * max(areas, default=0)]
    if below:
        yield f"set resolution = {below[-1]} with resolution_type = pixel_area"
