"""Rollout of the real models: as by hand, alone as in a batch, without dropout and routes.

That it trains, and in which ways, is in test_method_combinations.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_models import MINIATURES, Size, engine_of
from test_rollout import config_of, settings

import tunerkit as tk
from tunerkit.families import flow
from tunerkit.families.batch import Batch
from tunerkit.families.ltx2 import objective as ltx2_objective
from tunerkit.methods.rollout import Draws, Rolled, Rollout, drawn_lengths, probability_at

# The real models ---------------------------------------------------------------------------------------------------


def ltx2_case() -> tuple[tk.Family, Any, Batch, Draws]:
    """Three samples: the first frame given, the sound given, nothing given; sound with levels of its own."""
    torch.manual_seed(6)
    model, batch = MINIATURES["ltxvideo2"]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert batch.audio is not None
    audio = replace(
        batch.audio,
        latents=torch.randn(3, 5, 4),
        heard=torch.ones(3, dtype=torch.bool),
        given=torch.tensor([False, True, False]),
    )
    batch = replace(
        batch,
        latents=torch.randn(3, 4, 2, 4, 6),
        text={key: torch.randn(3, *one.shape[1:]) for key, one in batch.text.items()},
        fps=torch.tensor([24.0, 25.0, 30.0]),
        first_frame=torch.tensor([True, False, False]),
        audio=audio,
        names=("a", "b", "c"),
    )
    draws = Draws(
        torch.tensor([0.5, 0.7, 0.02]), torch.randn_like(batch.latents), torch.tensor([0.3, 0.9, 0.6]),
        torch.randn(3, 5, 4),
    )  # fmt: skip
    return tk.family("ltxvideo2"), model, batch, draws


def test_picture_and_sound_move_together() -> None:
    family, model, batch, draws = ltx2_case()
    audio = batch.audio
    assert audio is not None
    assert audio.given is not None
    assert draws.audio_sigma is not None
    assert draws.audio_noise is not None
    number = next(
        n for n in range(99) if [one > 0 for one in drawn_lengths(config_of(probability=0.6), 3, n, 0)] == [1, 1, 0]
    )
    lengths = drawn_lengths(config_of(probability=0.6), 3, number, 0)
    rollout = Rollout(config_of(probability=0.6, sampler="euler"), family, model)
    rolled = rollout.rolled(batch, draws, number, 0)
    assert rolled.places == [0, 1]
    assert rolled.draws.audio_noise is not None
    for found, before in ((rolled.draws.noise, draws.noise), (rolled.draws.audio_noise, draws.audio_noise)):
        assert torch.equal(found[2], before[2])
        assert not found.requires_grad
    steps = math.ceil(max(lengths) * 1000 / 25)
    given = flow.given_frames(batch)
    assert given is not None
    levels = {"video": draws.sigma, "audio": draws.audio_sigma}
    spans = {
        name: torch.tensor([min(one, float(s), 1 - float(s)) for one, s in zip(lengths, level, strict=True)])
        for name, level in levels.items()
    }
    start, start_sound = (levels[name] + spans[name] for name in levels)
    state = flow.add_noise(batch.latents, draws.noise, start)
    sound = flow.add_noise(audio.latents, draws.audio_noise, start_sound)
    for at in range(steps):
        left = (steps - at) / steps
        state = state.lerp(batch.latents, given)  # what is given is always clean
        sound = torch.where(audio.given.view(-1, 1, 1), audio.latents, sound)
        with torch.no_grad():
            video_velocity, audio_velocity = ltx2_objective.predict(
                model.eval(), batch, ltx2_objective.pack(state), sound,
                sigma=levels["video"] + left * spans["video"],
                audio_sigma=(levels["audio"] + left * spans["audio"]).masked_fill(audio.given, 0.0),
                given=ltx2_objective.pack(given.expand(-1, -1, 2, 4, 6)),
            )  # fmt: skip
        assert audio_velocity is not None
        moved = ltx2_objective.unpack(video_velocity, (2, 4, 6))
        state = state - flow.broadcast(spans["video"] / steps, state) * moved
        sound = sound - flow.broadcast(spans["audio"] / steps, sound) * audio_velocity
    model.train()
    made = rolled.draws.predict(family, model, batch)
    assert made.audio is not None
    free = (1 - given).expand_as(state)[0] > 0
    for sample, keep in ((0, free), (1, torch.ones_like(free))):
        target = (state[sample] - batch.latents[sample]) / draws.sigma[sample]
        torch.testing.assert_close(made.video.target[sample][keep], target[keep], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(rolled.draws.noise[sample], draws.noise[sample], atol=1e-2)
    target = (sound[0] - audio.latents[0]) / draws.audio_sigma[0]  # that of sample 1 is given
    torch.testing.assert_close(made.audio.target[0], target, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rolled.draws.audio_noise[0], draws.audio_noise[0], atol=1e-3)
    # the input is where the rollout led
    noisy = flow.add_noise(batch.latents, rolled.draws.noise, draws.sigma)
    torch.testing.assert_close(noisy[1], state[1], rtol=1e-4, atol=1e-5)


def test_samples_are_rolled_out_as_if_alone() -> None:
    torch.manual_seed(8)
    model, batch = MINIATURES["kandinsky5-video"]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    text = {"prompt_embeds": torch.randn(4, 6, 8), "pooled": torch.randn(4, 8), "tokens": torch.tensor([6, 3, 6, 5])}
    batch = replace(
        batch, latents=torch.randn(4, 4, 2, 4, 6), text=text, fps=torch.full((4,), 24.0),
        first_frame=torch.tensor([True, False, False, True]), image=torch.randn(4, 4, 1, 4, 6),
        loss_mask=torch.rand(4, 1, 2, 4, 6),
    )  # fmt: skip
    draws = Draws(torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.randn_like(batch.latents))
    family = tk.family("kandinsky5-video")
    rollout = Rollout(config_of(probability=0.5), family, model)
    config = config_of(probability=0.5)
    number = next(n for n in range(99) if [one > 0 for one in drawn_lengths(config, 4, n, 0)] == [0, 1, 1, 1])
    lengths = drawn_lengths(config, 4, number, 0)
    rolled = rollout.rolled(batch, draws, number, 0)
    assert torch.equal(rolled.draws.noise[0], draws.noise[0])
    assert rolled.clean is not None
    count = math.ceil(max(lengths) * 40)
    for place in (1, 2, 3):
        one = replace(
            batch, latents=batch.latents[place : place + 1], fps=batch.fps[:1],
            text={
                "prompt_embeds": text["prompt_embeds"][place : place + 1, : text["tokens"][place]],
                "pooled": text["pooled"][place : place + 1],
            },
            first_frame=batch.first_frame[place : place + 1] if batch.first_frame is not None else None,
            image=batch.image[place : place + 1] if batch.image is not None else None, loss_mask=None,
        )  # fmt: skip
        alone = Draws(draws.sigma[place : place + 1], draws.noise[place : place + 1])
        if math.ceil(lengths[place] * 40) == count:  # the same number of steps
            found = rollout._integrated(one, alone, [lengths[place]]).noise[0]
            torch.testing.assert_close(rolled.draws.noise[place], found.detach(), rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            clean = alone.predict(family, model, one).video.velocity[0]
        torch.testing.assert_close(rolled.clean.video.velocity[place - 1], clean, rtol=1e-3, atol=1e-4)


# Plan --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family_name", ["kandinsky5-video", "ltxvideo2"])
def test_a_plan_counts_what_an_average_step_takes(family_name: str) -> None:
    from tunerkit.planning.batches import Largest, Stand
    from tunerkit.planning.training import TracedStep, training_step

    family = tk.family(family_name)
    flavour = "dev" if family_name == "ltxvideo2" else "t2v-lite-sft-5s"

    def published(component: Any) -> dict[str, Any]:
        depth = {"num_layers": 1} if family_name == "ltxvideo2" else {"num_visual_blocks": 1, "num_text_blocks": 1}
        return {**family.published_config(flavour, component), **(depth if component == "transformer" else {})}

    def planned(**more: Any) -> TracedStep:
        config = tk.TrainConfig(model_family=family_name, model_flavour=flavour, mixed_precision="bf16", **more)
        stand = Stand(config, family, published)
        largest = Largest(128, 128, 9, 24.0, 1, sound=0.4 if family_name == "ltxvideo2" else None)
        return training_step(config, family, published("transformer"), stand, largest)

    plain = planned()
    rolled = planned(**settings(reflexflow=False, max_step_offset=25))
    forward = rolled.work.flops - plain.work.flops
    assert 1.5 < plain.work.flops / forward < 3.5  # at most: forward, recomputation, back to the adapters
    half = planned(**settings(max_step_offset=100, probability=0.5))
    assert half.work.flops == pytest.approx(plain.work.flops + 0.5 * (2.5 + 1) * forward, rel=1e-3)
    assert plain.largest.peak <= half.largest.peak < 1.05 * plain.largest.peak


# Training ----------------------------------------------------------------------------------------------------------

ROLLED = settings()


def test_rollouts_see_no_dropout_and_no_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Rolled] = []
    rolled = Rollout.rolled
    monkeypatch.setattr(Rollout, "rolled", lambda *given: seen.append(rolled(*given)) or seen[-1])
    route = {"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}
    ways: list[dict[str, Any]] = [{}, {"tread_config": {"routes": [route]}}, {"lora_dropout": 0.5}]
    plain, routed, dropping = (engine_of("ltxvideo2", "no", size=Size(blocks=3), **ROLLED, **more) for more in ways)
    state = torch.random.get_rng_state()
    losses = []
    for engine, batches in (plain, routed, dropping):
        with torch.no_grad():
            for name, value in engine.transformer.named_parameters():
                if "lora_" in name:
                    value.copy_(torch.linspace(-0.5, 0.5, value.numel()).view_as(value))
        losses.append(engine.step(batches[:1], 0, 0.0).loss)
        assert engine.transformer.training
        assert all(module.training for module in engine.transformer.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len({*losses}) == 3
    found = [(one.draws.noise, one.draws.audio_noise) for one in seen]
    for noise, sound in found[1:]:
        assert torch.equal(noise, found[0][0])
        torch.testing.assert_close(sound, found[0][1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("named", "forwards", "parts"),
    [
        ({"probability": 0.0}, 1, {"rolled_out": 0.0, "exposure_bias": 0.0, "anti_drift": 0.0}),
        ({"reflexflow": False}, 1 + 3, {"rolled_out": 1.0}),
        ({}, 1 + 3 + 1, {"rolled_out": 1.0}),
        ({"reflexflow_alpha": 0.0}, 1 + 3, {"rolled_out": 1.0, "exposure_bias": 0.0}),
        ({"max_step_offset": 20}, 1 + 1 + 1, {}),
    ],
)
def test_no_forward_is_paid_for_nothing(
    named: dict[str, Any], forwards: int, parts: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunerkit.methods import rollout

    def longest(config: tk.TrainConfig, samples: int, _: int, step: int) -> list[float]:
        rolled = probability_at(config, step) > 0
        return [config.scheduled_sampling_max_step_offset / 1000 if rolled else 0.0] * samples

    monkeypatch.setattr(rollout, "drawn_lengths", longest)
    engine, batches = engine_of("sanavideo", "no", size=Size(blocks=1), **settings(**named))
    calls: list[int] = []
    engine.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    found = engine.step(batches[:1], 0, 1e-2).parts
    assert len(calls) == forwards
    assert {key: found[key] for key in parts} == parts
    assert ("anti_drift" in found) == (named.get("reflexflow") is not False)
