"""What saves memory, in every combination: it trains as it would without, or it is refused before anything is loaded.

The table below is the whole truth; `docs/memory-combinations.md` shows it to users.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_models import BLOCKS, FAMILIES, engine_of, plain, same, trained
from poisoned import Poisoned, poison

import tunerkit as tk
from tunerkit.errors import ConfigError, Problem
from tunerkit.memory.masters import ALIGNMENT
from tunerkit.memory.offload_groups import leaves
from tunerkit.training.engine import Engine

DOCUMENT = Path(__file__).parent.parent / "docs" / "memory-combinations.md"

TABLE = """
model type              | lora | lora      | full     | full            | full          | full
checkpointing           | yes  | no        | yes      | yes             | no            | no
base precision          | any  | any       | bf16     | int8 nf4        | bf16          | int8 nf4

nothing                 | same | same      | same     | packed          | same          | packed
swap                    | same | held      | all      | all packed      | all held      | all held packed
blocks                  | same | held      | all      | all packed      | all held      | all held packed
blocks, stream          | same | held      | all      | all packed      | all held      | all held packed
pairs, stream           | same | held      | all      | all packed      | all held      | all held packed
leaves                  | same | held      | all      | all packed      | all held      | all held packed
leaves, stream          | same | held      | all      | all packed      | all held      | all held packed
blocks, on disk         | same | held      | all      | all packed      | all held      | all held packed
blocks, on disk, stream | same | held      | all      | all packed      | all held      | all held packed
leaves, on disk         | same | held      | all      | all packed      | all held      | all held packed
leaves, on disk, stream | same | held      | all      | all packed      | all held      | all held packed
swap, elsewhere         | ram  | ram held  | ram all  | ram all packed  | ram all held  | ram all held packed
swap, blocks            | both | both held | both all | both all packed | both all held | both all held packed
"""
"""A cell is `same` or the reasons of its refusal, `REFUSALS`; what the words of a row set is in `MEANS`."""

MEANS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "swap": {"musubi_blocks_to_swap": BLOCKS - 1},
    "blocks": {"enable_group_offload": True, "group_offload_type": "block_level"},
    "pairs": {"enable_group_offload": True, "group_offload_blocks_per_group": 2},
    "leaves": {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    "stream": {"group_offload_use_stream": True},
    "on disk": {"group_offload_to_disk_path": "FOLDER"},
    "elsewhere": {"musubi_block_swap_device": "disk"},
}


@dataclass(frozen=True)
class Refusal:
    """Why settings are refused.

    Attributes:
        short: for a cell of the document.
        key: the setting that is named; None = the one that offloads.
        words: what the message says of it.
        fix: what to do.
    """

    short: str
    key: str | None
    words: str
    fix: str


REFUSALS = {
    "all": Refusal("nothing frozen", None, "only frozen weights can wait outside of the GPU", "or model_type to lora"),
    "held": Refusal("weights held", "gradient_checkpointing", "held from the forward pass until", "set it to true, or"),
    "packed": Refusal(
        "quantised is frozen", "base_model_precision", "and model_type = full trains all", "model_type = lora"
    ),
    "ram": Refusal(
        "RAM only", "musubi_block_swap_device", "swapped blocks wait in the CPU's memory only", "set it to cpu; to keep"
    ),
    "both": Refusal(
        "two movers", "musubi_blocks_to_swap", "both move transformer blocks", "enable_group_offload to false"
    ),
}
PRECISIONS = ("bf16", "int8", "nf4")


@dataclass(frozen=True)
class Cell:
    """One cell of the table: means, column, and the reasons of its refusal, none where it trains."""

    means: str
    model_type: str
    checkpointing: bool
    precisions: tuple[str, ...]
    reasons: tuple[str, ...]

    def settings(self, precision: str, folder: Path) -> dict[str, Any]:
        """As in a configuration; what is on disk is in `folder`."""
        settings = {key: value for word in self.means.split(", ") for key, value in MEANS[word].items()}
        if "group_offload_to_disk_path" in settings:
            settings["group_offload_to_disk_path"] = folder
        return {**settings, **self.column(precision), "gradient_checkpointing": self.checkpointing}

    def column(self, precision: str) -> dict[str, Any]:
        """The settings of a run that saves no memory, but for the precision of its base model."""
        base = "no_change" if precision == "bf16" else precision
        return {"model_type": self.model_type, "mixed_precision": "bf16", "base_model_precision": base}

    def __str__(self) -> str:
        place = f"{self.model_type}-{'checkpointing' if self.checkpointing else 'whole'}"
        return f"{self.means.replace(', ', '+')}-{place}"


def cells() -> Iterator[Cell]:
    """The table, row by row."""
    lines = [[cell.strip() for cell in line.split("|")] for line in TABLE.splitlines() if line]
    (_, *types), (_, *checkpointing), (_, *precisions), *rows = lines
    for means, *row in rows:
        for model_type, on, names, cell in zip(types, checkpointing, precisions, row, strict=True):
            each = PRECISIONS if names == "any" else tuple(names.split())
            yield Cell(means, model_type, on == "yes", each, () if cell == "same" else tuple(cell.split()))


CELLS = tuple(cells())
ROWS = tuple(dict.fromkeys(cell.means for cell in CELLS))


def test_the_table_is_complete() -> None:
    """Each means meets each kind of run, once."""
    found = [(c.means, c.model_type, c.checkpointing, one) for c in CELLS for one in c.precisions]
    assert sorted(found) == sorted(product(ROWS, ("lora", "full"), (True, False), PRECISIONS))


# What trains -------------------------------------------------------------------------------------------------------


def training() -> Iterator[Any]:
    """Cells that train, in each precision, in each family; one of four bits in one family."""
    for cell in CELLS:
        for precision in () if cell.reasons else cell.precisions:
            some = FAMILIES[ROWS.index(cell.means) % 3]
            for family in (some,) if precision == "nf4" else FAMILIES:
                yield pytest.param(cell, precision, family, id=f"{cell}-{precision}-{family}")


@pytest.mark.parametrize(("cell", "precision", "family"), training())
def test_it_trains_as_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cell: Cell, precision: str, family: str
) -> None:
    """Losses, gradient norms and weights after two steps, bit for bit; beside a run without checkpointing, too."""
    torch.set_num_threads(1)
    poison(monkeypatch)
    engine, batches = engine_of(family, **cell.settings(precision, tmp_path / "offload"))
    assert same(trained(engine, batches), plain(family, **cell.column(precision), gradient_checkpointing=False))
    offloader: Any = engine.offloader
    assert (offloader is None) == (cell.means == "nothing")
    assert (tmp_path / "offload").exists() == ("on disk" in cell.means)
    if offloader is not None:
        check_residency(offloader, cell.means, engine)


def check_residency(offloader: Poisoned, means: str, engine: Engine) -> None:
    """Which weights waited elsewhere, how many groups were on the device at one time, and how often one was brought in
    two steps."""
    assert offloader.alive == 0  # each was released at the end of its recomputation, the last one too
    blocks = engine.family.blocks(engine.transformer)
    moving = torch.nn.ModuleList(blocks[::2] if means == "swap" else blocks).parameters()
    moved = [parameter.nbytes for parameter in moving if not parameter.requires_grad]
    if "leaves" in means:
        layers = max(sum(1 for _ in leaves(block)) for block in blocks)
        assert offloader.bytes > 0.9 * sum(moved)  # not what belongs to a block itself, but much outside of blocks
        # In forward also what autograd holds of the layers behind the blocks; in backward one block.
        assert offloader.most[False] <= 6
        assert offloader.most[True] <= layers + 6
        return
    assert sum(moved) <= offloader.bytes < sum(moved) + ALIGNMENT * len(moved)
    assert len(offloader.groups) == (BLOCKS if "blocks" in means else 2)
    most = 2 if "stream" in means or means == "swap" else 1
    assert offloader.most == {False: most, True: most}
    assert offloader.most_bytes <= offloader.most_on_device
    assert offloader.brought == 2 * 2 * len(offloader.groups)  # once per pass: what was prefetched was right


# What is refused ---------------------------------------------------------------------------------------------------

REFUSED = [cell for cell in CELLS if cell.reasons]


@pytest.mark.parametrize("cell", [pytest.param(cell, id=f"{cell}-{'-'.join(cell.precisions)}") for cell in REFUSED])
def test_it_is_refused_with_the_reason_and_the_fix(cell: Cell, tmp_path: Path) -> None:
    """By the settings themselves, so before anything is loaded: one message for each reason, and no other."""
    for precision, family in product(cell.precisions, FAMILIES):
        with pytest.raises(ConfigError) as error:
            tk.TrainConfig(model_family=family, **cell.settings(precision, tmp_path))
        problems = list(error.value.problems)
        for reason in cell.reasons:
            [problem] = [one for one in problems if REFUSALS[reason].words in one.message]
            check_refusal(REFUSALS[reason], problem, cell, str(error.value))
            problems.remove(problem)
        assert problems == []
        assert list(tmp_path.iterdir()) == []


def check_refusal(refusal: Refusal, problem: Problem, cell: Cell, message: str) -> None:
    offloads = "musubi_blocks_to_swap" if "swap" in cell.means else "enable_group_offload"
    assert problem.key == (refusal.key or offloads)
    assert refusal.fix in str(problem.fix)
    assert str(problem) in message


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded of the Sana family is an error."""
    for name in ("load_transformer", "load_text_encoder", "load_vae"):
        monkeypatch.setattr(type(tk.family("sanavideo")), name, None)


SOME = ("swap-lora-whole", "leaves+stream-full-checkpointing", "nothing-full-whole", "blocks+on disk-full-whole")


@pytest.mark.parametrize("cell", [cell for cell in REFUSED if str(cell) in SOME], ids=str)
@pytest.mark.usefixtures("loads_nothing")
def test_trainer_and_plan_refuse_the_same_before_loading(tmp_path: Path, cell: Cell) -> None:
    """From a file, and where checked settings were changed unseen."""
    (tmp_path / "clips").mkdir()
    usual = {
        "model_family": "sanavideo", "max_train_steps": 1, "output_dir": str(tmp_path / "output"),
        "datasets": [{"id": "clips", "instance_data_dir": str(tmp_path / "clips")}],
    }  # fmt: skip
    settings = cell.settings(cell.precisions[-1], tmp_path)
    with pytest.raises(ConfigError) as first:
        tk.TrainConfig(**usual, **settings)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**usual, **settings}, default=str), encoding="utf-8")
    unseen = tk.TrainConfig(**usual).model_copy(update=settings)
    uses: list[Callable[[], Any]] = [lambda: tk.load_config(path), lambda: tk.Trainer(unseen), lambda: tk.plan(unseen)]
    for use in uses:
        with pytest.raises(ConfigError) as error:
            use()
        assert str(error.value) == str(first.value)


# The document ------------------------------------------------------------------------------------------------------


def document_tables() -> str:
    """The table and what its words mean, in Markdown."""
    columns = [cell for cell in CELLS if cell.means == ROWS[0]]
    heads = [
        f"{'LoRA' if one.model_type == 'lora' else 'full'}, {'' if one.checkpointing else 'no '}checkpointing: "
        f"{', '.join(one.precisions)}"
        for one in columns
    ]
    results = [["", *heads], ["---"] * (len(heads) + 1)]
    results += [[means, *(_shown(cell) for cell in CELLS if cell.means == means)] for means in ROWS]
    words = [["word", "settings"], ["---", "---"]]
    words += [
        [word, ", ".join(f"`{key} = {_value(one)}`" for key, one in to.items())] for word, to in MEANS.items() if to
    ]
    return "\n\n".join("\n".join(f"| {' | '.join(line)} |" for line in table) for table in (words, results))


def _shown(cell: Cell) -> str:
    if not cell.reasons:
        return "same losses"
    return "refused: " + ", ".join(REFUSALS[reason].short for reason in cell.reasons)


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_document_shows_the_table() -> None:
    """Where it fails: put what is printed in the place of the document's tables."""
    print(document_tables())
    assert document_tables() in DOCUMENT.read_text(encoding="utf-8")
