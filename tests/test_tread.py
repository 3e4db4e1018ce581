"""Token routing: what the blocks compute equals blocks called by hand on tokens gathered by hand.

That it trains, and in which ways, is in test_method_combinations.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_models import MINIATURES, Size, engine_of

import tunerkit as tk
from tunerkit.data.sampler import Draw
from tunerkit.draws import generator
from tunerkit.families.batch import Batch
from tunerkit.methods.tap import Tap, video_stream
from tunerkit.training.batches import Drawn
from tunerkit.training.blocks import BlockRunner
from tunerkit.training.objective import Objective

CPU = torch.device("cpu")
NUMBER = 7
Routes = Sequence[tuple[int, int, float]]


def document(*routes: tuple[int, int, float]) -> dict[str, Any]:
    return {
        "routes": [
            {"selection_ratio": ratio, "start_layer_idx": first, "end_layer_idx": last} for first, last, ratio in routes
        ]
    }


# By hand -----------------------------------------------------------------------------------------------------------


def passing_by_hand(
    seed: int, route: int, call: int, ratio: float, samples: int, tokens: int, first: torch.Tensor | None
) -> list[list[int]]:
    """The tokens that pass: those of a random order that come first, with `first` before the others."""
    source = generator(seed, "tread", NUMBER, route, call)
    rows = []
    for sample in range(samples):
        ranks = torch.randperm(tokens, generator=source).tolist()
        order = sorted(range(tokens), key=lambda t: (first is not None and not first[sample, t], ranks[t]))
        rows.append(sorted(order[: tokens - round(tokens * ratio)]))
    return rows


def pick(tensor: torch.Tensor, rows: list[list[int]], dim: int) -> torch.Tensor:
    """Token after token, `dim` counted without the batch."""
    return torch.stack(
        [torch.stack([one.select(dim, t) for t in row], dim) for one, row in zip(tensor, rows, strict=True)]
    )


def ltx2_shorter(named: dict[str, Any], rows: list[list[int]], tokens: int, split: bool) -> dict[str, Any]:
    made = dict(named)
    for name in ("temb", "temb_ca_scale_shift", "temb_ca_gate"):
        if named[name].shape[1] == tokens:
            made[name] = pick(named[name], rows, 0)
    for name in ("video_rotary_emb", "ca_video_rotary_emb"):
        made[name] = tuple(pick(one, rows, 1 if split else 0) for one in named[name])
    return made


class ByHand:
    """Runs all blocks when the first one is called, one after the other; every other call is given what came out."""

    def __init__(self, family: str, blocks: list[Any], routes: Routes, seed: int, first: Any) -> None:
        self.family, self.blocks, self.routes, self.seed, self.first = family, blocks, routes, seed, first
        self.calls = -1

    def __call__(self, block: torch.nn.Module, *arguments: Any) -> Any:
        if block not in self.blocks:
            return block(*arguments)
        if block is self.blocks[0]:
            self.calls += 1
            self.result = self.all(dict(zip(inspect.signature(block.forward).parameters, arguments, strict=False)))
        return self.result

    def all(self, named: dict[str, Any]) -> Any:
        stream = next(iter(named))
        states, sound = named[stream], named.get("audio_hidden_states")
        whole, short, rows = states, named, [[0]]
        samples, tokens = states.shape[:2]
        for place, block in enumerate(self.blocks):
            for number, (first, _, ratio) in enumerate(self.routes):
                if place == first:
                    rows = passing_by_hand(
                        self.seed, number, self.calls, ratio, samples, tokens, self.first and self.first[self.calls]
                    )
                    if self.family == "ltxvideo2":
                        short = ltx2_shorter(named, rows, tokens, split=named["video_rotary_emb"][0].ndim == 4)
                    else:
                        short = {**named, "rope": pick(named["rope"], rows, 0)}
                    whole, states = states, pick(states, rows, 0)
            routed = any(first <= place <= last for first, last, _ in self.routes)
            given = {**(short if routed else named), stream: states}
            if sound is None:
                states = block(**given)
            else:
                states, sound = block(**{**given, "audio_hidden_states": sound})
            if any(place == last for _, last, _ in self.routes):
                after = []
                for sample in range(samples):
                    column = list(whole[sample])
                    for at, token in enumerate(rows[sample]):
                        column[token] = states[sample, at]
                    after.append(torch.stack(column))
                states = torch.stack(after)
        return states if sound is None else (states, sound)


# Models ------------------------------------------------------------------------------------------------------------


def ltx2_model(rope: str, newer: bool) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=4, caption_channels=8, rope_type=rope, gated_attn=newer,
        audio_gated_attn=newer, cross_attn_mod=newer, audio_cross_attn_mod=newer, use_prompt_embeddings=not newer,
        perturbed_attn=newer,
    )  # fmt: skip


def ltx2_case(rope: str, newer: bool, given: bool, sound: bool) -> tuple[Any, Batch]:
    _, batch = MINIATURES["ltxvideo2"]()
    if newer:  # texts as the connectors of 2.3 leave them
        text = {"prompt_embeds": torch.randn(2, 6, 24), "audio_prompt_embeds": torch.randn(2, 6, 16)}
        batch = replace(batch, text=text)
    if given:
        batch = replace(batch, first_frame=torch.tensor([True, False]))
    return ltx2_model(rope, newer), batch if sound else replace(batch, audio=None)


def kandinsky_case(lengths: list[int]) -> tuple[Any, Batch]:
    model, batch = MINIATURES["kandinsky5-video"]()
    text = {"prompt_embeds": torch.randn(len(lengths), max(lengths), 8), "pooled": torch.randn(len(lengths), 8)}
    if len(set(lengths)) > 1:
        text["tokens"] = torch.tensor(lengths)
    latents = torch.randn(len(lengths), 4, 2, 4, 6)
    return model, replace(batch, latents=latents, text=text, fps=torch.full((len(lengths),), 24.0))


CASES: dict[str, tuple[str, Callable[[], tuple[Any, Batch]]]] = {
    "2.0, sound": ("ltxvideo2", lambda: ltx2_case("split", newer=False, given=False, sound=True)),
    "2.0, first frame": ("ltxvideo2", lambda: ltx2_case("interleaved", newer=False, given=True, sound=False)),
    "2.3, first frame, sound": ("ltxvideo2", lambda: ltx2_case("split", newer=True, given=True, sound=True)),
    "2.3, interleaved": ("ltxvideo2", lambda: ltx2_case("interleaved", newer=True, given=False, sound=True)),
    "kandinsky": ("kandinsky5-video", lambda: kandinsky_case([6, 6])),
    "kandinsky, two lengths": ("kandinsky5-video", lambda: kandinsky_case([6, 4, 6])),
}


def case(name: str, *, masked: bool = False) -> tuple[tk.Family, Any, Drawn]:
    """A family, its model with random weights, in float64 as far as its class can be, and a batch with its draws."""
    torch.manual_seed(3)
    family_name, make = CASES[name]
    model, batch = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.double()
    if family_name == "kandinsky5-video":
        model.time_embeddings.float()  # it makes its own input, in float32
    count = len(batch.latents)
    if masked:
        mask = torch.zeros(count, 1, *batch.latents.shape[2:])
        mask[:, :, :, 1:3, 1:3] = 0.5  # within tokens of Kandinsky, across their edges
        batch = replace(batch, loss_mask=mask)
    drawn = Drawn(
        Draw(NUMBER, 0, tuple(range(count))),
        batch,
        torch.linspace(0.3, 0.8, count),
        torch.randn_like(batch.latents),
        audio_noise=None if batch.audio is None else torch.randn_like(batch.audio.latents),
    )
    return tk.family(family_name), model.train(), drawn


def objective_of(family: tk.Family, model: Any, routes: Routes, *, checkpointing: bool = True) -> Objective:
    config = tk.TrainConfig(seed=11, tread_config=document(*routes))
    runner = BlockRunner(family.video_blocks(model), checkpointing=checkpointing)
    runner.install(model)
    return Objective(config, family, model, runner, CPU)


def outcome(family: tk.Family, model: Any, drawn: Drawn) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Velocities, and the gradients of their squares."""
    model.zero_grad()
    made = drawn.predict(family, model)
    velocities = [made.video.velocity] + ([made.audio.velocity] if made.audio else [])
    torch.stack([one.double().square().mean() for one in velocities]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return [one.detach() for one in velocities], gradients


TWO: Routes = [(1, 2, 0.5), (3, 3, 0.25)]


@pytest.mark.parametrize(
    ("name", "masked"),
    [*[(name, False) for name in CASES], ("2.3, interleaved", True), ("kandinsky, two lengths", True)],
)
def test_the_prediction_is_that_of_blocks_called_by_hand(name: str, masked: bool) -> None:
    family, model, drawn = case(name, masked=masked)
    first = None
    if masked:
        mask = drawn.batch.loss_mask
        assert mask is not None
        patch = 1 if family.name == "ltxvideo2" else 2
        tokens = [
            [
                bool((mask[sample, 0, t, h : h + patch, w : w + patch] > 0).any())
                for t in range(2) for h in range(0, 4, patch) for w in range(0, 6, patch)
            ]
            for sample in range(len(mask))
        ]  # fmt: skip
        first = [torch.tensor([tokens[sample] for sample in call]) for call in family.calls(drawn.batch)]
    plain = outcome(family, model, drawn)[0]
    results = {}
    for checkpointing in (True, False):
        objective = objective_of(family, model, TWO, checkpointing=checkpointing)
        with objective.runner.watched(router=objective.router(drawn)):
            results[checkpointing] = outcome(family, model, drawn)
    by_hand = ByHand(family.name, family.video_blocks(model), TWO, 11, first)
    model.enable_gradient_checkpointing(gradient_checkpointing_func=by_hand)
    velocities, gradients = outcome(family, model, drawn)
    assert not any(torch.allclose(one, other, rtol=1e-3) for one, other in zip(plain, velocities, strict=True))
    for found, slopes in results.values():
        for one, other in zip(found, velocities, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert slopes.keys() == gradients.keys()
        for parameter, slope in slopes.items():
            torch.testing.assert_close(slope, gradients[parameter], rtol=1e-6, atol=1e-9, msg=parameter)
    for parameter, slope in results[True][1].items():
        assert torch.equal(slope, results[False][1][parameter]), parameter


# Training ----------------------------------------------------------------------------------------------------------


def test_only_the_training_is_routed() -> None:
    size = Size(blocks=3)
    routed, batches = engine_of("ltxvideo2", "no", size=size, tread_config=document((1, -2, 0.5)))
    plain, _ = engine_of("ltxvideo2", "no", size=size)
    drawn = batches[0]()
    expected = drawn.losses(plain.family, plain.transformer, CPU).total
    assert torch.equal(drawn.losses(routed.family, routed.transformer, CPU).total, expected)  # with gradients, too
    with routed.rendering(ema=False):
        assert torch.equal(drawn.losses(routed.family, routed.transformer, CPU).total, expected)
    with torch.no_grad():  # what looks ahead while a step is made
        assert torch.equal(routed.objective.losses(drawn, routed.transformer, 0).total, expected)
    assert not torch.equal(routed.objective.losses(drawn, routed.transformer, 0).total, expected)


def test_every_batch_and_route_has_draws_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunerkit.methods import tread

    found: list[torch.Tensor] = []
    draw = tread.draw_passing
    monkeypatch.setattr(tread, "draw_passing", lambda *given: found.append(draw(*given)) or found[-1])
    family, model, drawn = case("kandinsky, two lengths")
    objective = objective_of(family, model, [(0, 0, 0.5), (2, 2, 0.5)])
    for number in (1, 2, 1):
        batch = replace(drawn, draw=Draw(number, 0, (0, 1, 2)))
        objective.losses(batch, model, 0)
    # Two calls of two routes each: sample 1 alone, then samples 0 and 2.
    rows = [tuple(row.tolist()) for one in found for row in one]
    assert [len(one) for one in found] == [1, 1, 2, 2] * 3
    assert rows[:6] == rows[12:]
    assert len(set(rows)) == 12


# Taps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2.0, sound", "kandinsky, two lengths"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_tap_outside_of_the_routes_gives_the_full_grid_in_order(name: str, index: int) -> None:
    family, model, drawn = case(name)
    blocks = family.video_blocks(model)
    index = min(index, len(blocks) - 1)
    kept: list[torch.Tensor] = []
    hook = blocks[index].register_forward_hook(lambda _, __, made: kept.append(video_stream(made)))
    tap, runner = Tap(index), BlockRunner(blocks, checkpointing=True)
    runner.install(model)
    calls = family.calls(drawn.batch)
    with runner.watched(taps=[tap]), tap.open(calls):
        drawn.predict(family, model)
        plain = tap.states
        rows = {sample: kept[at][row] for at, call in enumerate(calls) for row, sample in enumerate(call)}
        assert torch.equal(plain, torch.stack([rows[sample] for sample in range(len(drawn.batch.latents))]))
        plain.sum().backward()
        assert any(p.grad is not None for p in blocks[0].parameters())
    hook.remove()
    with pytest.raises(RuntimeError, match=f"block {index} gave 0 outputs"):
        _ = tap.states
    objective = objective_of(family, model, [(1, 2, 0.5)])
    with objective.runner.watched(router=objective.router(drawn), taps=[tap]), tap.open(calls):
        drawn.predict(family, model)
        routed = tap.states
    grid = family.token_grid(model, drawn.batch.latents)
    assert routed.shape == plain.shape == (len(drawn.batch.latents), grid[0] * grid[1] * grid[2], plain.shape[2])
    assert torch.equal(routed, plain) == (index < 1)
