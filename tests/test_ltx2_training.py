"""LTX-2 from documents to videos: both versions, with and without sound, LoRA and full, on the tiny checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import tunerkit as tk

MakeProject = Callable[..., tk.TrainConfig]


@pytest.fixture
def make(ltx2_projects: dict[str, Path], tmp_path: Path) -> MakeProject:
    def make(flavour: str = "dev", **changes: Any) -> tk.TrainConfig:
        cache = ltx2_projects[flavour].parent / "output" / "cache"
        settings = {"output_dir": tmp_path / "output", "cache_dir": cache, "validation_disable": True, **changes}
        return tk.load_config(ltx2_projects[flavour], **settings)

    return make


def steps(trainer: tk.Trainer, count: int) -> list[Any]:
    return list(trainer.steps(count))


@pytest.mark.parametrize("flavour", ["dev", "2.3-dev"])
@pytest.mark.parametrize("model_type", ["lora", "full"])
def test_it_trains_picture_and_sound(make: MakeProject, flavour: str, model_type: str) -> None:
    trainer = tk.Trainer(make(flavour, model_type=model_type, max_train_steps=3)).prepare(progress=False)
    results = steps(trainer, 3)
    trainer.close()
    for result in results:
        assert set(result.parts) == {"video", "audio"}
        assert result.loss == pytest.approx(result.parts["video"] + result.parts["audio"], rel=1e-5)
        assert result.grad_norm > 0


def test_without_sound_the_sounds_modules_stay_as_they_are(make: MakeProject) -> None:
    config = make(max_train_steps=2, **{"datasets.demo-clips.audio": None})
    trainer = tk.Trainer(config).prepare(progress=False)
    results = steps(trainer, 2)
    names = {name for name, _ in trainer.loaded.engine.transformer.named_parameters() if "lora" in name}
    trainer.close()
    assert all(set(result.parts) == {"video"} for result in results)
    assert names
    assert not any("audio" in name or "video_to" in name for name in names)


def test_resumed_is_as_if_never_stopped(make: MakeProject, tmp_path: Path) -> None:
    """Sound noise, noise levels of its own, given sound and first frames are all functions of the seed."""
    settings: dict[str, Any] = {
        "audio_sigma": "independent",
        "sound_conditioning_probability": 0.5,
        "datasets.demo-clips.video.is_i2v": True,
        "checkpoint_step_interval": 2,
    }
    whole = tk.Trainer(make(max_train_steps=4, output_dir=tmp_path / "whole", **settings)).prepare(progress=False)
    expected = [result.loss for result in steps(whole, 4)]
    whole.close()
    first = tk.Trainer(make(max_train_steps=4, output_dir=tmp_path / "two", **settings)).prepare(progress=False)
    found = [result.loss for result in steps(first, 2)]
    first.close()
    second = tk.Trainer(
        make(max_train_steps=4, output_dir=tmp_path / "two", resume_from_checkpoint="latest", **settings)
    ).prepare(progress=False)
    found += [result.loss for result in steps(second, 2)]
    second.close()
    assert found == expected


@pytest.mark.parametrize("flavour", ["dev", "2.3-dev"])
def test_the_exported_adapter_loads_in_the_stock_pipeline(make: MakeProject, flavour: str, tmp_path: Path) -> None:
    """In both layouts, at alpha / rank = 2, the stock transformer predicts with it what the trained one does."""
    from diffusers import DiffusionPipeline

    config = make(flavour, max_train_steps=2, lora_rank=4, lora_alpha=8, learning_rate=0.05)
    trainer = tk.Trainer(config).prepare(progress=False)
    steps(trainer, 2)
    files = [
        trainer.export_lora(tmp_path / "diffusers.safetensors"),
        trainer.export_lora(tmp_path / "comfyui.safetensors", format="comfyui"),
    ]
    trained = trainer.loaded.engine.transformer.eval()
    stock: Any = DiffusionPipeline.from_pretrained(str(config.pretrained_model_name_or_path))
    arguments = _forward_arguments(trained)
    with torch.no_grad():
        expected = trained(**arguments)
        plain = stock.transformer(**arguments)
        for file in files:
            stock.load_lora_weights(str(file.parent), weight_name=file.name)
            for ours, theirs, base in zip(expected, stock.transformer(**arguments), plain, strict=True):
                torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
                assert not torch.allclose(theirs, base, rtol=1e-2, atol=1e-2)
            stock.unload_lora_weights()
    trainer.close()


def _forward_arguments(transformer: Any) -> dict[str, Any]:
    config, source = transformer.config, torch.Generator().manual_seed(0)
    widths = (
        (config.caption_channels,) * 2
        if config.use_prompt_embeddings
        else (config.cross_attention_dim, config.audio_cross_attention_dim)
    )
    level = torch.tensor([500.0])
    return {
        "hidden_states": torch.randn(1, 24, config.in_channels, generator=source),
        "audio_hidden_states": torch.randn(1, 10, config.audio_in_channels, generator=source),
        "encoder_hidden_states": torch.randn(1, 128, widths[0], generator=source),
        "audio_encoder_hidden_states": torch.randn(1, 128, widths[1], generator=source),
        "timestep": level, "sigma": level, "num_frames": 3, "height": 2, "width": 4, "audio_num_frames": 10,
        "return_dict": False,
    }  # fmt: skip


def test_modules_have_the_original_names_in_comfyui(make: MakeProject, tmp_path: Path) -> None:
    from safetensors import safe_open

    targets = ["to_q", "proj_in", "audio_proj_in", "ff.net.2"]
    trainer = tk.Trainer(make(max_train_steps=1, peft_lora_target_modules=targets)).prepare(progress=False)
    path = trainer.export_lora(tmp_path / "lora.safetensors", format="comfyui")
    trainer.close()
    with safe_open(path, framework="pt") as file:
        modules = {key.removesuffix(".lora_A.weight") for key in file.keys() if "lora_A" in key}  # noqa: SIM118
    assert "diffusion_model.patchify_proj" in modules
    assert "diffusion_model.audio_patchify_proj" in modules
    assert "diffusion_model.transformer_blocks.0.attn1.to_q" in modules
    assert not any("proj_in" in module for module in modules)


@pytest.mark.parametrize("flavour", ["dev", "2.3-dev"])
def test_validation_renders_text_image_and_sound_to_video(make: MakeProject, flavour: str) -> None:
    """Also from the dataset's own first frames and sounds; every video has an AAC track as long as its picture."""
    config = make(
        flavour,
        max_train_steps=1,
        validation_disable=False,
        validation_using_datasets=True,
        num_eval_images=1,
        user_prompt_library=None,
        validation_num_inference_steps=2,
        **{"datasets.demo-clips.video.is_i2v": True},
    )
    trainer = tk.Trainer(config).prepare(progress=False)
    videos = trainer.validate()
    trainer.close()
    assert len(videos) == 2
    record = json.loads((videos[0].path.parent / "renderings.json").read_text())
    made_to = {
        video.path.name: (record[video.path.name]["image"], record[video.path.name]["audio"]) for video in videos
    }
    first, second = made_to.values()
    assert first == (None, None)
    assert second[0] is not None
    assert second[0] == second[1]
    for video in videos:
        with av.open(str(video.path)) as container:
            sound = container.streams.audio[0]
            assert sound.codec_context.name == "aac"
            picture = container.streams.video[0]
            assert picture.average_rate is not None
            shown = float(picture.frames / picture.average_rate)
            assert sound.duration is not None
            assert sound.time_base is not None
            heard = float(sound.duration * sound.time_base)
        assert shown == pytest.approx(25 / 24)
        assert abs(heard - shown) <= 1024 / sound.rate  # one AAC frame


def test_a_sound_file_of_ones_own_leads_the_video(make: MakeProject, tmp_path: Path) -> None:
    import wave

    tone = (np.sin(2 * np.pi * 440 * np.arange(32000) / 16000) * 20000).astype("<i2")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(tone.tobytes())
    (tmp_path / "inputs.json").write_text(json.dumps([{"prompt": "a red ball", "audio": "tone.wav"}]))
    config = make(
        max_train_steps=1,
        validation_disable=False,
        validation_prompt=None,
        user_prompt_library=None,
        validation_input=tmp_path / "inputs.json",
        validation_num_inference_steps=2,
    )
    trainer = tk.Trainer(config).prepare(progress=False)
    (video,) = trainer.validate()
    trainer.close()
    assert video.nickname == "tone"
    assert video.path.is_file()


def test_parts_keep_the_latents_and_tiles_their_shape(make: MakeProject) -> None:
    """What encoding falls back to when memory is short; tiles differ a little, so entries have their own names."""
    family = tk.family("ltxvideo2")
    vae = family.load_vae(tk.resolve(make(vae_dtype="fp32")), torch.device("cpu"))
    vae.tile_sample_min_height = vae.tile_sample_min_width = 96
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 64
    pixels = torch.rand(1, 3, 33, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = family.encode_latents(vae, pixels)
    assert whole.shape == (1, 16, 5, 4, 4)
    assert family.vae_fallbacks == ("in parts", "tiled")
    family.save_vae_memory(vae, "in parts")
    torch.testing.assert_close(family.encode_latents(vae, pixels), whole, rtol=1e-4, atol=1e-5)
    family.save_vae_memory(vae, "tiled")
    tiled = family.encode_latents(vae, pixels)
    assert tiled.shape == whole.shape
    assert bool(tiled.isfinite().all())
    assert not torch.equal(tiled, whole)
    with pytest.raises(ValueError, match="fallback"):
        family.save_vae_memory(vae, "smaller")


def test_frames_that_the_vae_cannot_take_are_refused(make: MakeProject) -> None:
    family = tk.family("ltxvideo2")
    vae = family.load_vae(tk.resolve(make()), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"61 frames: LTX-2 needs 8k \+ 1"):
        family.encode_latents(vae, torch.zeros(1, 3, 61, 64, 64))
    assert [family.legal_frames(count) for count in (1, 8, 9, 49, 61, 121)] == [1, 1, 9, 49, 57, 121]


def test_sizes_that_tiles_would_tear(make: MakeProject) -> None:
    with pytest.raises(tk.ConfigError, match="480 pixels is too narrow"):
        tk.resolve(make(vae_enable_tiling=True, validation_resolution="768x480"))
    tk.resolve(make(vae_enable_tiling=True, validation_resolution="768x512"))
    tk.resolve(make("2.3-dev", vae_enable_tiling=True, validation_resolution="768x480"))


def test_a_damaged_prompt_is_encoded_again(make: MakeProject, tmp_path: Path, ltx2_projects: dict[str, Path]) -> None:
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(ltx2_projects["dev"].parent / "output" / "cache", cache)
    texts = ltx2_projects["dev"].parent / "cache" / "text"
    shutil.copytree(texts, tmp_path / "text")
    config = make(
        cache_dir=cache,
        max_train_steps=1,
        validation_disable=False,
        user_prompt_library=None,
        validation_num_inference_steps=2,
        **{"datasets.text-embeds.cache_dir": str(tmp_path / "text")},
    )
    trainer = tk.Trainer(config).prepare(progress=False)
    for entry in (tmp_path / "text").rglob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:-10])
    assert len(trainer.validate()) == 1
    trainer.close()
