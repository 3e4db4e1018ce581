"""What the `config` metadata of a combined file says, in diffusers' words.

The metadata is one JSON document with a section for each component, in the words of the original implementation; the
connectors are described in the transformer's section. Only what is there is read: an absent key says nothing here, as
the original defaults changed between releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerkit.families.ltx2.combined_names import Component

Section = Mapping[str, Any]
Config = dict[str, Any]

_ROPE = {"rope_type": "rope_type", "positional_embedding_theta": "rope_theta"}
_TRANSFORMER = {
    **_ROPE,
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "attention_head_dim": "attention_head_dim",
    "audio_num_attention_heads": "audio_num_attention_heads",
    "audio_attention_head_dim": "audio_attention_head_dim",
    "caption_channels": "caption_channels",
    "activation_fn": "activation_fn",
    "norm_eps": "norm_eps",
    "norm_elementwise_affine": "norm_elementwise_affine",
    "timestep_scale_multiplier": "timestep_scale_multiplier",
    "av_ca_timestep_scale_multiplier": "cross_attn_timestep_scale_multiplier",
}
_CONNECTORS = {
    "caption_channels": "caption_channels",
    "cross_attention_dim": "video_hidden_dim",
    "audio_cross_attention_dim": "audio_hidden_dim",
}
_AUDIO_VAE = {
    "ch": "base_channels",
    "out_ch": "output_channels",
    "ch_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "in_channels": "in_channels",
    "resolution": "resolution",
    "z_channels": "latent_channels",
    "norm_type": "norm_type",
    "causality_axis": "causality_axis",
    "dropout": "dropout",
    "mid_block_add_attention": "mid_block_add_attention",
    "mel_bins": "mel_bins",
    "double_z": "double_z",
}
_VOCODER = {
    "upsample_initial_channel": "hidden_channels",
    "upsample_rates": "upsample_factors",
    "upsample_kernel_sizes": "upsample_kernel_sizes",
    "resblock_kernel_sizes": "resnet_kernel_sizes",
    "resblock_dilation_sizes": "resnet_dilations",
    "use_bias_at_final": "final_bias",
}
_BANDWIDTH_EXTENSION = {
    "n_fft": "filter_length",
    "win_size": "window_length",
    "hop_length": "hop_length",
    "num_mels": "num_mel_channels",
    "input_sampling_rate": "input_sampling_rate",
    "output_sampling_rate": "output_sampling_rate",
}

_ONLY: dict[Component, dict[str, Any]] = {
    "transformer": {
        "share_ff": False,
        "use_middle_indices_grid": True,
        "use_audio_video_cross_attention": True,
        "positional_embedding_type": "rope",
    },
    "vae": {"dims": 3, "norm_layer": "pixel_norm"},
}
"""Values that change the computation and that the diffusers classes have in one form only."""


def config_from_metadata(component: Component, metadata: Section) -> Config:
    """The part of a component's diffusers configuration that the metadata states.

    Raises:
        ValueError: the metadata states something that the diffusers class cannot do.
        TypeError, KeyError, IndexError: it is not built like that of LTX-2.
    """
    section = metadata.get("transformer" if component == "connectors" else component) or {}
    for key, value in _ONLY.get(component, {}).items():
        if section.get(key, value) != value:
            raise ValueError(f"{component}.{key} is {section[key]!r}, and the diffusers class knows {value!r} only")
    read = {
        "transformer": _transformer,
        "connectors": _connectors,
        "vae": _vae,
        "audio_vae": _audio_vae,
        "vocoder": _vocoder,
    }
    return read[component](section)


def _stated(section: Section, keys: Mapping[str, str]) -> Config:
    return {ours: section[theirs] for theirs, ours in keys.items() if section.get(theirs) is not None}


def _rope(section: Section) -> Config:
    config = _stated(section, _ROPE)
    if "rope_type" in config:
        config["rope_type"] = config["rope_type"].lower()
    if "frequencies_precision" in section:
        config["rope_double_precision"] = section["frequencies_precision"] == "float64"
    return config


def _transformer(section: Section) -> Config:
    config = {**_stated(section, _TRANSFORMER), **_rope(section)}
    for key in ("timestep_scale_multiplier", "cross_attn_timestep_scale_multiplier"):
        if key in config:
            config[key] = int(config[key])
    if "positional_embedding_max_pos" in section:
        frames, height, width = section["positional_embedding_max_pos"]
        config |= {"pos_embed_max_pos": frames, "base_height": height, "base_width": width}
    if "audio_positional_embedding_max_pos" in section:
        config["audio_pos_embed_max_pos"] = section["audio_positional_embedding_max_pos"][0]
    return config


def _connectors(section: Section) -> Config:
    config = {**_stated(section, _CONNECTORS), **_rope(section)}
    for key in ("num_attention_heads", "attention_head_dim", "num_layers", "num_learnable_registers"):
        shared = section.get(f"connector_{key}")
        for kind, value in (("video", shared), ("audio", section.get(f"audio_connector_{key}", shared))):
            if value is not None:
                config[f"{kind}_connector_{key}"] = value
    if "connector_positional_embedding_max_pos" in section:
        config["connector_rope_base_seq_len"] = section["connector_positional_embedding_max_pos"][0]
    return config


def _vae(section: Section) -> Config:
    keys = {"patch_size": "patch_size", "scaling_factor": "scaling_factor", "causal_decoder": "decoder_causal"}
    config = _stated(section, keys)
    for side in ("encoder", "decoder"):
        padding = section.get(f"{side}_spatial_padding_mode", section.get("spatial_padding_mode"))
        if padding is not None:
            config[f"{side}_spatial_padding_mode"] = padding
    if "encoder_blocks" in section:
        config["layers_per_block"] = _layers(section["encoder_blocks"])
    if "decoder_blocks" in section:
        steps = [settings for name, settings in section["decoder_blocks"] if name != "res_x"]
        config["decoder_layers_per_block"] = _layers(section["decoder_blocks"])
        config["upsample_residual"] = [bool(settings.get("residual", False)) for settings in steps]
    return config


def _layers(blocks: list[tuple[str, Section]]) -> list[int]:
    return [settings["num_layers"] for name, settings in blocks if name == "res_x"]


def _audio_vae(section: Section) -> Config:
    parameters = section.get("model", {}).get("params", {})
    network = parameters.get("ddconfig", {})
    preparation = section.get("preprocessing", {})
    transform = preparation.get("stft", {})
    config = {
        **_stated(preparation.get("mel", {}), {"n_mel_channels": "mel_bins"}),
        **_stated(preparation.get("audio", {}), {"sampling_rate": "sample_rate"}),
        **_stated(parameters, {"sampling_rate": "sample_rate"}),
        **_stated(transform, {"hop_length": "mel_hop_length", "causal": "is_causal"}),
        **_stated(network, _AUDIO_VAE),
    }
    if "attn_resolutions" in network:
        config["attn_resolutions"] = network["attn_resolutions"] or None
    return config


def _vocoder(section: Section) -> Config:
    if "bwe" not in section:
        return {**_generator(section), **_stated(section, {"output_sampling_rate": "output_sampling_rate"})}
    extension = {f"bwe_{key}": value for key, value in _generator(section["bwe"]).items()}
    return {**_generator(section["vocoder"]), **extension, **_stated(section["bwe"], _BANDWIDTH_EXTENSION)}


def _generator(section: Section) -> Config:
    # `use_tanh_at_final` is left to the published values: the published diffusers configuration of 2.3 has no final
    # activation, which the original would spell like a clamp.
    config = _stated(section, _VOCODER)
    if section.get("resblock") == "AMP1":
        config |= {"antialias": True, **_stated(section, {"activation": "act_fn"})}
    return config
