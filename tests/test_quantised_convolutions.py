"""Quantised convolutions: against torch's own with the weight that they stand for, with adapters, in Sana Video."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

import tunerkit as tk
from tunerkit.memory.quantised_formats import FORMATS
from tunerkit.memory.quantised_linear import QuantisedConv2d, quantisable, quantise_layers
from tunerkit.planning.architectures import on_meta

KINDS: tuple[dict[str, Any], ...] = (
    {"kernel_size": 1},
    {"kernel_size": (3, 1), "padding": (1, 0), "bias": False},
    {"kernel_size": 3, "padding": 1, "stride": 2, "dilation": 2},
)
"""Of Sana Video's feed-forward, and one that uses everything."""


def convolution(dtype: torch.dtype = torch.float32, **kind: Any) -> torch.nn.Conv2d:
    torch.manual_seed(0)
    return torch.nn.Conv2d(32, 24, **kind).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_with_the_unpacked_weight_and_keeps_the_packed_one(
    kind: dict[str, Any], precision: str, dtype: torch.dtype
) -> None:
    """Bit for bit, forward and backward, in either layout of the channels, which both keep."""
    plain = convolution(dtype, **kind)
    layer = QuantisedConv2d(copy.deepcopy(plain), precision)
    error = (layer.unpacked() - plain.weight.float()).norm() / plain.weight.float().norm()
    assert 0 < error < 0.1
    plain.weight.data = layer.unpacked(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 32, 9, 7).to(dtype).to(memory_format=layout)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            found = layer(inputs[0])
        wanted = plain(inputs[1])
        gradient = torch.randn_like(wanted)
        found.backward(gradient)
        wanted.backward(gradient)
        pairs: Any = ((found, wanted), (inputs[0].grad, inputs[1].grad))
        for ours, theirs in pairs:
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
        packed = {parameter.data_ptr() for name, parameter in layer.named_parameters() if name != "bias"}
        assert {tensor.data_ptr() for tensor in kept} == packed


def test_a_row_is_what_makes_one_channel() -> None:
    """A channel of large weights does not spoil the others."""
    plain = convolution(kernel_size=(3, 1))
    plain.weight[5] *= 1000
    layer = QuantisedConv2d(plain, "int8")
    off = (layer.unpacked() - plain.weight).flatten(1).abs().amax(1)
    step = plain.weight.flatten(1).abs().amax(1) / 127
    assert bool((off <= 0.5001 * step).all())


def test_what_is_not_quantised() -> None:
    apart, mirrored = torch.nn.Conv2d(32, 32, 3, groups=32), torch.nn.Conv2d(32, 8, 3, padding_mode="reflect")
    model = torch.nn.Sequential(apart, mirrored, torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 8, 1), torch.nn.SiLU())
    quantise_layers(model, ["0", "1", "2", "4"], "int8")
    assert [isinstance(layer, QuantisedConv2d) for layer in model] == [False, False, True, False, False]
    narrow = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1))
    quantise_layers(narrow, ["0"], "nf4")
    assert quantisable(narrow[0])
    assert not isinstance(narrow[0], QuantisedConv2d)


@pytest.mark.parametrize("kind", KINDS[:2])  # peft knows no dilation
def test_an_adapter_on_a_convolution(kind: dict[str, Any]) -> None:
    """`y = W x + s B(A x)`: its parts are plain convolutions, trained, in float32; a copy does the same."""
    model = torch.nn.Sequential()
    model.add_module("conv", convolution(**kind))
    quantise_layers(model, ["conv"], "int8")
    bare: Any = copy.deepcopy(model)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=["conv"], init_lora_weights=False), model)
    adapted: Any = model.get_submodule("conv")
    first, second = adapted.lora_A["default"], adapted.lora_B["default"]
    assert {type(part) for part in (first, second)} == {torch.nn.Conv2d}
    x = torch.randn(2, 32, 9, 7)
    out = model(x)
    torch.testing.assert_close(out, bare(x) + 2 * second(first(x)))
    assert torch.equal(copy.deepcopy(model)(x), out)
    out.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"conv.lora_{part}.default.weight" for part in "AB"}


def test_nearly_all_of_sana_video_is_quantised() -> None:
    """At full size; before convolutions were, int8 took 3.1 GiB."""
    family = tk.family("sanavideo")
    model = on_meta(family.published_config(family.default_flavour, "transformer"), torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    names = family.quantised_layers(model)
    share = sum(model.get_parameter(f"{name}.weight").numel() for name in names) / count
    assert 0.97 < share < 1
    assert not any("conv_depth" in name for name in names)
    quantise_layers(model, names, "int8")
    assert sum(parameter.nbytes for parameter in model.parameters()) < 1.97 * 2**30


def test_an_adapter_on_convolutions_trains_resumes_and_is_exported(
    make_config: Callable[..., tk.TrainConfig], tmp_path: Path
) -> None:
    common = {
        "base_model_precision": "int8",
        "gradient_checkpointing": True,
        "lora_rank": 4,
        "peft_lora_target_modules": ["conv_inverted", "conv_point", "conv_temp"],
        "max_train_steps": 4,
        "checkpoint_step_interval": 2,
        "learning_rate": 0.01,
        "validation_disable": True,
    }

    def losses(output: Path, *parts: int) -> list[float]:
        found = []
        for count in parts:
            trainer = tk.Trainer(make_config(output_dir=output, **common)).prepare(progress=False)
            found += [result.loss for result in trainer.steps(count)]
            trainer.close()
        return found

    straight = losses(tmp_path / "straight", 4)
    assert losses(tmp_path / "split", 2, 2) == straight
    assert (tmp_path / "straight" / "pytorch_lora_weights.safetensors").stat().st_size
