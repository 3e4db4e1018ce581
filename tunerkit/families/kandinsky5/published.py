"""The configurations of Kandinsky 5.0 Video as published, as far as they differ from the classes' defaults.

Sources: configs/*.yaml of kandinskylab/kandinsky-5 and the configurations of Qwen/Qwen2.5-VL-7B-Instruct and of
openai/clip-vit-large-patch14, which are its text encoders. Built from them, the parts have the parameters of the
published files. Not known exactly: CLIP's special tokens, and the share `attention_P` of sparse attention in the
flavours that only have been pretrained, taken from those trained further; neither costs memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerkit.families.facts import PublishedComponent
from tunerkit.families.kandinsky5 import flavours

Table = Mapping[PublishedComponent, Mapping[str, Any]]

_TRANSFORMER: dict[str, Any] = {
    "_class_name": "Kandinsky5Transformer3DModel",
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "visual_cond": True,
}
LITE: dict[str, Any] = {**_TRANSFORMER, "model_dim": 1792, "ff_dim": 7168}
PRO: dict[str, Any] = {
    **_TRANSFORMER,
    "model_dim": 4096,
    "ff_dim": 16384,
    "time_dim": 1024,
    "axes_dims": (32, 48, 48),
    "num_text_blocks": 4,
    "num_visual_blocks": 60,
}
NABLA: dict[str, Any] = {
    "attention_type": "nabla",
    "attention_causal": False,
    "attention_local": False,
    "attention_glob": False,
    "attention_window": 3,
    "attention_wT": 11,
    "attention_wW": 3,
    "attention_wH": 3,
    "attention_add_sta": True,
    "attention_method": "topcdf",
}
"""Sparse attention; `attention_P` depends on the flavour."""
_QWEN: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"hidden_size": 1280},
}
_CLIP: dict[str, Any] = {
    "model_type": "clip_text_model",
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}

FLOAT32: Mapping[str, tuple[PublishedComponent, ...]] = {}
"""Components whose files hold float32 weights, by repository: none is known to."""


def table(flavour: str) -> Table:
    """What differs from the classes' defaults in each component of a flavour that can be trained."""
    size = PRO if "-pro-" in flavour else LITE
    return {
        "transformer": {**size, **_attention(flavour)},
        "vae": {"_class_name": "AutoencoderKLHunyuanVideo"},
        "text_encoder": _QWEN,
        "text_encoder_2": _CLIP,
    }


def _attention(flavour: str) -> dict[str, Any]:
    """The share of the attention that is kept is 0.9 in Lite, 0.8 in Pro and 0.7 in its flavours of 10 s."""
    if not flavours.is_sparse(flavour):
        return {}
    if "-pro-" not in flavour:
        return {**NABLA, "attention_P": 0.9}
    return {**NABLA, "attention_P": 0.7 if flavours.frames(flavour) > 121 else 0.8}
