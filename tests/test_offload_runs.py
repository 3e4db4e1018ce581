"""Whole runs with offloaded weights: caches, losses, videos, checkpoints and adapters are those of a run without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from poisoned import poison
from safetensors import safe_open

import tunerkit as tk
from tunerkit.cache import encode
from tunerkit.cache.encode import LatentEncoder, encode_texts, load_text_encoder
from tunerkit.memory import offload_encode, offload_groups

MakeConfig = Callable[..., tk.TrainConfig]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def content(path: Path) -> list[Any]:
    """What a file holds; the order of a safetensors file's metadata is drawn anew each time."""
    if path.suffix != ".safetensors":
        return [path.read_bytes()]
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return [file.metadata(), {name: (t.dtype, t.shape, _bytes(t)) for name, t in tensors.items()}]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def finished(config: tk.TrainConfig, stops: tuple[int, ...] = ()) -> tuple[list[float], dict[str, list[Any]]]:
    """Losses of a run in as many parts, and what it left, by name: videos, adapters and weights of the last checkpoint.

    Args:
        stops: steps after which the trainer is closed and made anew.
    """
    losses: list[float] = []
    for count in (*stops, None):
        trainer = tk.Trainer(config).prepare(progress=False)
        losses += [result.loss for result in trainer.steps(count)]
        trainer.close()
    folder = config.output_path
    kept = [*folder.rglob("*.mp4"), *folder.glob("*.safetensors"), *folder.glob("checkpoint-2/*.safetensors")]
    return losses, {path.relative_to(folder).as_posix(): content(path) for path in kept}


SETTINGS: dict[str, Any] = {
    "max_train_steps": 2, "checkpoint_step_interval": 1, "validation_step_interval": 2, "validation_disable": False,
    "validation_num_inference_steps": 1, "validation_num_video_frames": 9, "user_prompt_library": None,
    "mixed_precision": "bf16", "gradient_checkpointing": True, "use_ema": True, "ema_validation": "ema_only",
    "disable_benchmark": True, "lora_init_type": "pissa",
}  # fmt: skip


@pytest.mark.slow
def test_an_offloaded_run_is_the_run_without(make_config: MakeConfig, tmp_path: Path) -> None:
    """Also when it was stopped half-way: base and checkpoint have nothing of the offloading in them."""
    losses, files = finished(make_config(output_dir=tmp_path / "plain", **SETTINGS))
    leaves = {"enable_group_offload": True, "group_offload_type": "leaf_level", "group_offload_use_stream": True}
    for place, way in enumerate(({"musubi_blocks_to_swap": 1}, leaves)):
        config = make_config(output_dir=tmp_path / str(place), **SETTINGS, **way)
        found, left = finished(config, stops=(1,) if place == 0 else ())
        assert found == losses
        assert left == files
    assert any(name.endswith(".mp4") for name in files)
    assert {"pytorch_lora_weights.safetensors", "checkpoint-2/trained.safetensors"} <= set(files)


def test_too_many_blocks_are_refused_before_anything_is_loaded(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """How many a transformer has, its configuration says; the plan reads it as well."""
    config = make_config(output_dir=tmp_path, musubi_blocks_to_swap=2, gradient_checkpointing=True)
    monkeypatch.setattr(type(tk.family("sanavideo")), "load_transformer", None)
    uses: list[Callable[[], Any]] = [lambda: tk.Trainer(config).prepare(progress=False), lambda: tk.plan(config)]
    for use in uses:
        with pytest.raises(
            tk.ConfigError, match=r"musubi_blocks_to_swap = 2: the transformer has 2 .*set it to 0 to 1"
        ):
            use()


def test_several_processes_are_refused(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(enable_group_offload=True, gradient_checkpointing=True)
    tk.Trainer(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(tk.ConfigError, match=r"enable_group_offload = True: .*2 processes"):
        tk.Trainer(config)


# Optimizer state ---------------------------------------------------------------------------------------------------

FULL = {"model_type": "full", "mixed_precision": "bf16", "learning_rate": 1e-4, "use_ema": True}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"gradient_accumulation_steps": 2}, id="lora"),
        pytest.param(FULL, id="full"),
    ],
)
def test_with_the_optimizer_in_ram_it_trains_as_without(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """And goes on so after a stop: what is saved is the same."""
    common = {"max_train_steps": 2, "checkpoint_step_interval": 1, **settings}
    losses, files = finished(make_config(output_dir=tmp_path / "plain", **common))
    config = make_config(output_dir=tmp_path / "ram", optimizer_cpu_offload_method="torchao", **common)
    found, left = finished(config, stops=(1,))
    assert config.optimizer_cpu_offload_method == "cpu"
    assert found == losses
    assert {name: left[name] for name in files} == files


def test_the_optimizer_in_ram_starts_from_a_given_adapter(make_config: MakeConfig, tmp_path: Path) -> None:
    common: dict[str, Any] = {"max_train_steps": 2, "learning_rate": 1e-2}
    finished(make_config(output_dir=tmp_path / "first", **common))
    common["init_lora"] = tmp_path / "first" / "pytorch_lora_weights.safetensors"
    losses, files = finished(make_config(output_dir=tmp_path / "plain", **common))
    config = make_config(output_dir=tmp_path / "ram", optimizer_cpu_offload_method="cpu", **common)
    trainer = tk.Trainer(config).prepare(progress=False)
    weights = trainer.loaded.engine.weights
    trainer.close()
    assert not set(map(id, weights.live.values())) & set(map(id, weights.optimized.values()))
    assert finished(config) == (losses, files)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer_cpu_offload_method": "disk"}, "is not known.*cpu keeps"),
        ({"optimizer_cpu_offload_method": "cpu", "optimizer": "bnb-adamw8bit"}, "works on the GPU only"),
        ({"optimizer_cpu_offload_method": "cpu", "mixed_precision": "fp16"}, "loss scaling"),
        ({"ema_cpu_only": True, "ema_device": "accelerator"}, "contradicts ema_device = accelerator"),
    ],
)
def test_what_cannot_be_in_ram_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(tk.ConfigError, match=words):
        tk.TrainConfig(**settings)


# Encoding ----------------------------------------------------------------------------------------------------------


def texts_of(config: tk.TrainConfig, encoder: Any) -> list[dict[str, torch.Tensor]]:
    family = tk.family(str(config.model_family))
    return [encode_texts(encoder, family, config, ["A red ball moves."], kind)[0] for kind in ("positive", "negative")]


class Family:
    """A class for each family, so that each needs its own demo project alone."""

    def test_texts_and_clips_are_encoded_as_without(self, demo_path: Path, tmp_path: Path) -> None:
        config = tk.resolve(tk.load_config(demo_path))
        on = {"group_offload_text_encoder": True, "group_offload_vae": True, "group_offload_use_stream": True}
        offloaded = config.changed(**on, group_offload_to_disk_path=tmp_path / "offload")
        one = tk.family(str(config.model_family))
        expected = texts_of(config, load_text_encoder(config, one))
        encoder = load_text_encoder(offloaded, one)
        assert any((tmp_path / "offload").rglob("*.safetensors"))
        for found in (texts_of(offloaded, encoder), texts_of(offloaded, encoder)):
            for these, those in zip(found, expected, strict=True):
                assert all(torch.equal(these[name], those[name]) for name in those)
        clip = torch.randint(0, 255, (9, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        latents = [LatentEncoder(settings, one).encode([clip, clip]) for settings in (config, offloaded)]
        for (plain, _), (here, _) in zip(*latents, strict=True):
            assert all(torch.equal(plain[name], here[name]) for name in plain)


class TestSana(Family):
    @pytest.fixture
    def demo_path(self, pristine_project: Path) -> Path:
        return pristine_project / "config.json"


class TestLtx2(Family):
    @pytest.fixture
    def demo_path(self, ltx2_projects: dict[str, Path]) -> Path:
        return ltx2_projects["2.3-dev"]


class TestKandinsky5(Family):
    @pytest.fixture
    def demo_path(self, kandinsky5_projects: Callable[[str], Path]) -> Path:
        return kandinsky5_projects("t2v-lite-sft-5s")


def test_what_does_not_fit_goes_to_the_cpu_without_its_offloader(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, family = tk.resolve(make_config(group_offload_text_encoder=True)), tk.family("sanavideo")
    expected = texts_of(config, load_text_encoder(config, family))
    monkeypatch.setattr(offload_groups, "Offloader", offload_encode.Offloader)  # masters have to be right here
    encoder = load_text_encoder(config, family)
    module = encoder.text_encoder
    offloader = offload_encode._OFFLOADERS[module]
    monkeypatch.setattr(offloader, "_before", None)
    encode._to_cpu(encoder)
    assert module not in offload_encode._OFFLOADERS
    assert all(
        torch.equal(a[name], b[name])
        for a, b in zip(texts_of(config, encoder), expected, strict=True)
        for name in a
    )  # fmt: skip


def test_that_a_cpu_gains_nothing_is_told(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    trainer = tk.Trainer(make_config(enable_group_offload=True, gradient_checkpointing=True))
    with caplog.at_level(logging.INFO, "tunerkit"):
        trainer.prepare(progress=False).close()
    told = [record.message for record in caplog.records if "frozen weights wait" in record.message]
    assert len(told) == 1
    assert any("offloading saves nothing" in record.message for record in caplog.records)
