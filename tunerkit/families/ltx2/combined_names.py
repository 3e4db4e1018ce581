"""How the combined files of LTX-2 name their tensors, and what diffusers calls the same tensors.

A combined file keeps the module names of the original implementation, with one prefix for each component:

- `model.diffusion_model.` the transformer, and inside it `{video,audio}_embeddings_connector.`;
- `text_embedding_projection.` the projections in front of the connectors;
- `vae.`, `audio_vae.`, `vocoder.`

LTX-2.3 only adds names to those of 2.0, so one set of rules serves both. A rule names one whole segment between two
dots, never a part of one (`adaln_single` is also the end of longer names). Source: the key tables of
scripts/convert_ltx2_to_diffusers.py in huggingface/diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Component = Literal["transformer", "vae", "audio_vae", "connectors", "vocoder"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

_TRANSFORMER = "model.diffusion_model."
_PROJECTION = "text_embedding_projection."
_STATISTICS = "per_channel_statistics."

_ATTENTION = {"q_norm": "norm_q", "k_norm": "norm_k"}
SEGMENTS: dict[Component, dict[str, str]] = {
    "transformer": {
        **_ATTENTION,
        "patchify_proj": "proj_in",
        "audio_patchify_proj": "audio_proj_in",
        "adaln_single": "time_embed",
        "audio_adaln_single": "audio_time_embed",
        "prompt_adaln_single": "prompt_adaln",
        "audio_prompt_adaln_single": "audio_prompt_adaln",
        "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
        "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
        "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
        "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
        "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
        "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    },
    "connectors": {
        **_ATTENTION,
        "video_embeddings_connector": "video_connector",
        "audio_embeddings_connector": "audio_connector",
        "transformer_1d_blocks": "transformer_blocks",
        "aggregate_embed": "text_proj_in",
        "video_aggregate_embed": "video_text_proj_in",
        "audio_aggregate_embed": "audio_text_proj_in",
    },
    "vae": {
        "res_blocks": "resnets",
        "last_time_embedder": "time_embedder",
        "last_scale_shift_table": "scale_shift_table",
    },
    "audio_vae": {},
    "vocoder": {
        "ups": "upsamplers",
        "resblocks": "resnets",
        "conv_pre": "conv_in",
        "conv_post": "conv_out",
        "act_post": "act_out",
        "downsample.lowpass": "downsample",
    },
}
"""Original segment -> diffusers segment, by component."""

STATISTICS = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
"""The statistics of the latents that are used; the others of `per_channel_statistics` describe the training data."""

_ENCODER_BLOCK = re.compile(r"^encoder\.down_blocks\.(\d+)\.")
_DECODER_BLOCK = re.compile(r"^decoder\.up_blocks\.(\d+)\.")


def sort_names(names: Iterable[str]) -> tuple[dict[Component, dict[str, str]], list[str]]:
    """The tensors of each component, diffusers name -> name in the file, and the names that belong to none."""
    sections: dict[Component, list[str]] = {component: [] for component in COMPONENTS}
    others: list[str] = []
    for name in names:
        component = component_of(name)
        if component is None:
            others.append(name)
        elif not _is_unused_statistic(name):
            sections[component].append(name)
    return {component: _renamed(component, found) for component, found in sections.items()}, others


def component_of(name: str) -> Component | None:
    """The component that a tensor of a combined file belongs to; None for one that LTX-2 does not have."""
    if name.startswith(_TRANSFORMER):
        return "connectors" if name.split(".")[2].endswith("_embeddings_connector") else "transformer"
    if name.startswith(_PROJECTION):
        return "connectors"
    prefix = name.split(".")[0]
    return prefix if prefix in ("vae", "audio_vae", "vocoder") else None


def _is_unused_statistic(name: str) -> bool:
    _, found, statistic = name.partition(f"vae.{_STATISTICS}")
    return bool(found) and statistic not in STATISTICS


def _renamed(component: Component, names: list[str]) -> dict[str, str]:
    inner = {_without_prefix(component, name): name for name in names}
    if component == "vae":
        last = max((int(match[1]) for name in inner if (match := _ENCODER_BLOCK.match(name))), default=0)
        inner = {_vae_blocks(name, last): original for name, original in inner.items()}
    return {_rename_segments(name, SEGMENTS[component]): original for name, original in inner.items()}


def _without_prefix(component: Component, name: str) -> str:
    if component in ("transformer", "connectors"):
        return name.removeprefix(_TRANSFORMER).removeprefix(_PROJECTION)
    name = name.removeprefix(f"{component}.")
    return STATISTICS.get(name.removeprefix(_STATISTICS), name)


def _vae_blocks(name: str, last: int) -> str:
    """Groups the video VAE's flat list of blocks as diffusers does.

    The original list alternates between residual blocks (even numbers) and resampling. diffusers puts a downsampler
    behind its residual blocks, with number `last` as the middle; and an upsampler before its residual blocks, with
    number 0 as the middle.
    """

    def down(match: re.Match[str]) -> str:
        number = int(match[1])
        if number == last:
            return "encoder.mid_block."
        return f"encoder.down_blocks.{number // 2}." + ("downsamplers.0." if number % 2 else "")

    def up(match: re.Match[str]) -> str:
        number = int(match[1])
        if number == 0:
            return "decoder.mid_block."
        return f"decoder.up_blocks.{(number - 1) // 2}." + ("upsamplers.0." if number % 2 else "")

    return _DECODER_BLOCK.sub(up, _ENCODER_BLOCK.sub(down, name))


def _rename_segments(name: str, rules: Mapping[str, str]) -> str:
    dotted = f".{name}."
    for old, new in rules.items():
        dotted = dotted.replace(f".{old}.", f".{new}.")
    return dotted[1:-1]
