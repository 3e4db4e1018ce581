"""What rendering with the stock pipelines needs in more than one family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from tunerkit.families.rendering import RenderRequest


@contextmanager
def any_precision(vae: Any) -> Iterator[None]:
    """Inside, the VAE encodes pictures of any dtype: pipelines hand it the first frame in that of another part."""
    encode = vae.encode
    vae.encode = lambda pixels, *rest, **named: encode(pixels.to(vae.dtype), *rest, **named)
    try:
        yield
    finally:
        del vae.encode


def as_bytes(frames: Any) -> np.ndarray:
    """Frames in [0, 1] as uint8, of the same shape."""
    return (np.asarray(frames) * 255.0).round().clip(0, 255).astype(np.uint8)


def watching(request: RenderRequest, unpacked: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """Arguments of a pipeline that let `request.watch` see the latents after each step; none where nobody watches.

    Args:
        unpacked: latents as the pipeline keeps them -> normalised latents `[1, C, T, H, W]`.
    """
    watch = request.watch
    if watch is None:
        return {}

    def after_step(pipeline: Any, step: int, _: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        def read() -> tuple[float, torch.Tensor]:
            import torch

            # A copy: some pipelines write the next state into the same tensor.
            latents = unpacked(tensors["latents"])[0].detach().to("cpu", torch.float32, copy=True)
            return float(pipeline.scheduler.sigmas[step + 1]), latents

        watch(step + 1, read)
        return {}

    return {"callback_on_step_end": after_step}
