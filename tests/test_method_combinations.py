"""Training methods, alone and together, in every family and every way of training: it works, or it is refused before
anything is loaded.

The tables in `method_tables.py` are the whole truth; `docs/methods.md` shows them to users.
"""

from __future__ import annotations

import collections
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from method_models import FAMILIES, Batches, Outcome, engine_of, same
from method_tables import FEATURES, HOLDS, OFF, REFUSALS, ROWS, SIZES, WAY_ROWS, WORKING, settings_of
from poisoned import poison

import tunerkit as tk
from tunerkit.errors import ConfigError, Problem
from tunerkit.memory.quantised_linear import QuantisedLinear
from tunerkit.training.batches import Drawn
from tunerkit.training.engine import Engine
from tunerkit.training.state import Fingerprint, read_state, write_state

DOCUMENT = Path(__file__).parent.parent / "docs" / "methods.md"


def test_the_tables_are_complete() -> None:
    """Every pair of methods that changes the step, all of them, and every way is there, with a cell for each family."""
    steps = ("TREAD", "CREPA", "rollout")
    pairs = [f"{one}, {other}" for place, one in enumerate(steps) for other in steps[place + 1 :]]
    assert {*steps, *pairs, "rollout, ReflexFlow", "masked loss"} < set(ROWS)
    assert all(tuple(cells) == FAMILIES for cells in ROWS.values())
    assert {family for _, family in WORKING} == set(FAMILIES)
    reasons = {
        word for cells in (*ROWS.values(), *WAY_ROWS.values()) for cell in cells.values() for word in cell.split()
    }
    assert reasons == {"works", *HOLDS, *REFUSALS}


# What works --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A method in a way of training: words of `SETTINGS`, and whether the method is let do nothing."""

    method: str
    family: str
    model_type: str
    way: str = ""
    off: bool = False

    def engine(self, **more: Any) -> tuple[Engine, Batches]:
        """An engine, and two batches of two clips each."""
        layers = tk.family(self.family).lora_targets(tk.TrainConfig())[:1]
        settings = {**settings_of(self.method), **settings_of(self.way), "model_type": self.model_type, **more}
        for word in self.method.split(", ") if self.off else ():
            settings |= OFF.get(word, {})
        engine, batches = engine_of(self.family, size=SIZES[self.family], peft_lora_target_modules=layers, **settings)
        return engine, [functools.partial(self._seen, batch) for batch in batches]

    def _seen(self, read: Callable[[], Drawn]) -> Drawn:
        """A batch with features, and a mask where the loss is masked."""
        drawn, source = read(), torch.Generator().manual_seed(2)
        features = torch.randn(2, 2, 2, 3, FEATURES, generator=source).half()
        mask = (torch.rand(2, 1, *drawn.noise.shape[2:], generator=source) > 0.4).float()
        if self.off and self.method == "masked loss":
            mask = torch.ones_like(mask)
        batch = replace(drawn.batch, loss_mask=mask) if "masked loss" in self.method else drawn.batch
        return replace(drawn, batch=batch, features=features)

    @property
    def plain(self) -> Run:
        """As usual, without what changes the step; of a masked loss with the mask."""
        return replace(self, method="masked loss" if ", masked loss" in self.method else "", way="", off=False)

    @property
    def usual(self) -> Run:
        """As usual, at the same precision."""
        return replace(self, way=next((word for word in self.way.split(", ") if word in ("int8", "nf4")), ""))


class Seen(NamedTuple):
    """What some steps gave.

    Attributes:
        outcome: with the weights of a projector.
        parts: what the first step told.
        moved: names of the trained weights that changed.
        untouched: whether all other weights are as they were.
        quantised: how many layers are.
    """

    outcome: Outcome
    parts: dict[str, float]
    moved: set[str]
    untouched: bool
    quantised: int


def all_trained(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of the trained weights, of the model and beside it."""
    weights = {**engine.weights.state(), **engine.weights.state(beside=True)}
    return {name: one.clone() for name, one in weights.items()}


def frozen(engine: Engine) -> dict[str, torch.Tensor]:
    state = engine.transformer.state_dict()
    return {name: one.clone() for name, one in state.items() if name not in engine.weights.live}


def seen(run: Run, steps: int = 1) -> Seen:
    engine, (batch, _) = run.engine()
    before, base = all_trained(engine), frozen(engine)
    updates = [engine.step([batch], number, 1e-2) for number in range(steps)]
    after, weights = frozen(engine), all_trained(engine)
    return Seen(
        ([one.loss for one in updates], [one.grad_norm for one in updates], weights),
        updates[0].parts,
        {name for name, one in weights.items() if not torch.equal(one, before[name])},
        base.keys() == after.keys() and all(torch.equal(one, after[name]) for name, one in base.items()),
        sum(isinstance(module, QuantisedLinear) for module in engine.transformer.modules()),
    )


known = functools.cache(seen)
"""What others are compared with."""


def runs() -> Iterator[tuple[Run, str]]:
    """LoRA as usual for each method in each family that has it, every other cell in one family: with LoRA another one
    for each way, with full fine-tuning the same. The largest family has fewer turns."""
    for method, family in WORKING:
        row, possible = list(ROWS).index(method), [one for name, one in WORKING if name == method]
        turns = 2 * possible[:-1] + possible[-1:]
        for place, (way, cells) in enumerate(WAY_ROWS.items()):
            turn = 2 * (row + (list(WAY_ROWS).index("int8") if "int8" in way else place))  # int8: swapped and not
            for model_type, cell in cells.items():
                some = turns[(turn if model_type == "lora" else row) % len(turns)]
                if cell in HOLDS and (family == some or (model_type, way) == ("lora", "as usual")):
                    yield Run(method, family, model_type, way, off=way == "off"), cell


RUNS = tuple(runs())


def test_every_cell_is_tried_and_every_way_meets_every_family() -> None:
    tried = {(run.method, run.way, run.model_type) for run, _ in RUNS}
    possible = {(way, kind) for way, cells in WAY_ROWS.items() for kind, cell in cells.items() if cell in HOLDS}
    assert tried == {(method, *one) for method, _ in WORKING for one in possible}
    met = {(run.family, run.way, run.model_type) for run, _ in RUNS}
    assert met == {(family, *one) for family in FAMILIES for one in possible}


@pytest.mark.parametrize(
    ("run", "cell"),
    [pytest.param(*one, id=f"{one[0].method}-{one[0].family}-{one[0].model_type}-{one[0].way}") for one in RUNS],
)
def test_it_works(run: Run, cell: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    if cell == "plain":  # what a method is made of is there, and changes nothing
        assert same(known(run.plain).outcome, seen(run).outcome)
    elif cell == "mean":
        check_mean(run)
    elif cell == "trains":
        check_trained(run)
    elif run.way == "resumed":
        assert same(resumed(run, tmp_path), known(replace(run, way=""), 2).outcome)
    else:
        expected = known(run.usual).outcome
        poison(monkeypatch)  # weights that wait elsewhere are NaN until they are brought
        assert same(seen(run).outcome, expected)


def check_trained(run: Run) -> None:
    """The method acts, everything that is to learn does, and nothing else changes."""
    found, has = known(run.usual), run.method.__contains__
    (loss,), (norm,), weights = found.outcome
    assert math.isfinite(loss)
    assert math.isfinite(norm)
    assert found.untouched
    assert (found.quantised > 0) == (run.way in ("int8", "nf4"))
    assert any("transformer_blocks" in name for name in found.moved)
    projector = {name for name in weights if "crepa_projector" in name}
    assert len(projector) == (4 if has("CREPA") else 0)
    assert projector <= found.moved
    assert (found.parts.get("rolled_out", 0.0) > 0, "crepa" in found.parts) == (has("rollout"), has("CREPA"))
    assert ("anti_drift" in found.parts) == has("ReflexFlow")
    if run.way == "as usual":
        assert loss != known(run.plain).outcome[0][0]
        assert skipping(run) == [0.5 if has("TREAD") else 0.0] * 2


def skipping(run: Run) -> list[float]:
    """Share of each clip's tokens that reach the second block as they were in front of the first."""
    engine, (batch, _) = run.engine()
    runner, blocks = engine.objective.runner, engine.family.video_blocks(engine.transformer)
    given: list[torch.Tensor] = []

    def watched(block: torch.nn.Module, *arguments: Any) -> Any:
        if any(block is one for one in blocks):
            given.append(arguments[0])
        return runner(block, *arguments)

    engine.transformer.enable_gradient_checkpointing(gradient_checkpointing_func=watched)
    engine.objective.losses(batch(), engine.transformer, 0)
    return (given[0] == given[1]).all(-1).float().mean(1).tolist()


def check_mean(run: Run) -> None:
    """Of two micro-batches: loss and gradient are the means of those of each alone."""
    engine, batches = run.engine(max_grad_norm=0.0)
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    for some in ([batches[0]], [batches[1]], batches):
        losses.append(engine.step(some, 0, 0.0).loss)
        found = engine.weights.optimized.values()
        gradients.append(torch.cat([one.grad.flatten() for one in found if one.grad is not None]).float())
    assert losses[0] != losses[1]
    assert losses[2] == float(torch.tensor(losses[:2]).mean())
    difference = gradients[2] - (gradients[0] + gradients[1]) / 2
    assert float(difference.norm() / gradients[2].norm()) < 0.01


def resumed(run: Run, folder: Path) -> Outcome:
    """Two steps, between which everything is written, and read by another engine."""
    (engine, (batch, _)), (other, _) = run.engine(), run.engine()
    fingerprint = Fingerprint(collections.defaultdict(lambda: None))
    first = engine.step([batch], 0, 1e-2)
    write_state(folder, engine, 1, fingerprint)
    del engine
    assert read_state(folder, other, fingerprint) == (1, [])
    second = other.step([batch], 1, 1e-2)
    return [first.loss, second.loss], [first.grad_norm, second.grad_norm], all_trained(other)


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded of a model is an error."""
    for family, name in product(FAMILIES, ("load_transformer", "load_text_encoder", "load_vae")):
        monkeypatch.setattr(type(tk.family(family)), name, None)


def found_problems(check: Callable[[], Any]) -> list[Problem]:
    with pytest.raises(ConfigError) as error:
        check()
    return list(error.value.problems)


def check_refusals(problems: list[Problem], reasons: Sequence[str], offloads: str = "") -> None:
    """One problem for each reason, and no other."""
    assert len(problems) == len(reasons)
    for reason in reasons:
        refusal = REFUSALS[reason]
        [problem] = [one for one in problems if refusal.words in one.message]
        assert problem.key == (refusal.key or offloads)
        assert refusal.fix in str(problem.fix)


@pytest.mark.parametrize("way", [way for way, cells in WAY_ROWS.items() if cells["full"] not in HOLDS])
def test_ways_are_refused_with_every_method(way: str) -> None:
    offloads = "musubi_blocks_to_swap" if "swap" in way else "enable_group_offload"
    for method, family in WORKING:
        settings = {**settings_of(method), **settings_of(way), "model_family": family, "model_type": "full"}
        check_refusals(
            found_problems(lambda settings=settings: tk.TrainConfig(**settings)),
            WAY_ROWS[way]["full"].split(),
            offloads,
        )


REFUSED = [
    (method, family, cell) for method, cells in ROWS.items() for family, cell in cells.items() if cell in REFUSALS
]


@pytest.mark.parametrize(("method", "family", "reason"), REFUSED)
@pytest.mark.usefixtures("loads_nothing")
def test_methods_are_refused_before_anything_is_loaded(
    method: str, family: str, reason: str, published: Mapping[str, Path], tmp_path: Path
) -> None:
    """By the settings, or where it depends on the depth of the model by the small files of its checkpoint."""
    (tmp_path / "clips").mkdir()
    settings = {
        "model_family": family, "output_dir": tmp_path / "output", "max_train_steps": 1, "mixed_precision": "bf16",
        "datasets": [{"id": "clips", "instance_data_dir": str(tmp_path / "clips")}], **settings_of(method),
    }  # fmt: skip
    if reason == "route":
        config = tk.resolve(tk.TrainConfig(pretrained_model_name_or_path=published[family], **settings))
        problems = found_problems(lambda: tk.family(family).check_checkpoint(config))
    else:
        problems = found_problems(lambda: tk.resolve(tk.TrainConfig(**settings)))
    check_refusals(problems, [reason])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Family -> a folder with the configurations of its published checkpoint, and no weights."""
    folders: dict[str, Path] = {}
    for name in FAMILIES:
        family, folders[name] = tk.family(name), tmp_path_factory.mktemp("published")
        for component in ("transformer", "vae", "audio_vae", "connectors"):
            if component in {folder for kind in family.subfolders.values() for folder in kind}:
                (folders[name] / component).mkdir()
                found = dict(family.published_config(family.default_flavour, component))
                (folders[name] / component / "config.json").write_text(json.dumps(found), encoding="utf-8")
    return folders


# The document ------------------------------------------------------------------------------------------------------


def document_tables() -> str:
    """The tables and what their words mean, in Markdown."""
    titles = [tk.family(family).title for family in FAMILIES]
    methods = [["", *titles], ["---"] * 4]
    methods += [[method, *(_shown(cell) for cell in cells.values())] for method, cells in ROWS.items()]
    ways = [["", "LoRA", "full"], ["---"] * 3]
    ways += [[way, *(_shown(cell) for cell in cells.values())] for way, cells in WAY_ROWS.items()]
    return "\n\n".join("\n".join(f"| {' | '.join(line)} |" for line in table) for table in (methods, ways))


def _shown(cell: str) -> str:
    if cell in HOLDS:
        return HOLDS[cell]
    if not set(cell.split()) <= set(REFUSALS) or not cell:
        return cell or "—"
    return "refused: " + ", ".join(REFUSALS[reason].short for reason in cell.split())


def test_the_document_shows_the_tables() -> None:
    """Where it fails: put what is printed in the place of the document's tables."""
    print(document_tables())
    for table in document_tables().split("\n\n"):
        assert table in DOCUMENT.read_text(encoding="utf-8")
