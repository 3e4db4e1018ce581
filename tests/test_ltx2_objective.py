"""LTX-2's numbers against hand-written formulas and the stock pipelines."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import tunerkit as tk
from tunerkit.families.batch import Audio, Batch
from tunerkit.families.ltx2 import objective
from tunerkit.families.rendering import RenderRequest

FAMILY = tk.family("ltxvideo2")
GRID = (3, 2, 4)
"""Latent frames, height, width."""
LENGTH = 26
"""Audio tokens."""


@pytest.fixture(scope="module", params=["dev", "2.3-dev"])
def loaded(request: pytest.FixtureRequest, ltx2_projects: dict[str, Path]) -> dict[str, Any]:
    """Tiny transformer and VAE, float32, in evaluation mode, and the project's settings."""
    config = tk.resolve(tk.load_config(ltx2_projects[request.param]))
    return {
        "config": config,
        "transformer": _stirred(FAMILY.load_transformer(config, torch.float32).eval()),
        "vae": FAMILY.load_vae(config.changed(vae_dtype="fp32"), torch.device("cpu")),
    }


def _stirred(transformer: Any) -> Any:
    """With gates that are open: in a miniature whose modulation is small, a wrong noise level would hardly show."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "adaln" in name or "time_embed" in name or "av_cross_attn" in name or "scale_shift" in name:
                parameter.add_(torch.randn(parameter.shape, generator=source) * 0.3)
    return transformer


def make_batch(
    transformer: Any, *, first_frame: list[bool] | None = None, sound: bool = False, given: list[bool] | None = None
) -> Batch:
    """Random latents, text and sound of three samples with three frame rates."""
    config, source = transformer.config, torch.Generator().manual_seed(7)
    # 2.0 projects the text inside the transformer, 2.3 before it.
    widths = (
        (config.caption_channels,) * 2
        if config.use_prompt_embeddings
        else (config.cross_attention_dim, config.audio_cross_attention_dim)
    )
    video, audio = (torch.randn(3, 32, width, generator=source) for width in widths)
    return Batch(
        latents=torch.randn(3, config.in_channels, *GRID, generator=source),
        text={"prompt_embeds": video, "audio_prompt_embeds": audio},
        fps=torch.tensor([24.0, 25.0, 30.0]),
        first_frame=None if first_frame is None else torch.tensor(first_frame),
        audio=Audio(
            latents=torch.randn(3, LENGTH, config.audio_in_channels, generator=source),
            heard=torch.tensor([True, True, False]),
            given=None if given is None else torch.tensor(given),
            loss_weight=0.5,
        )
        if sound
        else None,
    )


def draws(batch: Batch) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    found = {
        "sigma": torch.tensor([0.9, 0.35, 0.02]),
        "noise": torch.randn(batch.latents.shape, generator=source),
    }
    if batch.audio is not None:
        found["audio_sigma"] = torch.tensor([0.4, 0.8, 0.6])
        found["audio_noise"] = torch.randn(batch.audio.latents.shape, generator=source)
    return found


class Reference:
    """The stock transformer in float64, one sample at a time, with the official gates written out by hand."""

    def __init__(self, transformer: Any) -> None:
        self.model = copy.deepcopy(transformer).double()

    def __call__(
        self,
        batch: Batch,
        place: int,
        tokens: np.ndarray,
        sound: np.ndarray | None,
        *,
        timestep: np.ndarray,
        level: float,
        audio_level: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        model = self.model
        gates = {}
        for name, other in (("av_cross_attn_video_a2v_gate", audio_level), ("av_cross_attn_audio_v2a_gate", level)):
            module = getattr(model, name)
            original = module.forward
            gates[name] = original
            module.forward = lambda _, original=original, other=other, **kw: original(
                torch.tensor([other * 1000.0], dtype=torch.float64), **kw
            )
        isolated = sound is None
        if sound is None:
            sound = np.zeros((1, 1, model.config.audio_in_channels))
        try:
            with torch.no_grad():
                video, audio = model(
                    hidden_states=torch.from_numpy(tokens),
                    audio_hidden_states=torch.from_numpy(sound),
                    encoder_hidden_states=batch.text["prompt_embeds"][place : place + 1].double(),
                    audio_encoder_hidden_states=batch.text["audio_prompt_embeds"][place : place + 1].double(),
                    timestep=torch.from_numpy(timestep * 1000.0),
                    audio_timestep=torch.tensor([audio_level * 1000.0], dtype=torch.float64),
                    sigma=torch.tensor([level * 1000.0], dtype=torch.float64),
                    audio_sigma=torch.tensor([audio_level * 1000.0], dtype=torch.float64),
                    num_frames=GRID[0],
                    height=GRID[1],
                    width=GRID[2],
                    fps=float(batch.fps[place]),
                    audio_num_frames=sound.shape[1],
                    isolate_modalities=isolated,
                    use_cross_timestep=False,
                    return_dict=False,
                )
        finally:
            for name, original in gates.items():
                getattr(model, name).forward = original
        return video.numpy(), audio.numpy()


def packed(latents: torch.Tensor) -> np.ndarray:
    """`[B, C, T, H, W]` to `[B, T H W, C]`, index by index."""
    values = latents.double().numpy()
    _, _, frames, height, width = values.shape
    order = [(t, h, w) for t in range(frames) for h in range(height) for w in range(width)]
    return np.stack([values[:, :, t, h, w] for t, h, w in order], axis=1)


def by_hand(
    transformer: Any, batch: Batch, drawn: dict[str, torch.Tensor], weights: np.ndarray | None = None
) -> tuple[float, float | None]:
    """The video and the audio part of the loss, in float64."""
    reference = Reference(transformer)
    clean, noise = packed(batch.latents), packed(drawn["noise"])
    area = GRID[1] * GRID[2]
    video, audio = [], []
    for place in range(3):
        level = float(drawn["sigma"][place].double())
        tokens = (1 - level) * clean[place : place + 1] + level * noise[place : place + 1]
        timestep = np.full((1, tokens.shape[1]), level)
        weight = np.ones(tokens.shape[1]) if weights is None else weights[place]
        if batch.first_frame is not None and bool(batch.first_frame[place]):
            tokens[:, :area] = clean[place, :area]
            timestep[:, :area] = 0.0
            weight = np.concatenate([np.zeros(area), weight[area:]])
        sound, target, audio_level, given = None, np.zeros(0), level, False
        if batch.audio is not None:
            audio_level = float(drawn["audio_sigma"][place].double())
            given = batch.audio.given is not None and bool(batch.audio.given[place])
            audio_level = 0.0 if given else audio_level
            x0, eps = (t[place : place + 1].double().numpy() for t in (batch.audio.latents, drawn["audio_noise"]))
            sound = (1 - audio_level) * x0 + audio_level * eps
            target = eps - x0
        predicted, predicted_sound = reference(
            batch, place, tokens, sound, timestep=timestep, level=level, audio_level=audio_level
        )
        error = ((predicted[0] - (noise - clean)[place]) ** 2).mean(-1)
        video.append((error * weight).sum() / weight.sum())
        if batch.audio is not None and bool(batch.audio.heard[place]) and not given:
            audio.append(((predicted_sound - target) ** 2).mean())
    return float(np.mean(video)), float(np.mean(audio)) if batch.audio is not None else None


@pytest.mark.parametrize("first_frame", [None, [True, False, True]], ids=["text", "mixed"])
@pytest.mark.parametrize("sound", [False, True], ids=["silent", "sound"])
def test_loss_is_the_formula(loaded: dict[str, Any], first_frame: list[bool] | None, sound: bool) -> None:
    batch = make_batch(loaded["transformer"], first_frame=first_frame, sound=sound)
    drawn = draws(batch)
    with torch.no_grad():
        parts = FAMILY.losses(loaded["transformer"], batch, **drawn)
    video, audio = by_hand(loaded["transformer"], batch, drawn)
    assert parts.total.dtype == torch.float32
    assert float(parts.parts["video"]) == pytest.approx(video, rel=1e-5)
    if audio is None:
        assert set(parts.parts) == {"video"}
        assert float(parts.total) == pytest.approx(video, rel=1e-5)
    else:
        assert float(parts.parts["audio"]) == pytest.approx(audio, rel=1e-5)
        assert float(parts.total) == pytest.approx(video + 0.5 * audio, rel=1e-5)


def test_sound_that_is_given_is_clean_and_not_learned(loaded: dict[str, Any]) -> None:
    batch = make_batch(loaded["transformer"], sound=True, given=[True, False, False])
    drawn = draws(batch)
    with torch.no_grad():
        parts = FAMILY.losses(loaded["transformer"], batch, **drawn)
    video, audio = by_hand(loaded["transformer"], batch, drawn)
    assert float(parts.parts["video"]) == pytest.approx(video, rel=1e-5)
    assert float(parts.parts["audio"]) == pytest.approx(audio, rel=1e-5)


def test_a_mask_weighs_the_picture(loaded: dict[str, Any]) -> None:
    batch = make_batch(loaded["transformer"], first_frame=[True, False, False])
    mask = torch.rand(3, 1, *GRID, generator=torch.Generator().manual_seed(3))
    masked = Batch(batch.latents, batch.text, batch.fps, batch.first_frame, loss_mask=mask)
    drawn = draws(batch)
    with torch.no_grad():
        loss = float(FAMILY.loss(loaded["transformer"], masked, **drawn))
    expected, _ = by_hand(loaded["transformer"], batch, drawn, weights=packed(mask)[..., 0])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_gates_follow_the_other_modality(loaded: dict[str, Any]) -> None:
    """With one noise level per modality, diffusers' own two ways both differ from the official one."""
    batch = make_batch(loaded["transformer"], sound=True)
    drawn = draws(batch)
    with torch.no_grad():
        ours = float(FAMILY.loss(loaded["transformer"], batch, **drawn))
        plain = objective.official_gates
        try:
            objective.official_gates = lambda _: nullcontext()  # pyright: ignore[reportAttributeAccessIssue]
            own = float(FAMILY.loss(loaded["transformer"], batch, **drawn))
        finally:
            objective.official_gates = plain
    assert abs(ours - own) > 1e-6


def test_a_sound_weight_of_zero_learns_the_picture_alone(loaded: dict[str, Any]) -> None:
    batch = make_batch(loaded["transformer"], sound=True)
    assert batch.audio is not None
    silent = Batch(
        batch.latents, batch.text, batch.fps, audio=Audio(batch.audio.latents, batch.audio.heard, loss_weight=0.0)
    )
    parts = FAMILY.losses(loaded["transformer"], silent, **draws(batch))
    assert torch.equal(parts.total.detach(), parts.parts["video"])
    assert float(parts.parts["audio"]) > 0


def test_sound_without_noise_is_refused(loaded: dict[str, Any]) -> None:
    batch = make_batch(loaded["transformer"], sound=True)
    drawn = draws(batch)
    with pytest.raises(ValueError, match="audio_noise"):
        FAMILY.loss(loaded["transformer"], batch, sigma=drawn["sigma"], noise=drawn["noise"])


def test_without_sound_nothing_of_the_sound_is_seen(loaded: dict[str, Any]) -> None:
    """Video only: the audio branch's input must not reach the picture."""
    transformer = copy.deepcopy(loaded["transformer"])
    batch = make_batch(transformer)
    drawn = draws(batch)
    with torch.no_grad():
        before = FAMILY.loss(transformer, batch, **drawn)
        for name, parameter in transformer.named_parameters():
            if "audio" in name:
                parameter.add_(1.0)
        assert torch.equal(before, FAMILY.loss(transformer, batch, **drawn))


# Noise levels ----------------------------------------------------------------------------------------------------


def official_cdf(s: np.ndarray, tokens: int) -> np.ndarray:
    """P(sigma <= s) of the official density, from its definition."""
    mean = 0.95 + (tokens - 1024) * 1.1 / 3072
    low, high = (1 / (1 + math.exp(-(mean + stats.norm.ppf(q)))) for q in (0.005, 0.999))
    eps = 1e-3

    def stretched(x: np.ndarray) -> np.ndarray:
        """P((sigmoid(N) - low) / (high - low) <= x)."""
        y = np.clip(low + x * (high - low), 1e-300, 1 - 1e-16)
        return stats.norm.cdf(np.log(y / (1 - y)) - mean)

    # Reflection at eps: values in (2 eps - s, eps) come to lie in (eps, s).
    reflected = np.where(s < eps, 0.0, stretched(s) - stretched(2 * eps - s))
    reflected = np.where(s >= 1.0, 1.0, reflected)
    return 0.9 * reflected + 0.1 * np.clip((s - eps) / (1 - eps), 0, 1)


@pytest.mark.parametrize("grid", [(7, 16, 24), (1, 4, 4)])
def test_sigmas_follow_the_official_density(loaded: dict[str, Any], grid: tuple[int, int, int]) -> None:
    count = 20_000
    tokens = math.prod(grid)
    batch = Batch(torch.zeros(1, 1, *grid).expand(count, -1, -1, -1, -1), {}, torch.ones(count))
    drawn = FAMILY.sample_sigmas(loaded["config"], batch, torch.Generator().manual_seed(3)).double().numpy()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    inner = drawn[drawn < 1.0]  # the 0.1 % above the upper quantile are clamped to 1
    assert 0.9 * 0.0003 < (drawn == 1.0).mean() < 0.002
    below = official_cdf(np.array([np.nextafter(1.0, 0.0)]), tokens)[0]
    assert stats.kstest(inner, lambda s: official_cdf(s, tokens) / below).pvalue > 0.01
    # The test can tell: the density for other lengths fails it by far.
    assert stats.kstest(inner, lambda s: official_cdf(s, tokens + 800) / below).pvalue < 1e-6


def test_equivalent_shifts_are_the_published_ones() -> None:
    shifts = [round(math.exp(objective.logit_mean(tokens)), 2) for tokens in (1024, 2048, 4096, 6144)]
    assert shifts == [2.59, 3.73, 7.77, 16.17]


def test_a_shift_of_ones_own_replaces_the_density(loaded: dict[str, Any]) -> None:
    batch = Batch(torch.zeros(1, 1, 1, 1, 1).expand(10_000, -1, -1, -1, -1), {}, torch.ones(10_000))
    config = loaded["config"].changed(flow_schedule_shift=5.0)
    drawn = FAMILY.sample_sigmas(config, batch, torch.Generator().manual_seed(3)).double().numpy()
    u = drawn / (5 - 4 * drawn)  # sigma = 5u / (1 + 4u)
    assert stats.kstest(np.log(u / (1 - u)), stats.norm.cdf).pvalue > 0.01


def test_sound_shares_the_noise_level_or_has_its_own(loaded: dict[str, Any]) -> None:
    batch = make_batch(loaded["transformer"], sound=True)
    source = torch.Generator().manual_seed(2)
    assert FAMILY.sample_audio_sigmas(loaded["config"], batch, source) is None
    own = FAMILY.sample_audio_sigmas(loaded["config"].changed(audio_sigma="independent"), batch, source)
    assert own is not None
    assert own.shape == (3,)
    drawn = draws(batch)
    with torch.no_grad():
        shared = FAMILY.loss(loaded["transformer"], batch, **{**drawn, "audio_sigma": drawn["sigma"]})
        unsaid = FAMILY.loss(
            loaded["transformer"], batch, sigma=drawn["sigma"], noise=drawn["noise"], audio_noise=drawn["audio_noise"]
        )
    assert torch.equal(shared, unsaid)


# The stock pipelines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_to_video", [False, True], ids=["text", "image"])
def test_training_forward_is_the_pipelines_own(loaded: dict[str, Any], image_to_video: bool) -> None:
    """Replaying what the stock pipeline hands its transformer gives the same prediction, to the last bit."""
    from PIL import Image

    calls: list[tuple[dict[str, Any], tuple[torch.Tensor, torch.Tensor]]] = []
    transformer = loaded["transformer"]
    batch = make_batch(transformer)
    text = {key: value[0] for key, value in batch.text.items()}
    pipeline = FAMILY.build_pipeline(loaded["config"], transformer, loaded["vae"], image_to_video=image_to_video)
    request = RenderRequest(
        text=text, negative_text=text, width=128, height=64, frames=17, steps=3, guidance=1.0, audio_guidance=1.0,
        seed=5, fps=25.0, image=Image.new("RGB", (128, 64), (200, 40, 90)) if image_to_video else None,
    )  # fmt: skip
    handle = transformer.register_forward_hook(
        lambda _, __, named, output: calls.append((named, output)), with_kwargs=True
    )
    rendered = FAMILY.render(loaded["config"], pipeline, request)
    handle.remove()

    assert rendered.frames.shape == (17, 64, 128, 3)
    assert rendered.sound is not None
    assert len(calls) == 3
    for seen, (video, audio) in calls:
        tokens = seen["hidden_states"]
        given = None
        if image_to_video:
            given = torch.zeros(1, tokens.shape[1], 1)
            given[:, :8] = 1.0
        sigma = seen["sigma"] / 1000
        one = Batch(objective.unpack(tokens, (3, 2, 4)), {k: v[None] for k, v in text.items()}, torch.tensor([25.0]))
        with torch.no_grad():
            ours = objective.predict(
                transformer, one, tokens, seen["audio_hidden_states"], sigma=sigma, audio_sigma=sigma, given=given
            )
        assert torch.equal(ours[0], video)
        assert ours[1] is not None
        assert torch.equal(ours[1], audio)


def test_packing_is_the_pipelines() -> None:
    from diffusers import LTX2Pipeline

    latents = torch.randn(2, 5, *GRID)
    tokens = objective.pack(latents)
    assert torch.equal(tokens, LTX2Pipeline._pack_latents(latents))
    assert torch.equal(objective.unpack(tokens, GRID), latents)


def test_cached_text_is_what_the_stock_pipeline_hands_its_transformer(loaded: dict[str, Any]) -> None:
    from diffusers import DiffusionPipeline

    config = loaded["config"].changed(mixed_precision="no")
    prompt = "A red ball moves to the right across a green field."
    encoder = FAMILY.load_text_encoder(config, torch.device("cpu"))
    [positive] = FAMILY.encode_text(encoder, [prompt], "positive", config)
    [negative] = FAMILY.encode_text(encoder, [""], "negative", config)

    stock: Any = DiffusionPipeline.from_pretrained(str(config.pretrained_model_name_or_path))
    stock.set_progress_bar_config(disable=True)
    seen: list[dict[str, Any]] = []
    stock.transformer.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    stock(
        prompt=prompt, negative_prompt="", height=64, width=64, num_frames=9, frame_rate=24.0, num_inference_steps=2,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(0), output_type="latent", stg_scale=0.0,
        audio_stg_scale=0.0, modality_scale=1.0, audio_modality_scale=1.0, spatio_temporal_guidance_blocks=None,
    )  # fmt: skip
    for key, name in (
        ("prompt_embeds", "encoder_hidden_states"),
        ("audio_prompt_embeds", "audio_encoder_hidden_states"),
    ):
        unconditional, conditional = seen[0][name]
        torch.testing.assert_close(positive[key], conditional, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(negative[key], unconditional, rtol=1e-5, atol=1e-5)
    assert bool((seen[0]["encoder_attention_mask"] == 1).all())


def test_rendering_from_the_cache_is_the_stock_rendering(loaded: dict[str, Any]) -> None:
    """Cached text through the stand-in connectors gives the frames and the sound that a whole stock pipeline gives."""
    from diffusers import DiffusionPipeline

    config = loaded["config"].changed(mixed_precision="no")
    prompt, negative = "A red ball moves to the right.", "blurry"
    encoder = FAMILY.load_text_encoder(config, torch.device("cpu"))
    stock: Any = DiffusionPipeline.from_pretrained(str(config.pretrained_model_name_or_path))
    stock.set_progress_bar_config(disable=True)
    pipeline = FAMILY.build_pipeline(config, stock.transformer, stock.vae, image_to_video=False)
    request = RenderRequest(
        text=FAMILY.encode_text(encoder, [prompt], "positive", config)[0],
        negative_text=FAMILY.encode_text(encoder, [negative], "negative", config)[0],
        width=128, height=64, frames=9, steps=2, guidance=3.0, audio_guidance=7.0, seed=5, fps=24.0,
    )  # fmt: skip
    for guidance, arguments in (
        ("cfg", {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0,
                 "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None}),
        ("full", {} if config.model_flavour == "2.3-dev" else {"stg_scale": 0.0, "audio_stg_scale": 0.0}),
    ):  # fmt: skip
        if guidance == "full" and config.model_flavour == "2.3-dev":
            arguments = {"spatio_temporal_guidance_blocks": [1]}  # of two layers
        rendered = FAMILY.render(config.changed(validation_guidance_stack=guidance), pipeline, request)
        video, audio = stock(
            prompt=prompt, negative_prompt=negative, height=64, width=128, num_frames=9, frame_rate=24.0,
            num_inference_steps=2, guidance_scale=3.0, audio_guidance_scale=7.0, output_type="np", return_dict=False,
            generator=torch.Generator().manual_seed(5), **arguments,
        )  # fmt: skip
        assert np.abs(rendered.frames.astype(int) - (video[0] * 255).round().astype(int)).max() <= 1
        assert rendered.sound is not None
        made = audio[0].float().numpy()
        common = min(made.shape[1], rendered.sound.shape[1])
        np.testing.assert_allclose(rendered.sound[:, :common], made[:, :common], atol=1e-3)
        assert rendered.sound.shape == (2, round(9 / 24 * (rendered.sound_rate or 0)))


def test_a_video_is_made_to_its_sound(loaded: dict[str, Any]) -> None:
    """The sound stays what it is; another sound makes another picture."""
    transformer = loaded["transformer"]
    pipeline = FAMILY.build_pipeline(loaded["config"], transformer, loaded["vae"], image_to_video=False)
    batch = make_batch(transformer)
    text = {key: value[0] for key, value in batch.text.items()}
    seen: list[dict[str, Any]] = []
    handle = transformer.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    time = np.arange(16000 * 9 // 24) / 16000

    def made(pitch: float) -> Any:
        tone = np.stack([np.sin(2 * np.pi * pitch * time)] * 2).astype(np.float32) * 0.5
        request = RenderRequest(
            text=text, negative_text=text, width=64, height=64, frames=9, steps=2, guidance=3.0, seed=5, fps=24.0,
            sound=tone,
        )  # fmt: skip
        return FAMILY.render(loaded["config"], pipeline, request)

    low, again, high = made(220.0), made(220.0), made(2200.0)
    handle.remove()
    assert np.array_equal(low.frames, again.frames)
    assert not np.array_equal(low.frames, high.frames)
    assert low.sound is not None
    assert high.sound is not None
    assert not np.allclose(low.sound, high.sound)
    first, second = seen[0]["audio_hidden_states"], seen[1]["audio_hidden_states"]
    assert torch.equal(first, second)
