"""What encoding features for CREPA takes, planned: against a real encoder, and against published sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_crepa_terms import tiny_teacher

import tunerkit as tk
from tunerkit import families
from tunerkit.cache.entries import Cache
from tunerkit.methods.crepa_teacher import frame_features, load_teacher
from tunerkit.planning import planner
from tunerkit.planning.largest import Largest
from tunerkit.planning.phases import feature_encoding, teacher_bytes
from tunerkit.planning.planner import largest_batch
from tunerkit.planning.tracker import StorageTracker

ON: dict[str, Any] = {
    "crepa_enabled": True, "crepa_block_index": 0, "crepa_feature_source": "encoder", "crepa_teacher_block_index": None,
}  # fmt: skip
GIANT = 1_136_480_768
"""Parameters of DINOv2 giant."""


@pytest.mark.parametrize(
    ("name", "millions"), [("vits14", 22.06), ("vitb14_reg", 86.58), ("vitl14", 304.37), ("vitg14", 1136.48)]
)
def test_published_encoders_are_of_their_size(name: str, millions: float) -> None:
    config = tk.TrainConfig(crepa_enabled=True, crepa_encoder=f"dinov2_{name}")
    assert teacher_bytes(config) / 4e6 == pytest.approx(millions, abs=0.005)


def test_what_the_largest_encoder_takes() -> None:
    """1784.2 G multiply-adds for a picture of 518 x 518 pixels."""

    def planned(at_once: int) -> Any:
        config = tk.TrainConfig(
            device="cuda", mixed_precision="bf16", crepa_encoder_frames_batch_size=at_once, crepa_enabled=True
        )
        return feature_encoding(config, tk.family("ltxvideo2"), Largest(768, 512, 9, 24.0, 1))

    whole, alone = planned(-1), planned(1)
    assert whole.work.flops == alone.work.flops == pytest.approx(2 * 2 * 1784.2e9, rel=1e-3)
    assert whole.parts["weights"] == pytest.approx(2 * GIANT, rel=1e-4)
    assert whole.parts["activations"] == pytest.approx(2 * alone.parts["activations"], rel=0.1)
    assert whole.work.link == pytest.approx(2 * 768 * 512 * 3, rel=0.01)  # bytes travel, not floats


@pytest.mark.parametrize("at_once", [-1, 2])
def test_encoding_features_takes_what_a_real_encoder_takes(at_once: int, tmp_path: Path) -> None:
    config = tk.TrainConfig(
        crepa_enabled=True, crepa_encoder=str(tiny_teacher(tmp_path, layers=3)), crepa_encoder_image_size=112,
        crepa_encoder_frames_batch_size=at_once, mixed_precision="bf16", device="cpu",
    )  # fmt: skip
    largest = Largest(96, 64, 17, 16.0, 1)
    planned = feature_encoding(config, tk.family("sanavideo"), largest)
    teacher = load_teacher(config, torch.device("cpu"))
    frames = torch.randint(0, 255, (5, 64, 96, 3), dtype=torch.uint8)
    tracker = StorageTracker("cpu")
    with torch.no_grad(), tracker:
        tracker.label("weights", teacher.parameters())
        tracker.to_host([frames])
        tracker.mark("encode")
        frame_features(teacher, frames, 112, 5 if at_once < 0 else at_once)
    measured = tracker.segments()[-1]
    assert planned.peak == pytest.approx(measured.peak, rel=0.05)
    assert planned.parts["weights"] == measured.parts["weights"]


def test_the_plan_of_a_run_has_its_features(make_config: Callable[..., tk.TrainConfig], tmp_path: Path) -> None:
    encoder = tiny_teacher(tmp_path / "dino")
    config = make_config(**ON, crepa_encoder=str(encoder), crepa_encoder_image_size=56)
    plain, found = tk.plan(config.changed(crepa_enabled=False)), tk.plan(config)
    names = [phase.name for phase in plain.phases]
    assert [phase.name for phase in found.phases] == [*names[:2], "feature encoding", *names[2:]]
    phase = found.phase("feature encoding")
    assert phase.ram == phase.parts["weights"] > 0
    assert found.disk.download == 0
    tk.build_cache(config, progress=False)
    cache = Cache(tk.resolve(config), tk.family("sanavideo"))
    size = sum(cache.features(sample).nbytes for sample in found.samples)
    assert found.disk.cache is not None
    assert plain.disk.cache is not None
    assert found.disk.cache - plain.disk.cache == size > 0


def test_the_published_encoder_is_downloaded_and_may_look_at_fewer_frames(
    make_config: Callable[..., tk.TrainConfig],
) -> None:
    config = make_config(**ON, device=None, crepa_encoder="dinov2_vits14")
    found = tk.plan(config, 0.65)
    assert found.disk.download == 4 * 22_056_576
    assert found.largest_phase.name == "feature encoding"
    assert not found.fits
    assert [(one.key, dict(one.settings)) for one in found.changes] == [
        ("fewer_frames_seen", {"crepa_encoder_frames_batch_size": 1})
    ]
    [change] = found.changes
    assert change.fits
    assert change.saved > 0.3 * found.peak


def test_another_encoder_in_the_same_folder_is_another_question(
    make_config: Callable[..., tk.TrainConfig], tmp_path: Path
) -> None:
    def asked(encoder: str) -> str | None:
        config = tk.resolve(make_config(**ON, crepa_encoder=encoder))
        family = families.get("sanavideo")
        return planner._question(config, family, largest_batch(config, family), (), None)

    first = asked(str(tiny_teacher(tmp_path / "dino")))
    assert first is not None
    assert asked(str(tiny_teacher(tmp_path / "moved"))) == first
    assert asked(str(tiny_teacher(tmp_path / "dino", layers=2))) != first
    assert asked("somebody/dinov2") is None  # it may change
    assert asked("dinov2_vits14") is not None
