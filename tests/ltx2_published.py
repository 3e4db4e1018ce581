"""What is published of LTX-2 2.0 and 2.3: configurations, names, and the metadata of the combined file."""

from __future__ import annotations

from typing import Any

from tunerkit.families.ltx2.combined_names import Component

TRANSFORMER_TENSORS = {"2.0": 198, "2.3": 230}
"""Of two layers, counted in the original implementation."""

ROPE = {"rope_type": "split", "rope_theta": 10000.0, "rope_double_precision": True}
FULL_TRANSFORMER = {
    **ROPE,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "num_layers": 48,
    "caption_channels": 3840,
    "timestep_scale_multiplier": 1000,
    "cross_attn_timestep_scale_multiplier": 1000,
}
FULL_AUDIO_VAE = {"base_channels": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2, "latent_channels": 8, "mel_bins": 64}
COMPRESSION = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
FULL: dict[str, dict[Component, dict[str, Any]]] = {
    "2.0": {
        "transformer": {**FULL_TRANSFORMER, "use_prompt_embeddings": True, "perturbed_attn": False},
        "vae": {
            **COMPRESSION,
            "block_out_channels": [256, 512, 1024, 2048],
            "decoder_block_out_channels": [256, 512, 1024],
            "layers_per_block": [4, 6, 6, 2, 2],
            "decoder_layers_per_block": [5, 5, 5, 5],
            "decoder_spatio_temporal_scaling": [True] * 3,
            "decoder_inject_noise": [False] * 4,
            "upsample_type": ["spatiotemporal"] * 3,
            "upsample_residual": [True] * 3,
            "upsample_factor": [2, 2, 2],
            "decoder_causal": False,
            "decoder_spatial_padding_mode": "reflect",
        },
        "audio_vae": FULL_AUDIO_VAE,
        "connectors": {**ROPE, "video_connector_num_attention_heads": 30, "video_connector_num_layers": 2},
        "vocoder": {"hidden_channels": 1024, "upsample_kernel_sizes": [16, 15, 8, 4, 4]},
    },
    "2.3": {
        "transformer": {
            **FULL_TRANSFORMER,
            **dict.fromkeys(("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod"), True),
            "use_prompt_embeddings": False,
            "perturbed_attn": True,
        },
        "vae": {
            **COMPRESSION,
            "block_out_channels": [256, 512, 1024, 1024],
            "decoder_block_out_channels": [256, 512, 512, 1024],
            "layers_per_block": [4, 6, 4, 2, 2],
            "decoder_layers_per_block": [4, 6, 4, 2, 2],
            "decoder_spatio_temporal_scaling": [True] * 4,
            "decoder_inject_noise": [False] * 5,
            "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
            "upsample_residual": [False] * 4,
            "upsample_factor": [2, 2, 1, 2],
            "decoder_causal": False,
            "decoder_spatial_padding_mode": "zeros",
        },
        "audio_vae": FULL_AUDIO_VAE,
        "connectors": {
            **ROPE,
            "video_connector_num_attention_heads": 32,
            "video_connector_attention_head_dim": 128,
            "video_connector_num_layers": 8,
            "audio_connector_num_attention_heads": 32,
            "audio_connector_attention_head_dim": 64,
            "audio_connector_num_layers": 8,
            **dict.fromkeys(("video_gated_attn", "audio_gated_attn", "per_modality_projections", "proj_bias"), True),
            "video_hidden_dim": 4096,
            "audio_hidden_dim": 2048,
        },
        "vocoder": {},
    },
}
"""The published configurations, as far as they differ from the defaults of the classes."""

CLASSES: dict[Component, str] = {
    "transformer": "LTX2VideoTransformer3DModel",
    "vae": "AutoencoderKLLTX2Video",
    "audio_vae": "AutoencoderKLLTX2Audio",
    "connectors": "LTX2TextConnectors",
}

RELEASED_23: dict[str, Any] = {
    "transformer": {
        "_class_name": "AVTransformer3DModel",
        "attention_head_dim": 128,
        "num_attention_heads": 32,
        "num_layers": 48,
        "caption_channels": 3840,
        "cross_attention_dim": 4096,
        "in_channels": 128,
        "out_channels": 128,
        "norm_eps": 1e-06,
        "qk_norm": "rms_norm",
        "activation_fn": "gelu-approximate",
        "audio_num_attention_heads": 32,
        "audio_attention_head_dim": 64,
        "audio_out_channels": 128,
        "audio_cross_attention_dim": 2048,
        "audio_positional_embedding_max_pos": [20],
        "positional_embedding_type": "rope",
        "positional_embedding_theta": 10000.0,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "timestep_scale_multiplier": 1000,
        "av_ca_timestep_scale_multiplier": 1000.0,
        "connector_attention_head_dim": 128,
        "connector_num_attention_heads": 32,
        "connector_num_layers": 8,
        "connector_positional_embedding_max_pos": [4096],
        "connector_num_learnable_registers": 128,
        "audio_connector_attention_head_dim": 64,
        "audio_connector_num_attention_heads": 32,
        "use_middle_indices_grid": True,
        "share_ff": False,
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
        "caption_proj_before_connector": True,
        "rope_type": "split",
        "frequencies_precision": "float64",
    },
    "vae": {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "latent_channels": 128,
        "patch_size": 4,
        "norm_layer": "pixel_norm",
        "causal_decoder": False,
        "spatial_padding_mode": "zeros",
        "timestep_conditioning": False,
        "encoder_blocks": [
            ["res_x", {"num_layers": 4}],
            ["compress_space_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 6}],
            ["compress_time_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 4}],
            ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
            ["compress_all_res", {"multiplier": 1}],
            ["res_x", {"num_layers": 2}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": 4}],
            ["compress_space", {"multiplier": 2}],
            ["res_x", {"num_layers": 6}],
            ["compress_time", {"multiplier": 2}],
            ["res_x", {"num_layers": 4}],
            ["compress_all", {"multiplier": 1}],
            ["res_x", {"num_layers": 2}],
            ["compress_all", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
        ],
    },
    "audio_vae": {
        "model": {
            "params": {
                "ddconfig": {
                    "double_z": True,
                    "mel_bins": 64,
                    "z_channels": 8,
                    "resolution": 256,
                    "in_channels": 2,
                    "out_ch": 2,
                    "ch": 128,
                    "ch_mult": [1, 2, 4],
                    "num_res_blocks": 2,
                    "attn_resolutions": [],
                    "dropout": 0.0,
                    "mid_block_add_attention": False,
                    "norm_type": "pixel",
                    "causality_axis": "height",
                },
                "sampling_rate": 16000,
            }
        },
        "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160, "causal": True}},
    },
    "vocoder": {
        "vocoder": {
            "upsample_initial_channel": 1536,
            "resblock": "AMP1",
            "upsample_rates": [5, 2, 2, 2, 2, 2],
            "resblock_kernel_sizes": [3, 7, 11],
            "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
            "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            "stereo": True,
            "use_tanh_at_final": False,
            "activation": "snakebeta",
            "use_bias_at_final": False,
        },
        "bwe": {
            "upsample_initial_channel": 512,
            "resblock": "AMP1",
            "upsample_rates": [6, 5, 2, 2, 2],
            "resblock_kernel_sizes": [3, 7, 11],
            "upsample_kernel_sizes": [12, 11, 4, 4, 4],
            "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            "stereo": True,
            "use_tanh_at_final": False,
            "activation": "snakebeta",
            "use_bias_at_final": False,
            "apply_final_activation": False,
            "input_sampling_rate": 16000,
            "output_sampling_rate": 48000,
            "hop_length": 80,
            "n_fft": 512,
            "win_size": 512,
            "num_mels": 64,
        },
    },
}
"""What the header of ltx-2.3-22b-dev.safetensors says."""

NAMES = {
    "model.diffusion_model.patchify_proj.weight": "proj_in.weight",
    "model.diffusion_model.audio_patchify_proj.bias": "audio_proj_in.bias",
    "model.diffusion_model.adaln_single.emb.timestep_embedder.linear_1.weight": (
        "time_embed.emb.timestep_embedder.linear_1.weight"
    ),
    "model.diffusion_model.audio_prompt_adaln_single.linear.bias": "audio_prompt_adaln.linear.bias",
    "model.diffusion_model.av_ca_a2v_gate_adaln_single.linear.weight": "av_cross_attn_video_a2v_gate.linear.weight",
    "model.diffusion_model.transformer_blocks.7.scale_shift_table_a2v_ca_audio": (
        "transformer_blocks.7.audio_a2v_cross_attn_scale_shift_table"
    ),
    "model.diffusion_model.transformer_blocks.7.audio_attn1.q_norm.weight": (
        "transformer_blocks.7.audio_attn1.norm_q.weight"
    ),
    "model.diffusion_model.audio_embeddings_connector.transformer_1d_blocks.1.attn1.k_norm.weight": (
        "audio_connector.transformer_blocks.1.attn1.norm_k.weight"
    ),
    "text_embedding_projection.aggregate_embed.weight": "text_proj_in.weight",
    "text_embedding_projection.video_aggregate_embed.bias": "video_text_proj_in.bias",
    "vae.encoder.down_blocks.0.res_blocks.3.conv1.conv.weight": "encoder.down_blocks.0.resnets.3.conv1.conv.weight",
    "vae.encoder.down_blocks.7.conv.conv.bias": "encoder.down_blocks.3.downsamplers.0.conv.conv.bias",
    "vae.encoder.down_blocks.8.res_blocks.0.conv2.conv.bias": "encoder.mid_block.resnets.0.conv2.conv.bias",
    "vae.decoder.up_blocks.0.res_blocks.0.conv2.conv.bias": "decoder.mid_block.resnets.0.conv2.conv.bias",
    "vae.decoder.up_blocks.7.conv.conv.weight": "decoder.up_blocks.3.upsamplers.0.conv.conv.weight",
    "vae.decoder.up_blocks.8.res_blocks.1.conv1.conv.bias": "decoder.up_blocks.3.resnets.1.conv1.conv.bias",
    "vae.per_channel_statistics.mean-of-means": "latents_mean",
    "audio_vae.per_channel_statistics.std-of-means": "latents_std",
    "audio_vae.encoder.down.0.block.1.conv2.conv.weight": "encoder.down.0.block.1.conv2.conv.weight",
    "vocoder.vocoder.ups.0.weight": "vocoder.upsamplers.0.weight",
    "vocoder.bwe_generator.resblocks.3.acts1.0.downsample.lowpass.filter": (
        "bwe_generator.resnets.3.acts1.0.downsample.filter"
    ),
    "vocoder.bwe_generator.act_post.act.alpha": "bwe_generator.act_out.act.alpha",
    "vocoder.conv_pre.weight": "conv_in.weight",
    "vocoder.mel_stft.stft_fn.forward_basis": "mel_stft.stft_fn.forward_basis",
}
"""Name in a combined file -> name in diffusers."""
