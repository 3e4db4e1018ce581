"""What a run takes, planned: against real steps of tiny models, traces of all blocks, and counts by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import tunerkit as tk
from tunerkit.cli import main
from tunerkit.demo import kandinsky5, ltx2, sana_video
from tunerkit.planning import planner
from tunerkit.planning import tracker as tracker_module
from tunerkit.planning.architectures import configuration, transformer_on_meta, with_depth
from tunerkit.planning.batches import Stand, tensors_of
from tunerkit.planning.largest import Largest, largest_batch
from tunerkit.planning.measured import measured_step
from tunerkit.planning.phases import clip_encoding, text_encoding
from tunerkit.planning.result import GIB, PhasePlan, Plan
from tunerkit.planning.seconds import Work
from tunerkit.planning.step import trace_step
from tunerkit.planning.tracker import ROUNDING, Segment, StorageTracker
from tunerkit.planning.training import training_step
from tunerkit.training.engine import Engine

VAES = {
    "sanavideo": {"z_dim": 16, "scale_factor_spatial": 8},
    "ltxvideo2": {"spatial_compression_ratio": 32},
    "kandinsky5-video": {"latent_channels": 16, "spatial_compression_ratio": 8},
}
ALIGNED = {"crepa_enabled": True, "crepa_encoder": "dinov2_vits14", "crepa_block_index": 1}
AUDIO_VAE = {"sample_rate": 16000, "mel_hop_length": 160}
TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "sanavideo": sana_video._transformer,
    "ltxvideo2": lambda: ltx2._transformer("2.0"),
    "kandinsky5-video": lambda: kandinsky5._transformer(False),
}
LARGEST = {
    "sanavideo": Largest(96, 64, 17, 16.0, 2),
    "ltxvideo2": Largest(192, 128, 25, 24.0, 1, sound=25 / 24, mask=True),
    "kandinsky5-video": Largest(96, 64, 17, 24.0, 1, first_frame=True, tokens=40),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_config(family: str, **settings: Any) -> tk.TrainConfig:
    dataset = {"id": "clips", "instance_data_dir": ".", **({"audio": {}} if family == "ltxvideo2" else {})}
    return tk.TrainConfig(model_family=family, device="cpu", lora_rank=4, datasets=[dataset], **settings)


def described(transformer: Any) -> dict[str, Any]:
    return {**transformer.config, "_class_name": type(transformer).__name__}


def stand_of(config: tk.TrainConfig, settings: Mapping[str, Any]) -> Stand:
    family = tk.family(str(config.model_family))
    channels = settings.get("in_channels", 16)
    tables = {
        "transformer": settings,
        "vae": {"latent_channels": channels, **VAES[family.name]},
        "audio_vae": AUDIO_VAE,
    }
    return Stand(config, family, tables.__getitem__)


# Against real steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sanavideo", {"mixed_precision": "bf16"}),
        ("sanavideo", {"gradient_checkpointing": False, "use_ema": True, "ema_device": "accelerator"}),
        ("sanavideo", {"model_type": "full", "gradient_accumulation_steps": 3, "use_ema": True}),
        ("sanavideo", {"musubi_blocks_to_swap": 1}),
        ("sanavideo", {"base_model_precision": "int8"}),
        ("ltxvideo2", {"optimizer": "adamw_bf16", "lora_dropout": 0.1}),
        ("ltxvideo2", {"model_type": "full", "optimizer": "adamw_bf16", "gradient_checkpointing": False}),
        ("ltxvideo2", {"enable_group_offload": True, "group_offload_type": "leaf_level"}),
        ("kandinsky5-video", {"gradient_checkpointing": False, "optimizer": "torch-sgd"}),
        ("kandinsky5-video", {"model_type": "full", "mixed_precision": "no", "optimizer": "torch-adafactor"}),
        ("kandinsky5-video", {"enable_group_offload": True}),
        ("sanavideo", ALIGNED),
        ("ltxvideo2", {**ALIGNED, "model_type": "full", "mixed_precision": "bf16"}),
    ],
)
def test_the_peak_is_that_of_a_real_step(family: str, settings: dict[str, Any]) -> None:
    config = tiny_config(family, **settings)
    torch.manual_seed(0)
    transformer = TRANSFORMERS[family]().to(torch.float32 if config.mixed_precision == "no" else torch.bfloat16)
    for name, parameter in transformer.named_parameters():  # as from_pretrained loads it
        if any(part in name for part in transformer._keep_in_fp32_modules or ()):
            parameter.data = parameter.data.float()
    made = described(transformer)
    kind = tk.family(family)
    if config.base_model_precision != "no_change":
        from tunerkit.memory.quantised_linear import quantise_layers

        quantise_layers(transformer, kind.quantised_layers(transformer), config.base_model_precision)
    stand = stand_of(config, made)
    drawn = stand.drawn(LARGEST[family])
    for tensor in tensors_of(drawn):
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.9)
    engine = Engine(config, kind, transformer, torch.device("cpu"))
    measured = measured_step(engine, drawn, config.gradient_accumulation_steps)
    planned = training_step(config, kind, made, stand, LARGEST[family])
    peak = max(one.peak for one in measured)
    assert planned.largest.peak == pytest.approx(peak, rel=0.02)
    assert sum(planned.largest.parts.values()) == planned.largest.peak
    scalars = ROUNDING * len(engine.optimizer.state)  # counts of steps, which a GPU would not hold
    for part in ("weights", "adapter", "optimizer state", "EMA"):
        there = measured[-1].parts.get(part, 0)
        assert planned.segments[-1].parts.get(part, 0) == pytest.approx(there, abs=ROUNDING + scalars)


def test_what_the_optimizer_has_in_ram_is_not_on_the_gpu() -> None:
    """Its copies of the adapter, and two averages of each value; the update's own gradients come and go there too."""
    made = described(TRANSFORMERS["sanavideo"]())

    def step(**settings: Any) -> Any:
        config = tiny_config("sanavideo", **settings).changed(device=None)
        return training_step(config, tk.family("sanavideo"), made, stand_of(config, made), LARGEST["sanavideo"])

    beside, in_ram = step(), step(optimizer_cpu_offload_method="cpu")
    state = beside.largest.parts["optimizer state"]
    assert state > 0
    assert "optimizer state" not in in_ram.largest.parts
    assert in_ram.largest.peak == beside.largest.peak - state
    assert in_ram.host > beside.host + state


def test_what_waits_on_disk_takes_no_ram(tmp_path: Path) -> None:
    in_ram = tk.plan(published(tmp_path, enable_group_offload=True))
    on_disk = tk.plan(published(tmp_path, enable_group_offload=True, group_offload_to_disk_path=str(tmp_path)))
    blocks = in_ram.phase("training step").ram
    assert (in_ram.disk.offloaded, on_disk.phase("training step").ram) == (0, 0)
    assert on_disk.disk.offloaded == on_disk.disk.total - in_ram.disk.total == blocks > 3 * GIB
    assert f"{blocks / GIB:.2f} GiB of weights in group_offload_to_disk_path" in str(on_disk)


def test_verify_does_a_real_step_of_a_project(project: Path) -> None:
    """The batch is read from the cache, and the plan is of that batch."""
    config = tk.load_config(project / "config.json", validation_disable=True, train_batch_size=2)
    found = tk.plan(config).verify()
    assert abs(found.error) < 0.05
    assert found.measured > 2**20
    assert f"{found.error:+.1%}" in str(found)


def test_encoding_clips_takes_what_a_real_vae_takes(project: Path) -> None:
    from tunerkit.cache.encode import LatentEncoder

    config = tk.resolve(tk.load_config(project / "config.json"))
    family = tk.family("sanavideo")
    largest = largest_batch(config, family, tk.inspect_dataset(config).samples)
    planned, _ = clip_encoding(config, family, largest)
    encoder = LatentEncoder(config, family)
    vae = encoder._at(0)
    clip = torch.randint(0, 255, (largest.frames, largest.height, largest.width, 3), dtype=torch.uint8)
    tracker = StorageTracker("cpu")
    with torch.no_grad(), tracker:
        tracker.label("weights", vae.parameters())
        tracker.to_host([clip])
        tracker.mark("encode")
        encoder._encode_at(0, [clip])
    measured = tracker.segments()[-1]
    assert planned.peak == pytest.approx(measured.peak, rel=0.05)
    assert planned.parts["weights"] == measured.parts["weights"]


# Against traces of all blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks", "settings", "tolerance"),
    [
        ("sanavideo", 8, {"model_type": "full"}, 1e-3),
        ("sanavideo", 12, {"musubi_blocks_to_swap": 6}, 0.01),
        ("ltxvideo2", 5, {}, 1e-6),
    ],
)
def test_few_blocks_tell_what_all_take(name: str, blocks: int, settings: dict[str, Any], tolerance: float) -> None:
    """The published models, shorter: 2 and 3 blocks against all. `benchmarks/traced_memory.py` does the same with whole
    models."""
    family = tk.family(name)
    sound = 49 / 24 if name == "ltxvideo2" else None
    dataset = {"id": "clips", "instance_data_dir": ".", **({"audio": {}} if sound else {})}
    config = tk.TrainConfig(model_family=name, mixed_precision="bf16", lora_rank=32, datasets=[dataset], **settings)
    made = with_depth(configuration(config, family, "transformer"), blocks)
    stand, largest = stand_of(config, made), Largest(768, 512, 49, 24.0, 1, sound)
    few = training_step(config, family, made, stand, largest)
    transformer = transformer_on_meta(made, config, family)
    whole, _ = trace_step(config, family, transformer, lambda: stand.drawn(largest), alike=blocks)
    assert few.largest.peak == pytest.approx(max(one.peak for one in whole), rel=tolerance)
    assert few.work.flops == pytest.approx(sum(one.work.flops for one in whole), rel=1e-9)
    assert few.segments[-1].parts["weights"] == pytest.approx(whole[-1].parts["weights"], rel=1e-4)


def test_what_is_remembered_of_operations_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced() -> list[Segment]:
        config = tiny_config("sanavideo", mixed_precision="bf16")
        made = described(sana_video._transformer())
        stand = stand_of(config, made)
        return list(training_step(config, tk.family("sanavideo"), made, stand, LARGEST["sanavideo"]).segments)

    remembered = traced()
    monkeypatch.setattr(tracker_module, "MEMO", lambda func, args, kwargs: func(*args, **kwargs))
    assert traced() == remembered


# Plans -----------------------------------------------------------------------------------------------------------


def published(tmp_path: Path, **settings: Any) -> tk.TrainConfig:
    """Settings of Sana Video 2B, which was never downloaded, with no clip yet."""
    (tmp_path / "clips").mkdir(exist_ok=True)
    dataset = {
        "id": "clips", "instance_data_dir": str(tmp_path / "clips"), "resolution": 480, "resolution_type": "pixel",
        "video": {"num_frames": 81},
    }  # fmt: skip
    usual = {"validation_prompt": "a cat", "max_train_steps": 1200, "lora_rank": 32, "mixed_precision": "bf16"}
    return tk.TrainConfig(
        model_family="sanavideo", output_dir=str(tmp_path / "run"), datasets=[dataset], **{**usual, **settings}
    )


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return tk.plan(published(tmp_path_factory.mktemp("sana")), 24)


def test_a_plan_of_a_model_that_is_not_there(sana: Plan) -> None:
    names = ["text encoding", "clip encoding", "loading", "training step", "validation", "checkpoint"]
    assert [phase.name for phase in sana.phases] == names
    assert all(sum(phase.parts.values()) == phase.peak for phase in sana.phases)
    assert sana.largest == Largest(832, 480, 81, 16.0, 1)
    step = sana.phase("training step")
    assert 14 * GIB < step.peak < 17 * GIB
    adapter = sum(32 * (2240 + 2240) * 4 * 4 for _ in range(2 * 20))  # 4 layers of 2240 in 2 attentions of 20 blocks
    assert step.parts["adapter"] == adapter
    assert step.parts["optimizer state"] == pytest.approx(2 * adapter, rel=0.01)
    assert sana.phase("text encoding").parts["weights"] == pytest.approx(2 * 2_614_341_888, rel=0.001)
    assert sana.phase("clip encoding").parts["weights"] == pytest.approx(507_591_892, rel=0.001)
    assert sana.disk.checkpoint == pytest.approx(3 * adapter, rel=0.01)
    assert sana.disk.checkpoints == 3
    files = 2 * 2_614_341_888 + 2 * 2.057e9 + 507_591_892  # text encoder, transformer; the VAE in float32
    assert sana.disk.download == pytest.approx(files, rel=0.002)
    assert sana.disk.cache is None
    assert sana.fits
    assert sana.changes == ()


def test_a_plan_that_was_made_before_is_the_same(sana: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "_figures", None)  # nothing is traced
    again = tk.plan(sana.config, 24)
    assert (again.phases, again.disk, again.blocks) == (sana.phases, sana.disk, sana.blocks)
    assert (str(again), again.changes, again.largest) == (str(sana), sana.changes, sana.largest)


def test_a_plan_is_shown_as_text_table_and_chart(sana: Plan) -> None:
    text, page = str(sana), sana._repr_html_()
    assert "It fits 24.0 GiB" in text
    for phase in sana.phases:
        assert phase.name in text
        assert phase.name in page
    assert "<script" not in page
    axes = sana.figure().axes[0]
    drawn = sum(bar.get_width() for bar in axes.patches)
    assert drawn == pytest.approx(sum(phase.peak for phase in sana.phases) / GIB)
    assert "GiB" in axes.get_xlabel()
    tiny = replace(sana, phases=(PhasePlan("training step", 3 << 20, {"weights": 3 << 20}, 0, Work()),), vram=None)
    axes = tiny.figure().axes[0]
    assert [bar.get_width() for bar in axes.patches] == [3.0]
    assert "MiB" in axes.get_xlabel()


def test_a_plan_counts_the_files_of_a_project(project: Path) -> None:
    from tunerkit.cache.entries import Cache

    config = tk.resolve(tk.load_config(project / "config.json"))
    found = tk.plan(config)
    samples = tk.inspect_dataset(config).samples
    cache = Cache(config, tk.family("sanavideo"))
    latents = sum(tensor.nbytes for sample in samples for tensor in cache.clip(sample).values())
    captions = {caption for sample in samples for caption in sample.captions}
    texts = sum(tensor.nbytes for text in captions for tensor in cache.text(text, "positive").values())
    assert found.disk.cache == pytest.approx(latents + texts, rel=0.05)
    assert found.disk.download == 0
    assert found.fits is None
    assert found.phase("text encoding").peak >= found.phase("text encoding").parts["weights"] > 0


def test_offloaded_and_quantised_text_encoders_take_less(tmp_path: Path) -> None:
    family, config = tk.family("sanavideo"), published(tmp_path)
    whole, _ = text_encoding(config, family)
    small, _ = text_encoding(config.changed(text_encoder_1_precision="int8"), family)
    leaf, waiting = text_encoding(config.changed(group_offload_text_encoder=True), family)
    assert small.parts["weights"] < 0.75 * whole.parts["weights"]  # embeddings stay whole
    assert leaf.parts["weights"] < 0.3 * whole.parts["weights"]
    assert waiting + leaf.parts["weights"] > whole.parts["weights"]


def test_the_fastest_changes_that_fit(tmp_path: Path) -> None:
    config = published(tmp_path, validation_disable=True, gradient_checkpointing=False, train_batch_size=2)
    found = tk.plan(config, 17)
    assert not found.fits
    names = [next(iter(change.settings)) for change in found.changes]
    assert names == ["gradient_checkpointing", "train_batch_size"]
    assert [change.fits for change in found.changes] == [False, True]
    assert all(change.saved > GIB for change in found.changes)
    changed = tk.autofit(config, 17)
    assert changed.gradient_checkpointing
    assert (changed.train_batch_size, changed.gradient_accumulation_steps) == (1, 2)
    assert tk.plan(changed, 17).fits
    assert "gradient_checkpointing = true" in str(found)
    swapped = tk.plan(config.changed(gradient_checkpointing=True, train_batch_size=1), 15.5).changes
    assert [next(iter(change.settings)) for change in swapped] == ["musubi_blocks_to_swap"]
    assert [change.key for change in swapped] == ["blocks_from_ram"]
    traces = len(planner._CACHE)
    tk.plan(swapped[0].plan.config.changed(musubi_blocks_to_swap=9))
    assert len(planner._CACHE) == traces  # however many are swapped, all are traced once


def test_what_cannot_be_planned_is_said(tmp_path: Path) -> None:
    config = published(tmp_path, validation_disable=True)
    for wrong in (-1, float("inf"), True, "24GB"):
        with pytest.raises(tk.ConfigError, match=f"vram_gib = '?{wrong}.* is no size of a memory"):
            tk.plan(config, cast(float, wrong))
    with pytest.raises(tk.ConfigError, match=r"vram_gib.*no GPU was found here"):
        tk.autofit(config)
    with pytest.raises(tk.ConfigError, match="gpu = 'abacus'"):
        tk.plan(config, gpu="abacus")
    with pytest.raises(tk.DatasetError, match="no usable clip"):
        tk.plan(config).verify()


def test_the_largest_of_several_datasets_counts(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    long, large = (
        {"id": name, "instance_data_dir": str(tmp_path / "clips"), "resolution": size, "video": {"num_frames": frames}}
        for name, size, frames in (("long", 256, 81), ("large", 1024, 77))
    )
    config = published(tmp_path).changed(datasets=[long, large])
    found = largest_batch(config, tk.family("sanavideo"))
    assert found.frames == 77
    assert found.width * found.height == pytest.approx(1024**2, rel=0.05)


def test_the_size_follows_the_settings_where_there_is_no_clip(tmp_path: Path) -> None:
    family = tk.family("sanavideo")
    config = tk.resolve(published(tmp_path, train_batch_size=3))
    assert largest_batch(config, family) == Largest(832, 480, 81, 16.0, 3)
    by_area = config.changed(**{"datasets.clips.resolution": 0.1, "datasets.clips.resolution_type": "area"})
    found = largest_batch(by_area, family)
    assert math.isclose(found.width * found.height, 1e5, rel_tol=0.15)
    assert found.width % 32 == found.height % 32 == 0


def test_the_command_prints_the_plan_and_says_whether_it_fits(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = project / "config.json"
    assert main(["plan", str(config)]) == 0
    assert "training step" in capsys.readouterr().out
    assert main(["plan", str(config), "--vram", "24", "--gpu", "4090"]) == 0
    assert "A step on RTX 4090" in capsys.readouterr().out
    assert main(["plan", str(config), "--vram", "0"]) == 2
    assert "vram_gib" in capsys.readouterr().err
