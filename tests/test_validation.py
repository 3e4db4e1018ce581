"""Validation renders what the stock pipelines render, and exported adapters reproduce it there."""

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

MakeConfig = Callable[..., tk.TrainConfig]
PROMPT = "A red square moves slowly to the right."
RENDER: dict[str, Any] = {
    "validation_disable": False,
    "validation_prompt": PROMPT,
    "validation_negative_prompt": "blurry",
    "validation_resolution": "96x64",
    "validation_num_video_frames": 9,
    "validation_num_inference_steps": 3,
    "validation_guidance": 4.0,
    "validation_seed": 11,
    "user_prompt_library": None,
}


def stock_frames(config: tk.TrainConfig, lora: Path | None = None, **arguments: Any) -> np.ndarray:
    """What a user gets from diffusers alone: uint8 frames `[T, H, W, 3]`."""
    from diffusers import SanaVideoPipeline

    pipeline: Any = SanaVideoPipeline.from_pretrained(str(config.pretrained_model_name_or_path))
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    frames = pipeline(
        prompt=PROMPT, negative_prompt="blurry", width=96, height=64, frames=9, num_inference_steps=3,
        guidance_scale=4.0, generator=torch.Generator().manual_seed(11), use_resolution_binning=False,
        output_type="np", **arguments,
    ).frames[0]  # fmt: skip
    return (np.asarray(frames) * 255).round().astype(np.uint8)


def live_frames(trainer: tk.Trainer) -> np.ndarray:
    """What the trainer's own validation renders, before it is compressed."""
    renderer, engine = trainer.loaded.renderer, trainer.loaded.engine
    vae = trainer.family.load_vae(trainer.config, engine.device)
    with engine.rendering(ema=False) as transformer:
        pipeline = trainer.family.build_pipeline(trainer.config, transformer, vae, image_to_video=False)
        return trainer.family.render(
            trainer.config, pipeline, renderer._request(renderer.prompts[0], 96, 64, 11)
        ).frames


def read_video(path: Path) -> tuple[np.ndarray, float, str]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate or 0), stream.codec_context.name


@pytest.mark.parametrize(
    "adapter",
    [
        {"lora_rank": 4, "lora_alpha": 16},
        {"lora_rank": 4, "use_rslora": True, "lora_alpha": 3},
        {"lora_rank": 4, "use_dora": True},
        {"lora_rank": 4, "lora_init_type": "pissa"},
        {"lora_rank": 4, "lora_init_type": "olora", "lora_alpha": 2},
    ],
    ids=["alpha", "rslora", "dora", "pissa", "olora"],
)
def test_exported_lora_renders_the_same_in_the_stock_pipeline(
    make_config: MakeConfig, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    config = make_config(**RENDER, **adapter, max_train_steps=3, disable_benchmark=True, learning_rate=0.02)
    trainer = tk.Trainer(config).prepare()
    list(trainer.steps())
    ours = live_frames(trainer)
    path = trainer.export_lora(tmp_path / "out" / "lora.safetensors")
    trainer.close()
    theirs = stock_frames(config, path)
    base = stock_frames(config)

    assert ours.shape == (9, 64, 96, 3)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    # The adapter changes the picture, so the comparison above can fail.
    assert np.abs(ours.astype(int) - base.astype(int)).max() > 8


def test_comfyui_layout_holds_the_same_adapter(make_config: MakeConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer = tk.Trainer(make_config(max_train_steps=1, lora_rank=4, lora_alpha=8)).prepare()
    trainer.step()
    diffusers = load_file(trainer.export_lora(tmp_path / "a.safetensors"))
    comfyui = load_file(trainer.export_lora(tmp_path / "b.safetensors", format="comfyui"))
    trainer.close()
    assert len(comfyui) == len(diffusers) == 2 * 2 * 2 * 4
    for key, value in diffusers.items():
        # Without an alpha, ComfyUI applies B A at scale 1; the adapter's own scale is alpha / rank = 2.
        scale = 2.0 if "lora_B" in key else 1.0
        assert torch.equal(value * scale, comfyui[key.replace("transformer.", "diffusion_model.", 1)])


def test_export_checks_what_it_wrote(make_config: MakeConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tunerkit.training.export import check_lora_file

    trainer = tk.Trainer(make_config(max_train_steps=1)).prepare()
    path = trainer.export_lora(tmp_path / "a.safetensors")
    state = load_file(path)
    state.pop(next(key for key in state if key.endswith("lora_B.weight")))
    save_file(state, path)
    with pytest.raises(tk.CheckpointError, match="incomplete"):
        check_lora_file(path, trainer.loaded.engine.transformer, "transformer")
    with pytest.raises(tk.TunerkitError, match="'diffusers' or 'comfyui'"):
        trainer.export_lora(path, format="kohya")  # type: ignore[arg-type]
    with pytest.raises(tk.TunerkitError, match="safetensors"):
        trainer.export_lora(tmp_path / "lora.pt")
    trainer.close()


def test_full_fine_tuning_loads_as_a_stock_transformer(make_config: MakeConfig) -> None:
    from diffusers import SanaVideoTransformer3DModel

    config = make_config(model_type="full", max_train_steps=2, learning_rate=1e-3, use_ema=True)
    trainer = tk.Trainer(config).prepare()
    list(trainer.steps())
    folder = trainer.loaded.folder.path
    live = {key: value.clone() for key, value in trainer.loaded.engine.transformer.state_dict().items()}
    trainer.close()
    saved = SanaVideoTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
    assert all(torch.equal(live[key], value) for key, value in saved.items())
    averaged = SanaVideoTransformer3DModel.from_pretrained(folder / "transformer_ema").state_dict()
    assert any(not torch.equal(live[key], value) for key, value in averaged.items())


def test_steps_render_base_and_progress_with_safe_names(make_config: MakeConfig, project: Path) -> None:
    library = project / "library.json"
    library.write_text(json.dumps({"../../chef_<token>": "a cook", "chef token": "another cook"}))
    settings = {**RENDER, "user_prompt_library": str(library), "validation_resolution": "96x64,64x64"}
    config = make_config(**settings, max_train_steps=2, validation_step_interval=2, num_validation_images=2)
    trainer = tk.Trainer(config).prepare()
    results = list(trainer.steps())
    folder = trainer.loaded.folder.path / "validation"
    trainer.close()

    assert results[0].videos == ()
    videos = results[1].videos
    assert len(videos) == 3 * 2 * 2  # prompts x sizes x seeds
    base = {path.name for path in (folder / "step-0").glob("*.mp4")}
    assert base == {video.path.name for video in videos}
    assert {path.parent.parent for path in folder.rglob("*.mp4")} == {folder}
    assert "chef_token-96x64-11.mp4" in base
    assert "chef_token-2-64x64-12.mp4" in base
    for video in videos:
        frames, fps, codec = read_video(video.path)
        width, height = video.size
        assert frames.shape == (9, height, width, 3)
        assert (fps, codec) == (16.0, "h264")
        assert video.comparison is not None
        both, _, _ = read_video(video.comparison)
        assert len(both) == 9
        assert both.shape[2] >= 2 * width


def test_base_rendering_is_the_stock_pipelines(make_config: MakeConfig) -> None:
    config = make_config(**RENDER, max_train_steps=1, lora_rank=4)
    trainer = tk.Trainer(config).prepare()
    ours = live_frames(trainer)
    trainer.close()
    assert np.abs(ours.astype(int) - stock_frames(config).astype(int)).max() <= 1


def test_ema_comparison_renders_both_and_restores(make_config: MakeConfig) -> None:
    settings = {**RENDER, "use_ema": True, "ema_validation": "comparison", "learning_rate": 0.05}
    trainer = tk.Trainer(make_config(**settings, max_train_steps=3, disable_benchmark=True)).prepare()
    list(trainer.steps(3))
    before = {name: p.clone() for name, p in trainer.loaded.engine.weights.live.items()}
    videos = trainer.validate()
    after = trainer.loaded.engine.weights.live
    trainer.close()
    assert [video.ema for video in videos] == [False, True]
    assert videos[1].path.stem.endswith("-ema")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.config.ema_validation == "comparison"
    live, averaged = (read_video(video.path)[0].astype(int) for video in videos)
    assert np.abs(live - averaged).max() > 4


def test_out_of_memory_in_validation_is_reported_and_training_goes_on(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tk.Trainer(
        make_config(**RENDER, max_train_steps=2, validation_step_interval=1, disable_benchmark=True)
    ).prepare()

    def too_big(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 99 GiB")

    monkeypatch.setattr(type(trainer.family), "render", too_big)
    with caplog.at_level("WARNING", logger="tunerkit"):
        results = list(trainer.steps())
    training = trainer.loaded.engine.transformer.training
    trainer.close()
    assert [result.videos for result in results] == [(), ()]
    assert "validation_num_video_frames" in caplog.text
    assert training


def test_image_to_video_keeps_the_given_frame(make_config: MakeConfig, project: Path) -> None:
    from PIL import Image

    gradient = np.linspace(0, 255, 96 * 2).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(gradient, (128, 1))] * 3, axis=-1)).save(project / "first.png")
    (project / "inputs.json").write_text(json.dumps([{"image": "first.png", "prompt": PROMPT}]))
    settings = {**RENDER, "validation_prompt": None, "validation_input": str(project / "inputs.json")}
    trainer = tk.Trainer(make_config(**settings, max_train_steps=1, disable_benchmark=True)).prepare()
    videos = trainer.validate()
    vae = trainer.family.load_vae(trainer.config, torch.device("cpu"))
    trainer.close()
    frames, _, _ = read_video(videos[0].path)
    image = Image.open(project / "first.png").resize((96, 64), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    with torch.no_grad():
        again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0, :, 0]
    expected = ((again.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert len(videos) == 1
    assert np.abs(frames[0].astype(float) - expected).mean() < 6  # compression and rounding
