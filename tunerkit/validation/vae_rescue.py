"""The VAE while videos are rendered: where memory runs out in it, it goes on with less, and no video is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tunerkit.cache.encode import ON_CPU, described, load_vae, save_vae_memory, vae_rungs
from tunerkit.devices import free_memory, is_out_of_memory

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

logger = logging.getLogger("tunerkit")
WORK = ("_encode", "_decode")
"""What a VAE's `encode` and `decode` call for every slice of a batch."""


class VaeRescue:
    """Loads the VAE for rendering, and tries again where memory runs out while it decodes or encodes.

    A video is denoised for minutes before it is decoded, so what failed is repeated from its latents and not from the
    noise. The ladder is that of encoding: the configured way, a frame at a time (the same video), tiles (with faint
    seams), the CPU (slow). What failed is remembered for the whole run by its size, so that a size fails once only.

    Args:
        config: resolved settings.
        family: the model family.
        device: where videos are rendered.
    """

    def __init__(self, config: TrainConfig, family: Family, device: torch.device) -> None:
        self._config, self._family, self._device = config, family, device
        self._rungs = vae_rungs(config, family)
        self._failed: dict[tuple[str, int], int] = {}
        """What of `WORK`, rung -> fewest values that did not fit."""
        self._rung = 0

    def load(self) -> Any:
        """The VAE as configured; one is in use at a time.

        Its work on a single clip raises MemoryError where no way is left, never torch's own error: a stock pipeline
        catches that one, and fails for want of a video.
        """
        vae, _ = load_vae(self._config, self._family, self._device)
        self._rung = 0
        for name in WORK:
            setattr(vae, name, partial(self._work, vae, name, getattr(vae, name)))
        return vae

    def _work(self, vae: Any, name: str, work: Callable[..., Any], x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """What `work` makes of `x`, `[B, C, T, H, W]`, on the first rung that has the memory for it."""
        last = len(self._rungs) - 1
        while True:
            rung = self._first(name, x.numel())
            self._bring(vae, rung)
            try:
                made = work(x.to(vae.device), *rest, **named)
                # A picture's latents go on where the transformer is; a video ends in RAM anyway.
                return made.to(x.device) if name == "_encode" else made
            except Exception as error:
                reason = "ran out of memory" if is_out_of_memory(error) else f"failed ({type(error).__name__}: {error})"
                # There are sizes that a VAE cannot divide into tiles, and nobody asked for tiles: the CPU is left.
                if not is_out_of_memory(error) and self._rungs[rung] != "tiled":
                    raise
            free_memory()  # outside of the handler: the error keeps the tensors alive
            if rung == last:
                raise MemoryError("the VAE runs out of memory even in its smallest way, on the CPU")
            self._failed[name, rung] = x.numel()
            self._tell(name, reason, rung)

    def _first(self, name: str, values: int) -> int:
        """The first rung that is not known to be too little; the last one at most, which is always tried."""
        last = len(self._rungs) - 1
        known = self._failed
        return next((one for one in range(self._rung, last) if values < known.get((name, one), values + 1)), last)

    def _bring(self, vae: Any, rung: int) -> None:
        """Bring the VAE to a rung; what saved memory stays for as long as it is loaded."""
        for how in self._rungs[self._rung + 1 : rung + 1]:
            save_vae_memory(self._family, vae, how)
            if how == ON_CPU and not self._config.vae_enable_tiling:
                vae.disable_tiling()  # there is more room
        self._rung = rung

    def _tell(self, name: str, reason: str, rung: int) -> None:
        logger.warning(
            "validation %s while the VAE %s, with %s: now with %s; the video is not lost",
            reason,
            "encoded a first frame" if name == "_encode" else "decoded a video",
            described(self._rungs[rung]),
            described(self._rungs[rung + 1]),
        )
