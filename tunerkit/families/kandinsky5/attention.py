"""NABLA, the block-sparse self-attention of the 10 s and HD checkpoints, in a form that can be trained.

Tokens are grouped in blocks of 8 x 8 of one latent frame. Which blocks see which follows from the block means of
queries and keys, and neighbours in time and space always do (arXiv 2507.13546). The stock model hands the blocks to
flex attention, which honours them only where it is compiled. As diffusers calls it, it attends to everything, without a
word, holds the whole score matrix, and has no backward on the CPU. Here the same blocks go to what is sparse and can be
trained: compiled flex attention on CUDA, else masked attention.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5AttnProcessor, nablaT_v2
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 64
"""Tokens of a block."""
PIXEL_MULTIPLE = 128
"""Pixels that 8 tokens of 16 pixels cover: width and height must be multiples of it."""


class NablaAttention(Kandinsky5AttnProcessor):
    """Attention of a visual block: sparse where the model is given sparse parameters, else the stock one."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
        sparse_params: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """Tokens `[B, S, D]` after attention among themselves (or to `encoder_hidden_states`)."""
        if sparse_params is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, rotary_emb)
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.num_heads, -1))
            for project in (attn.to_query, attn.to_key, attn.to_value)
        )
        query = _rotated(attn.query_norm(query.float()).type_as(query), rotary_emb)
        key = _rotated(attn.key_norm(key.float()).type_as(key), rotary_emb)
        with torch.no_grad():
            mask = nablaT_v2(query, key, sparse_params["sta_mask"], thr=sparse_params["P"])
        query, key, value = (tokens.transpose(1, 2) for tokens in (query, key, value))
        attended = block_attention(query, key, value, mask)
        return attn.out_layer(attended.transpose(1, 2).flatten(-2))


def use_nabla(transformer: Any) -> None:
    """Give the self-attention of every visual block the trainable processor."""
    for block in transformer.visual_transformer_blocks:
        block.self_attention.set_processor(NablaAttention())


def block_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> torch.Tensor:
    """Attention `[B, N, S, D]` over the blocks that `mask` (a flex BlockMask of `BLOCK` tokens) selects."""
    if query.is_cuda:
        return _compiled_flex_attention()(query, key, value, block_mask=mask)
    seen = mask.to_dense().bool().repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen)


@cache
def _compiled_flex_attention() -> Any:
    """Autotuned, because the default backward kernels of recent GPUs use tiles of 128 and refuse blocks of 64."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, mode="max-autotune-no-cudagraphs")


def _rotated(tokens: torch.Tensor, rotary: torch.Tensor | None) -> torch.Tensor:
    """Tokens `[B, S, N, D]` turned by the matrices `[B, S, 1, D / 2, 2, 2]`; rounded to bfloat16, as the model does."""
    if rotary is None:
        return tokens
    pairs = tokens.unflatten(-1, (-1, 1, 2)).float()
    return (rotary * pairs).sum(-1).flatten(-2).to(torch.bfloat16).type_as(tokens)
