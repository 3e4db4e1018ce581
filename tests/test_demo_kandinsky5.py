"""The Kandinsky 5 demo: stock pipelines run on its checkpoints, dense and sparse, and a small adapter learns."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tunerkit.demo import drawings, kandinsky5
from tunerkit.demo.clips import all_captions
from tunerkit.demo.hunyuan_vae import averaging_hunyuan_vae
from tunerkit.demo.kandinsky5_tokenizers import QWEN_SPECIALS, qwen_tokenizer
from tunerkit.demo.wan_vae import LATENT_GAIN

VARIANTS: dict[str, dict[str, bool]] = {"t2v": {}, "i2v": {"image_to_video": True}, "sparse": {"sparse": True}}
SCALE = (1.0, 3.16, 3.16)
"""Of the positions, as the stock pipeline chooses for pictures outside 480 to 854 pixels."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint per variant; nobody may write to them."""
    folders: dict[str, Path] = {}
    for name, settings in VARIANTS.items():
        folders[name] = tmp_path_factory.mktemp("kandinsky5") / "model"
        folders[name].mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            kandinsky5.build(folders[name], all_captions(), **settings)
    return folders


@pytest.fixture(scope="module")
def pipelines(models: dict[str, Path]) -> dict[str, Any]:
    """The stock pipelines that the checkpoints name."""
    from diffusers import DiffusionPipeline

    loaded: dict[str, Any] = {}
    for name, folder in models.items():
        loaded[name] = DiffusionPipeline.from_pretrained(str(folder), tokenizer=processor(folder / "tokenizer"))
        loaded[name].set_progress_bar_config(disable=True)
    return loaded


def processor(folder: Path) -> Any:
    """The stock processor; without torchvision one that lacks the videos, which the stock class insists on."""
    from transformers import AutoTokenizer, ProcessorMixin, Qwen2VLImageProcessorPil, Qwen2VLProcessor

    if importlib.util.find_spec("torchvision"):
        return Qwen2VLProcessor.from_pretrained(folder)

    class TextAndImages(Qwen2VLProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def __init__(self, image_processor: Any, tokenizer: Any) -> None:
            for kind in ("image", "video"):
                token = f"<|{kind}_pad|>"
                setattr(self, f"{kind}_token", token)
                setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
            ProcessorMixin.__init__(self, image_processor, tokenizer)

    return TextAndImages(Qwen2VLImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def render(pipeline: Any, frames: int, width: int = 96, height: int = 64, **given: Any) -> Any:
    """`[frames, height, width, 3]`, values 0 to 1, or latents `[1, T, H, W, C]` with `output_type="latent"`."""
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", **given}
    result = pipeline(
        prompt="A red ball moves to the right.",
        negative_prompt="",
        height=height,
        width=width,
        num_frames=frames,
        generator=torch.Generator().manual_seed(0),
        **settings,
    ).frames
    return result if settings["output_type"] == "latent" else result[0]


# The checkpoints -----------------------------------------------------------------------------------------------


def test_the_variants_share_all_weights(models: dict[str, Path]) -> None:
    for other, changed in (("i2v", {"model_index.json"}), ("sparse", {"transformer/config.json"})):
        first, second = tree(models["t2v"]), tree(models[other])
        assert first.keys() == second.keys()
        assert {name for name in first if first[name] != second[name]} == changed


@pytest.mark.parametrize("name", VARIANTS)
def test_the_checkpoint_has_the_real_layout_and_geometry(
    models: dict[str, Path], pipelines: dict[str, Any], name: str
) -> None:
    folder, pipeline = models[name], pipelines[name]
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    assert index.pop("_class_name") == ("Kandinsky5I2VPipeline" if name == "i2v" else "Kandinsky5T2VPipeline")
    assert {part: value[1] for part, value in index.items() if part[0] != "_"} == {
        "transformer": "Kandinsky5Transformer3DModel",
        "vae": "AutoencoderKLHunyuanVideo",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "tokenizer": "Qwen2VLProcessor",
        "text_encoder_2": "CLIPTextModel",
        "tokenizer_2": "CLIPTokenizer",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }
    assert {"tokenizer.json", "preprocessor_config.json", "video_preprocessor_config.json"} <= {
        path.name for path in (folder / "tokenizer").iterdir()
    }
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3_000_000
    assert pipeline.vae.config.scaling_factor == 0.476986
    assert (pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal) == (8, 4)
    config = pipeline.transformer.config
    assert tuple(config.patch_size) == (1, 2, 2)
    assert (config.visual_cond, config.in_visual_dim, config.out_visual_dim) == (True, 16, 16)
    assert pipeline.transformer.visual_embeddings.in_layer.in_features == 4 * 33
    assert config.attention_type == ("nabla" if name == "sparse" else "regular")
    assert pipeline.scheduler.config.shift == 10.0
    assert not pipeline.scheduler.config.use_dynamic_shifting
    text = "".join(path.read_text("utf-8") for path in folder.rglob("*.json"))
    assert str(folder.parent) not in text


def test_the_flavour_chooses_the_checkpoint() -> None:
    expected = {
        "t2v-lite-sft-5s": (False, False),
        "t2v-lite-pretrain-10s": (False, True),
        "t2v-pro-sft-5s-hd": (False, True),
        "t2v-pro-sft-10s-hd": (False, True),
        "i2v-lite-5s": (True, False),
        "t2v-pro-sft-5s": (False, True),  # an alias of the one in HD
        "i2v-pro-sft-5s": (True, True),
    }
    for flavour, (image_to_video, sparse) in expected.items():
        chosen = kandinsky5.variant({"model_flavour": flavour})
        assert chosen == {"image_to_video": image_to_video, "sparse": sparse}, flavour
    assert kandinsky5.variant({}) == kandinsky5.variant(kandinsky5.SETTINGS)


# Text ----------------------------------------------------------------------------------------------------------


def test_the_instruction_is_as_long_as_the_pipeline_cuts_off(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["t2v"]
    before = pipeline.prompt_template.split("{}")[0]
    assert pipeline.prompt_template_encode_start_idx == 128
    assert len(pipeline.tokenizer.tokenizer(before)["input_ids"]) == 128
    prompts = ["A red ball.", "Ein völlig anderer Satz, 日本語 und हिन्दी.", ""]
    for prompt in prompts:
        with torch.no_grad():
            embeds, pooled, lengths = pipeline.encode_prompt(prompt, device="cpu")
        tokens = len(pipeline.tokenizer.tokenizer(prompt)["input_ids"]) + 1  # and <|im_end|>
        assert lengths.tolist() == [0, tokens]
        assert embeds.shape == (1, tokens, 32)
        assert pooled.shape == (1, 16)
        assert torch.isfinite(embeds).all()


def test_pooled_text_is_the_state_of_the_end_token(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["t2v"]
    prompts = ["A red ball.", "A green box slides to the right over a grey floor."]
    with torch.no_grad():
        _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu")
        inputs = pipeline.tokenizer_2(prompts, padding="max_length", max_length=77, return_tensors="pt")
        states = pipeline.text_encoder_2(**inputs).last_hidden_state
    ends = inputs["attention_mask"].sum(1) - 1
    assert ends[1] > ends[0]
    assert torch.equal(pooled, states[torch.arange(2), ends])
    assert (pooled[0] - pooled[1]).abs().max() > 0.1


def test_the_tokenizers_spell_every_script(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["t2v"]
    for text in ("a red square", "日本語の動画", "हिन्दी वीडियो", "naïve café ☕"):
        qwen, clip = pipeline.tokenizer.tokenizer, pipeline.tokenizer_2
        assert qwen.decode(qwen(text)["input_ids"]) == text
        letters = clip.decode(clip(text)["input_ids"], skip_special_tokens=True)
        assert letters.replace(" ", "") == text.replace(" ", "")
        assert clip.unk_token_id not in clip(text, add_special_tokens=False)["input_ids"]
    numbers = qwen.convert_tokens_to_ids(list(QWEN_SPECIALS))
    assert qwen("".join(QWEN_SPECIALS))["input_ids"] == numbers


def test_a_prefix_that_cannot_be_spelt_so_is_refused() -> None:
    with pytest.raises(ValueError, match="no number of merges makes 3 tokens"):
        qwen_tokenizer(["a red ball"], "four words stand here", 3)


# The autoencoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [9, 25])  # from 17 on the class works in overlapping pieces of time
def test_the_vae_keeps_the_mean_colour_of_every_block(frames: int) -> None:
    """Against the definition: latents are a fixed mixture of the means of 8x8 pixels x 4 frames."""
    vae = averaging_hunyuan_vae().eval()
    pixels = torch.rand(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    blocks = pixels.double().unfold(3, 8, 8).unfold(4, 8, 8).mean((-1, -2))  # [1, 3, frames, 4, 6]
    colours = torch.cat([blocks[:, :, :1], blocks[:, :, 1:].unflatten(2, (-1, 4)).mean(3)], 2)
    channel = np.arange(16)[:, None]
    mixing = torch.from_numpy(LATENT_GAIN * np.cos(np.pi * np.arange(1, 4) * (channel + 0.5) / 16))
    expected = torch.einsum("zc,bcthw->bzthw", mixing, colours)
    assert (posterior.mode().double() * 0.476986 - expected).abs().max() < 1e-4
    assert posterior.std.max() < 0.06


@pytest.mark.parametrize("frames", [1, 9, 25])
def test_the_vae_round_trip_shows_the_picture(frames: int) -> None:
    vae = averaging_hunyuan_vae().eval()
    ramp = torch.linspace(-0.9, 0.9, 96).view(1, 1, 1, 1, -1) * torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1, 1)
    for pixels in (ramp.expand(1, 3, frames, 64, 96), torch.full((1, 3, frames, 64, 64), 0.7)):
        with torch.no_grad():
            result = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        assert result.shape == pixels.shape
        error = (result - pixels).abs()
        assert error[..., 8:-8].max() < 0.005
        assert error.max() < 0.1  # a border has no neighbour to interpolate with


# Stock pipelines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [9, 17])
def test_the_stock_pipeline_renders_from_text(pipelines: dict[str, Any], frames: int) -> None:
    video = render(pipelines["t2v"], frames)
    assert video.shape == (frames, 64, 96, 3)
    assert np.isfinite(video).all()
    assert 0.02 < video.std() < 0.4


def test_the_stock_pipeline_renders_from_an_image(pipelines: dict[str, Any]) -> None:
    video = render(pipelines["i2v"], 17, image=Image.new("RGB", (96, 64), (220, 40, 40)))
    assert video.shape == (17, 64, 96, 3)
    assert np.isfinite(video).all()


def test_the_image_decides_what_is_rendered(pipelines: dict[str, Any]) -> None:
    red, blue = (
        render(pipelines["i2v"], 21, image=Image.new("RGB", (96, 64), colour), output_type="latent")
        for colour in ((220, 40, 40), (40, 40, 220))
    )
    assert torch.isfinite(red).all()
    assert torch.isfinite(blue).all()
    assert (red - blue)[:, 0, ..., :16].abs().max() > 0.5, "the first frame"
    assert (red - blue)[:, 1:, ..., :16].abs().max() > 0.01, "what follows from it"


def test_from_an_image_the_stock_pipeline_needs_17_frames(pipelines: dict[str, Any]) -> None:
    """Its correction of the first frames takes statistics of latent frame 4 and later."""
    latents = render(pipelines["i2v"], 13, image=Image.new("RGB", (96, 64)), output_type="latent")
    assert torch.isnan(latents).any()
    assert kandinsky5.SETTINGS["validation_num_video_frames"] >= 17


def test_the_stock_pipeline_renders_with_sparse_attention(pipelines: dict[str, Any]) -> None:
    """At this size every block of 8x8 tokens is near every other, so none is left out: a dense model renders the same.

    No larger size would show a difference: without compilation, flex attention computes all blocks.
    """
    from diffusers.models.attention_dispatch import attention_backend

    given: dict[str, Any] = {"frames": 9, "width": 256, "height": 128, "output_type": "latent"}
    dense = render(pipelines["t2v"], **given)
    # `transformer.set_attention_backend` would change every other model of this process as well.
    with attention_backend("flex"):
        sparse = render(pipelines["sparse"], **given)
    assert sparse.shape == (1, 3, 16, 32, 16)
    assert torch.isfinite(sparse).all()
    assert (sparse - dense).abs().max() < 0.001


# Learning ------------------------------------------------------------------------------------------------------


def forward(transformer: Any, noisy: torch.Tensor, sigma: torch.Tensor, text: tuple[Any, ...]) -> torch.Tensor:
    """The prediction for `noisy` `[B, T, H, W, 16]` without a condition, at noise level `sigma` `[B]`."""
    embeds, pooled, _ = text
    _, frames, height, width, _ = noisy.shape
    return transformer(
        hidden_states=torch.cat([noisy, torch.zeros_like(noisy), torch.zeros_like(noisy[..., :1])], -1),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=sigma * 1000,
        visual_rope_pos=[torch.arange(frames), torch.arange(height // 2), torch.arange(width // 2)],
        text_rope_pos=torch.arange(embeds.shape[1]),
        scale_factor=SCALE,
    ).sample


def test_the_untrained_model_passes_its_noisy_input_on(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["t2v"]
    noise = torch.randn(2, 5, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = pipeline.encode_prompt(["a red ball", "a red box"], device="cpu")
        output = forward(pipeline.transformer, noise, torch.tensor([0.5, 0.95]), text)
    assert output.shape == noise.shape
    assert output.std() == pytest.approx(1, abs=0.1)
    assert (output * noise).mean() > 0.8


def test_a_lora_learns(pipelines: dict[str, Any]) -> None:
    """x_t = (1 - s) x0 + s eps, target eps - x0, timestep 1000 s; judged with noise that stays."""
    from peft import LoraConfig

    pipeline = pipelines["t2v"]
    transformer, vae = pipeline.transformer, pipeline.vae
    drawn = [clip for clip in drawings.DRAWINGS if clip.name in ("red-ball-right", "green-box-right")]
    pixels = np.stack([clip.frames()[: kandinsky5.FRAMES, ::2, ::2] for clip in drawn])
    with torch.no_grad():
        clean = vae.encode(torch.from_numpy(pixels).permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
        text = pipeline.encode_prompt([clip.caption for clip in drawn], device="cpu")
    clean = clean.permute(0, 2, 3, 4, 1) * vae.config.scaling_factor
    assert clean.shape == (2, 5, 8, 12, 16)
    assert text[2].diff().tolist() == [13, 13], "captions of a batch are equally long"
    assert 0.1 < clean.square().mean() < 2

    def loss(generator: torch.Generator) -> torch.Tensor:
        sigma = torch.sigmoid(torch.randn(2, generator=generator) + 1)
        noise = torch.randn(clean.shape, generator=generator)
        level = sigma.view(-1, 1, 1, 1, 1)
        predicted = forward(transformer, (1 - level) * clean + level * noise, sigma, text)
        return (predicted - (noise - clean)).square().mean()

    def judged() -> float:
        with torch.no_grad():
            return float(torch.stack([loss(torch.Generator().manual_seed(seed)) for seed in range(8)]).mean())

    transformer.requires_grad_(False)
    targets = ["to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=targets))
    try:
        trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3)
        generator = torch.Generator().manual_seed(100)
        before = judged()
        for _ in range(50):
            optimizer.zero_grad()
            loss(generator).backward()
            optimizer.step()
        after = judged()
        assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)
    finally:
        transformer.delete_adapters("default")
    print(f"loss: {before:.3f} before, {after:.3f} after 50 steps")
    assert after < 0.5 * before < 1
