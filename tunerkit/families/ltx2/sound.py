"""LTX-2's sound: from a waveform to the tokens that the transformer takes."""

from __future__ import annotations

from typing import Any

import torch

from tunerkit.families.ltx2.mel import log_mel

N_FFT = 1024
"""Samples of a spectrum's window; the audio VAE's configuration holds the other numbers."""
RECIPE = {"recipe": 1, "n_fft": N_FFT, "normalised": "(pack(mode) - mean) / std", "dtype": "float32"}


def encode_sound(vae: Any, waveforms: torch.Tensor) -> torch.Tensor:
    """Clean normalised audio tokens, float32 `[B, L, C F]`, of waveforms `[B, 2, samples]` at the VAE's rate.

    A centred spectrum has one frame more than the waveform has hops, so the VAE makes one latent more than the
    pipeline has for a video of this length; it is cut: `L = round(seconds * latents per second)`.
    """
    config = vae.config
    with torch.no_grad():
        mel = log_mel(
            waveforms.to(vae.device, torch.float32),
            sample_rate=config.sample_rate,
            n_fft=N_FFT,
            hop_length=config.mel_hop_length,
            mel_bins=config.mel_bins,
        )
        mode = vae.encode(mel.to(vae.dtype)).latent_dist.mode().float()
    # [B, C, L, F] -> [B, L, C F]: the statistics belong to the packed channels.
    packed = mode.transpose(1, 2).flatten(2)
    rate = config.sample_rate / config.mel_hop_length / vae.temporal_compression_ratio
    packed = packed[:, : audio_latents(waveforms.shape[-1] / config.sample_rate, rate)]
    return (packed - vae.latents_mean.float()) / vae.latents_std.float()


def audio_latents(seconds: float, per_second: float) -> int:
    """Latents of sound that lasts so long, as the pipelines count them."""
    return max(1, round(seconds * per_second))
