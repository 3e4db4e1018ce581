"""Made-up sound for clips that have none: steady tones that a small model can learn to tell apart."""

from __future__ import annotations

import numpy as np

LOUDNESS = 0.2
"""Peak of the strongest side; full scale is 1."""
FADE = 0.01
"""Seconds of fading at both ends, so that a tone does not begin with a click."""


def tone(samples: int, rate: int, pitch: float, harmonics: tuple[float, ...], place: np.ndarray | float) -> np.ndarray:
    """A steady tone somewhere between left and right.

    Args:
        samples: length of the result.
        rate: samples per second.
        pitch: frequency of the first harmonic in Hz.
        harmonics: strength of the first, second, ... harmonic; those above half the rate must be zero.
        place: 0 is left, 1 is right; one number, or one for each sample.

    Returns:
        float32 `[samples, 2]` in -1..1, of constant power wherever it stands.
    """
    seconds = np.arange(samples) / rate
    wave = np.zeros(samples)
    for number, strength in enumerate(harmonics, start=1):
        wave += strength * np.sin(2 * np.pi * number * pitch * seconds)
    edge = np.minimum(seconds, (samples - 1) / rate - seconds)
    wave *= np.clip(edge / FADE, 0, 1) * LOUDNESS / sum(harmonics)
    angle = np.pi / 2 * np.broadcast_to(place, samples)
    return np.stack([wave * np.cos(angle), wave * np.sin(angle)], axis=1).astype(np.float32)
