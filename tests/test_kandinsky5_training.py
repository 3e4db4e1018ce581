"""Kandinsky 5.0 from documents to videos and adapters: text and image to video, dense and sparse, LoRA and full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kandinsky5_stock import stock_pipeline
from PIL import Image

import tunerkit as tk
from tunerkit.families.pipelines import any_precision
from tunerkit.families.rendering import RenderRequest

MakeConfig = Callable[..., tk.TrainConfig]
PROMPT = "A red ball moves to the right across a green field."
NEGATIVE = "blurry, jittery, distorted"


@pytest.fixture
def make(kandinsky5_projects: Callable[[str], Path], tmp_path: Path) -> MakeConfig:
    def make(flavour: str = "t2v-lite-sft-5s", **changes: Any) -> tk.TrainConfig:
        cache = kandinsky5_projects(flavour).parent / "output" / "cache"
        settings = {"output_dir": tmp_path / "output", "cache_dir": cache, "validation_disable": True, **changes}
        return tk.load_config(kandinsky5_projects(flavour), **settings)

    return make


def trained(config: tk.TrainConfig, steps: int) -> tuple[tk.Trainer, list[tk.StepResult]]:
    trainer = tk.Trainer(config).prepare(progress=False)
    return trainer, list(trainer.steps(steps))


@pytest.mark.parametrize("flavour", ["t2v-lite-sft-5s", "i2v-lite-5s", "t2v-lite-sft-10s"])
@pytest.mark.parametrize("model_type", ["lora", "full"])
def test_it_trains(make: MakeConfig, flavour: str, model_type: str) -> None:
    trainer, results = trained(make(flavour, model_type=model_type, max_train_steps=2), 2)
    batch = trainer.loaded.source.make(0).batch
    trainer.close()
    assert all(np.isfinite(result.loss) and result.grad_norm > 0 for result in results)
    if flavour.startswith("i2v"):  # without a dataset that asks for it
        assert batch.first_frame is not None
        assert bool(batch.first_frame.all())
    else:
        assert batch.first_frame is None


def test_a_batch_of_captions_of_different_lengths_trains_as_its_samples_do(make: MakeConfig) -> None:
    """In one step of two clips, the adapter gets the mean of the gradients that each clip alone gives."""
    trainer = tk.Trainer(make(max_train_steps=4, train_batch_size=2, caption_dropout_probability=0)).prepare(
        progress=False
    )
    engine, source = trainer.loaded.engine, trainer.loaded.source
    weights = [parameter for parameter in engine.transformer.parameters() if parameter.requires_grad]
    torch.manual_seed(0)
    for weight in weights:  # an adapter starts at zero, where its first factor has no gradient
        torch.nn.init.normal_(weight, std=0.05)
    drawn = next(each for each in map(source.make, range(20)) if "tokens" in each.batch.text)
    lengths = drawn.batch.text["tokens"].tolist()
    assert len(set(lengths)) == 2
    found = torch.autograd.grad(drawn.losses(engine.family, engine.transformer, engine.device).total, weights)
    alone = []
    for place, index in enumerate(drawn.draw.indices):
        batch = source.single(source.samples[index])
        assert batch.text["prompt_embeds"].shape[1] == lengths[place]
        loss = engine.family.loss(
            engine.transformer, batch, sigma=drawn.sigma[place, None], noise=drawn.noise[place, None]
        )
        alone.append(torch.autograd.grad(loss, weights))
    trainer.close()
    for ours, *theirs in zip(found, *alone, strict=True):
        torch.testing.assert_close(ours, sum(theirs) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("flavour", ["t2v-lite-sft-5s", "i2v-lite-5s"])
def test_resumed_is_as_if_never_stopped(make: MakeConfig, tmp_path: Path, flavour: str) -> None:
    settings: dict[str, Any] = {
        "max_train_steps": 4,
        "checkpoint_step_interval": 2,
        "first_frame_conditioning_probability": 0.5,
        "caption_dropout_probability": 0.5,
    }
    trainer, results = trained(make(flavour, output_dir=tmp_path / "whole", **settings), 4)
    trainer.close()
    losses = []
    for resume in (None, "latest"):
        config = make(flavour, output_dir=tmp_path / "two", resume_from_checkpoint=resume, **settings)
        trainer, part = trained(config, 2)
        trainer.close()
        losses += [result.loss for result in part]
    assert losses == [result.loss for result in results]


@pytest.mark.parametrize("flavour", ["t2v-lite-sft-5s", "i2v-lite-5s"])
def test_stock_pipelines_render_with_the_adapter_what_the_trainer_renders(
    make: MakeConfig, flavour: str, tmp_path: Path
) -> None:
    """Through the stock LoRA mixin, from the prompt as text, at alpha / rank = 2; the base model renders otherwise."""
    image = flavour.startswith("i2v")
    config = make(flavour, max_train_steps=3, lora_rank=4, lora_alpha=8, learning_rate=0.02)
    trainer, _ = trained(config, 3)
    file = trainer.export_lora(tmp_path / "lora.safetensors")
    engine, family = trainer.loaded.engine, trainer.family
    cpu = torch.device("cpu")
    picture = Image.effect_noise((96, 64), 80).convert("RGB") if image else None
    text, negative = family.encode_text(
        family.load_text_encoder(trainer.config, cpu), [PROMPT, NEGATIVE], "positive", trainer.config
    )
    with engine.rendering(ema=False) as transformer:
        pipeline = family.build_pipeline(
            trainer.config, transformer, family.load_vae(trainer.config, cpu), image_to_video=image
        )
        request = RenderRequest(text, negative, 96, 64, 17, 3, 3.0, seed=4, fps=24.0, image=picture)
        ours = family.render(trainer.config, pipeline, request).frames.astype(float)
    trainer.close()

    stock = stock_pipeline(Path(str(trainer.config.pretrained_model_name_or_path)), image_to_video=image)
    stock.vae.to(family.load_vae(trainer.config, cpu).dtype)
    arguments: dict[str, Any] = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "width": 96, "height": 64, "num_frames": 17,
        "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np",
        **({"image": picture} if image else {}),
    }  # fmt: skip

    def rendered() -> np.ndarray:
        with any_precision(stock.vae):
            return stock(**arguments, generator=torch.Generator().manual_seed(4)).frames[0] * 255

    plain = rendered()
    stock.load_lora_weights(str(file.parent), weight_name=file.name)
    assert np.abs(rendered() - ours).max() < 1.0
    assert np.abs(plain - ours).mean() > 1.0


def test_comfyui_knows_the_same_modules(make: MakeConfig, tmp_path: Path) -> None:
    """Its model has diffusers' module names; the scale stands in the weights."""
    from safetensors.torch import load_file

    trainer, _ = trained(make(max_train_steps=1, lora_rank=4, lora_alpha=8), 1)
    ours = load_file(trainer.export_lora(tmp_path / "diffusers.safetensors"))
    theirs = load_file(trainer.export_lora(tmp_path / "comfyui.safetensors", format="comfyui"))
    trainer.close()
    expected = {
        f"diffusion_model.{block}.{part}.lora_{factor}.weight"
        for block in (
            "text_transformer_blocks.0.self_attention",
            *(f"visual_transformer_blocks.{i}.{kind}_attention" for i in (0, 1) for kind in ("self", "cross")),
        )
        for part in ("to_query", "to_key", "to_value", "out_layer")
        for factor in "AB"
    }
    assert set(theirs) == expected
    for key, value in theirs.items():
        scale = 2.0 if "lora_B" in key else 1.0
        torch.testing.assert_close(value, scale * ours[key.replace("diffusion_model", "transformer")])


def test_a_first_frame_in_the_condition_channels_only_when_asked(make: MakeConfig, tmp_path: Path) -> None:
    """It changes what is trained, and says what it means; models without such channels refuse it."""
    losses = {}
    for method in ("in_place", "channels"):
        output = tmp_path / method
        config = make("i2v-lite-5s", max_train_steps=1, first_frame_conditioning_method=method, output_dir=output)
        trainer, [result] = trained(config, 1)
        losses[method] = result.loss
        assert trainer.loaded.source.make(0).batch.first_frame_method == method
        noted = {note.key for note in trainer.config.notes}
        assert ("first_frame_conditioning_method" in noted) == (method == "channels")
        trainer.close()
    assert losses["in_place"] != losses["channels"]
    with pytest.raises(tk.ConfigError, match=r"first_frame_conditioning_method = 'channels'.*in_place"):
        tk.resolve(make(model_family="sanavideo", model_flavour=None, first_frame_conditioning_method="channels"))


def test_a_dataset_may_say_that_its_clips_have_no_first_frame(make: MakeConfig) -> None:
    config = make("i2v-lite-5s", max_train_steps=1, **{"datasets.demo-clips.video.is_i2v": False})
    trainer, [result] = trained(config, 1)
    assert trainer.loaded.source.make(0).batch.first_frame is None
    trainer.close()
    assert result.loss > 0


def test_a_change_of_attention_is_said_when_a_run_goes_on(make: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"max_train_steps": 2, "checkpoint_step_interval": 1}
    trained(make("t2v-lite-sft-10s", **settings), 1)[0].close()
    trained(make("t2v-lite-sft-10s", sparse_attention=False, **settings), 0)[0].close()
    assert "sparse_attention changed" in caplog.text


@pytest.mark.parametrize(
    ("flavour", "settings", "message"),
    [
        ("i2v-lite-5s", {"validation_num_video_frames": 13}, r"validation_num_video_frames = 13.*use 17 or more"),
        ("t2v-lite-sft-10s", {"validation_resolution": "192x128"}, r"192x128.*multiples of 128 only.*use 256x128"),
        ("t2v-lite-sft-5s", {"validation_num_video_frames": 16}, r"4k \+ 1 frames.*use 13 or 17"),
    ],
)
def test_what_cannot_be_rendered_is_said_before_anything_is_loaded(
    make: MakeConfig, flavour: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(tk.ConfigError, match=message):
        tk.Trainer(make(flavour, validation_disable=False, **settings))
