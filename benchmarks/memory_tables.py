"""What every published flavour takes of a GPU, by plan, and what makes it fit cards of usual sizes.

Nothing is downloaded and no weight is needed: each run is planned as `tunerkit plan` does it. Figures are kept beside
this script and planned only once, so that it can be stopped at any time; docs/memory.md is written anew from them.

    python benchmarks/memory_tables.py
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tunerkit as tk
from tunerkit import families
from tunerkit.errors import ConfigError
from tunerkit.files import write_json
from tunerkit.planning.planner import plan
from tunerkit.planning.result import GIB, Plan

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "memory_tables.json"
DOCUMENT = HERE.parent / "docs" / "memory.md"
CARDS = {12: "RTX 3060", 16: "RTX 4060 Ti", 24: "RTX 4090", 32: "RTX 5090", 48: "RTX A6000", 80: "H100"}
"""Memory in GiB -> a usual card of that size, whose speed the seconds are for."""
DEFAULTS, QUICKSTART = "defaults", "quickstart"
SEPARATOR = " / "


@dataclass(frozen=True)
class Quickstart:
    """What the public quickstart of a family says that a plan depends on.

    Attributes:
        dataset: resolution and kind of it.
        frames: of a clip; the nearest legal number is trained on.
        settings: of LoRA and of all weights.
        lora: of LoRA only: nothing can be offloaded where nothing is frozen.
    """

    dataset: Mapping[str, Any]
    frames: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)


_OFFLOAD = {
    "enable_group_offload": True,
    "group_offload_type": "block_level",
    "group_offload_blocks_per_group": 1,
    "group_offload_use_stream": True,
}
QUICKSTARTS: Mapping[str, Quickstart] = {
    "sanavideo": Quickstart(
        {"resolution": 480, "resolution_type": "pixel_area"}, 81, {"optimizer": "adamw_bf16", "use_ema": True}
    ),
    "ltxvideo2": Quickstart({"resolution": 512}, 61, lora=_OFFLOAD),
    "kandinsky5-video": Quickstart({"resolution": 512}, 61, lora=_OFFLOAD),
}
LIMIT = "ltxvideo2 / dev / smallest"
"""The key of the run that takes as little as can be."""
SMALLEST: Mapping[str, Any] = {
    "lora_rank": 32,
    "enable_group_offload": True,
    "group_offload_type": "leaf_level",
    "group_offload_text_encoder": True,
    "vae_enable_patch_conv": True,
    "vae_enable_temporal_roll": True,
    "vae_enable_tiling": True,
    "validation_disable": True,
}


@dataclass(frozen=True)
class Case:
    """A run to plan, for flavours that take the same.

    Attributes:
        flavours: names; the first one is planned.
        settings: "defaults" or "quickstart".
    """

    family: str
    flavours: tuple[str, ...]
    model_type: str
    settings: str

    @property
    def key(self) -> str:
        return SEPARATOR.join((self.family, self.flavours[0], self.model_type, self.settings))

    def config(self, folder: Path) -> tk.TrainConfig:
        """Its settings, with a validation prompt."""
        quickstart = QUICKSTARTS[self.family]
        if self.settings == QUICKSTART:
            more = {**quickstart.settings, **(quickstart.lora if self.model_type == "lora" else {})}
            return config_of(self.family, self.flavours[0], folder, quickstart.dataset, quickstart.frames,
                             model_type=self.model_type, **more)  # fmt: skip
        own = families.get(self.family).defaults_for(self.flavours[0])
        size, frames = {"resolution_type": "model"}, int(own["validation_num_video_frames"])
        return config_of(self.family, self.flavours[0], folder, size, frames, model_type=self.model_type)


def config_of(
    name: str, flavour: str, folder: Path, size: Mapping[str, Any], frames: int, **settings: Any
) -> tk.TrainConfig:
    """Settings of a run on clips of this size, with sound where the model makes sound."""
    clips = folder / "clips"
    clips.mkdir(exist_ok=True)
    video = {"num_frames": families.get(name).legal_frames(frames)}
    dataset: dict[str, Any] = {"id": "clips", "instance_data_dir": str(clips), **size, "video": video}
    if families.get(name).sound is not None:
        dataset["audio"] = {}
    return tk.TrainConfig(
        model_family=name,
        model_flavour=flavour,
        output_dir=str(folder / "out"),
        max_train_steps=1000,
        validation_prompt="a fox in the snow",
        datasets=[dataset],
        **settings,
    )


def cases() -> Iterator[Case]:
    """All that can be trained: flavours of one architecture and one length of videos together."""
    for name in QUICKSTARTS:
        family = families.get(name)
        alike: dict[str, list[str]] = {}
        for flavour, facts in family.flavours.items():
            if not facts.refused:
                shape = sorted(family.published_config(flavour, "transformer").items(), key=str)
                frames = family.defaults_for(flavour).get("validation_num_video_frames")
                alike.setdefault(repr((shape, frames)), []).append(flavour)
        for flavours in alike.values():
            for model_type in ("lora", "full"):
                yield from (Case(name, (*flavours,), model_type, settings) for settings in (DEFAULTS, QUICKSTART))


# Planning --------------------------------------------------------------------------------------------------------


def planned(case: Case, folder: Path) -> dict[str, Any]:
    """The figures of a case: as it is, and on each card with what makes it fit."""
    config = case.config(folder)
    first = plan(config)
    return {**_figures(first), "cards": {str(gib): _on_card(config, gib, name) for gib, name in CARDS.items()}}


def smallest(folder: Path) -> dict[str, Any]:
    """LTX-2 with all that saves memory."""
    size = {"resolution": 0.39, "resolution_type": "area"}
    return _figures(plan(config_of("ltxvideo2", "dev", folder, size, 49, **SMALLEST)))


def _figures(found: Plan) -> dict[str, Any]:
    return {
        "clips": found.largest.label,
        "phases": {phase.name: round(phase.peak / GIB, 2) for phase in found.phases},
        "parts": {name: round(count / GIB, 2) for name, count in found.phase("training step").parts.items()},
        "ram": round(found.ram / GIB, 1),
        "disk": round(found.disk.download / GIB),
    }


def _on_card(config: tk.TrainConfig, gib: int, name: str) -> dict[str, Any]:
    try:
        found = plan(config, gib, gpu=name)
        changes = found.changes
    except ConfigError as error:
        return {"error": str(error)}
    last: Plan = changes[-1].plan if changes else found
    settings: dict[str, Any] = {}
    for change in changes:
        settings |= change.settings
    return {
        "fits": bool(last.fits),
        "settings": settings,
        "peak": round(last.peak / GIB, 1),
        "ram": round(last.ram / GIB),
        "seconds": str(last.seconds),
    }


# The document ----------------------------------------------------------------------------------------------------

HEAD = """# Memory: what fits which GPU

Planned, not measured: every figure is what `python -m tunerkit plan` says without a GPU or weights, by tracing the real
training step of the real model; `benchmarks/memory_tables.py` writes this page. Counted are tensors. CUDA itself takes
about 0.5 GiB more, which is taken off a card's memory here, and the allocator some percent: where a run fits with
hardly anything to spare, plan it for one GiB less.

**Defaults** are the library's (LoRA of rank {rank}, gradient checkpointing, bf16, batch of 1) with clips of the model's
own size and length. **Quickstart** is with the clips of the family's public quickstart, and what else it sets that
takes or saves memory: for LoRA of LTX-2 and Kandinsky `enable_group_offload` in blocks of one, with
`group_offload_use_stream`; for Sana, whose quickstart trains all weights, `optimizer` = `adamw_bf16` and `use_ema`.
Token routing, which is optional there, is left out. All have one validation prompt.

"Peak" is that of the largest phase. "To set" is what `tk.autofit(config, vram_gib)` sets and `plan.changes` explains:
what costs least time first, frames and resolution last. Seconds are estimates for the card named.
`python -m tunerkit plan CONFIG --vram 24` says all this for your own clips; where a GPU is there,
`tk.plan(config).verify()` compares the plan with a real step.

Cards, by GiB: {cards}.
"""


def document(results: Mapping[str, Any]) -> str:
    """docs/memory.md."""
    known = [(case, results[case.key]) for case in cases() if case.key in results]
    cards = ", ".join(f"{gib} {name}" for gib, name in CARDS.items())
    parts = [HEAD.format(rank=tk.TrainConfig().lora_rank, cards=cards), _overview(known)]
    if missing := ", ".join(case.key for case in cases() if case.key not in results):
        parts.append(f"Not planned yet: {missing}.\n")
    if LIMIT in results:
        parts.append(_limit(results[LIMIT]))
    heading = before = ""
    for case, figures in known:
        if case.family != heading:
            heading = case.family
            parts.append(f"## {families.get(heading).title}\n{_refused(heading)}")
        if case.flavours != before:
            before = case.flavours
            parts.append(f"### {', '.join(case.flavours)}\n")
        parts.append(_section(case, figures))
    return "\n".join(parts)


def _overview(known: Sequence[tuple[Case, Mapping[str, Any]]]) -> str:
    rows = ["| model | trained | settings | as it is, GiB | with changes, GiB |", "|---|---|---|---|---|"]
    for case, figures in known:
        fits = [int(gib) for gib, found in figures["cards"].items() if found.get("fits")]
        bare = [gib for gib in fits if not figures["cards"][str(gib)]["settings"]]
        names = case.flavours[0] + (f" and {len(case.flavours) - 1} more" if case.flavours[1:] else "")
        smallest = [f"from {min(one)}" if one else "more than 80" for one in (bare, fits)]
        if fits and _cut(figures["cards"][str(min(fits))]):
            whole = [gib for gib in fits if not _cut(figures["cards"][str(gib)])]
            smallest[1] += " with shorter or smaller clips" + (f", else from {min(whole)}" if whole else "")
        model = f"{families.get(case.family).title}, {names}"
        rows.append(f"| {model} | {_what(case)} | {case.settings} | {' | '.join(smallest)} |")
    return "## The smallest card that fits\n\n" + "\n".join(rows) + "\n"


def _cut(found: Mapping[str, Any]) -> bool:
    """Whether it fits only with less video."""
    return any(name.startswith("datasets.") for name in found["settings"])


def _limit(figures: Mapping[str, Any]) -> str:
    named = ", ".join(f"`{name}` = `{json.dumps(value)}`" for name, value in SMALLEST.items())
    parts = ", ".join(f"{name} {gib:g}" for name, gib in figures["parts"].items())
    return (
        f"## As little as can be\n\nLTX-2 19B, a LoRA on {figures['clips']}, with all that saves memory: {named}.\n\n"
        f"{_phases(figures)} The training step is made of, GiB: {parts}. What the step computes and what the adapter's "
        "optimizer remembers bound it: a smaller rank, shorter or smaller clips take less.\n"
    )


def _refused(name: str) -> str:
    refused = [flavour for flavour, facts in families.get(name).flavours.items() if facts.refused]
    return f"\nNot for training: {', '.join(refused)}.\n" if refused else ""


def _what(case: Case) -> str:
    return "LoRA" if case.model_type == "lora" else "all weights"


def _phases(figures: Mapping[str, Any]) -> str:
    peaks = ", ".join(f"{name} {gib:g}" for name, gib in figures["phases"].items())
    return f"Peaks, GiB: {peaks}. RAM {figures['ram']:g}, download {figures['disk']}."


def _section(case: Case, figures: Mapping[str, Any]) -> str:
    rows = [
        f"**{_what(case)}, {case.settings}: {figures['clips']}.** {_phases(figures)}\n",
        "| GiB | to set | peak | RAM | a step |",
        "|---|---|---|---|---|",
    ]
    for gib, found in figures["cards"].items():
        if "error" in found or not found["fits"]:
            least = "" if "error" in found else f", at least {found['peak']:g}"
            rows.append(f"| {gib} | does not fit{least} | | | |")
            continue
        words = "<br>".join(f"`{name}` = `{json.dumps(value)}`" for name, value in found["settings"].items())
        rows.append(f"| {gib} | {words or 'nothing'} | {found['peak']:g} | {found['ram']} | {found['seconds']} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="plan only cases whose name contains this")
    parser.add_argument("--again", action="store_true", help="plan also what was planned before")
    arguments = parser.parse_args()
    logging.getLogger("tunerkit").setLevel(logging.ERROR)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    work = {case.key: lambda folder, case=case: planned(case, folder) for case in cases()} | {LIMIT: smallest}
    results = {key: figures for key, figures in results.items() if key in work}
    with tempfile.TemporaryDirectory() as folder:
        for key, make in work.items():
            if arguments.only not in key or (key in results and not arguments.again):
                continue
            started = time.process_time()
            results[key] = make(Path(folder))
            write_json(RESULTS, results)
            DOCUMENT.write_text(document(results), encoding="utf-8")
            print(f"{key}: {time.process_time() - started:.0f} s of CPU", file=sys.stderr, flush=True)
    DOCUMENT.write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    main()
