"""CREPA's pieces by themselves: similarity, grids, weight over the run, and the features of a tiny DINOv2."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.config.crepa_rules import published_width, teacher_model
from tunerkit.errors import ConfigError, ModelError
from tunerkit.methods.crepa_similarity import Neighbours, likeness, resized
from tunerkit.methods.crepa_teacher import (
    check_teacher,
    frame_features,
    load_teacher,
    middle_frames,
    teacher_facts,
)
from tunerkit.methods.crepa_weight import SimilarityStop, WeightCurve

CPU = torch.device("cpu")


def tiny_teacher(folder: Path, *, registers: int = 0, layers: int = 1) -> Path:
    """A DINOv2 with random weights and patches of 14 pixels, as `from_pretrained` reads it."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    size: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = (
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=registers, **size))
            if registers
            else Dinov2Model(Dinov2Config(**size))
        )
    model.save_pretrained(folder)
    return folder


# Similarity --------------------------------------------------------------------------------------------------------


def by_hand(
    ours: torch.Tensor, theirs: torch.Tensor, neighbours: Neighbours, by_frames: bool, weight: torch.Tensor | None
) -> list[float]:
    """Eq. 6, frame by frame and place by place."""
    clips, frames, height, width, _ = ours.shape
    scores = []
    for clip in range(clips):
        score = 0.0
        for frame in range(frames):
            sums, total = 0.0, 0.0
            for other in range(frames):
                apart = abs(other - frame)
                near = apart <= neighbours.distance if neighbours.cumulative else apart == neighbours.distance
                if apart and not near:
                    continue
                factor = math.exp(-apart / neighbours.tau) if apart else 1.0
                similar = share = 0.0
                for y, x in product(range(height), range(width)):
                    a, b = ours[clip, frame, y, x], theirs[clip, other, y, x]
                    each = 1.0 if weight is None else float(weight[clip, frame, y, x])
                    similar += each * float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
                    share += each
                sums += factor * (similar / share if share else 0.0)
                total += factor
            score += sums / total if neighbours.normalised else sums
        scores.append(score / frames if by_frames else score)
    return scores


@pytest.mark.parametrize(
    ("neighbours", "by_frames", "weighted"),
    [
        (Neighbours(0), True, False),
        (Neighbours(1, 0.5), True, False),
        (Neighbours(2, 2.0), False, True),
        (Neighbours(3, 1.5, cumulative=True), True, True),
        (Neighbours(2, 0.7, cumulative=True, normalised=True), False, False),
        (Neighbours(1, 1.0, normalised=True), True, True),
        (Neighbours(9), True, False),  # farther than the clip is long: no neighbours
    ],
)
def test_the_term_is_that_of_the_paper(neighbours: Neighbours, by_frames: bool, weighted: bool) -> None:
    source = torch.Generator().manual_seed(1)
    ours, theirs = torch.randn(2, 2, 4, 2, 3, 5, generator=source, dtype=torch.float64)
    weight = torch.rand(2, 4, 2, 3, generator=source, dtype=torch.float64) if weighted else None
    if weight is not None:
        weight[0, 1] = 0.0
    found = likeness(ours, theirs, neighbours, by_frames=by_frames, weight=weight)
    expected = by_hand(ours, theirs, neighbours, by_frames, weight)
    torch.testing.assert_close(found.score, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    own = by_hand(ours, theirs, Neighbours(0), True, weight)
    torch.testing.assert_close(found.own, torch.tensor(own, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    if neighbours.normalised:
        still = ours[:, :1].expand_as(ours)
        assert likeness(still, still, neighbours).score.tolist() == pytest.approx([1.0, 1.0])


def test_grids_are_matched_by_area() -> None:
    grid = torch.randn(2, 3, 6, 4, 5, dtype=torch.float64)
    pooled = torch.nn.functional.avg_pool2d(grid.flatten(0, 1).permute(0, 3, 1, 2), (3, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(resized(grid, 2, 2), pooled.unflatten(0, (2, 3)))
    assert resized(grid, 6, 4) is grid
    a, b, c = row = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    halves = torch.stack([(2 * a + b) / 3, (b + 2 * c) / 3])
    torch.testing.assert_close(resized(row.view(1, 3, 1), 1, 2).flatten(), halves)
    torch.testing.assert_close(resized(row.view(3, 1, 1), 2, 1).flatten(), halves)
    assert resized(row.view(1, 3, 1), 1, 6).flatten().tolist() == pytest.approx([1, 1, 10, 10, 100, 100])


# Weight ------------------------------------------------------------------------------------------------------------


def test_the_weight_follows_its_curve() -> None:
    def curve(kind: str, **changes: Any) -> WeightCurve:
        base = {"base": 0.5, "end": 0.1, "warmup": 10, "decay": 110, "power": 2.0, "cutoff": 0}
        return WeightCurve(kind, **(base | changes))

    assert [curve("linear").at(step) for step in (0, 5, 10)] == pytest.approx([0.0, 0.25, 0.5])
    assert [curve("constant").at(step) for step in (10, 60, 500)] == [0.5, 0.5, 0.5]
    assert [curve("linear").at(step) for step in (35, 60, 110, 500)] == pytest.approx([0.4, 0.3, 0.1, 0.1])
    assert curve("cosine").at(35) == pytest.approx(0.1 + 0.4 * (1 + math.sqrt(0.5)) / 2)
    assert curve("polynomial").at(60) == pytest.approx(0.1 + 0.4 * 0.25)
    cut = curve("linear", cutoff=60)
    assert (cut.at(59) > 0.3, cut.at(60), cut.over(59), cut.over(60)) == (True, 0.0, False, True)
    config = tk.TrainConfig(crepa_scheduler="linear", crepa_lambda=1.0)
    assert [WeightCurve.of(config, 40).at(step) for step in (0, 10, 40)] == [1.0, 0.75, 0.0]


def test_a_high_similarity_ends_the_term() -> None:
    stop = SimilarityStop(0.5, 0.5, recoverable=False)
    stop.observe(0.2)
    assert (stop.average, stop.stopped) == (0.2, False)
    stop.observe(0.9)
    assert (stop.average, stop.stopped, stop.for_good) == (pytest.approx(0.55), True, True)
    stop.observe(-1.0)
    assert stop.stopped
    back = SimilarityStop(0.5, 0.0, recoverable=True)
    back.observe(0.7)
    assert back.stopped
    assert not back.for_good
    again = SimilarityStop(0.5, 0.0, recoverable=True)
    again.load_state(back.state())
    assert again.stopped
    assert again.average == 0.7
    again.observe(0.3)
    assert not again.stopped
    never = SimilarityStop(None, 0.5, recoverable=False)
    never.observe(1.0)
    assert not never.stopped


# Features ----------------------------------------------------------------------------------------------------------


def test_latent_frames_are_matched_with_the_middle_of_what_they_stand_for() -> None:
    assert middle_frames(1, 8) == [0]
    assert middle_frames(17, 8) == [0, 5, 13]  # of 1 to 8, and of 9 to 16
    assert middle_frames(9, 4) == [0, 3, 7]
    assert len(middle_frames(81, 4)) == 21
    assert len(middle_frames(121, 8)) == 16


def test_features_are_those_of_the_patches(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (3, 64, 128, 3), generator=source, dtype=torch.uint8)
    made = {}
    for registers in (0, 2):
        encoder = str(tiny_teacher(tmp_path / f"{registers}", registers=registers))
        config = tk.TrainConfig(crepa_encoder=encoder, mixed_precision="no")
        teacher = load_teacher(config, CPU)
        made[registers] = frame_features(teacher, frames, 112, at_once=2)
        # 112 / 14 = 8 patches on a side; 128 x 64 pixels are 4 x 2 cells of 32 pixels.
        assert made[registers].shape == (3, 2, 4, 16)
        assert made[registers].dtype == torch.float16
        assert teacher_facts(config).grid((128, 64), 112) == (2, 4)
        assert teacher_facts(config).grid((1280, 64), 28) == (2, 2)
        for at_once in (1, 3):
            torch.testing.assert_close(frame_features(teacher, frames, 112, at_once), made[registers])
        pictures = torch.nn.functional.interpolate(
            frames.permute(0, 3, 1, 2).double() / 255, (112, 112), mode="bilinear", antialias=True
        )
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
        normal = (pictures - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        with torch.no_grad():
            tokens = teacher.double()(pixel_values=normal).last_hidden_state
        patches = tokens[:, -64:].unflatten(1, (8, 8))
        expected = patches.unflatten(1, (2, 4)).unflatten(3, (4, 2)).mean((2, 4))
        torch.testing.assert_close(made[registers].double(), expected, rtol=2e-3, atol=2e-3)


def test_features_lie_where_they_are_seen(tmp_path: Path) -> None:
    """Without a layer nothing but the pixels of a patch counts: one cell of the clip is one cell of the features."""
    encoder = str(tiny_teacher(tmp_path, layers=0))
    teacher = load_teacher(tk.TrainConfig(crepa_encoder=encoder, mixed_precision="no"), CPU)
    frames = torch.full((1, 64, 128, 3), 90, dtype=torch.uint8)
    plain = frame_features(teacher, frames, 112, 1)
    frames[0, 40:56, 72:88] = 250  # well inside the cell of row 1, column 2
    change = (frame_features(teacher, frames, 112, 1) - plain).abs().amax(-1)[0] > 1e-2
    assert change.nonzero().tolist() == [[1, 2]]


def test_names_of_encoders(tmp_path: Path) -> None:
    assert teacher_model("dinov2_vitg14") == "facebook/dinov2-giant"
    assert teacher_model("DINOv2-vits14") == "facebook/dinov2-small"
    assert teacher_model("dinov2_vitl14_reg") == "facebook/dinov2-with-registers-large"
    assert teacher_model("me/other") == "me/other"
    widths = [published_width(teacher_model(f"dinov2_vit{size}14")) for size in "sblg"]
    assert widths == [384, 768, 1024, 1536]
    assert published_width("me/dinov2-giant") is None
    assert teacher_facts(tk.TrainConfig(crepa_encoder="dinov2_vitb14")).width == 768
    assert teacher_facts(tk.TrainConfig(crepa_encoder=str(tiny_teacher(tmp_path / "dino")))).width == 16
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match=r"crepa_encoder = .* is a vit"):
        check_teacher(tk.TrainConfig(crepa_encoder=str(tmp_path / "vit")))
    with pytest.raises(ModelError, match="crepa_encoder"):
        check_teacher(tk.TrainConfig(crepa_encoder=str(tmp_path)))
    with pytest.raises(ModelError, match=r"crepa_encoder.*there is no such folder"):
        check_teacher(tk.TrainConfig(crepa_encoder=str(tmp_path / "none")))


def test_an_encoder_without_whole_weights_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    config = tk.TrainConfig(crepa_encoder=str(tiny_teacher(tmp_path)))
    check_teacher(config)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ModelError, match=r"crepa_encoder.*model\.safetensors is damaged"):
        check_teacher(config)
    weights.unlink()
    with pytest.raises(ModelError, match=r"crepa_encoder.*holds no weights"):
        check_teacher(config)


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"crepa_encoder": "qwen2-vl"}, "crepa_encoder", "neither a DINOv2"),
        ({"crepa_feature_source": "self_flow"}, "crepa_feature_source", "second model"),
        ({"crepa_use_backbone_features": True}, "crepa_teacher_block_index", "is not set"),
        (
            {"crepa_feature_source": "backbone", "crepa_teacher_block_index": 4, "crepa_block_index": 4},
            "crepa_teacher_block_index",
            "not behind",
        ),
        ({"crepa_warmup_steps": 50, "crepa_decay_steps": 50}, "crepa_warmup_steps", "nothing after the warmup"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        tk.TrainConfig(crepa_enabled=True, **settings)
    assert [problem.key for problem in caught.value.problems] == [key]
    tk.TrainConfig(crepa_enabled=False, **settings)  # what is off is not looked at


def test_what_has_no_effect_is_told() -> None:
    def notes(**settings: Any) -> list[str]:
        return [note.key for note in tk.TrainConfig(crepa_enabled=True, **settings).notes]

    assert notes() == []
    assert notes(crepa_use_tae=True) == ["crepa_use_tae"]
    assert notes(crepa_teacher_block_index=3) == ["crepa_teacher_block_index"]
    assert notes(crepa_cumulative_neighbors=True) == ["crepa_cumulative_neighbors"]
    assert notes(crepa_feature_source="backbone", crepa_teacher_block_index=3) == ["crepa_encoder"]
