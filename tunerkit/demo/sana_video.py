"""A tiny Sana Video checkpoint: the real classes and geometry, half a million parameters instead of two billion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEADS = 4
HEAD_WIDTH = 24
WIDTH = HEADS * HEAD_WIDTH
LAYERS = 2
TEXT_WIDTH = 32
LATENT_CHANNELS = 16
PATCH = (1, 2, 2)

SETTINGS: dict[str, Any] = {
    "framerate": 16,
    "validation_guidance": 3.0,
    "validation_num_inference_steps": 8,
    "validation_resolution": "96x64",
    "validation_num_video_frames": 17,
}
"""Of config.json. Sizes are multiples of 32, frames 4k + 1."""

FRAMES = 17
"""Frames of a training sample: a little over a second at 16 fps."""


def documents(_settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and the dataset say of this family only."""
    return SETTINGS, {}


def variant(_settings: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json decides about `build`: nothing, there is one checkpoint."""
    return {}


def build(folder: Path, corpus: Iterable[str]) -> None:
    """Writes model_index.json, transformer/, vae/, text_encoder/, tokenizer/ and scheduler/ below `folder`.

    Weights come from torch's global generator: seed it for files that are the same byte for byte.

    Args:
        folder: an existing, empty folder.
        corpus: sentences the tokenizer learns its words from.
    """
    from diffusers import DPMSolverMultistepScheduler, SanaVideoPipeline

    from tunerkit.demo.tokenizers import gemma_tokenizer
    from tunerkit.demo.wan_vae import averaging_wan_vae

    tokenizer = gemma_tokenizer(corpus)
    pipeline = SanaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(tokenizer),
        vae=averaging_wan_vae(),
        transformer=_transformer(),
        scheduler=DPMSolverMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction"),
    )
    pipeline.save_pretrained(folder)


def _text_encoder(tokenizer: Any) -> Any:  # Gemma2Model
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=64,
            max_position_embeddings=8192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _transformer() -> Any:  # SanaVideoTransformer3DModel
    from diffusers import SanaVideoTransformer3DModel

    transformer = SanaVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        num_layers=LAYERS,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD_WIDTH,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        mlp_ratio=3.0,
        # 30 marks the 480p model; for any other number the pipeline has no list of resolutions.
        sample_size=30,
        patch_size=PATCH,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=1024,
    )
    _write_input_to_output(transformer)
    return transformer


def _write_input_to_output(transformer: Any) -> None:
    """Lets the untrained model return its noisy input, at unit variance, instead of an unrelated random projection.

    An adapter changes what attention adds to the residual stream. With random in- and output layers the stream hardly
    holds the input in a form the frozen output layer can show: a rank 8 LoRA stays at a loss of 1.4 after 100 steps,
    where it reaches 0.6 here. A trained checkpoint is not like that. So the patch embedding is an orthonormal basis and
    the output layer its transpose: noise is passed on, which is right for high sigma, and the clips' colours are what
    is left to learn.
    """
    import torch

    from tunerkit.demo.bases import cosine_basis

    values = LATENT_CHANNELS * math.prod(PATCH)
    basis = cosine_basis(WIDTH, values)
    # A patch enters as (channel, position) and leaves as (position, channel).
    leaving = torch.arange(values).reshape(LATENT_CHANNELS, -1).T.flatten()
    with torch.no_grad():
        transformer.patch_embedding.weight.copy_(basis.reshape(transformer.patch_embedding.weight.shape))
        transformer.patch_embedding.bias.zero_()
        # The final norm gives a token the length sqrt(WIDTH); sqrt(values) is that of unit variance in a patch.
        transformer.proj_out.weight.copy_(basis[:, leaving].T * math.sqrt(values / WIDTH))
        transformer.proj_out.bias.zero_()
