"""Kandinsky's text: the last hidden states of Qwen2.5-VL and CLIP's pooled vector, made by the stock pipeline.

Template and crop index are the pipeline's own, as a pair. The transformer has no text mask, so each text is encoded by
itself and only its real tokens are kept; a batch remembers how many they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import Kandinsky5T2VPipeline

from tunerkit.families.checkpoint_files import base_source, check_tokenizer, readable
from tunerkit.families.text_files import load_text_model

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

TOKENS = 512
"""Longest text in tokens, the template not counted: the default of the stock pipelines."""


def load_text_encoder(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """A stock pipeline with both text encoders and nothing else, on `device`.

    In place of Qwen's processor stands the tokenizer that it would hand every text to: the processor's class needs
    torchvision for videos that no text has.
    """
    from transformers import AutoTokenizer, CLIPTextModel, Qwen2_5_VLForConditionalGeneration

    source = base_source(config)
    model, revision = source.model, source.revision or "main"
    with readable(model, source.setting, "tokenizers"):
        tokenizer, tokenizer_2 = (
            AutoTokenizer.from_pretrained(model, subfolder=folder, revision=revision)
            for folder in ("tokenizer", "tokenizer_2")
        )
    qwen = load_text_model(Qwen2_5_VLForConditionalGeneration, config, source, dtype, device)
    clip = load_text_model(CLIPTextModel, config, source, dtype, device, number=2, subfolder="text_encoder_2")
    check_tokenizer(tokenizer, qwen, source)
    check_tokenizer(tokenizer_2, clip, source)
    return Kandinsky5T2VPipeline(
        tokenizer=tokenizer,
        text_encoder=qwen,
        tokenizer_2=tokenizer_2,
        text_encoder_2=clip,
        transformer=None,  # pyright: ignore[reportArgumentType] - only texts are encoded
        vae=None,  # pyright: ignore[reportArgumentType]
        scheduler=None,  # pyright: ignore[reportArgumentType]
    )


def encode(pipeline: Any, texts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """`prompt_embeds` `[L, D]` and `pooled` `[D']` of each text, on the CPU; `L` is the text's own length."""
    return [_one(pipeline, text) for text in texts]


def collate(texts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The texts of a batch: `prompt_embeds` `[B, L, D]`, `pooled` `[B, D']`.

    Where lengths differ, L is the longest, zeros stand behind the others, and `tokens` `[B]` says how long each is.
    """
    embeds = [text["prompt_embeds"] for text in texts]
    lengths = [len(each) for each in embeds]
    batch = {
        "prompt_embeds": torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True),
        "pooled": torch.stack([text["pooled"] for text in texts]),
    }
    return batch if len(set(lengths)) == 1 else {**batch, "tokens": torch.tensor(lengths)}


def _one(pipeline: Any, text: str) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt(
            text, max_sequence_length=TOKENS, device=pipeline.text_encoder.device
        )
    return {"prompt_embeds": embeds[0].cpu().contiguous(), "pooled": pooled[0].cpu().contiguous()}
