"""Text encoders: which parts of one are read for its hidden states, and which of those are kept in few bits."""

from __future__ import annotations

from typing import Any

import torch

UNREAD = ("visual", "vision", "multi_modal_projector", "lm_head")
"""Parts of names of what sees pictures or guesses words: no picture is shown, and no word is asked for."""


def leave_out_unread(model: Any) -> None:
    """Take what is never read out of a text encoder, with its weights or without; its hidden states stay the same."""
    for module in (model, getattr(model, model.base_model_prefix, model)):
        for name, _ in [*module.named_children()]:
            if any(part in name for part in UNREAD):
                # The head is called with the last states, and what it makes of them is not looked at.
                setattr(module, name, torch.nn.Identity() if name == "lm_head" else None)


def text_layers(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers of a language model's blocks; embeddings and norms stay as they are."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layers" in name.split(".")
    ]
