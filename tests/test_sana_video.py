"""Sana Video's numbers against hand-written formulas and the stock pipelines."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import tunerkit as tk
from tunerkit.errors import ModelError
from tunerkit.families import checkpoint_files, flow
from tunerkit.families.batch import Batch
from tunerkit.families.rendering import RenderRequest
from tunerkit.families.sana_video import objective
from tunerkit.training.blocks import BlockRunner

FAMILY = tk.family("sanavideo")


@pytest.fixture(scope="module")
def loaded(pristine_project: Any) -> dict[str, Any]:
    """Tiny transformer and VAE, float32, in evaluation mode, and the project's settings."""
    config = tk.load_config(pristine_project / "config.json")
    return {
        "config": tk.resolve(config),
        "transformer": FAMILY.load_transformer(config, torch.float32).eval(),
        "vae": FAMILY.load_vae(tk.resolve(config), torch.device("cpu")),
    }


def make_batch(first_frame: list[bool] | None = None, frames: int = 3, size: int = 3) -> Batch:
    """Random latents `[size, 16, frames, 8, 12]` and text with different mask lengths."""
    source = torch.Generator().manual_seed(7)
    mask = torch.zeros(size, 300, dtype=torch.long)
    for place in range(size):
        mask[place, : 5 + 20 * place] = 1
    return Batch(
        latents=torch.randn(size, 16, frames, 8, 12, generator=source),
        text={
            "prompt_embeds": torch.randn(size, 300, 32, generator=source),
            "prompt_attention_mask": mask,
        },
        fps=torch.full((size,), 16.0),
        first_frame=None if first_frame is None else torch.tensor(first_frame),
        names=tuple(f"{place}.mp4" for place in range(size)),
    )


def predict64(transformer: Any, noisy: np.ndarray, batch: Batch, timestep: torch.Tensor) -> np.ndarray:
    """The stock transformer's forward in float64, called directly."""
    double = copy.deepcopy(transformer).double()
    with torch.no_grad():
        output = double(
            torch.from_numpy(noisy),
            encoder_hidden_states=batch.text["prompt_embeds"].double(),
            encoder_attention_mask=batch.text["prompt_attention_mask"],
            timestep=timestep.double(),
            return_dict=False,
        )[0]
    return output.numpy()


def test_text_to_video_loss_is_the_formula(loaded: dict[str, Any]) -> None:
    batch = make_batch()
    sigma = torch.tensor([0.9, 0.35, 0.02])
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    loss = FAMILY.loss(loaded["transformer"], batch, sigma=sigma, noise=noise)

    x0, eps, s = (t.double().numpy() for t in (batch.latents, noise, sigma))
    noisy = (1 - s[:, None, None, None, None]) * x0 + s[:, None, None, None, None] * eps
    prediction = predict64(loaded["transformer"], noisy, batch, sigma * 1000)
    expected = np.mean((prediction - (eps - x0)) ** 2)

    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first_frame", [[True, True, True], [True, False, True]])
def test_image_to_video_loss_is_the_formula(loaded: dict[str, Any], first_frame: list[bool], masked: bool) -> None:
    batch = make_batch(first_frame)
    mask = torch.rand(3, 1, 3, 8, 12, generator=torch.Generator().manual_seed(2)) if masked else None
    batch = dataclasses.replace(batch, loss_mask=mask)
    sigma = torch.tensor([0.9, 0.35, 0.02])
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    loss = FAMILY.loss(loaded["transformer"], batch, sigma=sigma, noise=noise)

    x0, eps, s = (t.double().numpy() for t in (batch.latents, noise, sigma))
    per_sample = []
    for i, conditioned in enumerate(first_frame):
        noisy = (1 - s[i]) * x0[i : i + 1] + s[i] * eps[i : i + 1]
        timestep = torch.full((1, 1, 3, 4, 6), float(sigma[i]) * 1000)
        start = 0
        if conditioned:
            noisy[:, :, 0] = x0[i, :, 0]
            timestep[:, :, 0] = 0
            start = 1
        one = Batch(
            latents=batch.latents[i : i + 1],
            text={key: value[i : i + 1] for key, value in batch.text.items()},
            fps=batch.fps[:1],
        )
        prediction = predict64(loaded["transformer"], noisy, one, timestep)
        error = (prediction - (eps - x0)[i : i + 1]) ** 2
        weight = np.ones((1, 3, 8, 12)) if mask is None else mask[i].double().numpy()
        per_sample.append(np.average(error[0, :, start:].mean(0), weights=weight[0, start:]))

    assert float(loss) == pytest.approx(np.mean(per_sample), rel=1e-5)


def test_the_given_frame_gets_no_gradient_and_a_still_image_is_never_conditioned(
    loaded: dict[str, Any],
) -> None:
    batch = make_batch([True, True, True])
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    other = noise.clone()
    other[:, :, 0] += 10.0  # the noise of the given frame must not matter
    sigma = torch.tensor([0.5, 0.5, 0.5])
    losses = [FAMILY.loss(loaded["transformer"], batch, sigma=sigma, noise=n) for n in (noise, other)]
    assert torch.equal(losses[0], losses[1])

    still, plain = make_batch([True, True, True], frames=1), make_batch(frames=1)
    noise = torch.randn(still.latents.shape, generator=torch.Generator().manual_seed(1))
    losses = [FAMILY.loss(loaded["transformer"], b, sigma=sigma, noise=noise) for b in (still, plain)]
    assert torch.equal(losses[0], losses[1])


def test_padding_text_does_not_matter(loaded: dict[str, Any]) -> None:
    """A [B, 1, 300] mask would be read as an additive bias and let the padding through."""
    batch = make_batch()
    changed = {**batch.text, "prompt_embeds": batch.text["prompt_embeds"].clone()}
    changed["prompt_embeds"][batch.text["prompt_attention_mask"] == 0] = 50.0
    noise = torch.zeros_like(batch.latents)
    sigma = torch.tensor([0.5, 0.5, 0.5])
    losses = [
        FAMILY.loss(loaded["transformer"], b, sigma=sigma, noise=noise)
        for b in (batch, Batch(latents=batch.latents, text=changed, fps=batch.fps))
    ]
    assert torch.equal(losses[0], losses[1])


def test_sigmas_follow_the_shifted_logit_normal() -> None:
    batch = make_batch(size=1)
    many = Batch(latents=batch.latents.expand(10_000, -1, -1, -1, -1), text={}, fps=torch.ones(10_000))
    sigmas = FAMILY.sample_sigmas(tk.TrainConfig(), many, torch.Generator().manual_seed(3)).double().numpy()

    def cdf(s: np.ndarray) -> np.ndarray:
        """P(sigma <= s): sigma = 3u / (1 + 2u), u = sigmoid(z), so u = s / (3 - 2s) and z = log(u / (1 - u))."""
        u = s / (3 - 2 * s)
        return stats.norm.cdf(np.log(u / (1 - u)))

    assert sigmas.shape == (10_000,)
    assert stats.kstest(sigmas, cdf).pvalue > 0.01
    # The test can tell: an unshifted density fails it by far.
    assert stats.kstest(sigmas, lambda s: stats.norm.cdf(np.log(s / (1 - s)))).pvalue < 1e-6


@pytest.mark.parametrize("image_to_video", [False, True])
def test_training_forward_is_the_pipelines_own(loaded: dict[str, Any], image_to_video: bool) -> None:
    """Replaying what the stock pipeline hands its transformer gives the same prediction, to the last bit."""
    from PIL import Image

    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[torch.Tensor]) -> None:
        calls.append(({"hidden_states": args[0], **kwargs}, output[0]))

    transformer = loaded["transformer"]
    pipeline = FAMILY.build_pipeline(loaded["config"], transformer, loaded["vae"], image_to_video=image_to_video)
    text = {key: value[0] for key, value in make_batch(size=1).text.items()}
    request = RenderRequest(
        text=text, negative_text=text, width=96, height=64, frames=9, steps=3, guidance=1.0, seed=5, fps=16.0,
        image=Image.new("RGB", (96, 64), (200, 40, 90)) if image_to_video else None,
    )  # fmt: skip
    handle = transformer.register_forward_hook(record, with_kwargs=True)
    frames = FAMILY.render(loaded["config"], pipeline, request).frames
    handle.remove()

    assert frames.shape == (9, 64, 96, 3)
    assert len(calls) == 3
    for seen, predicted in calls:
        noisy = seen["hidden_states"]
        batch = Batch(
            latents=noisy,  # stands in for the clean latents: only its first frame is looked at
            text={key: value[None] for key, value in text.items()},
            fps=torch.tensor([16.0]),
            first_frame=torch.tensor([image_to_video]),
        )
        sigma = seen["timestep"].float().max().reshape(1) / 1000
        with torch.no_grad():
            ours = objective.predict(transformer, noisy, batch.text, sigma=sigma, given=flow.given_frames(batch))
        torch.testing.assert_close(ours, predicted, rtol=0, atol=1e-5)


def test_cached_text_is_what_the_stock_pipeline_makes(loaded: dict[str, Any]) -> None:
    """Positives with the pipeline's instruction, negatives without: captured from a whole stock call."""
    from diffusers import SanaVideoPipeline

    model = loaded["config"].pretrained_model_name_or_path
    stock = SanaVideoPipeline.from_pretrained(model)
    stock.set_progress_bar_config(disable=True)
    seen: dict[str, torch.Tensor] = {}

    def record(_: Any, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
        seen["embeds"], seen["mask"] = kwargs["encoder_hidden_states"], kwargs["encoder_attention_mask"]

    stock.transformer.register_forward_hook(record, with_kwargs=True)
    prompt, negative = "  A Red square moves slowly.", "blurry"
    stock(
        prompt=prompt, negative_prompt=negative, height=64, width=96, frames=1, num_inference_steps=1,
        use_resolution_binning=False, output_type="latent",
    )  # fmt: skip
    encoder = FAMILY.load_text_encoder(loaded["config"], torch.device("cpu"))
    ours = FAMILY.encode_text(encoder, [prompt, "another"], "positive", loaded["config"])[0]
    plain = FAMILY.encode_text(encoder, [negative], "negative", loaded["config"])[0]

    assert ours["prompt_embeds"].shape == (300, 32)
    assert ours["prompt_attention_mask"].shape == (300,)
    torch.testing.assert_close(plain["prompt_embeds"], seen["embeds"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours["prompt_embeds"], seen["embeds"][1], rtol=0, atol=1e-6)
    assert torch.equal(plain["prompt_attention_mask"], seen["mask"][0])
    assert torch.equal(ours["prompt_attention_mask"], seen["mask"][1])


def test_motion_score_reaches_positives_only(loaded: dict[str, Any]) -> None:
    config = loaded["config"].changed(motion_score=30)
    encoder = FAMILY.load_text_encoder(config, torch.device("cpu"))
    scored = FAMILY.encode_text(encoder, ["a cat"], "positive", config)[0]
    written = FAMILY.encode_text(encoder, ["a cat motion score: 30."], "positive", loaded["config"])[0]
    assert torch.equal(scored["prompt_embeds"], written["prompt_embeds"])
    negatives = [FAMILY.encode_text(encoder, [""], "negative", c)[0] for c in (config, loaded["config"])]
    assert torch.equal(negatives[0]["prompt_embeds"], negatives[1]["prompt_embeds"])
    assert FAMILY.text_recipe(config) != FAMILY.text_recipe(loaded["config"])


def test_latents_are_the_normalised_mode_and_causal(loaded: dict[str, Any]) -> None:
    vae = loaded["vae"]
    pixels = torch.rand(2, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = FAMILY.encode_latents(vae, pixels)
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode().double().numpy()
    mean = np.array(vae.config.latents_mean)[None, :, None, None, None]
    std = np.array(vae.config.latents_std)[None, :, None, None, None]

    assert latents.shape == (2, 16, 3, 8, 12)
    np.testing.assert_allclose(latents.double().numpy(), (mode - mean) / std, rtol=1e-5, atol=1e-6)
    # The encoder is causal: the first latent frame is the encoding of the first picture alone.
    first = FAMILY.encode_latents(vae, pixels[:, :, :1])
    torch.testing.assert_close(latents[:, :, :1], first, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="4k"):
        FAMILY.encode_latents(vae, pixels[:, :, :8])


def test_image_to_video_sampling_shift_is_read_from_the_checkpoint(loaded: dict[str, Any]) -> None:
    """FlowMatchEulerDiscreteScheduler ignores `flow_shift`; its own name for it is `shift`."""
    pipeline = FAMILY.build_pipeline(loaded["config"], loaded["transformer"], loaded["vae"], image_to_video=True)
    assert type(pipeline).__name__ == "SanaImageToVideoPipeline"
    assert pipeline.scheduler.config.shift == 8.0
    assert type(
        FAMILY.build_pipeline(loaded["config"], loaded["transformer"], loaded["vae"], image_to_video=False)
    ).__name__ == ("SanaVideoPipeline")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_block_runner_changes_no_gradient(loaded: dict[str, Any], checkpointing: bool) -> None:
    def gradients(prepare: Callable[[Any], None]) -> tuple[float, list[torch.Tensor]]:
        transformer = copy.deepcopy(loaded["transformer"]).train()
        prepare(transformer)
        batch = make_batch()
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
        loss = FAMILY.loss(transformer, batch, sigma=torch.tensor([0.9, 0.5, 0.1]), noise=noise)
        loss.backward()
        return float(loss), [p.grad for p in transformer.parameters() if p.grad is not None]

    plain_loss, plain = gradients(lambda _: None)
    loss, ours = gradients(lambda t: BlockRunner(FAMILY.blocks(t), checkpointing=checkpointing).install(t))
    assert loss == plain_loss
    assert len(ours) == len(plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_legal_frames_and_full_size_model() -> None:
    assert [FAMILY.legal_frames(n) for n in (1, 4, 5, 8, 48, 61, 81, 85)] == [1, 1, 5, 5, 45, 61, 81, 85]
    from diffusers import SanaVideoTransformer3DModel

    with torch.device("meta"):
        full = SanaVideoTransformer3DModel(mlp_ratio=3.0)
    targets = FAMILY.lora_targets(tk.TrainConfig())
    hit = [n for n, _ in full.named_modules() if any(n == t or n.endswith(f".{t}") for t in targets)]
    assert len(hit) == 20 * 2 * 4  # 20 blocks, self- and cross-attention, four projections
    assert math.isclose(sum(p.numel() for p in full.parameters()) / 1e9, 2.06, abs_tol=0.01)
    assert len(FAMILY.blocks(full)) == 20


def test_trained_sizes_are_the_pipelines_bins() -> None:
    from diffusers.pipelines.sana_video.pipeline_sana_video import ASPECT_RATIO_480_BIN

    sizes = FAMILY.model_sizes(tk.TrainConfig())
    assert sizes == [(int(width), int(height)) for height, width in ASPECT_RATIO_480_BIN.values()]
    assert all(edge % 16 == 0 for size in sizes for edge in size)  # 8 in the VAE, 2 in the patches


def test_a_vae_of_ones_own_has_to_normalise_alike(loaded: dict[str, Any], tmp_path: Path) -> None:
    config = loaded["config"]
    base = Path(config.pretrained_model_name_or_path)
    settings = json.loads((base / "vae" / "config.json").read_text())
    other = config.changed(pretrained_vae_model_name_or_path=str(tmp_path))
    (tmp_path / "vae").mkdir()

    def write(**changes: Any) -> None:
        (tmp_path / "vae" / "config.json").write_text(json.dumps({**settings, **changes}))

    write()
    FAMILY.check_checkpoint(other)
    for key in ("latents_mean", "latents_std"):
        write(**{key: [value + 0.5 for value in settings[key]]})
        with pytest.raises(
            ModelError, match=rf"^pretrained_vae_model_name_or_path = .* \({key}\).*leave the setting out"
        ):
            FAMILY.check_checkpoint(other)


def test_a_base_model_with_a_vae_that_does_not_fit_is_named_itself(loaded: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is left out by leaving the VAE's setting out: the checkpoint is what is wrong."""
    base = Path(loaded["config"].pretrained_model_name_or_path)
    for part, changes in (("transformer", {}), ("vae", {"z_dim": 48})):
        (tmp_path / part).mkdir()
        settings = json.loads((base / part / "config.json").read_text())
        (tmp_path / part / "config.json").write_text(json.dumps({**settings, **changes}))
    config = tk.TrainConfig(pretrained_model_name_or_path=str(tmp_path))
    for vae in (None, str(tmp_path)):
        with pytest.raises(
            ModelError, match=r"^pretrained_model_name_or_path = .* 48 latent channels.*takes 16\. Fix: d"
        ):
            FAMILY.check_checkpoint(config.changed(pretrained_vae_model_name_or_path=vae))


@pytest.mark.parametrize(("named", "revision"), [(None, "v1"), ("me/model", "v1"), ("me/vae", None)])
def test_the_base_models_revision_is_not_that_of_another_vae(named: str | None, revision: str | None) -> None:
    config = tk.TrainConfig(
        pretrained_model_name_or_path="me/model", pretrained_vae_model_name_or_path=named, revision="v1"
    )
    source = checkpoint_files.vae_source(config)
    assert (source.model, source.revision) == (named or "me/model", revision)
    assert source.setting == (
        "pretrained_vae_model_name_or_path" if revision is None else "pretrained_model_name_or_path"
    )
