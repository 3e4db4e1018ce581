"""Tiny Kandinsky 5.0 Video checkpoints: the real classes and geometry, two thirds of a million parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunerkit.demo.wan_vae import LATENT_CHANNELS
from tunerkit.families.kandinsky5.family import FAMILY
from tunerkit.families.kandinsky5.flavours import is_image_to_video, is_sparse
from tunerkit.files import read_json, write_json

AXES = (8, 8, 8)
"""How the positions in time, height and width share a head's channels."""
WIDTH = 4 * sum(AXES)
"""Of the picture's tokens, in four heads."""
TIME_WIDTH = 32
TEXT_WIDTH = 32
POOLED_WIDTH = 16
PATCH = (1, 2, 2)
MODULATION = 0.2
"""Standard deviation of the weights by which time and text shift, scale and gate what a block does."""

SETTINGS: dict[str, Any] = {
    "model_flavour": "t2v-lite-sft-5s",
    "framerate": 24,
    "validation_guidance": 3.0,
    "validation_num_inference_steps": 8,
    "validation_resolution": "96x64",
    "validation_num_video_frames": 17,
}
"""Of config.json. Sizes are multiples of 16, frames 4k + 1. From fewer than 17, the stock image-to-video pipeline
makes nothing but NaN."""

SPARSE_SIZES: tuple[dict[str, Any], dict[str, Any]] = ({"validation_resolution": "256x128"}, {"resolution": 128})
"""Of config.json and of the dataset, where attention is sparse: multiples of 128."""

FRAMES = 17
"""Frames of a training sample: two thirds of a second at 24 fps."""

_COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")

SPARSE: dict[str, Any] = {
    "attention_type": "nabla",
    "attention_P": 0.9,
    "attention_wT": 11,
    "attention_wH": 3,
    "attention_wW": 3,
    "attention_add_sta": True,
    "attention_method": "topcdf",
}
"""The published models of 10 s and of high definition attend to the likeliest blocks of 8x8 tokens only."""

_PIXELS: dict[str, Any] = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""How Qwen2.5-VL's processor prepares pictures. The pipelines show it none, but load these files."""


def documents(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and the dataset say of this family only."""
    of_config, of_dataset = SPARSE_SIZES if variant(settings)["sparse"] else ({}, {})
    return {**SETTINGS, **of_config}, of_dataset


def variant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json decides about `build`: the `model_flavour` says what is rendered, and how tokens attend."""
    given = str(settings.get("model_flavour", SETTINGS["model_flavour"]))
    flavour = FAMILY.flavour(given) or given  # an unknown one is refused when the project is used
    return {"image_to_video": is_image_to_video(flavour), "sparse": is_sparse(flavour)}


def build(folder: Path, corpus: Iterable[str], image_to_video: bool = False, sparse: bool = False) -> None:
    """Writes model_index.json and a folder for every component of a Kandinsky 5 pipeline below `folder`.

    Weights come from torch's global generator: seed it for files that are the same byte for byte.

    Args:
        folder: an existing, empty folder.
        corpus: sentences the tokenizers learn their words from.
        image_to_video: for `Kandinsky5I2VPipeline` instead of `Kandinsky5T2VPipeline`; the components are the same.
        sparse: with the attention of the 10 s and high definition models, which needs sizes that are multiples of 128.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5I2VPipeline, Kandinsky5T2VPipeline

    from tunerkit.demo.hunyuan_vae import averaging_hunyuan_vae
    from tunerkit.demo.kandinsky5_tokenizers import clip_tokenizer, qwen_tokenizer

    pipeline_class: Any = Kandinsky5I2VPipeline if image_to_video else Kandinsky5T2VPipeline
    empty = pipeline_class(**dict.fromkeys(_COMPONENTS))  # knows the template that prompts are put in
    sentences = list(corpus)
    tokenizer = qwen_tokenizer(sentences, empty.prompt_template.split("{}")[0], empty.prompt_template_encode_start_idx)
    tokenizer_2 = clip_tokenizer(sentences)
    pipeline = pipeline_class(
        transformer=_transformer(sparse),
        vae=averaging_hunyuan_vae(),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_text_encoder_2(tokenizer_2),
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=10.0),
    )
    pipeline.save_pretrained(folder)
    _write_processor(folder)


def _write_processor(folder: Path) -> None:
    """Makes the saved tokenizer the processor of the hub's layout.

    It is written, not saved, because the class `Qwen2VLProcessor` cannot be constructed without torchvision.
    """
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "tokenizer": ["transformers", "Qwen2VLProcessor"]})
    for file, kind in (
        ("preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor"}),
        ("video_preprocessor_config.json", {"video_processor_type": "Qwen2VLVideoProcessor"}),
    ):
        write_json(folder / "tokenizer" / file, {**_PIXELS, **kind})


def _text_encoder(tokenizer: Any) -> Any:  # Qwen2_5_VLForConditionalGeneration
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    number = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": TEXT_WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 32768,
                # Half a head's 16 channels, dealt out to time, height and width.
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 4]},
                "bos_token_id": None,
                "eos_token_id": number("<|im_end|>"),
                "pad_token_id": number("<|endoftext|>"),
            },
            vision_config={
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": TEXT_WIDTH,
                "fullatt_block_indexes": [0],
            },
            image_token_id=number("<|image_pad|>"),
            video_token_id=number("<|video_pad|>"),
            vision_start_token_id=number("<|vision_start|>"),
            vision_end_token_id=number("<|vision_end|>"),
        )
    )


def _text_encoder_2(tokenizer: Any) -> Any:  # CLIPTextModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=POOLED_WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=POOLED_WIDTH,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,  # the pooled state is that of this token
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _transformer(sparse: bool) -> Any:  # Kandinsky5Transformer3DModel
    from diffusers import Kandinsky5Transformer3DModel

    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=LATENT_CHANNELS,
        out_visual_dim=LATENT_CHANNELS,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=POOLED_WIDTH,
        time_dim=TIME_WIDTH,
        patch_size=PATCH,
        model_dim=WIDTH,
        ff_dim=2 * WIDTH,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=AXES,
        visual_cond=True,
        **(SPARSE if sparse else {}),
    )
    _open_gates(transformer)
    _write_input_to_output(transformer)
    return transformer


def _open_gates(transformer: Any) -> None:
    """Lets every block act, as in a trained model.

    A fresh one has gates of zero: blocks add nothing, and the gradient of an adapter inside them is zero as well.
    """
    import torch

    with torch.no_grad():
        for name, module in transformer.named_modules():
            if name.endswith(("text_modulation", "visual_modulation")):
                module.out_layer.weight.normal_(std=MODULATION)


def _write_input_to_output(transformer: Any) -> None:
    """Lets the untrained model return its noisy input, at unit variance, instead of an unrelated random projection.

    An adapter changes what attention adds to the residual stream, and shows little of that through random outer layers,
    see `sana_video`. So the layer into the stream is an orthonormal basis and the one out of it its transpose: noise is
    passed on, which is right for high sigma, and the clips' colours are what is left to learn. What stands beside the
    noisy latents, the condition and its mask, enters through random weights.
    """
    import torch

    from tunerkit.demo.bases import cosine_basis

    values = LATENT_CHANNELS * math.prod(PATCH)
    basis = cosine_basis(WIDTH, values)
    entering, leaving = transformer.visual_embeddings.in_layer, transformer.out_layer.out_layer
    with torch.no_grad():
        # A patch enters as (position, channel) and leaves as (channel, position).
        by_position = basis.view(WIDTH, LATENT_CHANNELS, -1).transpose(1, 2)
        entering.weight.view(WIDTH, math.prod(PATCH), -1)[..., :LATENT_CHANNELS] = by_position
        entering.bias.zero_()
        # The last norm gives a token the length sqrt(WIDTH); sqrt(values) is that of unit variance in a patch.
        leaving.weight.copy_(basis.T * math.sqrt(values / WIDTH))
        leaving.bias.zero_()
