"""Sana Video's text: Gemma-2's hidden states, made by the stock pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SanaVideoPipeline

from tunerkit.families.checkpoint_files import base_source, check_tokenizer, readable
from tunerkit.families.text_files import load_text_model

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.facts import TextKind

TOKENS = 300
"""Text positions that the transformer attends to."""


def load_text_encoder(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """A stock pipeline with tokenizer and text encoder and nothing else, on `device`."""
    from transformers import AutoTokenizer, Gemma2Model

    source = base_source(config)
    with readable(source.model, source.setting, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source.model, subfolder="tokenizer", revision=source.revision or "main"
        )
    gemma = load_text_model(Gemma2Model, config, source, dtype, device)
    check_tokenizer(tokenizer, gemma, source)
    absent: Any = dict.fromkeys(("vae", "transformer", "scheduler"))
    return SanaVideoPipeline(tokenizer=tokenizer, text_encoder=gemma, **absent)


def encode(
    pipeline: Any, texts: Sequence[str], kind: TextKind, motion_score: int | None
) -> list[dict[str, torch.Tensor]]:
    """`prompt_embeds` `[300, D]` and `prompt_attention_mask` `[300]` of each text, on the CPU.

    Positives carry the checkpoint's instruction text (and the motion score); the kept window is the first position and
    the last 299, chosen by the stock pipeline. Negatives, and the empty prompt of caption dropout, are encoded plainly.
    """
    prompts = list(texts)
    if kind == "positive" and motion_score is not None:
        prompts = [f"{prompt.strip()} motion score: {motion_score}." for prompt in prompts]
    with torch.no_grad():
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=pipeline.text_encoder.device,
            max_sequence_length=TOKENS,
            complex_human_instruction=instruction() if kind == "positive" else None,
        )
    return [
        {"prompt_embeds": embeds[place].cpu().contiguous(), "prompt_attention_mask": mask[place].cpu().contiguous()}
        for place in range(len(prompts))
    ]


def instruction() -> list[str]:
    """The instruction text of the installed pipeline: the default of `complex_human_instruction`."""
    return list(inspect.signature(SanaVideoPipeline.__call__).parameters["complex_human_instruction"].default)
