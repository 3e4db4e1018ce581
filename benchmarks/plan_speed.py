"""How long a plan takes: the first one of a model, a change of one setting, and one that was made before.

Seconds of this process's CPU, without the import of the libraries, for a LoRA of each family at the model's own size.

    python benchmarks/plan_speed.py
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory_tables import DEFAULTS, Case, cases

from tunerkit.files import write_json
from tunerkit.planning.planner import plan

RESULTS = Path(__file__).parent / "results" / "plan_speed.json"
KNOBS: tuple[dict[str, Any], ...] = (
    {"lora_rank": 24},
    {"train_batch_size": 2},
    {"base_model_precision": "int8"},
    {"musubi_blocks_to_swap": 4},
    {"musubi_blocks_to_swap": 8},
    {"vae_enable_tiling": True},
    {"validation_disable": True},
)
GOAL = 2.0
"""Seconds that a change may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the figures")
    parser.add_argument("--only", default="", help="measure only runs whose name contains this")
    arguments = parser.parse_args()
    logging.getLogger("tunerkit").setLevel(logging.ERROR)
    import diffusers
    import peft
    import transformers

    results: dict[str, Any] = {
        "libraries": {one.__name__: one.__version__ for one in (diffusers, peft, transformers)},
        "goal for a change": GOAL,
    }
    firsts: dict[str, Case] = {}
    for case in cases():
        if (case.model_type, case.settings) == ("lora", DEFAULTS):
            firsts.setdefault(case.family, case)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNERKIT_CACHE"] = str(Path(folder) / "cache")
        for name, case in firsts.items():
            if arguments.only in name:
                config = case.config(Path(folder))
                results[case.key] = times(config)
                print(case.key, results[case.key], flush=True)
    write_json(arguments.output, results)


def times(config: Any) -> dict[str, float]:
    """Seconds of the first plan, of each change of it, and of the first one asked again."""
    found = {"first": timed(lambda: plan(config))}
    for knob in KNOBS:
        changed = config.changed(**knob)
        found[", ".join(f"{name} = {value}" for name, value in knob.items())] = timed(lambda one=changed: plan(one))
    return {**found, "remembered": timed(lambda: plan(config))}


def timed(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return round(time.process_time() - started, 2)


if __name__ == "__main__":
    main()
