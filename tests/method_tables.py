"""Which training methods work in which family and in which way of training: the tables that tests run and
`docs/methods.md` shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from method_models import FAMILIES, Size

SIZES = {family: Size(2 if family != "kandinsky5-video" else 3, half_width=32) for family in FAMILIES}
"""Wide enough for nf4; two blocks for the picture: one for a route and one behind it."""
FEATURES = 384
"""Width of a feature of the encoder in `SETTINGS`."""

METHODS = """
method                                         | sanavideo | kandinsky5-video | ltxvideo2
TREAD                                          | grid      | works            | works
CREPA                                          | works     | works            | works
rollout                                        | works     | works            | works
rollout, ReflexFlow                            | works     | works            | works
masked loss                                    | works     | works            | works
TREAD, CREPA                                   | grid      | works            | works
TREAD, rollout                                 | grid      | works            | works
CREPA, rollout                                 | works     | works            | works
TREAD, CREPA, rollout, ReflexFlow, masked loss | grid      | works            | works
TREAD, CREPA in the route                      | grid      | route            | route
TREAD, sparse attention                        |           | tiles            |
"""
"""A cell is `works`, or the reason of its refusal (`REFUSALS`); empty where the family has no such thing."""

WAYS = """
way                   | lora   | full
off                   | plain  | plain
as usual              | trains | trains
no checkpointing      | same   | same
accumulated           | mean   | mean
resumed               | same   | same
block swap            | same   | frozen
group offload, stream | same   | frozen
int8                  | trains | packed
nf4                   | trains | packed
int8, block swap      | same   | frozen packed
"""
"""A cell is what holds of every method that works (`HOLDS`), or the reasons of its refusal."""

HOLDS = {
    "plain": "the plain run",
    "trains": "trains",
    "same": "same losses",
    "mean": "mean of the losses",
}

SETTINGS: dict[str, dict[str, Any]] = {
    "TREAD": {"tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 0, "end_layer_idx": -2}]}},
    "CREPA": {
        "crepa_enabled": True, "crepa_block_index": 1, "crepa_lambda": 0.7, "crepa_encoder": "dinov2_vits14",
        "crepa_scheduler": "linear", "crepa_decay_steps": 4, "crepa_similarity_threshold": 0.9,
    },
    "rollout": {
        "scheduled_sampling_max_step_offset": 25, "scheduled_sampling_ramp_steps": 2,
        "scheduled_sampling_prob_start": 0.785, "scheduled_sampling_prob_end": 1.0,
        "scheduled_sampling_reflexflow": False,
    },
    "ReflexFlow": {"scheduled_sampling_reflexflow": True},
    "masked loss": {},
    "CREPA in the route": {"crepa_enabled": True, "crepa_block_index": 8},
    "sparse attention": {"model_flavour": "t2v-lite-sft-10s"},
    "no checkpointing": {"gradient_checkpointing": False},
    "block swap": {"musubi_blocks_to_swap": 1},
    "group offload": {"enable_group_offload": True},
    "stream": {"group_offload_use_stream": True},
    "int8": {"base_model_precision": "int8"},
    "nf4": {"base_model_precision": "nf4"},
}  # fmt: skip
"""Word of a row -> settings. The loss is masked by what a batch holds; of its two clips, the first step rolls one out,
and the second both."""

OFF: dict[str, dict[str, Any]] = {
    "TREAD": {"tread_config": {"routes": [{"selection_ratio": 0.01, "start_layer_idx": 0, "end_layer_idx": -2}]}},
    "CREPA": {"crepa_lambda": 0.0},
    "rollout": {"scheduled_sampling_prob_start": 0.0, "scheduled_sampling_prob_end": 0.0},
}
"""What lets a method do nothing while its code runs: a share that is no token of the few, a weight or a share of 0."""


class Refusal(NamedTuple):
    """Why it is refused: words for a cell of the document, the setting that is named (None: the one that offloads),
    words of the message, words of the fix."""

    short: str
    key: str | None
    words: str
    fix: str


REFUSALS = {
    "grid": Refusal("needs the whole grid", "tread_config", "convolutions over the whole grid", "leave it out"),
    "tiles": Refusal("needs the whole grid", "tread_config", "takes the grid of tokens in tiles", "sparse_attention"),
    "route": Refusal("tokens are missing", "crepa_block_index", "lies in a route of tread_config", "or a later one"),
    "frozen": Refusal("nothing frozen", None, "only frozen weights can wait outside of the GPU", "model_type to lora"),
    "packed": Refusal(
        "quantised is frozen", "base_model_precision", "quantised weights are frozen", "model_type = lora"
    ),
}


def rows(table: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Row by row: its name, and column -> cell."""
    lines = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line]
    (_, *columns), *rest = lines
    for name, *cells in rest:
        yield name, dict(zip(columns, cells, strict=True))


def settings_of(words: str) -> dict[str, Any]:
    return {key: value for word in words.split(", ") for key, value in SETTINGS.get(word, {}).items()}


ROWS, WAY_ROWS = dict(rows(METHODS)), dict(rows(WAYS))
WORKING = [(method, family) for method, cells in ROWS.items() for family in FAMILIES if cells[family] == "works"]
