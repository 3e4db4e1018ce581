"""The configurations of published checkpoints that are known without a download."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch

import tunerkit as tk
from tunerkit.demo import kandinsky5, ltx2, sana_video
from tunerkit.families.facts import PublishedComponent
from tunerkit.families.ltx2 import combined_configs
from tunerkit.families.published import build

TRAINABLE = [
    (name, flavour)
    for name in tk.families.names()
    for flavour, one in tk.family(name).flavours.items()
    if not one.refused
]
LTX2, KANDINSKY5, SANA = "ltxvideo2", "kandinsky5-video", "sanavideo"
LITE, PRO = (KANDINSKY5, "t2v-lite-sft-5s"), (KANDINSKY5, "t2v-pro-sft-5s-hd")

PARAMETERS = {
    (LTX2, "dev", "text_encoder"): 12_187_325_040,  # google/gemma-3-12b-it-qat-q4_0-unquantized
    (*LITE, "text_encoder"): 8_292_166_656,  # Qwen/Qwen2.5-VL-7B-Instruct
    (*LITE, "text_encoder_2"): 123_060_480,  # openai/clip-vit-large-patch14, its text model
    (SANA, "2b-480p", "text_encoder"): 2_614_341_888,  # google/gemma-2-2b-it
}
"""Parameters of published text encoders."""
FILES = {
    (*LITE, "transformer", torch.bfloat16): 4_573_130_528,  # kandinsky5lite_t2v_sft_5s.safetensors
    (*PRO, "transformer", torch.bfloat16): 43_385_935_392,  # kandinsky5pro_t2v_sft_5s.safetensors
    (*LITE, "vae", torch.bfloat16): 492_986_478,  # hunyuan_video_vae_bf16.safetensors
    (SANA, "2b-480p", "vae", torch.float32): 507_591_892,  # of Wan-AI/Wan2.1-T2V-1.3B-Diffusers
}
"""Bytes of published files with the weights of one component; those of Kandinsky keep some layers in float32."""
COMBINED_FILES = {"dev": 43.3, "2.3-dev": 46.1}
"""Size in GB of ltx-2-19b-dev.safetensors and ltx-2.3-22b-dev.safetensors, which hold all but the text encoder."""


@functools.cache
def on_meta(family: str, flavour: str, component: PublishedComponent) -> Any:
    with torch.device("meta"):
        return build(tk.family(family).published_config(flavour, component))


def stored_bytes(model: Any, dtype: torch.dtype) -> int:
    keep = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return sum(
        p.numel() * (4 if keep & set(name.split(".")) else dtype.itemsize) for name, p in model.named_parameters()
    )


@pytest.mark.parametrize(("place", "published"), PARAMETERS.items())
def test_text_encoders_have_the_published_parameters(place: Any, published: int) -> None:
    assert sum(p.numel() for p in on_meta(*place).parameters()) == published


@pytest.mark.parametrize(("place", "published"), FILES.items())
def test_weights_have_the_bytes_of_published_files(place: Any, published: int) -> None:
    header = published - stored_bytes(on_meta(*place[:3]), place[3])  # about 100 bytes a tensor
    assert 0 < header < 250_000


@pytest.mark.parametrize("flavour", COMBINED_FILES)
def test_ltx2_has_the_bytes_of_its_combined_file(flavour: str) -> None:
    components = tk.family(LTX2).published_components(flavour).keys() - {"text_encoder"}
    size = sum(stored_bytes(on_meta(LTX2, flavour, component), torch.bfloat16) for component in components)
    assert round(size / 1e9, 1) == COMBINED_FILES[flavour]


def test_sana_has_the_parameters_of_a_2b_model() -> None:
    assert sum(p.numel() for p in on_meta(SANA, "2b-480p", "transformer").parameters()) == pytest.approx(2.057e9, 1e-3)


@pytest.mark.parametrize(("family", "flavour"), TRAINABLE)
def test_every_trainable_flavour_is_known(family: str, flavour: str) -> None:
    of = tk.family(family)
    components = of.published_components(flavour)
    assert {"transformer", "vae", "text_encoder"} <= components.keys() <= set(get_args(PublishedComponent))
    for component in components:
        assert of.published_config(flavour, component).keys() >= components[component].keys()


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_ltx2_configurations_follow_from_the_shapes_of_their_tensors(version: combined_configs.Version) -> None:
    flavour = "2.3-dev" if version == "2.3" else "dev"
    for component in combined_configs.CLASSES:
        published = tk.family(LTX2).published_config(flavour, component)
        shapes = {name: tuple(tensor.shape) for name, tensor in on_meta(LTX2, flavour, component).state_dict().items()}
        read = combined_configs.config_from_shapes(component, version, shapes)
        read = combined_configs.finish(component, read, shapes)
        assert plain({key: published[key] for key in read}) == plain(read), component


@pytest.mark.parametrize(
    ("family", "flavour", "tiny", "variant"),
    [
        (SANA, "2b-480p", sana_video, {}),
        (LTX2, "dev", ltx2, {}),
        (LTX2, "2.3-dev", ltx2, {"version": "2.3"}),
        (*LITE, kandinsky5, {}),
        (*PRO, kandinsky5, {"sparse": True}),
    ],
)
def test_keys_are_those_of_saved_checkpoints(
    tmp_path: Path, family: str, flavour: str, tiny: Any, variant: dict[str, Any]
) -> None:
    tiny.build(tmp_path, ["a red ball rolls", "a blue cube"], **variant)
    saved = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/config.json")}
    assert saved.keys() == tk.family(family).published_components(flavour).keys()
    for name, config in saved.items():
        published = tk.family(family).published_config(flavour, cast(PublishedComponent, name))
        assert config.keys() - {"_diffusers_version", "dtype"} == published.keys()
        assert all(config.get(key) == published.get(key) for key in ("_class_name", "architectures", "model_type"))


@pytest.mark.parametrize(
    ("flavour", "share"),
    [
        ("t2v-lite-sft-5s", None),
        ("i2v-lite-5s", None),
        ("t2v-lite-sft-10s", 0.9),
        ("t2v-pro-sft-5s-hd", 0.8),
        ("i2v-pro-sft-5s", 0.8),
        ("t2v-pro-sft-10s-hd", 0.7),
    ],
)
def test_kandinsky_attention_is_sparse_where_it_was_trained_so(flavour: str, share: float | None) -> None:
    config = tk.family(KANDINSKY5).published_config(flavour, "transformer")
    assert config["attention_type"] == ("regular" if share is None else "nabla")
    assert config["attention_P"] == share
    if share == 0.9:
        assert {key: config[key] for key in kandinsky5.SPARSE} == kandinsky5.SPARSE


def test_aliases_are_understood() -> None:
    assert tk.family(LTX2).published_config("2.3", "transformer")["gated_attn"]


@pytest.mark.parametrize(
    ("flavour", "component", "found"),
    [
        ("2.5-dev", "transformer", r"'2.5-dev' is no flavour of LTX-2 that can be trained \(dev, 2.3-dev\)"),
        ("3", "transformer", "'3' is no flavour"),
        ("dev", "text_encoder_2", "LTX-2 has no text_encoder_2, only transformer, "),
    ],
)
def test_what_is_not_published_is_named(flavour: str, component: PublishedComponent, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        tk.family(LTX2).published_config(flavour, component)


def test_a_class_that_diffusers_does_not_have_is_named() -> None:
    with pytest.raises(tk.ModelError, match="has no LTX9VideoTransformer3DModel"):
        build({"_class_name": "LTX9VideoTransformer3DModel"})


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it: lists instead of tuples."""
    return json.loads(json.dumps(config))
