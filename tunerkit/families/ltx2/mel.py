"""The log-mel spectrogram that LTX-2's audio VAE takes.

Magnitudes (not powers) of a centred short-time Fourier transform with reflected edges and a periodic Hann window as
long as the transform, through triangular filters on the Slaney mel scale with Slaney's normalisation (equal area),
then the natural logarithm of no less than 1e-5.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

FLOOR = 1e-5
"""Smaller magnitudes count as this one."""

_HZ_PER_MEL = 200 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27
"""Slaney's scale (Auditory Toolbox, 1998): linear up to 1 kHz, then 27 mels for a factor of 6.4."""


def log_mel(waveforms: torch.Tensor, *, sample_rate: int, n_fft: int, hop_length: int, mel_bins: int) -> torch.Tensor:
    """Log-mel spectrograms of waveforms.

    Args:
        waveforms: floating point `[B, C, S]` in [-1, 1], with more than `n_fft / 2` samples.
        sample_rate: in Hz; the filters reach from 0 to half of it.
        n_fft: length of the transform and of its window, in samples.
        hop_length: samples from one spectrum to the next.
        mel_bins: number of filters.

    Returns:
        float32 `[B, C, S // hop_length + 1, mel_bins]`; spectrum t is centred on sample t * hop_length.

    Raises:
        ValueError: the waveforms are too short to be reflected at their ends.
    """
    import torch

    batch, channels, samples = waveforms.shape
    if samples <= n_fft // 2:
        raise ValueError(f"{samples} samples of sound are too few: a spectrum needs more than {n_fft // 2}")
    spectra = torch.stft(
        waveforms.reshape(batch * channels, samples).float(),
        n_fft,
        hop_length,
        window=torch.hann_window(n_fft, periodic=True, device=waveforms.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters = torch.from_numpy(mel_filters(sample_rate, n_fft, mel_bins)).to(waveforms.device)
    mels = torch.einsum("bft,mf->btm", spectra.abs(), filters)
    return mels.clamp(min=FLOOR).log().reshape(batch, channels, -1, mel_bins)


@lru_cache(maxsize=4)
def mel_filters(sample_rate: int, n_fft: int, mel_bins: int) -> np.ndarray:
    """Triangular filters whose corners lie evenly on the mel scale from 0 to `sample_rate / 2`, each of area 1 Hz.

    Returns:
        float32 `[mel_bins, n_fft // 2 + 1]`.
    """
    highest = _KNEE_MEL + math.log(sample_rate / 2 / _KNEE_HZ) / _LOG_STEP
    corners = _hz(np.linspace(0.0, highest, mel_bins + 2))[:, None]
    frequencies = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequencies - lower) / (centre - lower), (upper - frequencies) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2 / (upper - lower)).astype(np.float32)


def _hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < _KNEE_MEL, mels * _HZ_PER_MEL, _KNEE_HZ * np.exp(_LOG_STEP * (mels - _KNEE_MEL)))
