"""Kandinsky 5.0's numbers against hand-written formulas and the stock pipelines."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kandinsky5_stock import stock_pipeline
from peft import LoraConfig
from PIL import Image
from scipy import stats

import tunerkit as tk
from tunerkit.demo import kandinsky5
from tunerkit.families.batch import Batch
from tunerkit.families.kandinsky5 import objective
from tunerkit.families.kandinsky5.family import FAMILY
from tunerkit.families.rendering import RenderRequest
from tunerkit.training.blocks import BlockRunner
from tunerkit.training.weights import add_adapter

GRID = (3, 4, 6)
"""Latent frames, height, width."""
NABLA = {
    "attention_type": "nabla", "attention_P": 0.6, "attention_wT": 1, "attention_wW": 1, "attention_wH": 1,
    "attention_add_sta": True, "attention_method": "topcdf",
}  # fmt: skip
"""Narrower than the published ones: in a miniature, those would select every block."""
PROMPT = "A red ball moves to the right across a green field."
NEGATIVE = "blurry"
CPU = torch.device("cpu")


# A miniature checkpoint --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint in the layout of the hub."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("kandinsky5")
    torch.manual_seed(0)
    kandinsky5.build(folder, [PROMPT, NEGATIVE])
    return folder


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> tk.TrainConfig:
    return tk.TrainConfig(
        pretrained_model_name_or_path=str(checkpoint), mixed_precision="no", vae_dtype="fp32", lora_rank=4
    )


@pytest.fixture(scope="module")
def transformer(config: tk.TrainConfig) -> Any:
    return FAMILY.load_transformer(config, torch.float32).eval()


@pytest.fixture(scope="module")
def vae(config: tk.TrainConfig) -> Any:
    return FAMILY.load_vae(config, CPU)


def make_batch(first_frame: list[bool] | None = None, grid: tuple[int, int, int] = GRID) -> Batch:
    source = torch.Generator().manual_seed(7)
    return Batch(
        latents=torch.randn(3, 16, *grid, generator=source),
        text={
            "prompt_embeds": torch.randn(3, 7, 32, generator=source),
            "pooled": torch.randn(3, 16, generator=source),
        },
        fps=torch.full((3,), 24.0),
        first_frame=None if first_frame is None else torch.tensor(first_frame),
    )


def draws(batch: Batch) -> dict[str, torch.Tensor]:
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    return {"sigma": torch.tensor([0.9, 0.35, 0.02]), "noise": noise}


# The loss ----------------------------------------------------------------------------------------------------------


def by_hand(transformer: Any, batch: Batch, drawn: dict[str, torch.Tensor], weights: np.ndarray | None = None) -> float:
    """The loss in float64; only the transformer itself computes in float32, as it rounds inside."""
    clean, noise = (x.double().numpy() for x in (batch.latents, drawn["noise"]))
    count, channels, frames, height, width = clean.shape
    states = np.zeros((count, frames, height, width, 2 * channels + 1))
    weight = np.ones((count, frames, height, width)) if weights is None else weights[:, 0].copy()
    for place in range(count):
        level = float(drawn["sigma"][place].double())
        noisy = (1 - level) * clean[place] + level * noise[place]
        for c in range(channels):
            states[place, ..., c] = noisy[c]
        if batch.first_frame is not None and bool(batch.first_frame[place]):
            shown = clean[place, :, 0] if batch.image is None else batch.image[place, :, 0].double().numpy()
            beside = batch.first_frame_method == "channels"
            for c in range(channels):
                states[place, 0, :, :, c + (channels if beside else 0)] = shown[c]
            states[place, 0, :, :, 2 * channels] = 1.0
            weight[place, 0] *= beside
    with torch.no_grad():
        predicted = transformer(
            hidden_states=torch.from_numpy(states).float(),
            encoder_hidden_states=batch.text["prompt_embeds"],
            pooled_projections=batch.text["pooled"],
            timestep=drawn["sigma"] * 1000,
            visual_rope_pos=[torch.arange(frames), torch.arange(height // 2), torch.arange(width // 2)],
            text_rope_pos=torch.arange(batch.text["prompt_embeds"].shape[1]),
            scale_factor=(1, 3.16, 3.16),
        ).sample
    error = (predicted.double().numpy() - np.moveaxis(noise - clean, 1, -1)) ** 2
    return float(np.mean([(error[i].mean(-1) * weight[i]).sum() / weight[i].sum() for i in range(count)]))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(
    ("first_frame", "alone", "method"),
    [
        (None, False, "in_place"),
        ([True, False, True], False, "in_place"),
        ([True, False, True], True, "in_place"),
        ([True, False, True], True, "channels"),
    ],
    ids=["text", "mixed", "image", "channels"],
)
def test_loss_is_the_formula(
    transformer: Any, first_frame: list[bool] | None, alone: bool, method: Any, masked: bool
) -> None:
    batch = make_batch(first_frame)
    source = torch.Generator().manual_seed(3)
    mask = torch.rand(3, 1, *GRID, generator=source) if masked else None
    image = torch.randn(3, 16, 1, *GRID[1:], generator=source) if alone else None
    batch = replace(batch, image=image, first_frame_method=method, loss_mask=mask)
    drawn = draws(batch)
    with torch.no_grad():
        loss = FAMILY.loss(transformer, batch, **drawn)
    expected = by_hand(transformer, batch, drawn, None if mask is None else mask.double().numpy())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_first_frame_is_given_without_noise(transformer: Any) -> None:
    """Other noise in the given frame changes nothing; in a frame that is learned it does."""
    batch = make_batch([True, True, True])
    drawn = draws(batch)
    losses = []
    for frame in (None, 0, 1):
        noise = drawn["noise"].clone()
        if frame is not None:
            noise[:, :, frame] += 1.0
        with torch.no_grad():
            losses.append(float(FAMILY.loss(transformer, batch, sigma=drawn["sigma"], noise=noise)))
    assert losses[0] == losses[1] != losses[2]


def test_captions_of_different_lengths_train_as_if_alone(transformer: Any) -> None:
    """Loss and gradients are the means of those of each sample by itself, and no padding reaches the model."""
    batch = make_batch([True, False, True])
    whole = [{key: value[place] for key, value in batch.text.items()} for place in range(3)]
    texts = [
        {**text, "prompt_embeds": text["prompt_embeds"][:length]} for text, length in zip(whole, (4, 7, 4), strict=True)
    ]
    collated = FAMILY.collate_text(texts)
    assert collated["tokens"].tolist() == [4, 7, 4]
    assert "tokens" not in FAMILY.collate_text(texts[::2])
    drawn = draws(batch)
    single = [
        FAMILY.loss(
            transformer,
            Batch(
                batch.latents[place, None],
                {key: value[None] for key, value in text.items()},
                batch.fps[place, None],
                batch.first_frame[place, None] if batch.first_frame is not None else None,
            ),
            **{key: value[place, None] for key, value in drawn.items()},
        )
        for place, text in enumerate(texts)
    ]
    weight = transformer.visual_transformer_blocks[0].cross_attention.to_key.weight
    [expected] = torch.autograd.grad(torch.stack(single).mean(), [weight])
    collated["prompt_embeds"][0, 4:] = torch.nan  # what stands behind a text must not matter
    seen: list[tuple[int, ...]] = []
    handle = transformer.register_forward_pre_hook(
        lambda _, __, named: seen.append(tuple(named["encoder_hidden_states"].shape[:2])), with_kwargs=True
    )
    loss = FAMILY.loss(transformer, replace(batch, text=collated), **drawn)
    handle.remove()
    [found] = torch.autograd.grad(loss, [weight])
    assert seen == [(2, 4), (1, 7)]
    assert float(loss) == pytest.approx(float(torch.stack(single).mean()), rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert expected.abs().max() > 1e-5


@pytest.mark.parametrize("shift", [None, 8.0])
def test_sigmas_follow_the_shifted_logit_normal(config: tk.TrainConfig, shift: float | None) -> None:
    batch = Batch(torch.zeros(1, 1, 1, 1, 1).expand(20_000, -1, -1, -1, -1), {}, torch.ones(1))
    drawn = FAMILY.sample_sigmas(config.changed(flow_schedule_shift=shift), batch, torch.Generator().manual_seed(3))
    sigma, s = drawn.double().numpy(), shift or 3.0
    u = sigma / (s - (s - 1) * sigma)  # sigma = s u / (1 + (s - 1) u)
    assert stats.kstest(np.log(u / (1 - u)), stats.norm.cdf).pvalue > 0.01
    assert stats.kstest(np.log(sigma / (1 - sigma)), stats.norm.cdf).pvalue < 1e-6


# The stock pipelines -----------------------------------------------------------------------------------------------


def seen_by(transformer: Any, pipeline: Any, request: RenderRequest, config: tk.TrainConfig) -> list[Any]:
    """What a pipeline hands the transformer, and what comes back, step by step."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def record(_: Any, __: Any, named: dict[str, Any], output: Any) -> None:
        calls.append(({**named, "hidden_states": named["hidden_states"].clone()}, output.sample))

    handle = transformer.register_forward_hook(record, with_kwargs=True)
    rendered = FAMILY.render(config, pipeline, request)
    handle.remove()
    assert rendered.frames.shape == (request.frames, request.height, request.width, 3)
    return calls


def request_for(width: int, height: int, *, image: bool = False, steps: int = 3) -> RenderRequest:
    text = {key: value[0] for key, value in make_batch().text.items()}
    picture = Image.new("RGB", (width, height), (200, 40, 90)) if image else None
    return RenderRequest(text, text, width, height, 17, steps, 1.0, seed=5, fps=24.0, image=picture)


@pytest.mark.parametrize("conditioned", ["", "in_place", "channels"], ids=["text", "image", "channels"])
def test_training_forward_is_the_pipelines_own(
    config: tk.TrainConfig, transformer: Any, vae: Any, conditioned: str
) -> None:
    """From the same clip, noise and noise levels; the first frame is encoded by the pipeline itself."""
    image, vae = bool(conditioned), copy.deepcopy(vae)
    with torch.no_grad():  # the pipeline draws from the posterior, of which the mode is trained on: make it narrow
        vae.quant_conv.weight[16:], vae.quant_conv.bias[16:] = 0.0, -30.0
    config = config.changed(first_frame_conditioning_method=conditioned or "in_place")
    pipeline = FAMILY.build_pipeline(config, transformer, vae, image_to_video=image)
    assert pipeline.scheduler.config.shift == 10.0
    request = request_for(96, 64, image=image)
    calls = seen_by(transformer, pipeline, request, config)
    assert len(calls) == 3
    first = torch.from_numpy(np.asarray(request.image or Image.new("RGB", (96, 64)))).permute(2, 0, 1)
    alone = FAMILY.encode_latents(vae, first[None, :, None] / 127.5 - 1)
    given = torch.zeros(1, 1, 5, 1, 1)
    given[:, :, 0] = float(image)
    for seen, output in calls:
        noisy = seen["hidden_states"][..., :16].permute(0, 4, 1, 2, 3)
        if conditioned == "in_place":
            noisy = objective.with_first_frame(noisy, alone)
        condition = given * alone if conditioned == "channels" else None
        states = objective.model_input(noisy, given if image else None, condition)
        torch.testing.assert_close(states, seen["hidden_states"], rtol=0, atol=1e-5)
        text = {"prompt_embeds": seen["encoder_hidden_states"], "pooled": seen["pooled_projections"]}
        with torch.no_grad():
            ours = objective.predict(
                transformer, noisy, text, sigma=seen["timestep"] / 1000, given=given, condition=condition
            )
        torch.testing.assert_close(ours.permute(0, 2, 3, 4, 1), output, rtol=0, atol=0 if not image else 1e-4)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(768, 512, (1, 2, 2)), (480, 854 - 6, (1, 2, 2)), (1280, 768, (1, 3.16, 3.16)), (512, 464, (1, 3.16, 3.16))],
)
def test_positions_are_scaled_by_the_size(transformer: Any, width: int, height: int, scale: tuple[float, ...]) -> None:
    """Both sides from 480 to 854 pixels: 2, else 3.16."""
    seen: list[dict[str, Any]] = []
    handle = transformer.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    batch = make_batch(grid=(1, height // 8, width // 8))
    with torch.no_grad():
        text = {key: value[:1] for key, value in batch.text.items()}
        objective.predict(transformer, batch.latents[:1], text, sigma=torch.tensor([0.5]), given=None)
    handle.remove()
    assert seen[0]["scale_factor"] == scale
    assert seen[0]["sparse_params"] is None


@pytest.fixture(scope="module")
def sparse(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tk.TrainConfig:
    """The same weights under a configuration that asks for sparse attention."""
    folder = tmp_path_factory.mktemp("nabla")
    for part in checkpoint.iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "transformer").unlink()
    stock_transformer(checkpoint, **NABLA).save_pretrained(folder / "transformer")
    return tk.TrainConfig(
        pretrained_model_name_or_path=str(folder), model_flavour="t2v-lite-sft-10s", mixed_precision="no",
        vae_dtype="fp32", lora_rank=4,
    )  # fmt: skip


def stock_transformer(folder: Path | str | None, **changes: Any) -> Any:
    from diffusers import Kandinsky5Transformer3DModel

    return Kandinsky5Transformer3DModel.from_pretrained(str(folder), subfolder="transformer", **changes).eval()


def test_sparse_attention_is_the_pipelines_own(
    sparse: tk.TrainConfig, transformer: Any, vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock transformer with diffusers' flex attention, called by the stock pipeline, against ours in training.

    Uncompiled, flex attention looks at a mask's function and not at its blocks, and the model's has none; so it is
    given the function that says what the blocks say.
    """
    from diffusers.models.transformers import transformer_kandinsky
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # twice as fast
    stock = stock_transformer(sparse.pretrained_model_name_or_path)
    for block in stock.visual_transformer_blocks:  # set_attention_backend would set it for every model there is
        block.self_attention.processor._attention_backend = "flex"
    ours = FAMILY.load_transformer(sparse, torch.float32)
    BlockRunner(FAMILY.blocks(ours), checkpointing=True).install(ours)
    pipeline = FAMILY.build_pipeline(sparse, stock, vae, image_to_video=False)
    blocks_of = transformer_kandinsky.nablaT_v2

    def with_function(*arguments: Any, **named: Any) -> Any:
        mask = blocks_of(*arguments, **named)
        seen = mask.to_dense().bool()
        assert 0.2 < seen.float().mean() < 0.9
        mask.mask_mod = lambda b, h, q, k: seen[b, h, q // 64, k // 64]
        return mask

    request = request_for(256, 128, steps=1)
    [(_, unmasked)] = seen_by(stock, pipeline, request, sparse)
    monkeypatch.setattr(transformer_kandinsky, "nablaT_v2", with_function)
    [(seen, output)] = seen_by(stock, pipeline, request, sparse)

    latents = seen["hidden_states"][..., :16].permute(0, 4, 1, 2, 3)
    text = {"prompt_embeds": seen["encoder_hidden_states"], "pooled": seen["pooled_projections"]}
    predicted, dense = (
        objective.predict(model, latents, text, sigma=seen["timestep"] / 1000, given=None).permute(0, 2, 3, 4, 1)
        for model in (ours, transformer)
    )
    # Queries and keys are rounded to bfloat16 inside, which magnifies the last bit of what comes before.
    torch.testing.assert_close(predicted, output, rtol=0, atol=3e-4)
    torch.testing.assert_close(dense, unmasked, rtol=0, atol=3e-4)
    assert float((predicted - dense).abs().max()) > 1e-2
    predicted.square().mean().backward()
    learned = [p.grad for name, p in ours.named_parameters() if "visual" in name and "to_query.weight" in name]
    assert all(grad is not None and bool(grad.any()) for grad in learned)


def test_sparse_attention_refuses_sizes_that_do_not_fit(sparse: tk.TrainConfig) -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match=r"48x32 pixels.*multiples of 128"):
        FAMILY.loss(FAMILY.load_transformer(sparse, torch.float32), batch, **draws(batch))


def test_cached_text_is_the_pipelines(config: tk.TrainConfig, checkpoint: Path) -> None:
    encoder = FAMILY.load_text_encoder(config, CPU)
    texts = [PROMPT, "", f"  {PROMPT}\n\nAnother   one, much longer, with &amp; in it. " * 3]
    found = FAMILY.encode_text(encoder, texts, "positive", config)
    stock = stock_pipeline(checkpoint)
    for text, entry in zip(texts, found, strict=True):
        with torch.no_grad():
            embeds, pooled, lengths = stock.encode_prompt(text)
        assert len(entry["prompt_embeds"]) == int(lengths[1])
        torch.testing.assert_close(entry["prompt_embeds"], embeds[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(entry["pooled"], pooled[0], rtol=1e-5, atol=1e-6)
    assert len({len(entry["prompt_embeds"]) for entry in found}) == 3


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_rendering_from_the_cache_is_the_stock_rendering(
    config: tk.TrainConfig, checkpoint: Path, transformer: Any, vae: Any, image: bool
) -> None:
    encoder = FAMILY.load_text_encoder(config, CPU)
    text, negative = FAMILY.encode_text(encoder, [PROMPT, NEGATIVE], "positive", config)
    picture: dict[str, Any] = {"image": Image.effect_noise((96, 64), 80).convert("RGB")} if image else {}
    ours = FAMILY.render(
        config,
        FAMILY.build_pipeline(config, transformer, vae, image_to_video=image),
        RenderRequest(text, negative, 96, 64, 17, 2, 5.0, seed=3, fps=24.0, **picture),
    )
    stock = stock_pipeline(checkpoint, image_to_video=image)
    frames = stock(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=96, height=64, num_frames=17, num_inference_steps=2,
        guidance_scale=5.0, generator=torch.Generator().manual_seed(3), output_type="np", **picture,
    ).frames[0]  # fmt: skip
    assert np.abs(ours.frames - frames * 255).max() < 1.0
    assert ours.frames.std() > 5


# Latents, adapters, precision --------------------------------------------------------------------------------------


def test_latents_are_the_scaled_mode(vae: Any) -> None:
    pixels = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.parameters[:, :16]
    torch.testing.assert_close(FAMILY.encode_latents(vae, pixels), mean * 0.476986)
    with pytest.raises(ValueError, match=r"8 frames.*4k \+ 1"):
        FAMILY.encode_latents(vae, pixels[:, :, :8])
    with pytest.raises(ValueError, match=r"40x32 pixels.*multiples of 16"):
        FAMILY.encode_latents(vae, pixels[..., :40])


@pytest.mark.parametrize("sparsely", [False, True], ids=["dense", "sparse"])
def test_adapters_sit_in_every_attention_and_learn(
    config: tk.TrainConfig, sparse: tk.TrainConfig, sparsely: bool
) -> None:
    config = sparse if sparsely else config
    transformer = FAMILY.load_transformer(config, torch.float32)
    add_adapter(transformer, FAMILY, config)
    BlockRunner(FAMILY.blocks(transformer), checkpointing=True).install(transformer)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in transformer.named_modules() if name.endswith("lora_A")}
    attentions = [f"visual_transformer_blocks.{i}.{kind}_attention" for i in range(2) for kind in ("self", "cross")]
    attentions.append("text_transformer_blocks.0.self_attention")
    assert adapted == {f"{a}.{part}" for a in attentions for part in ("to_query", "to_key", "to_value", "out_layer")}
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(4))
    batch = make_batch([True, False, True], (3, 16, 16))
    FAMILY.loss(transformer, batch, **draws(batch)).backward()
    assert all(bool(p.grad.any()) for p in transformer.parameters() if p.requires_grad and p.grad is not None)
    assert all(p.grad is not None for p in transformer.parameters() if p.requires_grad)


def test_a_bare_out_layer_also_names_the_last_layer(config: tk.TrainConfig) -> None:
    """So peft refuses it in its own words; here the longer names are said."""
    transformer = FAMILY.load_transformer(config, torch.float32)
    bare = config.changed(peft_lora_target_modules=["to_query", "out_layer"])
    with pytest.raises(
        tk.ConfigError, match=r"'out_layer': names out_layer as well.*self_attention\.out_layer"
    ) as error:
        add_adapter(transformer, FAMILY, bare)
    assert "cross_attention.out_layer" in str(error.value)
    with pytest.raises(ValueError, match="Kandinsky5OutLayer"):
        copy.deepcopy(transformer).add_adapter(LoraConfig(target_modules=["to_query", "out_layer"]))
    add_adapter(transformer, FAMILY, config.changed(peft_lora_target_modules=["self_attention.out_layer"]))


def test_without_return_dict_the_transformer_gives_a_bare_tensor(transformer: Any) -> None:
    """Its `[0]` would be the first sample of the batch, so the objective never asks for it."""
    batch = make_batch()
    seen: list[dict[str, Any]] = []
    handle = transformer.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    with torch.no_grad():
        prediction = objective.predict(transformer, batch.latents, batch.text, sigma=torch.full((3,), 0.5), given=None)
        handle.remove()
        bare = transformer(**{**seen[0], "return_dict": False})
    assert isinstance(bare, torch.Tensor)
    assert torch.equal(bare.permute(0, 4, 1, 2, 3), prediction)
    assert seen[0]["return_dict"] is True


def test_what_computes_in_float32_stays_there(config: tk.TrainConfig) -> None:
    transformer = FAMILY.load_transformer(config, torch.bfloat16)
    for name, parameter in transformer.named_parameters():
        kept = "time_embeddings" in name or "modulation" in name
        assert parameter.dtype == (torch.float32 if kept else torch.bfloat16), name
    batch = make_batch()
    with torch.no_grad():
        assert bool(FAMILY.loss(transformer, batch, **draws(batch)).isfinite())
