"""What Kandinsky 5.0 Video refuses, and what its flavours decide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.demo import kandinsky5
from tunerkit.errors import ModelError
from tunerkit.families.kandinsky5.family import FAMILY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kandinsky5")
    torch.manual_seed(0)
    kandinsky5.build(folder, ["A red ball moves to the right."])
    return folder


@pytest.fixture
def config(checkpoint: Path) -> tk.TrainConfig:
    return tk.TrainConfig(pretrained_model_name_or_path=str(checkpoint))


def test_flavours() -> None:
    trained = {name for name, one in FAMILY.flavours.items() if not one.refused}
    assert trained == {
        "t2v-lite-sft-5s", "t2v-lite-pretrain-5s", "t2v-lite-sft-10s", "t2v-lite-pretrain-10s", "t2v-pro-sft-5s-hd",
        "t2v-pro-sft-10s-hd", "t2v-pro-pretrain-5s-hd", "t2v-pro-pretrain-10s-hd", "i2v-lite-5s", "i2v-pro-sft-5s",
    }  # fmt: skip
    assert FAMILY.flavours["t2v-pro-sft-10s-hd"].repo == "kandinskylab/Kandinsky-5.0-T2V-Pro-sft-10s-Diffusers"
    assert "guidance" in FAMILY.flavours["t2v-lite-nocfg-5s"].refused
    assert "16 steps" in FAMILY.flavours["t2v-lite-distilled16steps-10s"].refused
    assert all(". Fix: " in one.refused for name, one in FAMILY.flavours.items() if name not in trained)


@pytest.mark.parametrize(
    ("flavour", "multiple", "largest"),
    [("t2v-lite-sft-5s", 16, 768), ("t2v-lite-sft-10s", 128, 768), ("t2v-pro-sft-5s-hd", 128, 1408)],
)
def test_sizes_follow_the_flavour(flavour: str, multiple: int, largest: int) -> None:
    config = tk.TrainConfig(model_flavour=flavour)
    assert FAMILY.multiple(config) == multiple
    sizes = FAMILY.model_sizes(config)
    assert max(max(size) for size in sizes) == largest
    assert all(edge % multiple == 0 for size in sizes for edge in size)
    assert {(height, width) for width, height in sizes} == set(sizes)


def test_short_renderings_from_an_image_are_refused(config: tk.TrainConfig) -> None:
    """The stock pipeline makes NaN of them."""
    short = {"model_flavour": "i2v-lite-5s", "validation_num_video_frames": 13}
    [problem], _ = FAMILY.check(config.changed(**short))
    assert problem.key == "validation_num_video_frames"
    assert "17" in problem.fix
    assert not FAMILY.check(config.changed(**{**short, "validation_num_video_frames": 17}))[0]
    assert not FAMILY.check(config.changed(**{**short, "model_flavour": "t2v-lite-sft-5s"}))[0]
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 4, 4, 16, generator=source)  # of 13 frames
    assert bool(stock_normalisation(latents).isnan().any())
    assert bool(stock_normalisation(torch.cat([latents, latents[:, :1]], 1)).isfinite().all())


def stock_normalisation(latents: torch.Tensor) -> torch.Tensor:
    from diffusers import Kandinsky5I2VPipeline

    names = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    empty: Any = dict.fromkeys(names)
    pipeline: Any = Kandinsky5I2VPipeline(**empty)
    return pipeline.normalize_first_frame(latents)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SanaVideoTransformer3DModel"}, "set model_family"),
        ("transformer", {"visual_cond": False}, "no video checkpoint"),
        ("transformer", {"attention_type": "nabla"}, "Fix: set model_flavour to t2v-lite-sft-10s"),
        ("vae", {"_class_name": "AutoencoderKLWan"}, "needs the HunyuanVideo VAE"),
        ("vae", {"latent_channels": 4}, "makes 4 latent channels"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    config: tk.TrainConfig, checkpoint: Path, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    FAMILY.check_checkpoint(config)
    for name in ("transformer", "vae"):
        settings = json.loads((checkpoint / name / "config.json").read_text())
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**settings, **(changes if name == part else {})}))
    with pytest.raises(ModelError, match=message):
        FAMILY.check_checkpoint(config.changed(pretrained_model_name_or_path=str(tmp_path)))


def test_a_vae_of_ones_own_has_to_scale_alike(config: tk.TrainConfig, checkpoint: Path, tmp_path: Path) -> None:
    settings = json.loads((checkpoint / "vae" / "config.json").read_text())
    (tmp_path / "vae").mkdir()
    for scale, fits in ((settings["scaling_factor"], True), (1.0, False)):
        (tmp_path / "vae" / "config.json").write_text(json.dumps({**settings, "scaling_factor": scale}))
        other = config.changed(pretrained_vae_model_name_or_path=str(tmp_path))
        if fits:
            FAMILY.check_checkpoint(other)
            continue
        with pytest.raises(ModelError, match=r"scaling_factor 1\.0 instead of"):
            FAMILY.check_checkpoint(other)


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_without_its_files_is_refused(
    config: tk.TrainConfig, checkpoint: Path, tmp_path: Path, folder: str
) -> None:
    """Else all captions would become one and the same."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="the tokenizer's files are missing or damaged"):
        FAMILY.load_text_encoder(config.changed(pretrained_model_name_or_path=str(model)), torch.device("cpu"))
