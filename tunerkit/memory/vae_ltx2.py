"""LTX-2's video VAE (`AutoencoderKLLTX2Video` of 2.0 and 2.3) a few frames at a time.

The encoder is causal; the decoder looks one frame ahead in every convolution. Whatever looks across time is a
convolution of three frames or a change of the frame rate, so both run exactly in parts: see `vae_stream`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch

from tunerkit.memory.vae_sizes import Parts
from tunerkit.memory.vae_stream import (
    Beside,
    Compute,
    Convolution,
    DropFirst,
    EachFrame,
    Grouped,
    RepeatFirst,
    Stage,
    collected,
    finished,
    pushed,
)


def obstacle(config: Any) -> str:
    """Why a VAE of this configuration cannot work in parts; empty where it can."""
    noise = config.decoder_inject_noise
    if noise if isinstance(noise, bool) else any(noise):
        return "its decoder adds noise (decoder_inject_noise), which every part would draw anew"
    if config.timestep_conditioning:
        return "its decoder is told a timestep (timestep_conditioning)"
    if config.patch_size_t != 1:
        return f"it joins {config.patch_size_t} frames into one before the first layer (patch_size_t)"
    if "conv" in config.downsample_type:
        return "it halves frames with strided convolutions (downsample_type conv)"
    return ""


def encode(encoder: Any, parts: Parts, x: torch.Tensor, causal: bool | None = None) -> torch.Tensor:
    """What `LTX2VideoEncoder3d` makes of `x`.

    Args:
        parts: how the frames are divided.
        x: `[B, 3, T, H, W]`.
        causal: as the encoder takes it.
    """
    causal = bool(causal or encoder.is_causal)
    stages: list[Stage] = [
        EachFrame(lambda frames: _patched(frames, encoder.patch_size)),
        _convolution(encoder.conv_in, causal),
    ]
    downs = 0
    for block in encoder.down_blocks:
        stages += _resnets(block.resnets, causal)
        for down in block.downsamplers or ():
            stages += _downsampler(down, causal)
            downs += down.stride[0] == 2
    stages += _resnets(encoder.mid_block.resnets, causal)
    stages.append(_convolution(encoder.conv_out, causal, lambda frames: encoder.conv_act(encoder.norm_out(frames))))
    made = _run(stages, x, parts.limit(x), (x.shape[2] - 1) // 2**downs + 1)
    # One log-variance for all channels.
    return torch.cat([made, made[:, -1:].expand(-1, made.shape[1] - 2, -1, -1, -1)], dim=1)


def decode(decoder: Any, parts: Parts, z: torch.Tensor, *_: None, causal: bool | None = None) -> torch.Tensor:
    """What `LTX2VideoDecoder3d` makes of `z`.

    Args:
        parts: how the frames are divided.
        z: `[B, C, t, h, w]`.
        causal: as the decoder takes it.
    """
    causal = bool(causal or decoder.is_causal)
    stages: list[Stage] = [_convolution(decoder.conv_in, causal), *_resnets(decoder.mid_block.resnets, causal)]
    ups = 0
    for block in decoder.up_blocks:
        if block.conv_in is not None:
            stages += _resnets([block.conv_in], causal)
        for up in block.upsamplers or ():
            stages += _upsampler(up, causal)
            ups += up.stride[0] == 2
        stages += _resnets(block.resnets, causal)
    stages.append(_convolution(decoder.conv_out, causal, lambda frames: decoder.conv_act(decoder.norm_out(frames))))
    stages.append(EachFrame(lambda frames: _unpatched(frames, decoder.patch_size)))
    return _run(stages, z, parts.limit(z), (z.shape[2] - 1) * 2**ups + 1)


def _run(stages: Sequence[Stage], x: torch.Tensor, limit: int, frames: int) -> torch.Tensor:
    return collected(chain(pushed(stages, x, limit), finished(stages, limit)), frames)


# Layers ----------------------------------------------------------------------------------------------------------


def _convolution(layer: Any, causal: bool, prepare: Compute | None = None) -> Convolution:
    kernel = layer.kernel_size[0]
    before, after = (kernel - 1, 0) if causal else ((kernel - 1) // 2, (kernel - 1) // 2)
    return Convolution(layer.conv, kernel=kernel, before=before, after=after, prepare=prepare)


def _resnets(blocks: Iterable[Any], causal: bool) -> Iterator[Stage]:
    return (_resnet(block, causal) for block in blocks)


def _resnet(block: Any, causal: bool) -> Stage:
    def combine(made: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        if block.norm3 is not None:
            taken = block.norm3(taken.movedim(1, -1)).movedim(-1, 1)
        if block.conv_shortcut is not None:
            taken = block.conv_shortcut(taken)
        return made + taken

    first = _convolution(block.conv1, causal, lambda x: block.nonlinearity(block.norm1(x)))
    second = _convolution(block.conv2, causal, lambda x: block.nonlinearity(block.norm2(x)))
    return Beside([first, second], combine)


def _downsampler(down: Any, causal: bool) -> list[Stage]:
    """Positions (and, with stride 2 in time, pairs of frames) into channels, beside their mean."""
    stride = down.stride

    def combine(made: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        mean = _gathered(taken, stride).unflatten(1, (-1, down.group_size)).mean(dim=2)
        return _gathered(made, stride) + mean

    whole: list[Stage] = [_convolution(down.conv, causal)]
    if stride[0] == 1:
        return [Beside(whole, combine)]
    return [RepeatFirst(stride[0] - 1), Beside([*whole, Grouped(stride[0])], combine)]


def _upsampler(up: Any, causal: bool) -> list[Stage]:
    """Channels into positions (and, with stride 2 in time, pairs of frames), beside the input spread likewise."""
    stride = up.stride
    repeats = stride[0] * stride[1] * stride[2] // up.upscale_factor

    def combine(made: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        spread = _spread(made, stride)
        return spread + _spread(taken, stride).repeat(1, repeats, 1, 1, 1) if up.residual else spread

    return [Beside([_convolution(up.conv, causal)], combine), DropFirst(stride[0] - 1)]


def _gathered(x: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """`[B, C, T*s, H*u, W*v]` -> `[B, C*s*u*v, T, H, W]`."""
    x = x.unflatten(4, (-1, stride[2])).unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _spread(x: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """`[B, C*s*u*v, T, H, W]` -> `[B, C, T*s, H*u, W*v]`."""
    x = x.unflatten(1, (-1, *stride))
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _patched(x: torch.Tensor, size: int) -> torch.Tensor:
    """`[B, C, T, H*p, W*p]` -> `[B, C*p*p, T, H, W]`; within a channel the column counts before the row."""
    x = x.unflatten(4, (-1, size)).unflatten(3, (-1, size))
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unpatched(x: torch.Tensor, size: int) -> torch.Tensor:
    """The reverse of `_patched`."""
    x = x.unflatten(1, (-1, size, size))
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
