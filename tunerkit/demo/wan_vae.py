"""A Wan autoencoder whose weights are written down instead of trained: it averages, so its videos can be looked at.

Random weights would decode to noise whatever went in. Here the encoder takes the mean colour of every 8x8
pixels x 4 frames (the real compression), and the decoder interpolates between those colours: blurred, but
recognisably the clip. Latents come out with roughly unit variance under the real model's `latents_mean` and
`latents_std`.

How colours pass the network's nonlinear parts unchanged:

* residual and attention branches end in zero weights, so only the shortcuts carry anything;
* a constant carrier channel, large against the colours, makes the final RMS norm a division by that constant;
* colours are lifted from -1..1 to 1..3 and enter the final SiLU at 10..30, where it is the identity;
* a zero-padded border dims colours and carrier alike, so the division restores it.
"""

from __future__ import annotations

import math
from typing import Any

LATENT_CHANNELS = 16
WIDTH = 4
"""Channels of the outermost layers: red, green, blue, carrier. Inner layers are twice as wide, half of it idle."""

LIFT = 2.0
CARRIER = 64.0
"""The sum of three squared lifted colours is 27 at most, so the norm varies by 0.3 % between black and white."""
STEEPNESS = 10.0
"""SiLU(x) differs from x by 5e-4 at 10, where black arrives, and by less above."""

LATENT_GAIN = 1.5
"""Brings natural clips (mean square about 0.3 per colour) to about unit variance in the latents."""
LOG_VARIANCE = -6.0
"""Of the posterior: a standard deviation of 0.05, so that a sample stays close to the mode."""


def averaging_wan_vae() -> Any:  # AutoencoderKLWan
    """An `AutoencoderKLWan` in the real geometry (16 channels, 8x in space, 4x in time) with 62,000 parameters.

    Weights that take no part keep their random initialisation, so seed torch before the call.
    """
    import torch
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(
        base_dim=WIDTH,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    with torch.no_grad():
        for module in vae.modules():
            _write_block(module)
        _write_encoder(vae)
        _write_decoder(vae)
    return vae


def colour_mixing() -> Any:  # torch.Tensor
    """`[16, 3]` float64: how much of red, green and blue each normalised latent channel holds.

    Three cosines of different frequency over the channels: orthogonal columns, so that decoding averages over
        all 16
    channels, which also averages out the noise of an unfinished denoising.
    """
    import torch

    channel = torch.arange(LATENT_CHANNELS, dtype=torch.float64)[:, None]
    colour = torch.arange(1, 4, dtype=torch.float64)[None]
    return torch.cos(math.pi * colour * (channel + 0.5) / LATENT_CHANNELS) * LATENT_GAIN


def _write_block(module: Any) -> None:
    """What encoder and decoder have in common: branches silent, shortcuts open, resampling by mean and by tent."""
    import torch

    kind = type(module).__name__
    if kind == "WanAttentionBlock":
        _clear(module.proj)
    elif kind == "WanResidualBlock":
        _clear(module.conv2)
        if module.in_dim != module.out_dim:
            _clear(module.conv_shortcut)
            _per_channel(module.conv_shortcut, torch.ones(1, 1, 1))
    elif kind == "WanResample" and module.mode.startswith("downsample"):
        _clear(module.resample[1])
        _per_channel(module.resample[1], torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]]))
        if module.mode == "downsample3d":
            _clear(module.time_conv)  # sees the frame before and a pair; the mean of the pair
            _per_channel(module.time_conv, torch.tensor([0.0, 0.5, 0.5])[:, None, None])
    elif kind == "WanResample" and module.mode.startswith("upsample"):
        tent = torch.tensor([0.25, 0.5, 0.25])  # behind pixel doubling: linear interpolation
        _clear(module.resample[1])
        _per_channel(module.resample[1], tent[:, None] * tent[None])
        if module.mode == "upsample3d":
            _clear(module.time_conv)
            for copy in range(2):  # both new frames are the old one
                last = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
                _per_channel(module.time_conv, last, shift=copy * module.dim)


def _write_encoder(vae: Any) -> None:
    import torch

    encoder = vae.encoder
    _clear(encoder.conv_in)
    encoder.conv_in.weight[:3, :, -1, 1, 1] = torch.eye(3)  # the last tap in time is the frame itself: causal
    encoder.conv_in.bias[:] = torch.tensor([LIFT, LIFT, LIFT, CARRIER])
    _open_norm(encoder.norm_out)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in _statistics(vae))
    mixing = colour_mixing() * std[:, None]
    _clear(encoder.conv_out)
    encoder.conv_out.weight[:LATENT_CHANNELS, :3, -1, 1, 1] = mixing / STEEPNESS
    encoder.conv_out.bias[:LATENT_CHANNELS] = mean - LIFT * mixing.sum(1)
    encoder.conv_out.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    _clear(vae.quant_conv)
    vae.quant_conv.weight[:, :, 0, 0, 0] = torch.eye(2 * LATENT_CHANNELS)


def _write_decoder(vae: Any) -> None:
    import torch

    decoder = vae.decoder
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in _statistics(vae))
    _clear(vae.post_quant_conv)
    vae.post_quant_conv.weight[:, :, 0, 0, 0] = torch.diag(1 / std)
    vae.post_quant_conv.bias[:] = -mean / std
    mixing = colour_mixing()
    _clear(decoder.conv_in)
    # The pseudo-inverse of the mixing: its columns are orthogonal.
    decoder.conv_in.weight[:3, :, -1, 1, 1] = (mixing / mixing.square().sum(0)).T
    decoder.conv_in.bias[:WIDTH] = torch.tensor([LIFT, LIFT, LIFT, CARRIER])
    _open_norm(decoder.norm_out)
    _clear(decoder.conv_out)
    decoder.conv_out.weight[:, :3, -1, 1, 1] = torch.eye(3) / STEEPNESS
    decoder.conv_out.bias[:] = -LIFT


def _open_norm(norm: Any) -> None:
    """RMS norm: x / |x| * sqrt(width) * gamma, with |x| the carrier; a lifted colour leaves it times STEEPNESS."""
    norm.gamma[:] = STEEPNESS * CARRIER / norm.scale


def _statistics(vae: Any) -> tuple[list[float], list[float]]:
    return list(vae.config.latents_mean), list(vae.config.latents_std)


def _per_channel(convolution: Any, kernel: Any, shift: int = 0) -> None:
    """Every channel goes through `kernel` to the channel of the same number (+ `shift`), as far as there are two."""
    for channel in range(min(convolution.in_channels, convolution.out_channels)):
        convolution.weight[channel + shift, channel] = kernel


def _clear(module: Any) -> None:
    module.weight.zero_()
    if module.bias is not None:
        module.bias.zero_()
