"""Packs an LTX-2 checkpoint in diffusers layout into one combined file, with the original names and metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.families.ltx2.combined_names import COMPONENTS, SEGMENTS, STATISTICS, Component
from tunerkit.files import read_json, replacing

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]

_STATISTICS = {ours: theirs for theirs, ours in STATISTICS.items()}
_DOWN = re.compile(r"^encoder\.down_blocks\.(\d+)\.(downsamplers\.0\.)?")
_UP = re.compile(r"^decoder\.up_blocks\.(\d+)\.(upsamplers\.0\.)?")
_STEP = {"spatiotemporal": "compress_all", "spatial": "compress_space", "temporal": "compress_time"}
_SAME = (
    *("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "cross_attention_dim"),
    *("audio_num_attention_heads", "audio_attention_head_dim", "audio_in_channels", "audio_out_channels"),
    *("audio_cross_attention_dim", "caption_channels", "activation_fn", "norm_eps", "norm_elementwise_affine"),
    *("rope_type", "timestep_scale_multiplier"),
)
_CONNECTOR = ("num_attention_heads", "attention_head_dim", "num_layers", "num_learnable_registers")
_AUDIO_SAME = (
    *("ch_mult", "num_res_blocks", "in_channels", "resolution", "norm_type", "causality_axis", "dropout"),
    *("mid_block_add_attention", "mel_bins", "double_z"),
)


def write_combined(model_folder: Path, target: Path, version: str) -> Path:
    """Writes the combined file of a checkpoint in diffusers layout; its text encoder stays where it is.

    Args:
        model_folder: a checkpoint of LTX-2 in diffusers layout, small enough for memory.
        target: the `.safetensors` file to write.
        version: "2.0" or "2.3", for the metadata.
    """
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    configs: dict[Component, Config] = {}
    for component in COMPONENTS:
        configs[component] = read_json(model_folder / component / "config.json")
        for file in sorted((model_folder / component).glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                tensors[original_name(component, name, configs[component])] = tensor
    metadata = {"model_version": f"{version}.0", "config": json.dumps(original_metadata(configs))}
    with replacing(target) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return target


def original_name(component: Component, name: str, config: Config) -> str:
    """What a combined file calls the tensor that diffusers calls `name`."""
    if component == "connectors" and "text_proj_in." in name:
        return f"text_embedding_projection.{_original_segments(component, name)}"
    if component in ("transformer", "connectors"):
        return f"model.diffusion_model.{_original_segments(component, name)}"
    if name in _STATISTICS:
        return f"{component}.per_channel_statistics.{_STATISTICS[name]}"
    if component == "vae":
        name = _flat_block(name, len(config["block_out_channels"]))
    return f"{component}.{_original_segments(component, name)}"


def _flat_block(name: str, down_blocks: int) -> str:
    """Puts a block of the video VAE at its place in the original list of residual and resampling blocks."""
    name = _DOWN.sub(lambda match: f"encoder.down_blocks.{2 * int(match[1]) + bool(match[2])}.", name)
    name = name.replace("encoder.mid_block.", f"encoder.down_blocks.{2 * down_blocks}.")
    name = _UP.sub(lambda match: f"decoder.up_blocks.{2 * int(match[1]) + 2 - bool(match[2])}.", name)
    return name.replace("decoder.mid_block.", "decoder.up_blocks.0.")


def _original_segments(component: Component, name: str) -> str:
    dotted = f".{name}."
    for theirs, ours in SEGMENTS[component].items():
        dotted = dotted.replace(f".{ours}.", f".{theirs}.")
    return dotted[1:-1]


def original_metadata(configs: Mapping[Component, Config]) -> dict[str, Any]:
    """The `config` document of a combined file, from the diffusers configurations of its components."""
    return {
        "transformer": _transformer(configs["transformer"], configs["connectors"]),
        "vae": _vae(configs["vae"]),
        "audio_vae": _audio_vae(configs["audio_vae"]),
        "vocoder": _vocoder(configs["vocoder"]),
        "scheduler": {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000},
    }


def _transformer(config: Config, connectors: Config) -> dict[str, Any]:
    return {
        "_class_name": "AVTransformer3DModel",
        **{key: config[key] for key in _SAME},
        **{f"connector_{key}": connectors[f"video_connector_{key}"] for key in _CONNECTOR},
        **{f"audio_connector_{key}": connectors[f"audio_connector_{key}"] for key in _CONNECTOR},
        "connector_positional_embedding_max_pos": [connectors["connector_rope_base_seq_len"]],
        "connector_apply_gated_attention": connectors["video_gated_attn"],
        "apply_gated_attention": config["gated_attn"],
        "cross_attention_adaln": config["cross_attn_mod"],
        "caption_proj_before_connector": connectors["per_modality_projections"],
        "av_ca_timestep_scale_multiplier": float(config["cross_attn_timestep_scale_multiplier"]),
        "positional_embedding_theta": config["rope_theta"],
        "positional_embedding_max_pos": [config["pos_embed_max_pos"], config["base_height"], config["base_width"]],
        "audio_positional_embedding_max_pos": [config["audio_pos_embed_max_pos"]],
        "frequencies_precision": "float64" if config["rope_double_precision"] else "float32",
        "use_middle_indices_grid": True,
        "share_ff": False,
    }


def _vae(config: Config) -> dict[str, Any]:
    encoder_steps = [(f"{_STEP[kind]}_res", {}) for kind in config["downsample_type"]]
    # The kinds of a decoder's steps are listed in the order of work, everything else output first.
    decoder_steps = [
        (_STEP[kind], {"multiplier": factor, "residual": residual})
        for kind, factor, residual in zip(
            reversed(config["upsample_type"]), config["upsample_factor"], config["upsample_residual"], strict=True
        )
    ]
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "latent_channels": config["latent_channels"],
        "patch_size": config["patch_size"],
        "norm_layer": "pixel_norm",
        "causal_decoder": config["decoder_causal"],
        "timestep_conditioning": config["timestep_conditioning"],
        "encoder_spatial_padding_mode": config["encoder_spatial_padding_mode"],
        "decoder_spatial_padding_mode": config["decoder_spatial_padding_mode"],
        "encoder_blocks": _alternating(config["layers_per_block"], encoder_steps),
        "decoder_blocks": _alternating(config["decoder_layers_per_block"], decoder_steps),
    }


def _alternating(layers: list[int], steps: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Residual blocks with the resampling steps between them."""
    blocks = [("res_x", {"num_layers": count}) for count in layers]
    return [*(block for pair in zip(blocks, steps, strict=False) for block in pair), blocks[-1]]


def _audio_vae(config: Config) -> dict[str, Any]:
    return {
        "model": {
            "params": {
                "sampling_rate": config["sample_rate"],
                "ddconfig": {
                    "ch": config["base_channels"],
                    "out_ch": config["output_channels"],
                    "z_channels": config["latent_channels"],
                    "attn_resolutions": config["attn_resolutions"] or [],
                    **{key: config[key] for key in _AUDIO_SAME},
                },
            }
        },
        "preprocessing": {
            "audio": {"sampling_rate": config["sample_rate"]},
            "stft": {"hop_length": config["mel_hop_length"], "causal": config["is_causal"]},
            "mel": {"n_mel_channels": config["mel_bins"]},
        },
    }


def _vocoder(config: Config) -> dict[str, Any]:
    if "bwe_in_channels" not in config:
        return {**_generator(config, ""), "output_sampling_rate": config["output_sampling_rate"]}
    return {
        "vocoder": _generator(config, ""),
        "bwe": {
            **_generator(config, "bwe_"),
            "apply_final_activation": False,
            "n_fft": config["filter_length"],
            "win_size": config["window_length"],
            "hop_length": config["hop_length"],
            "num_mels": config["num_mel_channels"],
            "input_sampling_rate": config["input_sampling_rate"],
            "output_sampling_rate": config["output_sampling_rate"],
        },
    }


def _generator(config: Config, prefix: str) -> dict[str, Any]:
    newer = {"resblock": "AMP1", "activation": config[f"{prefix}act_fn"]} if config[f"{prefix}antialias"] else {}
    return {
        "resblock": "1",
        **newer,
        "stereo": config[f"{prefix}out_channels"] == 2,
        "upsample_initial_channel": config[f"{prefix}hidden_channels"],
        "upsample_rates": config[f"{prefix}upsample_factors"],
        "upsample_kernel_sizes": config[f"{prefix}upsample_kernel_sizes"],
        "resblock_kernel_sizes": config[f"{prefix}resnet_kernel_sizes"],
        "resblock_dilation_sizes": config[f"{prefix}resnet_dilations"],
        "use_bias_at_final": config[f"{prefix}final_bias"],
        "use_tanh_at_final": config[f"{prefix}final_act_fn"] == "tanh",
    }
