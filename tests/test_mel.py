"""The log-mel front end: against a transform and filters written out by hand in float64, and against librosa."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tunerkit.families.ltx2.mel import log_mel, mel_filters

LTX2: Any = {"sample_rate": 16_000, "n_fft": 1024, "hop_length": 160, "mel_bins": 64}


def by_hand(waveform: np.ndarray, sample_rate: int, n_fft: int, hop_length: int, mel_bins: int) -> np.ndarray:
    """`[S]` float64 -> `[T, mel_bins]`: every sum of the definition written out."""
    half = n_fft // 2
    padded = np.concatenate([waveform[half:0:-1], waveform, waveform[-2 : -half - 2 : -1]])
    n = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(half + 1), n) / n_fft)
    starts = range(0, len(padded) - n_fft + 1, hop_length)
    magnitudes = np.stack([abs(fourier @ (window * padded[start : start + n_fft])) for start in starts])

    def mel(hz: float) -> float:
        return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    def hz(mel: float) -> float:
        return 200 * mel / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [hz(mel(sample_rate / 2) * k / (mel_bins + 1)) for k in range(mel_bins + 2)]
    bank = np.zeros((half + 1, mel_bins))
    for m in range(mel_bins):
        low, middle, high = edges[m : m + 3]
        for k in range(half + 1):
            f = k * sample_rate / n_fft
            if low < f <= middle:
                bank[k, m] = (f - low) / (middle - low)
            elif middle < f < high:
                bank[k, m] = (high - f) / (high - middle)
        bank[:, m] *= 2 / (high - low)
    return np.log(np.maximum(magnitudes @ bank, 1e-5))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


@pytest.mark.parametrize(
    "setting",
    [LTX2, {"sample_rate": 8_000, "n_fft": 256, "hop_length": 100, "mel_bins": 20}],
    ids=["ltx2", "others"],
)
@pytest.mark.parametrize("samples", [1_600, 4_321])
def test_equals_the_definition(setting: Any, samples: int) -> None:
    waveforms = noise(2, 2, samples) * np.geomspace(1e-4, 1, samples)  # from nearly silent to loud
    found = log_mel(torch.from_numpy(waveforms).float(), **setting)
    expected = np.stack([[by_hand(channel, **setting) for channel in clip] for clip in waveforms])
    assert found.dtype == torch.float32
    assert found.shape == (2, 2, samples // setting["hop_length"] + 1, setting["mel_bins"])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_equals_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    waveform = noise(5_000).astype(np.float32)
    mels = librosa.feature.melspectrogram(
        y=waveform, sr=16_000, n_fft=1024, hop_length=160, n_mels=64, fmin=0, fmax=8_000,
        power=1.0, center=True, pad_mode="reflect", htk=False, norm="slaney",
    )  # fmt: skip
    found = log_mel(torch.from_numpy(waveform)[None, None], **LTX2)[0, 0]
    np.testing.assert_allclose(found.numpy(), np.log(np.maximum(mels.T, 1e-5)), atol=2e-4)


@pytest.mark.parametrize(("fps", "frames"), [(fps, frames) for fps in (24, 25, 30) for frames in (49, 97, 121)])
def test_a_tone_peaks_in_its_bin_over_the_whole_length(fps: int, frames: int) -> None:
    samples = round(frames / fps * 16_000)
    tone = np.sin(2 * np.pi * 440 * np.arange(samples) / 16_000)
    found = log_mel(torch.from_numpy(tone).float().expand(1, 2, -1), **LTX2)
    # 440 Hz are 6.6 mels; the filters' centres stand every 45.245641 / 65 = 0.69609 mels, so the nearest is number 9
    # counted from 1 (6.265) or 10 (6.961): |6.6 - 6.265| < |6.6 - 6.961|.
    assert found.shape == (1, 2, samples // 160 + 1, 64)
    # Up to 512 samples (four spectra) from an end the reflected sound bends the tone.
    assert (found.argmax(-1)[..., 4:-4] == 8).all()


def test_silence_is_the_floor() -> None:
    assert torch.equal(log_mel(torch.zeros(1, 2, 4_000), **LTX2), torch.full((1, 2, 26, 64), math.log(1e-5)))


def test_filters_have_equal_area() -> None:
    bank = mel_filters(16_000, 1024, 8).astype(np.float64)  # wide filters, so that a sum stands for the area
    np.testing.assert_allclose(bank.sum(1) * 16_000 / 1024, 1, rtol=0.01)


def test_too_short_to_reflect() -> None:
    with pytest.raises(ValueError, match="512 samples of sound are too few"):
        log_mel(torch.zeros(1, 2, 512), **LTX2)
