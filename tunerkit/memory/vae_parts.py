"""VAEs that work on a few frames at a time, with the same result: less memory, and no seams.

Only the VAE that is asked to does: its encoder and its decoder get a forward of their own, and the class stays as it
is. Tiling, slicing and the pieces of time that a class cuts long clips into go on as before, around it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tunerkit.errors import ModelError
from tunerkit.memory import vae_hunyuan, vae_ltx2, vae_wan
from tunerkit.memory.vae_sizes import Parts

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

WAYS: dict[str, Any] = {
    "AutoencoderKLWan": vae_wan,
    "AutoencoderKLLTX2Video": vae_ltx2,
    "AutoencoderKLHunyuanVideo": vae_hunyuan,
}
"""Class of a VAE -> module with `obstacle`, and with `encode` and `decode` in place of its coders' forwards."""


def obstacle(vae: Any) -> str:
    """Why a VAE cannot work in parts; empty where it can."""
    kind = type(vae).__name__
    return WAYS[kind].obstacle(vae.config) if kind in WAYS else f"it is a {kind}, which is not known"


def work_in_parts(vae: Any, frames: int | None = None, *, smallest: bool = False) -> None:
    """Let `vae` encode and decode a few frames at a time from now on, with the same result up to rounding.

    Args:
        vae: an `AutoencoderKLWan`, `AutoencoderKLLTX2Video` or `AutoencoderKLHunyuanVideo`.
        frames: most frames that a layer is given at a time, at least 1; as free memory allows when not set.
        smallest: one frame at a time, and compute twice what would have to be kept.

    Raises:
        ValueError: it cannot.
    """
    if reason := obstacle(vae):
        raise ValueError(f"the VAE cannot work in parts: {reason}")
    way = WAYS[type(vae).__name__]
    patch = getattr(vae.config, "patch_size", None) or 1
    enlargement = vae.spatial_compression_ratio / patch
    for coder, work, outermost, scale in (
        (vae.encoder, way.encode, vae.encoder.conv_in, 1 / patch),
        (vae.decoder, way.decode, vae.decoder.conv_out, enlargement),
    ):
        convolution = getattr(outermost, "conv", outermost)
        width = max(convolution.in_channels, convolution.out_channels)
        parts = Parts(1 if smallest else frames, smallest, width * scale**2)
        # A partial object is copied along with the module that holds it; a closure would stay with the original.
        coder.forward = partial(work, coder, parts)


def work_as_configured(vae: Any, config: TrainConfig) -> None:
    """`work_in_parts` as the settings say that ask for it.

    Raises:
        ModelError: naming the setting.
    """
    smallest = config.vae_enable_temporal_roll
    if reason := obstacle(vae):
        setting = "vae_enable_temporal_roll" if smallest else "vae_enable_patch_conv"
        raise ModelError(f"{setting}: this VAE cannot work in parts: {reason}. Fix: use vae_enable_tiling instead")
    work_in_parts(vae, smallest=smallest)


def work_whole(vae: Any) -> None:
    """Let `vae` work as its class does again."""
    for coder in (vae.encoder, vae.decoder):
        vars(coder).pop("forward", None)
