"""Text encoders whose layers are kept in few bits while they encode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tunerkit.config.precisions import TEXT, UNCHANGED
from tunerkit.devices import run_device
from tunerkit.memory.quantised_linear import quantise_layers

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

_PICTURES = ("vision", "visual")
"""Parts of names of what sees pictures; no picture is shown to it here."""


def quantise_text_encoder(model: torch.nn.Module, config: TrainConfig, number: int) -> None:
    """Quantise the layers of a loaded text encoder as the settings say; what they replace is freed one by one.

    Embeddings, norms and the head, which guesses words, stay as they are.

    Args:
        model: the text encoder, on the CPU, where it stays.
        number: which one of the family's it is, from 1.
    """
    precision = getattr(config, TEXT[number - 1])
    if precision != UNCHANGED:
        on = torch.device("cpu") if config.quantize_via == "cpu" else run_device(config)
        quantise_layers(model.requires_grad_(False), text_layers(model), precision, on)


def text_layers(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers of a language model's blocks."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and "layers" in name.split(".")
        and not any(part in name for part in _PICTURES)
    ]
