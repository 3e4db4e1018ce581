"""A HunyuanVideo autoencoder whose weights are written down instead of trained: it averages.

Random weights would decode to noise whatever went in. Here the encoder takes the mean colour of every 8x8 pixels x
4 frames (the real compression), and the decoder interpolates between those colours. Times the checkpoint's
`scaling_factor`, latents have roughly unit variance.

How colours pass the network's nonlinear parts unchanged:

* residual and attention branches end in zero weights, so only the shortcuts carry anything;
* every colour travels with its negative, and a large constant with its own, all in one norm group: their mean is zero
  and their deviation that of the constant, so the group norm is a division by a constant;
* SiLU(x) - SiLU(-x) = x, so the difference of the two is the colour again;
* borders are padded with their own values.
"""

from __future__ import annotations

import math
from typing import Any

from tunerkit.demo.wan_vae import LATENT_CHANNELS, LOG_VARIANCE, colour_mixing

WIDTH = 8
"""Channels of every layer: red, green, blue, their negatives, the constant and its negative."""
CARRIER = 64.0
"""The constant. Six colours between -1 and 1 change the deviation by 0.04 % at most."""


def averaging_hunyuan_vae() -> Any:  # AutoencoderKLHunyuanVideo
    """An `AutoencoderKLHunyuanVideo` in the real geometry: 16 channels, 8x in space, 4x in time, causal.

    Weights that take no part keep their random initialisation, so seed torch before the call.
    """
    import torch
    from diffusers import AutoencoderKLHunyuanVideo

    vae: Any = AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(WIDTH,) * 4,  # pyright: ignore[reportArgumentType] - annotated as one number
        layers_per_block=1,
        norm_num_groups=1,
    )
    with torch.no_grad():
        for module in vae.modules():
            kind = type(module).__name__
            if kind == "HunyuanVideoResnetBlockCausal3D":
                _clear(module.conv2.conv)
            elif kind == "Attention":
                _clear(module.to_out[0])
            elif kind == "HunyuanVideoDownsampleCausal3D":
                # The middle tap in space and the last in time are the position itself: the mean of a pair.
                across = (0.0, 0.5, 0.5)
                along = across if module.conv.conv.stride[0] == 2 else (0.0, 0.0, 1.0)
                _per_channel(module.conv.conv, along, across)
            elif kind == "HunyuanVideoUpsampleCausal3D":
                # Behind doubling: pixels are interpolated, frames are held.
                _per_channel(module.conv.conv, (0.0, 0.0, 1.0), (0.25, 0.5, 0.25))
        mixing = colour_mixing() / vae.config.scaling_factor
        _write_encoder(vae, mixing)
        _write_decoder(vae, mixing)
    return vae


def _write_encoder(vae: Any, mixing: Any) -> None:
    import torch

    _write_entrance(vae.encoder, torch.eye(3))
    _write_exit(vae.encoder, mixing)
    vae.encoder.conv_out.conv.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    _clear(vae.quant_conv)
    vae.quant_conv.weight[..., 0, 0, 0] = torch.eye(2 * LATENT_CHANNELS)


def _write_decoder(vae: Any, mixing: Any) -> None:
    import torch

    _clear(vae.post_quant_conv)
    vae.post_quant_conv.weight[..., 0, 0, 0] = torch.eye(LATENT_CHANNELS)
    # The pseudo-inverse of the mixing: its columns are orthogonal.
    _write_entrance(vae.decoder, (mixing / mixing.square().sum(0)).T)
    _write_exit(vae.decoder, torch.eye(3))


def _write_entrance(coder: Any, colours: Any) -> None:
    """Args: `colours`: `[3, channels]`, what red, green and blue are made of."""
    entrance = coder.conv_in.conv
    _clear(entrance)
    entrance.weight[:3, :, -1, 1, 1] = colours
    entrance.weight[3:6, :, -1, 1, 1] = -colours
    entrance.bias[6] = CARRIER
    entrance.bias[7] = -CARRIER


def _write_exit(coder: Any, mixing: Any) -> None:
    """Args: `mixing`: `[channels, 3]`, what the first output channels make of red, green and blue."""
    coder.conv_norm_out.weight[:] = CARRIER * math.sqrt(2 / WIDTH)  # the deviation: two of eight values are not small
    leaving = coder.conv_out.conv
    _clear(leaving)
    leaving.weight[: len(mixing), :3, -1, 1, 1] = mixing
    leaving.weight[: len(mixing), 3:6, -1, 1, 1] = -mixing


def _per_channel(convolution: Any, along: tuple[float, ...], across: tuple[float, ...]) -> None:
    """Every channel alone, through `along` in time and `across` in both directions of space."""
    import torch

    _clear(convolution)
    time, space = torch.tensor(along), torch.tensor(across)
    for channel in range(WIDTH):
        convolution.weight[channel, channel] = torch.einsum("t,h,w->thw", time, space, space)


def _clear(module: Any) -> None:
    module.weight.zero_()
    module.bias.zero_()
