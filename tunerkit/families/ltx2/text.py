"""LTX-2's text: Gemma's hidden states of every layer, through the frozen connectors, which is what is cached.

The connectors are frozen and deterministic, so their output is exact, and 25 times smaller than the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.families.checkpoint_files import check_tokenizer, readable
from tunerkit.families.ltx2.checkpoint import checkpoint_of, text_source
from tunerkit.families.text_files import load_text_model

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

TOKENS = 1024
"""Length that every text is padded to; the connectors fill what is free with learned registers."""


class TextEncoder:
    """Tokenizer, Gemma and connectors, used as the stock pipeline uses them.

    Args:
        pipeline: a stock LTX2Pipeline with these three components and no others.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @property
    def device(self) -> torch.device:
        return self._pipeline.text_encoder.device

    @property
    def components(self) -> dict[str, Any]:
        """By name, as a pipeline has them."""
        return self._pipeline.components

    def to(self, device: torch.device | str) -> TextEncoder:
        self._pipeline.to(device)
        return self

    def encode(self, texts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """`prompt_embeds` `[1024, D]` and `audio_prompt_embeds` `[1024, D']` of each text, on the CPU."""
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> dict[str, torch.Tensor]:
        """One at a time: the hidden states of all layers are 385 MB a text."""
        pipeline = self._pipeline
        with torch.no_grad():
            states, mask, _, _ = pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=TOKENS, device=self.device
            )
            video, audio, _ = pipeline.connectors(states, mask, padding_side=pipeline.tokenizer.padding_side)
        return {
            "prompt_embeds": video[0].cpu().contiguous(),
            "audio_prompt_embeds": audio[0].cpu().contiguous(),
        }


def load_text_encoder(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    """Tokenizer and Gemma from the text source, the connectors from the checkpoint; on `device`."""
    from diffusers import LTX2Pipeline
    from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

    source = text_source(config)
    connectors = checkpoint_of(config).load("connectors", dtype).requires_grad_(False).eval()
    revision = source.revision or "main"
    with readable(source.model, source.setting, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source.model, subfolder=source.folder("tokenizer"), revision=revision)
    folder = source.folder("text_encoder")
    gemma = load_text_model(Gemma3ForConditionalGeneration, config, source, dtype, device, subfolder=folder)
    check_tokenizer(tokenizer, gemma, source)
    absent: Any = dict.fromkeys(("scheduler", "vae", "audio_vae", "transformer", "vocoder"))
    pipeline = LTX2Pipeline(**absent, tokenizer=tokenizer, text_encoder=gemma, connectors=connectors)
    return TextEncoder(pipeline).to(device)
