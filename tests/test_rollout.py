"""Rollout: the model's velocity followed by hand, the target that belongs to where it leads, ReflexFlow's terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy import stats

import tunerkit as tk
from tunerkit.families import flow
from tunerkit.families.batch import Batch
from tunerkit.families.prediction import Predicted, Prediction
from tunerkit.methods.reflexflow import Reflex
from tunerkit.methods.rollout import Draws, Rolled, Rollout, drawn_lengths, probability_at

PREFIX = "scheduled_sampling_"


def settings(**named: Any) -> dict[str, Any]:
    """Settings of a rollout of every sample, and what is `named` on top."""
    return {f"{PREFIX}{key}": value for key, value in {"max_step_offset": 60, "probability": 1.0, **named}.items()}


def config_of(**named: Any) -> tk.TrainConfig:
    return tk.TrainConfig(seed=5, **settings(**named))


# Chance ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"probability": 0.3}, [0.3, 0.3, 0.3, 0.3, 0.3]),
        ({"probability": 0.3, "start_step": 15}, [0.0, 0.0, 0.3, 0.3, 0.3]),
        # a start of 0.0 is one, whatever the probability without a ramp is
        ({"probability": 0.3, "ramp_steps": 40}, [0.0, 0.125, 0.25, 0.5, 0.5]),
        ({"prob_start": 0.9, "prob_end": 0.1, "ramp_steps": 20, "start_step": 10}, [0.0, 0.9, 0.5, 0.1, 0.1]),
        (
            {"prob_start": 0.2, "prob_end": 1.0, "ramp_steps": 40, "ramp_shape": "cosine"},
            [0.2, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.6, 1.0, 1.0],
        ),
    ],
)
def test_the_share_follows_the_ramp(named: dict[str, Any], expected: list[float]) -> None:
    config = config_of(**named)
    assert [probability_at(config, step) for step in (0, 10, 20, 40, 900)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("strategy", "distribution"),
    [
        ("uniform", lambda share: share),
        ("biased_early", lambda share: share**0.5),
        ("biased_late", lambda share: 1 - (1 - share) ** 0.5),
    ],
)
def test_distances_are_distributed_as_asked(strategy: str, distribution: Callable[[Any], Any]) -> None:
    config = config_of(strategy=strategy, probability=0.25, max_step_offset=80)
    lengths = [one for number in range(400) for one in drawn_lengths(config, 20, number, 0)]
    rolled = [one / 0.08 for one in lengths if one > 0]
    assert abs(len(rolled) / len(lengths) - 0.25) < 4 * (0.25 * 0.75 / len(lengths)) ** 0.5
    assert stats.kstest(rolled, lambda x: distribution(x.clip(0, 1))).pvalue > 0.01
    assert drawn_lengths(config, 20, 7, 0) == lengths[140:160]  # of the batch's number alone
    assert 0 not in drawn_lengths(config_of(strategy=strategy), 1000, 1, 0)


# Where the velocity is known ---------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """A model of clips of numbers whose velocity is `rate * x`, so that `x(s) = x(s') exp(rate (s - s'))`."""

    rate = -1.5

    def predict(self, _: Any, batch: Batch, *, sigma: torch.Tensor, noise: torch.Tensor, **__: Any) -> Any:
        level = flow.broadcast(sigma, noise)
        state = (1 - level) * batch.latents + level * noise
        return Prediction(Predicted(self.rate * state, noise - batch.latents))


def linear_case(sigma: Sequence[float]) -> tuple[Batch, Draws]:
    source = torch.Generator().manual_seed(2)
    latents, noise = torch.randn(2, len(sigma), 3, 2, 2, 2, dtype=torch.float64, generator=source)
    return Batch(latents, {}, torch.ones(len(sigma))), Draws(torch.tensor(sigma, dtype=torch.float64), noise)


def toy(**named: Any) -> Rollout:
    model: Any = Linear()
    return Rollout(config_of(reflexflow=False, **named), model, model)


WEIGHTS = {1: [[1.0]], 2: [[1.0], [1.5, -0.5]], 3: [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12]]}


@pytest.mark.parametrize(("sampler", "order", "used"), [("euler", 3, 1), ("unipc", 2, 2), ("dpm", 3, 3)])
def test_the_velocity_is_followed_as_by_hand(sampler: str, order: int, used: int) -> None:
    batch, draws = linear_case([0.4, 0.7])
    lengths = [0.11, 0.06]
    noise = toy(sampler=sampler, order=order)._integrated(batch, draws, lengths).noise
    for sample, (sigma, length) in enumerate(zip((0.4, 0.7), lengths, strict=True)):
        clean, start = batch.latents[sample], sigma + length
        state, past = (1 - start) * clean + start * draws.noise[sample], []
        for at in range(5):  # 110 timesteps in steps of at most 25
            past = [-1.5 * state, *past]
            weights = WEIGHTS[used][min(at, used - 1)]
            state = state - length / 5 * sum(w * one for w, one in zip(weights, past, strict=False))
        torch.testing.assert_close(noise[sample], (state - (1 - sigma) * clean) / sigma, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("order", "least"), [(1, 1.0), (2, 2.0), (3, 2.0)])
def test_more_steps_lead_to_the_solution(order: int, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors shrink with the order of the method; a third one begins with steps of less, which hold it back."""
    from tunerkit.methods import rollout

    batch, draws = linear_case([0.4])
    clean, start = batch.latents, 0.4 + 0.2
    exact = ((1 - start) * clean + start * draws.noise) * math.exp(Linear.rate * (0.4 - start))
    errors = []
    for steps in (20, 40):
        monkeypatch.setattr(rollout, "LONGEST_STEP", 200 / steps)
        noise = toy(order=order)._integrated(batch, draws, [0.2]).noise
        errors.append(float((0.6 * clean + 0.4 * noise - exact).abs().max()))
    assert errors[1] < 0.01
    assert math.log2(errors[0] / errors[1]) > least - 0.1


def test_a_model_without_error_changes_nothing() -> None:
    class Perfect(Linear):
        def predict(self, _: Any, batch: Batch, *, noise: torch.Tensor, **__: Any) -> Any:
            return Prediction(Predicted(noise - batch.latents, noise - batch.latents))

    batch, draws = linear_case([0.3, 0.9])
    model: Any = Perfect()
    rolled = Rollout(config_of(), model, model).rolled(batch, draws, 1, 0)
    assert torch.equal(rolled.draws.noise, draws.noise)


def test_no_start_is_beyond_noise_or_more_than_twice_the_level() -> None:
    batch, draws = linear_case([0.0, 0.01, 0.5, 0.98, 1.0])
    seen: list[torch.Tensor] = []

    class Watched(Linear):
        def predict(self, *given: Any, sigma: torch.Tensor, **more: Any) -> Any:
            seen.append(sigma)
            return super().predict(*given, sigma=sigma, **more)

    model: Any = Watched()
    rollout = Rollout(config_of(sampler="euler"), model, model)
    noise = rollout._integrated(batch, draws, [0.025] * 5).noise
    assert seen[0].tolist() == pytest.approx([0.0, 0.02, 0.525, 1.0, 1.0])
    assert torch.equal(noise[0], draws.noise[0])
    assert torch.equal(noise[4], draws.noise[4])
    # n' - n is at most the error of the velocity
    start = 0.98 * batch.latents[1] + 0.02 * draws.noise[1]
    error = Linear.rate * start - (draws.noise[1] - batch.latents[1])
    assert float(((noise[1] - draws.noise[1]).abs() / error.abs()).max()) < 1 + 1e-9


# ReflexFlow --------------------------------------------------------------------------------------------------------


def reflex_by_hand(
    velocity: list[float], target: list[float], clean: list[float], weight: list[float]
) -> tuple[float, float, float]:
    """Weighted squared error with alpha = 0.7, anti-drift term, mean of `e`; over the numbers of one sample."""
    total = sum(weight)
    gaps = [abs(c - v) for c, v in zip(clean, velocity, strict=True)]
    mean = sum(w * gap for w, gap in zip(weight, gaps, strict=True)) / total
    rows = list(zip(velocity, target, gaps, weight, strict=True))
    error = sum(w * (1 + 0.7 * gap / mean) * (v - t) ** 2 for v, t, gap, w in rows) / total
    length = math.sqrt(sum(w * v * v for v, _, _, w in rows))
    away = math.sqrt(sum(w * t * t for _, t, _, w in rows))
    drift = sum(w * (v / length - t / away) ** 2 for v, t, _, w in rows)
    return error, drift, mean


@pytest.mark.parametrize("masked", [False, True])
def test_reflexflow_is_that_of_the_formulas(masked: bool) -> None:
    torch.manual_seed(4)
    velocity, target, clean = torch.randn(3, 3, 2, 1, 2, 2)
    mask = torch.rand(3, 1, 1, 2, 2) if masked else None
    heard, sound_target, sound_clean = torch.randn(3, 3, 4, 2)
    learned = torch.tensor([True, True, False])
    velocity.requires_grad_()
    prediction = Prediction(
        Predicted(velocity, target, mask), Predicted(heard, sound_target, learned=learned), audio_loss_weight=0.5
    )
    before = Prediction(Predicted(clean[[0, 2]], target[[0, 2]]), Predicted(sound_clean[[0, 2]], target[[0, 2]]))
    draws = Draws(torch.full((3,), 0.5), target)
    found = Rolled(draws, [0, 2], before, Reflex(alpha=0.7, drift=3.0, error=0.8)).losses(prediction)
    error = (velocity.detach()[1] - target[1]).square()
    one = torch.ones_like(error) if mask is None else mask[1].expand_as(error)
    video, drifts, means = [float((one * error).sum() / one.sum())], [], []
    for sample in (0, 2):
        weight = torch.ones(2, 1, 2, 2) if mask is None else mask[sample].expand(2, 1, 2, 2)
        numbers = [one.flatten().tolist() for one in (velocity[sample], target[sample], clean[sample], weight)]
        squared, drift, mean = reflex_by_hand(*numbers)
        video.append(0.8 * squared + 3.0 * drift)
        drifts.append(drift)
        means.append(mean)
    sound = [float((heard[1] - sound_target[1]).square().mean())]  # sample 2 has no share
    numbers = [one.flatten().tolist() for one in (heard[0], sound_target[0], sound_clean[0], torch.ones(4, 2))]
    squared, drift, _ = reflex_by_hand(*numbers)
    sound.append(0.8 * squared + 3.0 * drift)
    assert float(found.total) == pytest.approx(sum(video) / 3 + 0.5 * sum(sound) / 2, rel=1e-5)
    plain = prediction.losses().parts
    assert {key: float(value) for key, value in found.parts.items()} == pytest.approx(
        {
            "video": float(plain["video"]),
            "audio": float(plain["audio"]),
            "rolled_out": 2 / 3,
            "exposure_bias": sum(means) / 3,
            "anti_drift": sum(drifts) / 3,
        },
        rel=1e-5,
    )
    # e is a weight, not a way to be less wrong: nothing flows through it
    found.total.backward()
    gap = (clean[0] - velocity[0]).detach().abs()
    weight = torch.ones_like(gap) if mask is None else mask[0].expand_as(gap)
    share = weight / weight.sum() * (1 + 0.7 * gap / ((weight * gap).sum() / weight.sum()))
    alone = velocity[0].detach().clone().requires_grad_()
    root = weight.sqrt()
    cosine = torch.cosine_similarity((alone * root).flatten(), (target[0] * root).flatten(), dim=0)
    term = 0.8 * (share * (alone - target[0]).square()).sum() + 3.0 * (2 - 2 * cosine)
    (term / 3).backward()
    assert velocity.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(velocity.grad[0], alone.grad, rtol=1e-4, atol=1e-6)


# Settings ----------------------------------------------------------------------------------------------------------


def test_more_than_the_whole_way_is_refused() -> None:
    with pytest.raises(tk.ConfigError, match=r"max_step_offset = 1001: .*1000 timesteps. Fix: use 10 to 250"):
        config_of(max_step_offset=1001)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, {}),
        ({"max_step_offset": 0}, {"probability": "has no effect without scheduled_sampling_max_step_offset"}),
        ({"probability": 0.0}, {"probability": "no sample is rolled out"}),
        ({"probability": 0.0, "ramp_steps": 5, "prob_end": 0.0}, {"prob_end": "no sample is rolled out"}),
        ({"probability": 0.0, "ramp_steps": 5}, {}),
        ({"ramp_steps": 5}, {"probability": "has no effect with scheduled_sampling_ramp_steps"}),
        ({"prob_start": 0.1}, {"prob_start": "has no effect without scheduled_sampling_ramp_steps"}),
        ({"sampler": "euler", "order": 3}, {"order": "has no effect with scheduled_sampling_sampler = euler"}),
        ({"reflexflow": False, "reflexflow_beta1": 1.0}, {"reflexflow_beta1": "has no effect with"}),
    ],
)
def test_what_has_no_effect_is_said(named: dict[str, Any], expected: dict[str, str]) -> None:
    found = {note.key.removeprefix(PREFIX): note.message for note in config_of(**named).notes if PREFIX in note.key}
    assert found.keys() == expected.keys()
    assert all(found[key].startswith(words) for key, words in expected.items())
