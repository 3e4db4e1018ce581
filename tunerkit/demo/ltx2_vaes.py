"""LTX-2's two autoencoders with weights that are written down instead of trained: they average.

Random weights would decode to noise whatever went in. Here the encoder of the video takes the mean colour of every
32x32 pixels x 8 frames (the real compression) and its decoder interpolates between those colours; the encoder of the
sound takes the mean of every 4 frames x 4 bins of the log-mel spectrogram, one latent channel for each side of the
stereo picture. Normalised by the checkpoint's `latents_mean` and `latents_std`, latents have roughly unit variance.

How values pass the nonlinear parts unchanged:

* residual branches end in zero weights, so only the shortcuts carry anything;
* a constant carrier, large against the values, makes the last RMS norm a division by that constant;
* after it the values are so small that SiLU(x) = x / 2 + x^2 / 4 + ... is its first term, to half a percent;
* a border padded with zeros dims values and carrier alike, so the division restores it.
"""

from __future__ import annotations

import math
from typing import Any

LATENT_CHANNELS = 16
"""Of the video; the real model has 128. Encoder layers are as wide."""
SMALL = 2.0**-10
"""What colours (-1..1) are multiplied with, against a carrier of 1."""
LATENT_GAIN = 1.5
"""Brings natural clips (mean square about 0.3 per colour) to about unit variance in the normalised latents."""
LOG_VARIANCE = -6.0
"""Of the posteriors: a standard deviation of 0.05, so that a sample stays close to the mode."""

SIDES = 2
"""Left and right: the channels of the spectrogram, and of the audio latents."""
MEL_BINS = 64
LATENT_BINS = MEL_BINS // 4
AUDIO_WIDTH = SIDES * LATENT_BINS
"""Width of the audio layers. The class gives `latents_mean` as many entries as layers have channels, and the packed
latents need one for each of their values: channel * 16 + bin."""
SMALL_SOUND = 2.0**-16
"""The same for log-mel values (-11.5..5)."""

_VIDEO_VERSIONS: dict[str, dict[str, Any]] = {
    "2.0": {
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_spatial_padding_mode": "reflect",
    },
    "2.3": {
        "decoder_block_out_channels": (8, 16, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    },
}
"""How the decoders of the two versions differ. A decoder's last block is 8 / 2 channels wide: three colours and the
carrier."""


def averaging_video_vae(version: str) -> Any:  # AutoencoderKLLTX2Video
    """An `AutoencoderKLLTX2Video` in the real geometry: 32x in space, 8x in time, causal encoder.

    Weights that take no part keep their random initialisation, so seed torch before the call.

    Args:
        version: "2.0" or "2.3".
    """
    import torch
    from diffusers import AutoencoderKLLTX2Video

    vae: Any = AutoencoderKLLTX2Video(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(LATENT_CHANNELS,) * 4,
        layers_per_block=(1, 1, 1, 1, 1),
        patch_size=4,
        encoder_causal=True,
        decoder_causal=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        **_VIDEO_VERSIONS[version],
    )
    with torch.no_grad():
        channel = torch.arange(LATENT_CHANNELS)
        vae.latents_mean.copy_(0.25 * torch.cos(channel.double()))
        vae.latents_std.copy_(0.8 + 0.4 * torch.sin(channel.double()).square())
        for module in vae.modules():
            kind = type(module).__name__
            if kind == "LTX2VideoResnetBlock3d":
                _clear(module.conv2.conv)
            elif kind == "LTX2VideoDownsampler3d":
                _clear(module.conv.conv)  # what is left is the mean of every group of pixels and frames
            elif kind == "LTX2VideoUpsampler3d":
                _write_upsampler(module)
        _write_video_encoder(vae)
        _write_video_decoder(vae)
    return vae


def colour_mixing() -> Any:  # torch.Tensor
    """`[16, 3]` float64: how much of red, green and blue each normalised latent channel holds.

    Cosines of three frequencies over the channels. The columns are orthogonal, so decoding averages over all channels,
    and with them over the noise of an unfinished denoising.
    """
    import torch

    channel = torch.arange(LATENT_CHANNELS, dtype=torch.float64)[:, None]
    colour = torch.arange(1, 4, dtype=torch.float64)[None]
    return torch.cos(math.pi * colour * (channel + 0.5) / LATENT_CHANNELS) * LATENT_GAIN


def averaging_audio_vae() -> Any:  # AutoencoderKLLTX2Audio
    """An `AutoencoderKLLTX2Audio` for the real spectrogram: 64 bins, 16 kHz, hop 160, 4x in time and in bins.

    Weights that take no part keep their random initialisation, so seed torch before the call.
    """
    import torch
    from diffusers import AutoencoderKLLTX2Audio

    vae: Any = AutoencoderKLLTX2Audio(
        base_channels=AUDIO_WIDTH,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=SIDES,
        in_channels=SIDES,
        output_channels=SIDES,
        mel_bins=MEL_BINS,
    )
    with torch.no_grad():
        # Sound falls by about 5 from the lowest to the highest bins; level and spread are those of the demo's clips.
        vae.latents_mean.copy_(torch.linspace(-5, -10, LATENT_BINS).repeat(SIDES))
        vae.latents_std.copy_(torch.linspace(3, 2, LATENT_BINS).repeat(SIDES))
        for module in vae.modules():
            kind = type(module).__name__
            if kind == "LTX2AudioResnetBlock":
                _clear(module.conv2.conv)
            elif kind == "LTX2AudioDownsample":
                # Two zeros stand before the first frame, one behind the last bin: pairs end at the frame itself.
                _clear(module.conv)
                _per_channel(module.conv, _outer((0.0, 0.5, 0.5), (0.5, 0.5, 0.0)))
            elif kind == "LTX2AudioUpsample":
                # Behind doubling: frames are held, bins are interpolated. The class drops the first frame.
                _clear(module.conv.conv)
                _per_channel(module.conv.conv, _outer((0.0, 0.0, 1.0), (0.25, 0.5, 0.25)))
        for coder in (vae.encoder, vae.decoder):
            _clear(coder.conv_in.conv)
            _clear(coder.conv_out.conv)
            gain = _restore(SMALL_SOUND, AUDIO_WIDTH)
            for side in range(SIDES):
                coder.conv_in.conv.weight[side, side, -1, 1] = SMALL_SOUND
                coder.conv_out.conv.weight[side, side, -1, 1] = gain
            coder.conv_in.conv.bias[SIDES] = 1.0
        vae.encoder.conv_out.conv.bias[SIDES:] = LOG_VARIANCE
    return vae


def _write_video_encoder(vae: Any) -> None:
    encoder = vae.encoder
    into, out = encoder.conv_in.conv, encoder.conv_out.conv
    pixels = into.in_channels // 3  # of a patch; the input is ordered by colour first
    _clear(into)
    for colour in range(3):
        # The last tap in time is the frame itself: the convolution is causal.
        into.weight[colour, colour * pixels : (colour + 1) * pixels, -1, 1, 1] = SMALL / pixels
    into.bias[3] = 1.0
    _clear(out)
    mixing = colour_mixing() * vae.latents_std.double()[:, None]
    out.weight[:LATENT_CHANNELS, :3, -1, 1, 1] = mixing * _restore(SMALL, LATENT_CHANNELS)
    out.bias[:LATENT_CHANNELS] = vae.latents_mean
    out.bias[LATENT_CHANNELS] = LOG_VARIANCE


def _write_video_decoder(vae: Any) -> None:
    decoder = vae.decoder
    into, out = decoder.conv_in.conv, decoder.conv_out.conv
    _clear(into)
    # The columns of the mixing are orthogonal, so this is its pseudo-inverse.
    mixing = colour_mixing()
    unmixing = (mixing / mixing.square().sum(0)).T / vae.latents_std.double()
    into.weight[:3, :, 1, 1, 1] = unmixing * SMALL
    into.bias[:3] = -(unmixing @ vae.latents_mean.double()) * SMALL
    into.bias[3] = 1.0
    _clear(out)
    pixels = out.out_channels // 3
    for colour in range(3):
        out.weight[colour * pixels : (colour + 1) * pixels, colour, 1, 1, 1] = _restore(SMALL, out.in_channels)


def _write_upsampler(module: Any) -> None:
    """Linear interpolation of the first four channels: a new sample lies a quarter step beside an old one."""
    import torch

    convolution = module.conv.conv
    _clear(convolution)
    positions = math.prod(module.stride)
    earlier, later = torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.0, 0.75, 0.25])
    taps = {1: [torch.tensor([0.0, 1.0, 0.0])], 2: [earlier, later]}
    time, height, width = (taps[step] for step in module.stride)
    kernels = [torch.einsum("t,h,w->thw", a, b, c) for a in time for b in height for c in width]
    for channel in range(4):
        for position, kernel in enumerate(kernels):
            convolution.weight[channel * positions + position, channel] = kernel
    if module.residual:
        # The shortcut deals input channels out over the positions, again and again; taken back here.
        sources = convolution.in_channels // positions
        for row in range(convolution.out_channels):
            channel, position = divmod(row, positions)
            convolution.weight[row, channel % sources * positions + position, 1, 1, 1] -= 1.0


def _restore(small: float, width: int) -> float:
    """What undoes `small`, the RMS norm over `width` channels of which one is 1, and the first term of SiLU."""
    return 2 / (small * math.sqrt(width))


def _outer(rows: tuple[float, ...], columns: tuple[float, ...]) -> Any:  # torch.Tensor
    import torch

    return torch.outer(torch.tensor(rows), torch.tensor(columns))


def _per_channel(convolution: Any, kernel: Any) -> None:
    for channel in range(convolution.in_channels):
        convolution.weight[channel, channel] = kernel


def _clear(convolution: Any) -> None:
    convolution.weight.zero_()
    convolution.bias.zero_()
