"""Cross-frame representation alignment (CREPA) as pure functions: how alike hidden states and teacher features are.

Hwang et al. 2025 (arXiv 2506.09229), eq. 6, with `y` the features that a frozen image encoder has of a clean frame, `h`
the hidden states of one block and `P` a small projector:

    L_align = -E sum_f [ sim(y_f, P(h_f)) + sum_{k in K(f)} exp(-|k - f| / tau) sim(y_k, P(h_f)) ]

Shape suffixes: B batch, T latent frames, H and W height and width of the grid of tokens, E width of a feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Neighbours:
    """Which other frames' features a frame is aligned with, and how strongly.

    Attributes:
        distance: in latent frames; 0 = each frame is aligned with its own features only.
        tau: decay of a neighbour's weight `exp(-distance / tau)`, above 0.
        cumulative: all frames up to `distance` instead of those at exactly that distance.
        normalised: divide a frame's sum by the sum of its weights, its own 1 included, so that it stays in [-1, 1]. It
            is no part of the paper.
    """

    distance: int = 1
    tau: float = 1.0
    cumulative: bool = False
    normalised: bool = False

    def offsets(self, frames: int) -> list[int]:
        """Distances to both sides, within a clip of so many frames."""
        first = 1 if self.cumulative else max(1, self.distance)
        return list(range(first, min(self.distance, frames - 1) + 1))

    def weight(self, offset: int) -> float:
        """Weight of a neighbour so many frames away."""
        return math.exp(-offset / self.tau)


@dataclass(frozen=True)
class Likeness:
    """How alike projected states and features are.

    Attributes:
        score: of each sample what is to be maximised, `[B]`.
        own: mean similarity of each sample's frames to their own features, in [-1, 1], `[B]`.
    """

    score: torch.Tensor
    own: torch.Tensor


def likeness(
    projected: torch.Tensor,
    features: torch.Tensor,
    neighbours: Neighbours,
    *,
    by_frames: bool = True,
    weight: torch.Tensor | None = None,
) -> Likeness:
    """The bracket of eq. 6, summed over frames, for each sample.

    Args:
        projected: `P(h)`, `[B, T, H, W, E]`.
        features: `y`, of the same shape.
        by_frames: divide the sum by the number of frames.
        weight: share of each position in the mean over a frame, in [0, 1], `[B, T, H, W]`; a frame without any counts
            as 0. None = all the same.
    """
    ours, theirs = _unit(projected).flatten(2, 3), _unit(features).flatten(2, 3)
    share = _shares(weight, ours)
    frames = ours.shape[1]

    def similar(first: slice, second: slice) -> torch.Tensor:
        """Mean cosine of our frames `first` and their frames `second`, `[B, t]`."""
        return ((ours[:, first] * theirs[:, second]).sum(-1) * share[:, first]).sum(-1)

    own = similar(slice(None), slice(None))
    terms, total = [own], own.new_ones(frames)
    for offset in neighbours.offsets(frames):
        factor = neighbours.weight(offset)
        early, late = slice(None, -offset), slice(offset, None)
        for mine, other, padding in ((early, late, (0, offset)), (late, early, (offset, 0))):
            terms.append(factor * torch.nn.functional.pad(similar(mine, other), padding))
            total[mine] += factor
    score = torch.stack(terms).sum(0)
    if neighbours.normalised:
        score = score / total
    score = score.sum(1)
    return Likeness(score / frames if by_frames else score, own.mean(1))


def resized(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A grid of vectors as a grid of another size over the same picture.

    Each new cell is the mean of what it covers, by area: where it is smaller than the old ones, the one it lies in. Two
    products of matrices do it, which give the same bits every time, forward and backward.

    Args:
        grid: `[..., H, W, E]`.

    Returns:
        `[..., height, width, E]`.
    """
    if grid.shape[-2] != width:
        grid = torch.matmul(_areas(grid, grid.shape[-2], width), grid)
    if grid.shape[-3] != height:
        rows = grid.flatten(-2)  # [..., H, W E]
        grid = torch.matmul(_areas(grid, grid.shape[-3], height), rows).unflatten(-1, grid.shape[-2:])
    return grid


def _areas(like: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Share of each of `old` equal parts in each of `new` equal parts of the same length, `[new, old]`."""
    edges = torch.arange(old + 1, dtype=torch.float64) / old
    bounds = torch.arange(new + 1, dtype=torch.float64) / new
    end = torch.minimum(bounds[1:, None], edges[None, 1:])
    start = torch.maximum(bounds[:-1, None], edges[None, :-1])
    return ((end - start).clamp_min(0.0) * new).to(like)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _shares(weight: torch.Tensor | None, ours: torch.Tensor) -> torch.Tensor:
    """What each position counts in the mean over its frame, `[B, T, H W]`."""
    if weight is None:
        return ours.new_full(ours.shape[:-1], 1.0 / ours.shape[2])
    flat = weight.to(ours.dtype).flatten(2)
    return flat / flat.sum(-1, keepdim=True).clamp_min(1e-8)
