"""The configuration of Sana Video 2B (480p) as published, as far as it differs from the classes' defaults.

Sources: scripts/convert_sana_video_to_diffusers.py in huggingface/diffusers, and the configurations of
Wan-AI/Wan2.1-T2V-1.3B-Diffusers and google/gemma-2-2b-it, whose VAE and text encoder it uses. Built from them, the
parts have the parameters of the published files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerkit.families.facts import PublishedComponent

TABLE: Mapping[PublishedComponent, Mapping[str, Any]] = {
    "transformer": {"_class_name": "SanaVideoTransformer3DModel", "mlp_ratio": 3.0},
    "vae": {"_class_name": "AutoencoderKLWan"},
    "text_encoder": {"model_type": "gemma2", "architectures": ["Gemma2Model"]},
}
FLOAT32: Mapping[str, tuple[PublishedComponent, ...]] = {"Efficient-Large-Model/SANA-Video_2B_480p_diffusers": ("vae",)}
"""Components whose files hold float32 weights, by repository; all others hold 16 bits."""
