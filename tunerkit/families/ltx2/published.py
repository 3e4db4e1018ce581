"""The configurations of LTX-2 and LTX-2.3 as published, as far as they differ from the classes' defaults.

Sources: the configurations of Lightricks/LTX-2 and diffusers/LTX-2.3-Diffusers as the conversion script of
huggingface/diffusers has them, and that of google/gemma-3-12b-it-qat-q4_0-unquantized. Built from them, all parts have
the parameters of the published files. Not known exactly: the settings of the 2.3 decoder that no shape tells
(`upsample_residual`, `decoder_spatial_padding_mode`), which cost no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerkit.families.facts import PublishedComponent

Table = Mapping[PublishedComponent, Mapping[str, Any]]

_GEMMA: dict[str, Any] = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
_TRANSFORMER: dict[str, Any] = {"_class_name": "LTX2VideoTransformer3DModel", "rope_type": "split"}
_CONNECTORS: dict[str, Any] = {"_class_name": "LTX2TextConnectors", "rope_type": "split"}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTX2Video",
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}

DEV: Table = {
    "transformer": _TRANSFORMER,
    "connectors": _CONNECTORS,
    "vae": _VAE,
    "audio_vae": {"_class_name": "AutoencoderKLLTX2Audio"},
    "vocoder": {"_class_name": "LTX2Vocoder"},
    "text_encoder": _GEMMA,
}
DEV_2_3: Table = {
    **DEV,
    "transformer": {
        **_TRANSFORMER,
        "gated_attn": True,
        "audio_gated_attn": True,
        "cross_attn_mod": True,
        "audio_cross_attn_mod": True,
        "use_prompt_embeddings": False,
        "perturbed_attn": True,
    },
    "connectors": {
        **_CONNECTORS,
        "video_connector_num_attention_heads": 32,
        "video_connector_num_layers": 8,
        "video_gated_attn": True,
        "audio_connector_num_attention_heads": 32,
        "audio_connector_attention_head_dim": 64,
        "audio_connector_num_layers": 8,
        "audio_gated_attn": True,
        "per_modality_projections": True,
        "proj_bias": True,
    },
    "vae": {
        **_VAE,
        "block_out_channels": (256, 512, 1024, 1024),
        "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_block_out_channels": (256, 512, 512, 1024),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "decoder_spatial_padding_mode": "zeros",
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
    },
    "vocoder": {"_class_name": "LTX2VocoderWithBWE"},
}

FLOAT32: Mapping[str, tuple[PublishedComponent, ...]] = {"Lightricks/LTX-2": ("text_encoder",)}
"""Components whose files hold float32 weights, by repository; all others hold 16 bits. There are 11 files of 5 GB of
Gemma, whose 12.2 billion weights are 24 GB in 16 bits."""


def table(flavour: str) -> Table:
    """What differs from the classes' defaults in each component of a flavour that can be trained."""
    return DEV_2_3 if flavour.startswith("2.3") else DEV
