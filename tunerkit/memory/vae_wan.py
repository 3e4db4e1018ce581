"""The Wan 2.1 VAE (`AutoencoderKLWan`) a few frames at a time.

The class gives its encoder four frames at a time and its decoder one latent frame, and keeps the history of every
convolution in a list. Here the four frames go through the layers in smaller parts, and the four that the decoder makes
of one are not at full resolution at the same time: see `vae_stream`. The stages take the history's place in that list,
so they live as long as it does: for one clip, or one tile of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tunerkit.memory.vae_sizes import Parts
from tunerkit.memory.vae_stream import Beside, Compute, Convolution, EachFrame, Stage, collected, pushed


def obstacle(config: Any) -> str:
    """Why a VAE of this configuration cannot work in parts; empty where it can."""
    return "its blocks have shortcuts across time (is_residual, Wan 2.2)" if config.is_residual else ""


def encode(encoder: Any, parts: Parts, x: torch.Tensor, *, feat_cache: list[Any], **_: Any) -> torch.Tensor:
    """What `WanEncoder3d` makes of the frames that follow those it was given with the same `feat_cache`.

    Args:
        parts: how they are divided.
        x: `[B, C, n, H, W]`: one frame at first, then four at a time.
        feat_cache: as the encoder takes it.
    """
    if feat_cache[0] is None:
        feat_cache[0] = list(_encoder(encoder))
    return collected(pushed(feat_cache[0], x, parts.limit(x)), max(1, x.shape[2] // 4))


def decode(
    decoder: Any, parts: Parts, z: torch.Tensor, *, feat_cache: list[Any], first_chunk: bool = False, **_: Any
) -> torch.Tensor:
    """What `WanDecoder3d` makes of the latent frame that follows those it was given with the same `feat_cache`.

    Args:
        parts: how the frames that it becomes are divided.
        z: `[B, C, 1, h, w]`.
        feat_cache, first_chunk: as the decoder takes them.
    """
    if feat_cache[0] is None:
        feat_cache[0] = list(_decoder(decoder))
    return collected(pushed(feat_cache[0], z, parts.limit(z)), 1 if first_chunk else 4)


# Layers ----------------------------------------------------------------------------------------------------------


def _encoder(encoder: Any) -> Iterator[Stage]:
    yield _convolution(encoder.conv_in)
    for layer in (*encoder.down_blocks, *_middle(encoder.mid_block)):
        yield from _stages(layer)
    yield _convolution(encoder.conv_out, lambda x: encoder.nonlinearity(encoder.norm_out(x)))


def _decoder(decoder: Any) -> Iterator[Stage]:
    yield _convolution(decoder.conv_in)
    ups = [layer for block in decoder.up_blocks for layer in (*block.resnets, *(block.upsamplers or ()))]
    for layer in (*_middle(decoder.mid_block), *ups):
        yield from _stages(layer)
    yield _convolution(decoder.conv_out, lambda x: decoder.nonlinearity(decoder.norm_out(x)))


def _middle(block: Any) -> Iterator[Any]:
    yield block.resnets[0]
    for pair in zip(block.attentions, block.resnets[1:], strict=True):
        yield from pair


def _stages(layer: Any) -> list[Stage]:
    if type(layer).__name__ == "WanResidualBlock":
        first = _convolution(layer.conv1, lambda x: layer.nonlinearity(layer.norm1(x)))
        second = _convolution(layer.conv2, lambda x: layer.nonlinearity(layer.norm2(x)))
        return [Beside([first, second], lambda made, taken: made + layer.conv_shortcut(taken))]
    # Without a history the class changes the picture alone; attention is within a frame.
    mode = getattr(layer, "mode", "")
    if mode == "upsample3d":
        return [Doubled(layer), EachFrame(layer)]
    return [EachFrame(layer), Halved(layer)] if mode == "downsample3d" else [EachFrame(layer)]


class Halved(Stage):
    """Half the frame rate: the first frame stays, then two frames become one, with a look at the one before."""

    def __init__(self, layer: Any) -> None:
        self._along = _convolution(layer.time_conv, before=0)
        self._first = True

    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        made = self._along.push(x)
        first, self._first = self._first, False
        return x if first else made


class Doubled(Stage):
    """Twice the frame rate: the first frame stays, and the convolution never sees it; then one frame becomes two."""

    def __init__(self, layer: Any) -> None:
        self._along = _convolution(layer.time_conv)
        self._first = True

    def push(self, x: torch.Tensor) -> torch.Tensor | None:
        if self._first:
            self._first = False
            return x
        made = self._along.push(x)
        # [B, 2C, n, H, W] -> [B, C, 2n, H, W]
        return None if made is None else made.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def _convolution(layer: Any, prepare: Compute | None = None, before: int = 2) -> Convolution:
    """A `WanCausalConv3d`, which sees zeros before the first frame."""
    padding = (0, layer._padding[2], layer._padding[0])

    def compute(x: torch.Tensor) -> torch.Tensor:
        # The class itself would copy the frames twice more: once for the history and once for the zeros at the edges.
        weight, bias = layer.weight.to(x.device), layer.bias.to(x.device)
        return torch.nn.functional.conv3d(x, weight, bias, layer.stride, padding)

    kernel, stride = layer.kernel_size[0], layer.stride[0]
    return Convolution(compute, kernel=kernel, stride=stride, before=before, from_zero=True, prepare=prepare)
