"""Token routing: what the blocks compute equals blocks called by hand on tokens gathered by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import MINIATURES, STREAM, SWAP, engine_of, same, trained

import tunerkit as tk
from tunerkit.config.tread_rules import routes_of
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
        audio_cross_attention_dim=16, num_layers=5, caption_channels=8, rope_type=rope, gated_attn=newer,
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

FAMILIES = ("kandinsky5-video", "ltxvideo2")
ROUTED = {"tread_config": document((1, -2, 0.5))}
HARDLY = {"tread_config": document((1, -2, 0.01))}
"""Of the few tokens, this share is none."""


@pytest.mark.parametrize("family", FAMILIES)
def test_where_none_skip_it_is_the_plain_run(family: str) -> None:
    plain, hardly, routed = (trained(*engine_of(family, "no", **more), steps=1) for more in ({}, HARDLY, ROUTED))
    assert same(hardly, plain)
    assert not same(routed, plain)


@pytest.mark.parametrize(
    ("family", "precision", "settings"),
    [
        ("ltxvideo2", "no", {"gradient_checkpointing": False}),
        ("ltxvideo2", "bf16", SWAP),
        ("kandinsky5-video", "bf16", STREAM),
        ("ltxvideo2", "int8", STREAM),
    ],
)
def test_memory_is_saved_with_the_same_result(family: str, precision: str, settings: dict[str, Any]) -> None:
    found, expected = (trained(*engine_of(family, precision, **ROUTED, **more), steps=1) for more in (settings, {}))
    assert same(found, expected)


def test_only_the_training_is_routed() -> None:
    routed, batches = engine_of("ltxvideo2", "no", **ROUTED)
    plain, _ = engine_of("ltxvideo2", "no")
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


def test_resumed_is_as_if_never_stopped(kandinsky5_projects: Callable[[str], Path], tmp_path: Path) -> None:
    path = kandinsky5_projects("t2v-lite-sft-5s")
    settings: dict[str, Any] = {
        "max_train_steps": 2,
        "checkpoint_step_interval": 1,
        "validation_disable": True,
        "cache_dir": path.parent / "output" / "cache",
        "tread_config": document((0, -1, 0.5)),
    }

    def run(steps: int, **changes: Any) -> list[tuple[float, float]]:
        config = tk.load_config(path, **settings, **changes)
        trainer = tk.Trainer(config).prepare(progress=False)
        found = [(result.loss, result.grad_norm) for result in trainer.steps(steps)]
        trainer.close()
        return found

    whole = run(2, output_dir=tmp_path / "whole")
    parts = run(1, output_dir=tmp_path / "two")
    parts += run(1, output_dir=tmp_path / "two", resume_from_checkpoint="latest")
    assert parts == whole


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


# Settings ----------------------------------------------------------------------------------------------------------

GOOD = {"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"routes": []}, r"tread_config.routes = \[\]: holds no route"),
        ({"route": [GOOD]}, r"tread_config.routes: is no list(.|\n)*tread_config.route = .*is not known"),
        ({"routes": [0.5]}, r"tread_config.routes\[0\] = 0.5: is no route"),
        ({"routes": [GOOD, {**GOOD, "selection_ratio": 1.0}]}, r"routes\[1\].selection_ratio = 1.0: .*below 1"),
        ({"routes": [{**GOOD, "selection_ratio": True}]}, r"routes\[0\].selection_ratio = True"),
        ({"routes": [{**GOOD, "start_layer_idx": 2.5}]}, r"start_layer_idx = 2.5: .*whole number"),
        ({"routes": [{"selection_ratio": 0.5}]}, r"start_layer_idx: is missing"),
        ({"routes": [{**GOOD, "ratio": 0.5}]}, r"routes\[0\].ratio = 0.5: is not known"),
    ],
)
def test_documents_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(tk.ConfigError, match=message):
        tk.TrainConfig(tread_config=given)


@pytest.mark.parametrize(
    ("routes", "settings", "message"),
    [
        ([(2, 48, 0.5)], {}, r"routes\[0\].end_layer_idx = 48: is no block .* has 48. Fix: use 0 to 47, or -1 to -48"),
        ([(-49, -2, 0.5)], {}, r"start_layer_idx = -49: is no block"),
        ([(6, -44, 0.5)], {}, r"end_layer_idx = -44: ends the route before its start: block 4 of 48"),
        ([(2, 9, 0.5), (9, 12, 0.5)], {}, r"routes\[1\].start_layer_idx = 9: .*use 10 or more"),
        ([(2, -2, 0.5)], {"crepa_block_index": 8}, r"crepa_block_index = 8: .*before 2 or block 46 or a later"),
        ([(8, -2, 0.5)], {"crepa_block_index": 8}, r"crepa_block_index = 8"),
    ],
)
def test_routes_that_do_not_fit_are_refused(routes: Routes, settings: dict[str, Any], message: str) -> None:
    config = tk.TrainConfig(tread_config=document(*routes), crepa_enabled=True, **settings)
    with pytest.raises(tk.ConfigError, match=message):
        routes_of(config, 48)


def test_routes_count_from_both_ends() -> None:
    config = tk.TrainConfig(tread_config={"routes": [GOOD]}, crepa_enabled=True, crepa_block_index=46)
    [route] = routes_of(config, 48)
    assert (route.first, route.last, route.ratio) == (2, 46, 0.5)
    assert routes_of(tk.TrainConfig(), 48) == ()
    assert [note for note in config.notes if note.key == "tread_config"] == []


def test_models_that_need_all_tokens_refuse(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    dataset = {"id": "clips", "instance_data_dir": str(tmp_path / "clips")}
    config = tk.TrainConfig(
        model_family="sanavideo", output_dir=tmp_path / "output", max_train_steps=1, datasets=[dataset],
        tread_config={"routes": [GOOD]},
    )  # fmt: skip
    with pytest.raises(tk.ConfigError, match=r"tread_config = .*convolutions over the whole grid.*leave it out"):
        tk.resolve(config)
    sparse = tk.TrainConfig(model_flavour="t2v-lite-sft-10s", tread_config={"routes": [GOOD]})
    kandinsky = tk.family("kandinsky5-video")
    assert "sparse_attention" in str(kandinsky.routing_refusal(sparse))
    assert kandinsky.routing_refusal(sparse.changed(sparse_attention=False)) is None


# Plan --------------------------------------------------------------------------------------------------------------


def test_a_plan_of_few_blocks_is_that_of_all() -> None:
    from tunerkit.planning.architectures import transformer_on_meta
    from tunerkit.planning.batches import Largest, Stand
    from tunerkit.planning.step import trace_step
    from tunerkit.planning.training import training_step

    family, depth, flavour = tk.family("kandinsky5-video"), 10, "t2v-lite-sft-5s"

    def settings(component: Any) -> dict[str, Any]:
        own = {"num_visual_blocks": depth} if component == "transformer" else {}
        return {**family.published_config(flavour, component), **own}

    def planned(routes: Routes) -> tk.TrainConfig:
        return tk.TrainConfig(
            model_family=family.name, model_flavour=flavour, mixed_precision="bf16", tread_config=document(*routes)
        )

    routes = [(2, 5, 0.5), (6, 8, 0.25)]
    config, largest = planned(routes), Largest(256, 256, 17, 24.0, 2, mask=True)
    stand = Stand(config, family, settings)
    found = training_step(config, family, settings("transformer"), stand, largest)
    transformer = transformer_on_meta(settings("transformer"), config, family)
    whole, _ = trace_step(config, family, transformer, lambda: stand.drawn(largest), alike=depth)
    assert [one.peak for one in found.segments] == pytest.approx([one.peak for one in whole], rel=1e-4)
    assert [one.work.flops for one in found.segments] == [one.work.flops for one in whole]
    assert [one.work.kernels for one in found.segments] == [one.work.kernels for one in whole]
    with pytest.raises(tk.ConfigError, match="is no block of the transformer, which has 10"):
        training_step(planned([(2, 10, 0.5)]), family, settings("transformer"), stand, largest)
