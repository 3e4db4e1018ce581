"""Tiny LTX-2 checkpoints with sound, version 2.0 and 2.3: the real classes and geometry, a million parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunerkit.demo.ltx2_vaes import AUDIO_WIDTH, LATENT_CHANNELS, MEL_BINS, SIDES

HEADS = 2
"""Of the picture and of the sound alike."""
HEAD_WIDTH = 32
WIDTH = HEADS * HEAD_WIDTH
AUDIO_HEAD_WIDTH = 24
SOUND_WIDTH = HEADS * AUDIO_HEAD_WIDTH
LAYERS = 2
TEXT_WIDTH = 32
TEXT_LAYERS = 2
REGISTERS = 128
"""As in the real model: the text length must be a multiple of this."""

SETTINGS: dict[str, Any] = {
    "model_flavour": "dev",
    "framerate": 24,
    "validation_guidance": 3.0,
    "validation_num_inference_steps": 8,
    "validation_resolution": "192x128",
    "validation_num_video_frames": 25,
}
"""Of config.json. Sizes are multiples of 32, frames 8k + 1."""

FRAMES = 25
"""Frames of a training sample: a little over a second at 24 fps."""

DATASET: dict[str, Any] = {
    # A latent stands for 32x32 pixels, so pictures are larger than those of other families.
    "resolution": 128,
    "audio": {"auto_split": True, "sample_rate": 16000, "channels": 2},
}


def documents(_settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and the dataset say of this family only."""
    return SETTINGS, DATASET


def variant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json decides about `build`: a `model_flavour` of 2.3 asks for that version."""
    return {"version": "2.3" if str(settings.get("model_flavour")).startswith("2.3") else "2.0"}


def build(folder: Path, corpus: Iterable[str], version: str = "2.0") -> None:
    """Writes model_index.json and a folder for every component of an `LTX2Pipeline` below `folder`.

    Weights come from torch's global generator: seed it for files that are the same byte for byte.

    Args:
        folder: an existing, empty folder.
        corpus: sentences the tokenizer learns its words from.
        version: "2.0" (text projected inside the transformer, 24 kHz sound) or "2.3" (gated attention, one text
            projection for each of picture and sound, 48 kHz sound).
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    from tunerkit.demo.ltx2_vaes import averaging_audio_vae, averaging_video_vae
    from tunerkit.demo.ltx2_vocoders import vocoder
    from tunerkit.demo.tokenizers import gemma_tokenizer

    tokenizer = gemma_tokenizer(
        corpus,
        max_length=131072,
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    pipeline = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
        vae=averaging_video_vae(version),
        audio_vae=averaging_audio_vae(),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        connectors=_connectors(version),
        transformer=_transformer(version),
        vocoder=vocoder(version, SIDES, MEL_BINS),
    )
    pipeline.save_pretrained(folder)


def _text_encoder(tokenizer: Any) -> Any:  # Gemma3ForConditionalGeneration
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    number = tokenizer.convert_tokens_to_ids
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": TEXT_WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": TEXT_LAYERS,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "query_pre_attn_scalar": 16,
                "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention"],
                "max_position_embeddings": 131072,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 7,
                "vision_use_head": False,
            },
            mm_tokens_per_image=4,
            boi_token_index=number("<start_of_image>"),
            eoi_token_index=number("<end_of_image>"),
            image_token_index=number("<image_soft_token>"),
        )
    )


def _connectors(version: str) -> Any:  # LTX2TextConnectors
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    newer = version == "2.3"
    return LTX2TextConnectors(
        caption_channels=TEXT_WIDTH,
        text_proj_in_factor=TEXT_LAYERS + 1,  # all hidden states, the embeddings among them
        video_connector_num_attention_heads=HEADS,
        video_connector_attention_head_dim=HEAD_WIDTH if newer else TEXT_WIDTH // HEADS,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=REGISTERS,
        video_gated_attn=newer,
        audio_connector_num_attention_heads=HEADS,
        audio_connector_attention_head_dim=AUDIO_HEAD_WIDTH if newer else TEXT_WIDTH // HEADS,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=REGISTERS,
        audio_gated_attn=newer,
        connector_rope_base_seq_len=4096,
        rope_type="split",
        per_modality_projections=newer,
        video_hidden_dim=WIDTH,
        audio_hidden_dim=SOUND_WIDTH,
        proj_bias=newer,
    )


def _transformer(version: str) -> Any:  # LTX2VideoTransformer3DModel
    from diffusers import LTX2VideoTransformer3DModel

    newer = version == "2.3"
    transformer = LTX2VideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        cross_attention_dim=WIDTH,
        gated_attn=newer,
        cross_attn_mod=newer,
        audio_in_channels=AUDIO_WIDTH,
        audio_out_channels=AUDIO_WIDTH,
        audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_HEAD_WIDTH,
        audio_cross_attention_dim=SOUND_WIDTH,
        audio_gated_attn=newer,
        audio_cross_attn_mod=newer,
        num_layers=LAYERS,
        caption_channels=TEXT_WIDTH,
        rope_type="split",
        use_prompt_embeddings=not newer,
        perturbed_attn=newer,
    )
    _write_input_to_output(transformer.proj_in, transformer.proj_out)
    _write_input_to_output(transformer.audio_proj_in, transformer.audio_proj_out)
    return transformer


def _write_input_to_output(entering: Any, leaving: Any) -> None:
    """Lets the untrained model return its noisy input, at unit variance, instead of an unrelated random projection.

    An adapter changes what attention adds to the residual stream, and shows little of that through random outer layers,
    see `sana_video`. So the layer into the stream is an orthonormal basis and the one out of it its transpose: noise is
    passed on, which is right for high sigma, and the clips' colours and tones are what is left to learn.
    """
    import torch

    from tunerkit.demo.bases import cosine_basis

    width, values = entering.weight.shape
    basis = cosine_basis(width, values)
    with torch.no_grad():
        entering.weight.copy_(basis)
        entering.bias.zero_()
        # The last norm gives a token the length sqrt(width); sqrt(values) is that of unit variance.
        leaving.weight.copy_(basis.T * math.sqrt(values / width))
        leaving.bias.zero_()
