"""Tiny vocoders of LTX-2's real classes: they buzz as loudly as the spectrogram says, at the real sampling rates."""

from __future__ import annotations

import math
from typing import Any

_RESNET: dict[str, Any] = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]]}

_INNER_BINS = 16
"""Mel bins of the spectrogram that 2.3 takes of its own 16 kHz sound. The real model has 64 of a longer window; its
Fourier bases alone would be a third of this checkpoint."""
_INNER_WINDOW = 256
"""Samples of its window, hop 80."""


def vocoder(version: str, sides: int, mel_bins: int) -> Any:  # LTX2Vocoder | LTX2VocoderWithBWE
    """Makes a waveform `[B, sides, samples]` of a log-mel spectrogram `[B, sides, frames, mel_bins]`, hop 10 ms.

    Weights are random, so seed torch before the call; what is not random keeps silence silent and loud sound loud.

    Args:
        version: "2.0" gives 24 kHz; "2.3" gives 16 kHz and extends that to 48 kHz.
        sides: channels of the spectrogram and of the sound.
        mel_bins: of the spectrogram.
    """
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    channels = sides * mel_bins
    if version == "2.0":
        plain = LTX2Vocoder(
            in_channels=channels, hidden_channels=64, out_channels=sides, output_sampling_rate=24000, **_RESNET
        )
        _follow_loudness(plain, gain=80.0)
        return plain
    extended: Any = LTX2VocoderWithBWE(
        in_channels=channels,
        hidden_channels=64,
        out_channels=sides,
        bwe_in_channels=sides * _INNER_BINS,
        bwe_hidden_channels=32,
        bwe_out_channels=sides,
        filter_length=_INNER_WINDOW,
        window_length=_INNER_WINDOW,
        num_mel_channels=_INNER_BINS,
        **_RESNET,
        **{f"bwe_{name}": value for name, value in _RESNET.items()},
    )
    _follow_loudness(extended.vocoder, gain=10.0)
    _follow_loudness(extended.bwe_generator, gain=0.3)
    _write_spectrogram(extended.mel_stft, extended.config.input_sampling_rate)
    return extended


def _follow_loudness(vocoder: Any, gain: float) -> None:
    """Lets the output grow with the log-mel values above -10 instead of being loudest at silence (-11.5).

    Without biases the layers behind the first one (nearly) multiply through whatever it gives them; the same pattern
    for every frame of 10 ms is a buzz of 100 Hz whose colour depends on the bins.

    Args:
        gain: makes up for what random layers lose; found by measuring.
    """
    import torch

    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
        weight = vocoder.conv_in.weight.abs_()
        weight /= 10 * weight.sum((1, 2), keepdim=True)
        vocoder.conv_in.bias.fill_(1.0)  # a log-mel value of -10 everywhere gives 0, one of 0 gives 1
        vocoder.conv_out.weight.mul_(gain)


def _write_spectrogram(mel_stft: Any, sample_rate: int) -> None:
    """The class leaves its Fourier and mel bases zero, to be loaded; here they are computed.

    Rows of the forward basis are Hann-windowed cosines, then negative sines, of the frequencies 0..N/2.
    """
    import torch
    from transformers.audio_utils import mel_filter_bank

    rows, _, length = mel_stft.stft_fn.forward_basis.shape
    frequency = torch.arange(rows // 2, dtype=torch.float64)[:, None]
    angle = 2 * math.pi * frequency * torch.arange(length, dtype=torch.float64) / length
    window = torch.hann_window(length, dtype=torch.float64)
    basis = torch.cat([torch.cos(angle), -torch.sin(angle)]) * window
    mel = mel_filter_bank(
        num_frequency_bins=rows // 2,
        num_mel_filters=mel_stft.mel_basis.shape[0],
        min_frequency=0.0,
        max_frequency=sample_rate / 2,
        sampling_rate=sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    with torch.no_grad():
        mel_stft.stft_fn.forward_basis.copy_(basis[:, None])
        mel_stft.mel_basis.copy_(torch.from_numpy(mel).T)
