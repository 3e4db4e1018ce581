"""Latents as rough pictures: the linear map from latent channels to red, green and blue that fits a few clips best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunerkit.errors import TunerkitError
from tunerkit.files import read_json, write_json

if TYPE_CHECKING:
    import torch

    from tunerkit.cache.entries import Cache
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family

CLIPS = 4
"""Clips that it is fitted to, at most."""
RIDGE = 1e-3
"""Added to the variance of each channel, which is about 1: with few places too, there is one answer."""


@dataclass(frozen=True)
class Projection:
    """Colours in [0, 1] of latents: `latents @ weights + bias`.

    Attributes:
        weights: float64 `[C, 3]`.
        bias: float64 `[3]`.
    """

    weights: np.ndarray
    bias: np.ndarray

    def pictures(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 `[T, H, W, 3]` of normalised latents `[C, T, H, W]` on the CPU."""
        channels_last = latents.permute(1, 2, 3, 0).double().numpy()
        return ((channels_last @ self.weights + self.bias) * 255).round().clip(0, 255).astype(np.uint8)


def projection_of(path: Path, family: Family, cache: Cache, samples: Sequence[Sample]) -> Projection:
    """The projection in the file `path`, which is made where there is none of the same clips.

    Args:
        samples: clips in the cache; some of them are taken, evenly spread.

    Raises:
        TunerkitError: there are none, or one cannot be read.
        OSError: the file cannot be written.
    """
    if not samples:
        raise TunerkitError("there are no clips to fit the colours of previews to")
    count = min(len(samples), CLIPS)
    chosen = [samples[place * len(samples) // count] for place in range(count)]
    made_of = sorted(cache.namer.latents(sample) for sample in chosen)
    stored = _stored(path, made_of)
    if stored is None:
        stored = fit([_pair(family, cache, sample) for sample in chosen])
        write_json(path, {"made_of": made_of, "weights": stored.weights.tolist(), "bias": stored.bias.tolist()})
    return stored


def fit(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Projection:
    """The projection with the least squared error: ridge regression on centred values.

    Args:
        pairs: latents `[N, C]` and the colours in [0, 1] of the same places `[N, 3]`.
    """
    latents, colours = (np.concatenate(columns).astype(np.float64) for columns in zip(*pairs, strict=True))
    middle, colour = latents.mean(0), colours.mean(0)
    centred = latents - middle
    squares = centred.T @ centred / len(centred) + RIDGE * np.eye(centred.shape[1])
    weights = np.linalg.solve(squares, centred.T @ (colours - colour) / len(centred))
    return Projection(weights, colour - middle @ weights)


def _pair(family: Family, cache: Cache, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Latents of a clip, and the mean colour of the pixels that each stands for."""
    from tunerkit.data.decode import decode
    from tunerkit.data.masks import latent_weights

    latents = cache.latents(sample)
    _, frames, height, width = latents.shape
    pixels = decode(sample)
    means = [latent_weights(pixels[..., c], frames, height, width, family.temporal_compression)[0] for c in range(3)]
    return latents.flatten(1).T.numpy(), np.stack(means, axis=-1).reshape(-1, 3)


def _stored(path: Path, made_of: list[str]) -> Projection | None:
    if not path.is_file():
        return None
    try:
        found: Any = read_json(path)
        if found["made_of"] != made_of:
            return None
        return Projection(np.asarray(found["weights"], np.float64), np.asarray(found["bias"], np.float64))
    except (TunerkitError, KeyError, TypeError, ValueError):  # cut off, or of another version
        return None
