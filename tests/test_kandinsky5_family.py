"""What Kandinsky 5.0 Video refuses, and what its flavours decide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize("folder", ["text_encoder", "text_encoder_2"])
def test_text_encoders_that_lack_weights_are_refused(
    config: tk.TrainConfig, checkpoint: Path, tmp_path: Path, folder: str
) -> None:
    """The library would give the missing ones random values; those that no text passes through may be missing."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    file = model / folder / "model.safetensors"
    weights = load_file(file)
    named = config.changed(pretrained_model_name_or_path=str(model))
    unused = {key: value for key, value in weights.items() if "visual" not in key and "lm_head" not in key}
    save_file(unused, file, metadata={"format": "pt"})
    FAMILY.load_text_encoder(named, torch.device("cpu"))
    lost = next(key for key in unused if "layers.1" in key)
    save_file({key: value for key, value in unused.items() if key != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="text encoder's files lack 1 weights"):
        FAMILY.load_text_encoder(named, torch.device("cpu"))


def test_parts_of_another_checkpoint_are_found_before_anything_is_loaded(
    config: tk.TrainConfig, checkpoint: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    named = config.changed(pretrained_model_name_or_path=str(model))
    FAMILY.check_checkpoint(named)
    settings = json.loads((model / "text_encoder_2" / "config.json").read_text())
    (model / "text_encoder_2" / "config.json").write_text(json.dumps({**settings, "hidden_size": 48}))
    with pytest.raises(ModelError, match="text_encoder_2 is 48 wide, and the transformer takes texts of 16"):
        FAMILY.check_checkpoint(named)
    for folder in ("scheduler", "tokenizer"):
        shutil.rmtree(model / folder)
    with pytest.raises(ModelError, match="the folder has no scheduler/, tokenizer/"):
        FAMILY.check_checkpoint(named)


def project(tmp_path: Path, **changes: Any) -> tk.TrainConfig:
    """Settings of a run on an empty folder of clips; nothing is loaded."""
    video = changes.pop("video", {})
    dataset: dict[str, Any] = {"id": "clips", "instance_data_dir": str(tmp_path), "caption_strategy": "textfile"}
    dataset["video"] = {"num_frames": 17, **video}
    settings = {"output_dir": tmp_path.parent / "output", "max_train_steps": 1, "datasets": [dataset]}
    return tk.resolve(tk.TrainConfig(model_family=FAMILY.name, **{**settings, **changes}))


@pytest.mark.parametrize(
    ("repository", "refused"),
    [
        ("kandinskylab/Kandinsky-5.0-T2V-Lite-nocfg-5s-Diffusers", True),
        ("kandinskylab/kandinsky-5.0-t2v-lite-distilled16steps-10s-diffusers", True),
        ("kandinskylab/Kandinsky-5.0-I2V-Lite-5s-Diffusers", False),
    ],
)
def test_distilled_weights_are_refused_by_their_repository_too(tmp_path: Path, repository: str, refused: bool) -> None:
    if not refused:
        project(tmp_path, pretrained_model_name_or_path=repository)
        return
    with pytest.raises(tk.ConfigError, match="distilled for sampling") as error:
        project(tmp_path, pretrained_model_name_or_path=repository)
    assert [problem.key for problem in error.value.problems] == ["pretrained_model_name_or_path"]


@pytest.mark.parametrize(
    ("changes", "noted"),
    [
        ({"model_flavour": "i2v-lite-5s"}, None),
        ({"model_flavour": "i2v-lite-5s", "video": {"is_i2v": False}}, "without their first frame"),
        ({"model_flavour": "i2v-lite-5s", "first_frame_conditioning_probability": 0}, "without their first frame"),
        ({"video": {"is_i2v": True}}, "was trained without a first frame"),
        ({"model_flavour": "i2v-pro-sft-5s", "sparse_attention": False}, None),
        ({"model_flavour": "t2v-lite-sft-10s", "sparse_attention": False}, "every token sees every other"),
    ],
)
def test_what_differs_from_the_checkpoints_own_training_is_said(
    tmp_path: Path, changes: dict[str, Any], noted: str | None
) -> None:
    notes = [note.message for note in project(tmp_path, **changes).notes]
    assert [noted in note for note in notes] == [True] if noted else not notes
