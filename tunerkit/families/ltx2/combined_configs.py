"""The diffusers configuration of a component, from a combined file.

Three sources, each over the one before: the published values of the version; the shapes of the tensors; the file's own
`config` metadata. Where metadata and tensors contradict each other, the model made from the configuration does not fit
the tensors, and loading says so. Sources of the published values: the configurations of Lightricks/LTX-2 and
diffusers/LTX-2.3-Diffusers, and scripts/convert_ltx2_to_diffusers.py in huggingface/diffusers; of the metadata's keys:
the configurators of ltx-core in Lightricks/LTX-2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tunerkit.families.ltx2.combined_names import Component

Version = Literal["2.0", "2.3"]
Shapes = Mapping[str, tuple[int, ...]]
"""Diffusers name -> shape."""
Config = dict[str, Any]

CLASSES: dict[Component, dict[Version, str]] = {
    "transformer": dict.fromkeys(("2.0", "2.3"), "LTX2VideoTransformer3DModel"),
    "vae": dict.fromkeys(("2.0", "2.3"), "AutoencoderKLLTX2Video"),
    "audio_vae": dict.fromkeys(("2.0", "2.3"), "AutoencoderKLLTX2Audio"),
    "connectors": dict.fromkeys(("2.0", "2.3"), "LTX2TextConnectors"),
    "vocoder": {"2.0": "LTX2Vocoder", "2.3": "LTX2VocoderWithBWE"},
}

_ROPE: Config = {"rope_theta": 10000.0, "rope_double_precision": True, "rope_type": "split"}
_TRANSFORMER: Config = {
    **_ROPE,
    "patch_size": 1,
    "patch_size_t": 1,
    "num_attention_heads": 32,
    "vae_scale_factors": [8, 32, 32],
    "pos_embed_max_pos": 20,
    "base_height": 2048,
    "base_width": 2048,
    "audio_patch_size": 1,
    "audio_patch_size_t": 1,
    "audio_num_attention_heads": 32,
    "audio_scale_factor": 4,
    "audio_pos_embed_max_pos": 20,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 3840,
    "causal_offset": 1,
    "timestep_scale_multiplier": 1000,
    "cross_attn_timestep_scale_multiplier": 1000,
}
_CONNECTORS: Config = {
    **_ROPE,
    "caption_channels": 3840,
    "video_connector_num_attention_heads": 30,
    "audio_connector_num_attention_heads": 30,
    "connector_rope_base_seq_len": 4096,
    "causal_temporal_positioning": False,
}
_VAE: Config = {
    "out_channels": 3,
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
}
_AUDIO_VAE: Config = {
    "attn_resolutions": None,
    "resolution": 256,
    "norm_type": "pixel",
    "causality_axis": "height",
    "dropout": 0.0,
    "mid_block_add_attention": False,
    "sample_rate": 16000,
    "mel_hop_length": 160,
    "is_causal": True,
    "mel_bins": 64,
    "double_z": True,
}
_VOCODER: Config = {
    "upsample_factors": [6, 5, 2, 2, 2],
    "resnet_dilations": [[1, 3, 5]] * 3,
    "act_fn": "leaky_relu",
    "leaky_relu_negative_slope": 0.1,
    "antialias": False,
    "final_act_fn": "tanh",
    "output_sampling_rate": 24000,
}
_SNAKE: Config = {
    "resnet_dilations": [[1, 3, 5]] * 3,
    "act_fn": "snakebeta",
    "leaky_relu_negative_slope": 0.1,
    "antialias": True,
    "antialias_ratio": 2,
    "antialias_kernel_size": 12,
    "final_act_fn": None,
}
_VOCODER_WITH_BWE: Config = {
    **_SNAKE,
    **{f"bwe_{key}": value for key, value in _SNAKE.items()},
    "upsample_factors": [5, 2, 2, 2, 2, 2],
    "bwe_upsample_factors": [6, 5, 2, 2, 2],
    "filter_length": 512,
    "hop_length": 80,
    "window_length": 512,
    "num_mel_channels": 64,
    "input_sampling_rate": 16000,
    "output_sampling_rate": 48000,
}
PUBLISHED: dict[Component, dict[Version, Config]] = {
    "transformer": {
        "2.0": {**_TRANSFORMER, "perturbed_attn": False},
        "2.3": {**_TRANSFORMER, "perturbed_attn": True},
    },
    "connectors": {"2.0": _CONNECTORS, "2.3": _CONNECTORS},
    "vae": {
        "2.0": {**_VAE, "upsample_residual": True, "decoder_spatial_padding_mode": "reflect"},
        "2.3": {**_VAE, "upsample_residual": False, "decoder_spatial_padding_mode": "zeros"},
    },
    "audio_vae": {"2.0": _AUDIO_VAE, "2.3": _AUDIO_VAE},
    "vocoder": {"2.0": _VOCODER, "2.3": _VOCODER_WITH_BWE},
}
"""What the shapes of the tensors do not tell."""

_STEP = {8: "spatiotemporal", 4: "spatial", 2: "temporal"}
"""The kind of a resampling step, by the number of positions that it merges into one."""


def config_from_shapes(component: Component, version: Version, shapes: Shapes) -> Config:
    """What the tensors of a component tell, over the published values of the version.

    Raises:
        KeyError: a tensor that tells a size is missing; the argument is its name.
    """
    read = {
        "transformer": _transformer,
        "connectors": _connectors,
        "vae": _vae,
        "audio_vae": _audio_vae,
        "vocoder": _vocoder,
    }
    return {
        "_class_name": CLASSES[component][version],
        **PUBLISHED[component][version],
        **read[component](shapes),
    }


def _transformer(shapes: Shapes) -> Config:
    config: Config = {
        "num_layers": _count(shapes, "transformer_blocks"),
        "use_prompt_embeddings": "caption_projection.linear_1.weight" in shapes,
    }
    if config["use_prompt_embeddings"]:
        config["caption_channels"] = shapes["caption_projection.linear_1.weight"][1]
    for prefix in ("", "audio_"):
        block = f"transformer_blocks.0.{prefix}"
        gate = f"{block}attn1.to_gate_logits.weight"
        config[f"{prefix}in_channels"] = shapes[f"{prefix}proj_in.weight"][1]
        config[f"{prefix}out_channels"] = shapes[f"{prefix}proj_out.weight"][0]
        config[f"{prefix}cross_attention_dim"] = shapes[f"{block}attn2.to_k.weight"][1]
        config[f"{prefix}cross_attn_mod"] = shapes[f"{block}scale_shift_table"][0] == 9  # 6 without it
        config[f"{prefix}gated_attn"] = gate in shapes
        if gate in shapes:
            config[f"{prefix}num_attention_heads"] = shapes[gate][0]
    return config


def _connectors(shapes: Shapes) -> Config:
    separate = "video_text_proj_in.weight" in shapes
    config: Config = {
        "per_modality_projections": separate,
        "proj_bias": ("video_text_proj_in.bias" if separate else "text_proj_in.bias") in shapes,
    }
    if not separate:
        config["caption_channels"] = shapes["text_proj_in.weight"][0]
    for kind in ("video", "audio"):
        gate = f"{kind}_connector.transformer_blocks.0.attn1.to_gate_logits.weight"
        registers = shapes.get(f"{kind}_connector.learnable_registers")
        config[f"{kind}_connector_num_layers"] = _count(shapes, f"{kind}_connector.transformer_blocks")
        config[f"{kind}_connector_num_learnable_registers"] = None if registers is None else registers[0]
        config[f"{kind}_gated_attn"] = gate in shapes
        if gate in shapes:
            config[f"{kind}_connector_num_attention_heads"] = shapes[gate][0]
        if separate:
            config[f"{kind}_hidden_dim"] = shapes[f"{kind}_text_proj_in.weight"][0]
    return config


def finish(component: Component, config: Config, shapes: Shapes) -> Config:
    """`config` with the sizes that follow from others in it, once the metadata has had its say.

    Raises:
        KeyError: a tensor that tells a size is missing; the argument is its name.
    """
    if component == "transformer":
        for prefix in ("", "audio_"):
            width = shapes[f"{prefix}proj_in.weight"][0]
            config.setdefault(f"{prefix}attention_head_dim", width // config[f"{prefix}num_attention_heads"])
    elif component == "connectors":
        projection = "video_text_proj_in.weight" if config["per_modality_projections"] else "text_proj_in.weight"
        config["text_proj_in_factor"] = shapes[projection][1] // config["caption_channels"]
        for kind in ("video_connector", "audio_connector"):
            width = shapes[f"{kind}.transformer_blocks.0.attn1.to_q.weight"][0]
            config.setdefault(f"{kind}_attention_head_dim", width // config[f"{kind}_num_attention_heads"])
    elif component == "vae":
        blocks = len(config["upsample_type"])
        config["in_channels"] = shapes["encoder.conv_in.conv.weight"][1] // config["patch_size"] ** 2
        config["spatial_compression_ratio"] = config["patch_size"] * _factor(config["downsample_type"], "spatial")
        config["temporal_compression_ratio"] = config["patch_size_t"] * _factor(config["downsample_type"], "temporal")
        if isinstance(config["upsample_residual"], bool):
            config["upsample_residual"] = [config["upsample_residual"]] * blocks
    return config


def _factor(steps: list[str], direction: str) -> int:
    """Compression of all `steps` together in one direction."""
    return 2 ** sum(step in (direction, "spatiotemporal") for step in steps)


def _vae(shapes: Shapes) -> Config:
    down, up = _count(shapes, "encoder.down_blocks"), _count(shapes, "decoder.up_blocks")
    encoder = [*(f"encoder.down_blocks.{i}" for i in range(down)), "encoder.mid_block"]
    decoder = ["decoder.mid_block", *(f"decoder.up_blocks.{i}" for i in range(up))]
    inner = [_channels(shapes, block) for block in encoder]
    outer = [_channels(shapes, block) for block in decoder]
    factors = [before // after for before, after in zip(outer[:-1], outer[1:], strict=True)]
    compressed = [shapes[f"{block}.downsamplers.0.conv.conv.weight"][0] for block in encoder[:-1]]
    expanded = [shapes[f"{block}.upsamplers.0.conv.conv.weight"][0] for block in decoder[1:]]
    # diffusers lists a decoder in the encoder's order, output first; its kinds of steps alone in the order of work.
    return {
        "latent_channels": shapes["latents_mean"][0],
        "block_out_channels": inner[1:],
        "down_block_types": ["LTX2VideoDownBlock3D"] * down,
        "layers_per_block": [_count(shapes, f"{block}.resnets") for block in encoder],
        "spatio_temporal_scaling": [True] * down,
        "downsample_type": [_STEP.get(after // width, "") for after, width in zip(inner[1:], compressed, strict=True)],
        "decoder_block_out_channels": outer[-2::-1],
        "decoder_layers_per_block": [_count(shapes, f"{block}.resnets") for block in reversed(decoder)],
        "decoder_spatio_temporal_scaling": [True] * up,
        "decoder_inject_noise": [f"{block}.resnets.0.per_channel_scale1" in shapes for block in reversed(decoder)],
        "upsample_type": [
            _STEP.get(width * factor // before, "")
            for width, factor, before in zip(expanded, factors, outer[:-1], strict=True)
        ],
        "upsample_factor": factors[::-1],
        "timestep_conditioning": "decoder.scale_shift_table" in shapes,
    }


def _channels(shapes: Shapes, block: str) -> int:
    return shapes[f"{block}.resnets.0.conv1.conv.weight"][0]


def _audio_vae(shapes: Shapes) -> Config:
    width, channels = shapes["encoder.conv_in.conv.weight"][:2]
    levels = range(_count(shapes, "encoder.down"))
    return {
        "base_channels": width,
        "in_channels": channels,
        "output_channels": shapes["decoder.conv_out.conv.weight"][0],
        "latent_channels": shapes["decoder.conv_in.conv.weight"][1],
        "ch_mult": [shapes[f"encoder.down.{i}.block.0.conv1.conv.weight"][0] // width for i in levels],
        "num_res_blocks": _count(shapes, "encoder.down.0.block"),
    }


def _vocoder(shapes: Shapes) -> Config:
    if "conv_in.weight" in shapes:
        return _generator(shapes, "")
    extension = {f"bwe_{key}": value for key, value in _generator(shapes, "bwe_generator.").items()}
    return {**_generator(shapes, "vocoder."), **extension}


def _generator(shapes: Shapes, prefix: str) -> Config:
    """One vocoder network: `conv_in`, upsamplers with some residual blocks each, `conv_out`."""
    upsamplers = _count(shapes, f"{prefix}upsamplers")
    resnets = _count(shapes, f"{prefix}resnets") // max(1, upsamplers)
    return {
        "in_channels": shapes[f"{prefix}conv_in.weight"][1],
        "hidden_channels": shapes[f"{prefix}conv_in.weight"][0],
        "out_channels": shapes[f"{prefix}conv_out.weight"][0],
        "upsample_kernel_sizes": [shapes[f"{prefix}upsamplers.{i}.weight"][2] for i in range(upsamplers)],
        "resnet_kernel_sizes": [shapes[f"{prefix}resnets.{i}.convs1.0.weight"][2] for i in range(resnets)],
        "final_bias": f"{prefix}conv_out.bias" in shapes,
    }


def _count(shapes: Shapes, parent: str) -> int:
    """How many numbered modules `parent` has."""
    start = len(parent) + 1
    return len({name[start:].split(".")[0] for name in shapes if name.startswith(f"{parent}.")})
