"""A quantised base model: its number formats, its layers, and training an adapter on it in all three families."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from memory_models import FAMILIES, plain

import tunerkit as tk
import tunerkit.families as families
from tunerkit.memory.quantised_formats import FORMATS, NF4
from tunerkit.memory.quantised_linear import Quantised, QuantisedLinear, quantise_layers

MakeConfig = Callable[..., tk.TrainConfig]
ERRORS = {"int8": 0.009, "fp8": 0.028, "fp8-cast": 0.035, "int4": 0.093, "nf4": 0.095}
"""Greatest relative error (2-norm) of normally distributed weights; measured 0.0079, 0.026, 0.033, 0.090, 0.092."""
NEAR = {"int8": 0.005, "fp8": 0.03, "fp8-cast": 0.03, "int4": 0.015, "nf4": 0.09}
"""Greatest relative change of the losses of miniatures; measured 0.0020, 0.013, 0.010, 0.0056, 0.044."""
BITS = {"int8": 8, "fp8": 8, "fp8-cast": 8, "int4": 4.5, "nf4": 4.25}


def weights(rows: int = 48, width: int = 256) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * 0.02


# Formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", FORMATS)
def test_a_format_is_as_small_and_as_near_as_it_says(precision: str) -> None:
    weight = weights(512, 2048)
    form = FORMATS[precision]
    packed = form.pack(weight)
    assert not packed[0].is_floating_point()
    bits = 8 * sum(part.nbytes for part in packed) / weight.numel()
    assert BITS[precision] <= bits < BITS[precision] + 0.05
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = form.unpack(packed, dtype)
        assert found.dtype == dtype
        assert float((found.float() - weight).norm() / weight.norm()) < ERRORS[precision]


def by_hand(weight: np.ndarray, precision: str) -> np.ndarray:
    """The nearest representable weights, one group after the other, in float64."""
    size = weight.shape[1] if precision in ("int8", "fp8") else 64
    groups = weight.astype(np.float64).reshape(-1, size)
    out = np.empty_like(groups)
    for place, group in enumerate(groups):
        magnitude = np.abs(group).max()
        if precision == "int8":
            values = np.arange(-127, 128) * magnitude / 127
        elif precision == "int4":
            values = np.linspace(group.min(), group.max(), 16)
        else:
            values = np.array(NF4) * magnitude
        out[place] = values[np.abs(group[:, None] - values[None]).argmin(axis=1)]
    return out.reshape(weight.shape)


@pytest.mark.parametrize(("precision", "rounding"), [("int8", 1e-6), ("int4", 0.05), ("nf4", 0.03)])
def test_the_numbers_are_those_of_the_formula(precision: str, rounding: float) -> None:
    """Beside the bfloat16 rounding of the steps of four bits, in shares of the error of quantisation itself."""
    weight = weights()
    found = FORMATS[precision].unpack(FORMATS[precision].pack(weight), torch.float64).numpy()
    exact = weight.double().numpy()
    ours, best = np.linalg.norm(found - exact), np.linalg.norm(by_hand(exact, precision) - exact)
    assert ours == pytest.approx(best, rel=rounding)


def test_the_values_of_nf4_are_quantiles() -> None:
    """The paper's construction: 8 negative and 9 positive quantiles that share 0, scaled to [-1, 1]."""
    edge = 1 - (1 / 32 + 1 / 30) / 2

    def half(count: int) -> list[float]:
        return [NormalDist().inv_cdf(float(p)) for p in np.linspace(edge, 0.5, count)[:-1]]

    values = sorted([*half(9), 0.0, *(-value for value in half(8))])
    np.testing.assert_allclose(NF4, np.array(values) / max(values), atol=1e-6)


def test_casting_is_that_of_diffusers() -> None:
    from diffusers.hooks import apply_layerwise_casting

    torch.manual_seed(0)
    linear, x = torch.nn.Linear(32, 16), torch.randn(3, 32)
    quantised = QuantisedLinear(copy.deepcopy(linear), "fp8-cast")
    quantised.bias.data = quantised.bias.data.to(torch.float8_e4m3fn).float()  # it casts biases as well; we do not
    model = torch.nn.Sequential(linear)
    apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32)
    assert torch.equal(quantised(x), model(x))


@pytest.mark.parametrize("precision", FORMATS)
def test_weights_of_one_value(precision: str) -> None:
    form = FORMATS[precision]
    for value, tolerance in ((0.0, 0.0), (0.03, 0.002)):
        found = form.unpack(form.pack(torch.full((2, 64), value)), torch.float32)
        torch.testing.assert_close(found, torch.full_like(found, value), rtol=0, atol=tolerance)


# Layers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", FORMATS)
def test_a_layer_computes_with_the_unpacked_weight_and_keeps_the_packed_one(precision: str) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 48)
    layer = QuantisedLinear(linear, precision).requires_grad_(False)
    x = torch.randn(2, 3, 256, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    wanted = torch.nn.functional.linear(x, layer.unpacked(), linear.bias)
    gradient = torch.randn_like(out)
    assert torch.equal(out, wanted)
    (ours,) = torch.autograd.grad(out, x, gradient)
    (theirs,) = torch.autograd.grad(wanted, x, gradient)
    assert torch.equal(ours, theirs)
    packed = {parameter.data_ptr() for name, parameter in layer.named_parameters() if name != "bias"}
    assert {tensor.data_ptr() for tensor in kept} == packed


def test_what_does_not_fit_stays() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(24, 8), torch.nn.Linear(48, 8), torch.nn.ReLU())
    quantise_layers(model, ["0", "1", "2"], "nf4")
    assert [type(layer).__name__ for layer in model] == ["Linear", "QuantisedLinear", "ReLU"]


# Training ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def demo_path(project: Path) -> Path:
    return project / "config.json"


@pytest.fixture
def make(demo_path: Path, tmp_path: Path) -> MakeConfig:
    """Settings of a demo project, that write to a folder of the test."""

    def make(**changes: Any) -> tk.TrainConfig:
        settings = {
            "output_dir": tmp_path / "output",
            "cache_dir": demo_path.parent / "output" / "cache",
            "validation_disable": True,
            "max_train_steps": 4,
            "lora_rank": 4,
            **changes,
        }
        return tk.load_config(demo_path, **settings)

    return make


@contextlib.contextmanager
def prepared(config: tk.TrainConfig) -> Iterator[tk.Trainer]:
    trainer = tk.Trainer(config).prepare(progress=False)
    try:
        yield trainer
    finally:
        trainer.close()


def losses(config: tk.TrainConfig, count: int | None = None) -> list[float]:
    with prepared(config) as trainer:
        return [result.loss for result in trainer.steps(count)]


def check_adapter(trainer: tk.Trainer, file: Path) -> None:
    """Every layer is quantised, none of it is trained, and the adapter does the same elsewhere."""
    family, transformer = trainer.family, trainer.loaded.engine.transformer
    layers = [module for module in transformer.modules() if isinstance(module, Quantised)]
    bare = family.load_transformer(trainer.config.changed(base_model_precision="no_change"), torch.float32)
    assert len(layers) == len(family.quantised_layers(bare)) > 10
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    ours = prediction(trainer, transformer)
    for precision, near in (("no_change", 0.02), ("int8", 0.0)):
        other = family.load_transformer(trainer.config.changed(base_model_precision=precision), torch.float32)
        before = prediction(trainer, other)
        other.load_lora_adapter(file.parent, weight_name=file.name)
        assert distance(prediction(trainer, other), ours) <= near + 1e-5
        assert distance(before, ours) > 0.05


def prediction(trainer: tk.Trainer, transformer: Any) -> torch.Tensor:
    """What a transformer predicts for the first batch, at fixed noise."""
    drawn = trainer.loaded.source.get(0)
    caught: list[torch.Tensor] = []
    handle = transformer.register_forward_hook(lambda _m, _i, out: caught.append(_first(out)))
    with torch.no_grad():
        drawn.losses(trainer.family, transformer.eval(), trainer.loaded.engine.device)
    handle.remove()
    return caught[0].float()


def _first(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out[0]


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_trains(family: str) -> None:
    """Near the losses of the whole model."""
    wanted = np.array(plain(family)[0])
    for precision in FORMATS:
        found = np.array(plain(family, base_model_precision=precision)[0])
        assert 0 < abs(found / wanted - 1).max() < NEAR[precision], precision


class Family:
    """Tests of one family's demo project; a class for each, so that each needs its own project alone."""

    def test_it_resumes_and_exports(self, make: MakeConfig, tmp_path: Path) -> None:
        """int8 with checkpointing: resumed half-way bit for bit, and its adapter does the same in the unquantised stock
        pipeline."""
        config = make(
            gradient_checkpointing=True, checkpoint_step_interval=2, learning_rate=0.01, base_model_precision="int8"
        )
        with prepared(config) as trainer:
            straight = [result.loss for result in trainer.steps()]
            check_adapter(trainer, tmp_path / "output" / "pytorch_lora_weights.safetensors")
        assert losses(config.changed(resume_from_checkpoint="checkpoint-2")) == straight[2:]

    def test_what_is_not_quantised_may_be_float32(self, make: MakeConfig) -> None:
        config = make(
            base_model_precision="int8",
            base_model_default_dtype="fp32",
            mixed_precision="bf16",
            max_train_steps=1,
            validation_disable=False,
            validation_num_inference_steps=2,
            validation_num_video_frames=9,
            user_prompt_library=None,
        )
        with prepared(config) as trainer:
            parameters = trainer.loaded.engine.transformer.parameters()
            assert {p.dtype for p in parameters if p.is_floating_point()} - {torch.bfloat16} == {torch.float32}
            [rendering] = trainer.validate()
            assert rendering.path.stat().st_size
            assert math.isfinite(next(trainer.steps(1)).loss)


class TestSana(Family):
    """With the project of `demo_path`."""


class TestLtx2(Family):
    @pytest.fixture
    def demo_path(self, ltx2_projects: dict[str, Path]) -> Path:
        return ltx2_projects["dev"]


class TestKandinsky5(Family):
    @pytest.fixture
    def demo_path(self, kandinsky5_projects: Callable[[str], Path]) -> Path:
        return kandinsky5_projects("t2v-lite-sft-5s")


def test_the_families_leave_small_layers_that_steer_alone() -> None:
    for name, part in (("kandinsky5-video", "modulation"), ("ltxvideo2", "to_gate_logits"), ("sanavideo", None)):
        assert families.get(name).unquantised == ((part,) if part else ())


def test_another_precision_is_told_when_a_run_goes_on(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    common = {"max_train_steps": 2, "checkpoint_step_interval": 1, "lora_rank": 4}
    losses(make_config(**common), 1)
    losses(make_config(base_model_precision="nf4", text_encoder_1_precision="nf4", **common), 1)
    assert "base_model_precision or base_model_default_dtype changed (null then" in caplog.text
    assert "text_encoder_1_precision (or another one's) or vae_enable_tiling changed (null then" in caplog.text
