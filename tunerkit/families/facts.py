"""What facts about a family are made of, and what its parts are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TextKind = Literal["positive", "negative"]
Component = Literal["text", "vae", "audio_vae", "transformer"]
PublishedComponent = Literal[
    "transformer", "vae", "audio_vae", "connectors", "vocoder", "text_encoder", "text_encoder_2"
]
"""Sub-folders of a published checkpoint that hold weights."""


@dataclass(frozen=True)
class Flavour:
    """One published checkpoint of a family.

    Attributes:
        repo: hub repository.
        note: one line about it.
        aliases: other names that people use for it.
        refused: why it cannot be trained, as "reason. Fix: what to do"; empty where it can.
    """

    repo: str
    note: str = ""
    aliases: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class SoundFormat:
    """The waveform that a family's audio VAE takes: samples per second (Hz) and channels."""

    sample_rate: int
    channels: int
