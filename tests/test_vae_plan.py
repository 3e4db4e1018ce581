"""What a plan says of the VAE's memory, against real VAEs: tiny ones, whose storages are counted while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.cache.encode import LatentEncoder, load_vae
from tunerkit.demo.hunyuan_vae import averaging_hunyuan_vae
from tunerkit.demo.ltx2_vaes import averaging_video_vae
from tunerkit.demo.wan_vae import averaging_wan_vae
from tunerkit.families.base import Family
from tunerkit.memory import offload_encode
from tunerkit.memory.vae_parts import work_in_parts
from tunerkit.memory.vae_sizes import MOST_FRAMES
from tunerkit.planning import phases
from tunerkit.planning.batches import Stand
from tunerkit.planning.largest import Largest
from tunerkit.planning.step import tensors_in
from tunerkit.planning.tracker import ROUNDING, Segment, StorageTracker

VAES: dict[str, Callable[[], Any]] = {
    "sanavideo": averaging_wan_vae,
    "ltxvideo2": lambda: averaging_video_vae("2.0"),
    "kandinsky5-video": averaging_hunyuan_vae,
}
MODES: tuple[dict[str, Any], ...] = (
    {},
    {"vae_enable_slicing": True},
    {"vae_enable_tiling": True},
    {"vae_enable_patch_conv": True},
    {"vae_enable_temporal_roll": True},
    {"group_offload_vae": True},
    {"group_offload_vae": True, "group_offload_use_stream": True, "vae_enable_patch_conv": True},
)
TRANSFORMER = {"in_channels": 16, "caption_channels": 8, "in_text_dim": 8, "in_text_dim2": 8}
CPU = torch.device("cpu")


@pytest.fixture(params=VAES)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    """A family whose VAE is the demo's, in plans and in runs."""
    family = tk.family(request.param)
    made = VAES[family.name]()
    described = {**made.config, "_class_name": type(made).__name__}
    monkeypatch.setattr(phases, "configuration", lambda *_: described)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}

    def load(self: Any, config: tk.TrainConfig, device: torch.device) -> Any:
        return self._ready(VAES[family.name]().to(dtype[config.vae_dtype or "bf16"]), config, device)

    monkeypatch.setattr(type(family), "load_vae", load)
    return family


def config_of(family: Family, **settings: Any) -> tk.TrainConfig:
    """Two clips where it matters, and bfloat16 where a GPU has it and the CPU is not too slow with it."""
    usual = {"vae_batch_size": 2 if settings.get("vae_enable_slicing") else 1}
    dtype = "bf16" if family.name == "ltxvideo2" else "fp32"
    return tk.TrainConfig(**{"model_family": family.name, "vae_dtype": dtype, **usual, **settings})


def shown(config: tk.TrainConfig) -> Largest:
    """As little as possible, but more than one tile where there are tiles; LTX-2's are larger than any clip here."""
    if config.model_family == "ltxvideo2":
        return Largest(64, 64, 9, 16.0, 1)
    return Largest(288 if config.vae_enable_tiling else 64, 32, 5, 16.0, 1)


def measured(vae: Any, apart: Iterable[torch.Tensor], work: Callable[[], object]) -> Segment:
    """What `work` takes on the CPU: `apart` and weights that wait for their turn are not counted."""
    tracker = StorageTracker("cpu")
    with torch.no_grad(), tracker:
        if (offloader := offload_encode._OFFLOADERS.get(vae)) is not None:
            tracker.to_host(group.master.buffer for group in offloader.groups)
        tracker.label("weights", tensors_in(vae))
        tracker.to_host(apart)
        tracker.mark("work")
        work()
    return tracker.segments()[-1]


def clips_of(largest: Largest, count: int) -> list[torch.Tensor]:
    shape = (largest.frames, largest.height, largest.width, 3)
    return [torch.randint(0, 255, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))] * count


def measured_encoding(config: tk.TrainConfig, family: Family, frames: int | None = None) -> Segment:
    """A real batch; where the VAE works in parts, of `frames` where they are given."""
    encoder = LatentEncoder(config.changed(device="cpu"), family)
    vae = encoder._at(0)
    if frames is not None:
        work_in_parts(vae, frames)
    clips = clips_of(shown(config), config.vae_batch_size)
    return measured(vae, clips, lambda: encoder._encode_at(0, clips))


@pytest.mark.parametrize("settings", MODES, ids=lambda one: "+".join(one) or "plain")
def test_plans_of_the_vae_are_what_it_takes(tiny: Family, settings: dict[str, Any]) -> None:
    config = config_of(tiny, device="cpu", **settings)
    largest = shown(config)
    planned, waiting = phases.clip_encoding(config, tiny, largest)
    real = measured_encoding(config, tiny)
    assert planned.peak == pytest.approx(real.peak, rel=0.01)
    assert (waiting > 0) == config.group_offload_vae
    if not config.group_offload_vae:
        assert planned.parts["weights"] == pytest.approx(real.parts["weights"], abs=ROUNDING)
    vae, _ = load_vae(config, tiny, CPU)
    tables: dict[str, Any] = {"transformer": TRANSFORMER, "vae": {**vae.config}}
    stand = Stand(config, tiny, tables.__getitem__)
    latents = torch.randn(1, *stand.latent_shape(largest), dtype=vae.dtype)
    kept = phases.LEFT_OVER * 4 * latents.numel() + 3 * sum(one.nbytes for one in stand.text(largest).values())

    def show() -> None:
        from diffusers.video_processor import VideoProcessor

        VideoProcessor().postprocess_video(vae.decode(latents).sample, output_type="np")

    real = measured(vae, [], show)
    planned = phases._decoding(config, tiny, stand, largest, None)
    assert planned.peak == pytest.approx(real.peak + kept, rel=0.02)


@pytest.mark.parametrize("tiny", ["sanavideo"], indirect=True)
def test_the_plan_takes_as_many_frames_at_a_time_as_a_run_on_that_gpu(tiny: Family) -> None:
    """Where the memory is not known, the fewest; a run of so many frames at a time is counted on the CPU."""
    config = config_of(tiny, vae_enable_patch_conv=True)
    assert phases.memory_matters(config)
    assert not phases.memory_matters(config.changed(device="cpu"))
    assert not phases.memory_matters(config.changed(vae_enable_temporal_roll=True))
    fewest, most = (measured_encoding(config, tiny, frames).peak for frames in (1, MOST_FRAMES))
    assert fewest < 0.9 * most
    peaks = [phases.clip_encoding(config, tiny, shown(config), memory)[0].peak for memory in (None, 2**20, 2**40)]
    assert peaks == pytest.approx([fewest, fewest, most], rel=0.01)
    between = phases.clip_encoding(config, tiny, shown(config), 20 * most)[0].peak
    assert fewest < between <= most
