"""The HunyuanVideo VAE (`AutoencoderKLHunyuanVideo`) a few frames at a time.

Its group norms take their statistics over all frames of a clip (or of each piece of 17 frames that the class cuts a
longer one into): no frame can pass a norm before the last one has arrived, so the network cannot be run from end to end
in parts. Layer after layer can. First the statistics are gathered from all frames, then norm, activation and
convolution go over the frames in parts (see `vae_stream`), and what they make takes the place of what is no longer
needed. A residual block has two whole activations at a time, or one where its first convolution is computed twice, once
for the statistics of what it makes. In the attention each frame's queries meet the frames that they may see, in place
of a mask of all positions against all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import starmap
from typing import Any

import torch
from torch.nn import functional

from tunerkit.memory.vae_sizes import Parts
from tunerkit.memory.vae_stream import Beside, Compute, Convolution, DropFirst, EachFrame, Stage, collected, pushed

Step = Callable[[torch.Tensor], torch.Tensor]

SCORES = 2**26
"""Most attention scores of a sample at a time: 128 MiB in bfloat16."""


def obstacle(_config: Any) -> str:
    """Why a VAE of this configuration cannot work in parts; empty where it can."""
    return ""


def encode(encoder: Any, parts: Parts, x: torch.Tensor) -> torch.Tensor:
    """What `HunyuanVideoEncoder3D` makes of `x`.

    Args:
        parts: how the frames are divided; with `smallest`, residual blocks compute their first convolution twice.
        x: `[B, 3, T, H, W]`.
    """
    limit, twice = parts.limit(x), parts.smallest
    steps: list[Step] = [partial(_over, [_convolution(encoder.conv_in)], limit=limit)]
    for block in encoder.down_blocks:
        steps += _resnets(block.resnets, limit, twice)
        steps += [partial(_downsampled, down, limit=limit) for down in block.downsamplers or ()]
    steps += [*_middle(encoder.mid_block, limit, twice), partial(_end, encoder, limit=limit)]
    for step in steps:
        x = step(x)
    return x


def decode(decoder: Any, parts: Parts, z: torch.Tensor) -> torch.Tensor:
    """What `HunyuanVideoDecoder3D` makes of `z`, `[B, C, t, h, w]`.

    Args:
        parts: as for `encode`; with `smallest`, what is enlarged is never there as a whole before it is narrower.
        z: latents.
    """
    limit, twice = parts.limit(z), parts.smallest
    steps: list[Step] = [partial(_over, [_convolution(decoder.conv_in)], limit=limit)]
    steps += _middle(decoder.mid_block, limit, twice)
    up: Any = None
    for block in decoder.up_blocks:
        first, *rest = block.resnets
        if up is not None and not twice:
            steps.append(partial(_upsampled, up, limit=limit))
        steps.append(partial(_resnet, first, limit=limit, twice=twice, up=up if twice else None))
        steps += _resnets(rest, limit, twice)
        (up,) = block.upsamplers or (None,)
    steps.append(partial(_end, decoder, limit=limit))
    for step in steps:
        z = step(z)
    return z


# Layers: each takes the whole of an activation and may use up its memory --------------------------------------------


def _over(stages: Sequence[Stage], x: torch.Tensor, limit: int, frames: int | None = None) -> torch.Tensor:
    """What the stages make of `x`: so many `frames`, or as many as there are in `x`."""
    return collected(pushed(stages, x, limit), frames or x.shape[2])


def _downsampled(down: Any, x: torch.Tensor, limit: int) -> torch.Tensor:
    return _over([_convolution(down.conv)], x, limit, (x.shape[2] - 1) // down.conv.conv.stride[0] + 1)


def _upsampled(up: Any, x: torch.Tensor, limit: int) -> torch.Tensor:
    return _over(_upsampling(up), x, limit, _enlarged(up, x.shape[2]))


def _upsampling(up: Any) -> list[Stage]:
    """A `HunyuanVideoUpsampleCausal3D`: every frame becomes `upsample_factor[0]`, but the first one."""

    def spread(part: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(part.contiguous(), scale_factor=up.upsample_factor, mode="nearest")

    return [EachFrame(spread), DropFirst(int(up.upsample_factor[0]) - 1), _convolution(up.conv)]


def _enlarged(up: Any, frames: int) -> int:
    return (frames - 1) * int(up.upsample_factor[0]) + 1


def _end(coder: Any, x: torch.Tensor, limit: int) -> torch.Tensor:
    norm = _Norm(coder.conv_norm_out, [x])
    return _over([_convolution(coder.conv_out, lambda part: coder.conv_act(norm(part)))], x, limit)


def _middle(block: Any, limit: int, twice: bool) -> Iterator[Step]:
    yield from _resnets(block.resnets[:1], limit, twice)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield partial(_attended, attention)
        yield from _resnets([resnet], limit, twice)


def _resnets(blocks: Iterable[Any], limit: int, twice: bool) -> Iterator[Step]:
    return (partial(_resnet, block, limit=limit, twice=twice) for block in blocks)


def _resnet(block: Any, x: torch.Tensor, limit: int, twice: bool, up: Any = None) -> torch.Tensor:
    """A `HunyuanVideoResnetBlockCausal3D`; with `twice` after the upsampler `up`, if there is one."""

    def before() -> list[Stage]:
        return [] if up is None else _upsampling(up)

    def first() -> Stage:
        return _convolution(block.conv1, lambda part: block.nonlinearity(norm1(part)))

    def combine(made: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        return made + (part if block.conv_shortcut is None else block.conv_shortcut.conv(part))

    norm1 = _Norm(block.norm1, pushed(before(), x, limit))
    frames = x.shape[2] if up is None else _enlarged(up, x.shape[2])
    if not twice:
        middle = _over([first()], x, limit)
        norm2 = _Norm(block.norm2, [middle])
        second = _convolution(block.conv2, lambda part: block.nonlinearity(norm2(part)))
        made = pushed([second], middle, limit)
        return collected(starmap(combine, zip(made, x.split(limit, dim=2), strict=True)), frames, middle)
    norm2 = _Norm(block.norm2, pushed([*before(), first()], x, limit))
    second = _convolution(block.conv2, lambda part: block.nonlinearity(norm2(part)))
    made = pushed([*before(), Beside([first(), second], combine)], x, limit)
    channels = block.conv2.conv.out_channels
    # Frames that have been read may be overwritten.
    return collected(made, frames, x if up is None and channels == x.shape[1] else None)


def _attended(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """Attention over positions of all frames up to a position's own, as the class's causal mask has it."""
    hidden = _Norm(attention.group_norm, [x])(x).permute(0, 2, 3, 4, 1).flatten(1, 3)
    query, key, value = (
        project(hidden).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    frame = x.shape[3] * x.shape[4]
    for seen in range(frame, hidden.shape[1] + 1, frame):
        for rows in query[:, :, seen - frame : seen].split(max(1, SCORES // (seen * attention.heads)), dim=2):
            # Each row is a query for itself, so what it finds can take its place.
            rows.copy_(functional.scaled_dot_product_attention(rows, key[:, :, :seen], value[:, :, :seen]))
    found = attention.to_out[0](query.transpose(1, 2).flatten(2)).unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)
    return (found + x) / attention.rescale_output_factor


def _convolution(layer: Any, prepare: Compute | None = None) -> Convolution:
    """A `HunyuanVideoCausalConv3d`: the first frame stands before itself, edges are repeated."""
    edges = (*layer.time_causal_padding[:4], 0, 0)

    def padded(part: torch.Tensor) -> torch.Tensor:
        return functional.pad(part if prepare is None else prepare(part), edges, mode=layer.pad_mode)

    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    return Convolution(layer.conv, kernel=kernel, stride=stride, before=kernel - 1, prepare=padded)


class _Norm:
    """A group norm with the statistics of a whole clip, for parts of it.

    Args:
        norm: the layer.
        parts: all frames of the clip, `[B, C, n, H, W]` each.
    """

    def __init__(self, norm: Any, parts: Iterable[torch.Tensor]) -> None:
        self._norm = norm
        # Of every frame, `[B, groups]`. All frames have equally many values, so the variance of all is the mean of
        # the variances within the frames plus the variance of their means.
        each = [_moments(frame, norm.num_groups) for part in parts for frame in part.unbind(2)]
        within, means = (torch.stack(one) for one in zip(*each, strict=True))
        self._mean = means.mean(dim=0)
        self._variance = within.mean(dim=0) + (means - self._mean).square().mean(dim=0)

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        batch, channels = part.shape[:2]
        each, dtype = channels // self._norm.num_groups, self._mean.dtype
        mean, variance = (one.repeat_interleave(each, dim=1).flatten() for one in (self._mean, self._variance))
        weight, bias = (one.to(part.device, dtype).repeat(batch) for one in (self._norm.weight, self._norm.bias))
        # The same formula with the statistics given: one channel for each of every sample.
        flat = part.reshape(1, batch * channels, *part.shape[2:])
        return functional.batch_norm(flat, mean, variance, weight, bias, eps=self._norm.eps).view(part.shape)


def _moments(frame: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean of every group, `[B, groups]`, of a frame `[B, C, H, W]`; in float32 at least."""
    frame = frame if frame.dtype == torch.float64 else frame.float()
    return torch.var_mean(frame.unflatten(1, (groups, -1)), dim=(2, 3, 4), correction=0)
