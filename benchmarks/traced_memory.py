"""What one training step of the real models needs, without their weights: planned from a few blocks, and all traced.

A LoRA step with gradient checkpointing of every family, through the same code as in a run. Printed are the peak that
`tk.plan` finds from two and three blocks, that of a trace of all blocks, by how much they differ, and the time that
each takes.

    python benchmarks/traced_memory.py
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tunerkit as tk
from tunerkit.planning.architectures import configuration, depth_of, transformer_on_meta
from tunerkit.planning.batches import Stand
from tunerkit.planning.largest import Largest
from tunerkit.planning.step import trace_step
from tunerkit.planning.training import training_step

RESULTS = Path(__file__).parent / "results" / "traced_memory.json"
STEPS: dict[str, tuple[str, str, Largest, dict[str, Any]]] = {
    "Sana Video 2B, LoRA, 832x480, 81 frames": ("sanavideo", "2b-480p", Largest(832, 480, 81, 16.0, 1), {}),
    "Sana Video 2B, full, 832x480, 81 frames": (
        "sanavideo", "2b-480p", Largest(832, 480, 81, 16.0, 1), {"model_type": "full"}),
    **{
        f"LTX-2 {size}, LoRA, 768x512, {frames} frames": (
            "ltxvideo2", flavour, Largest(768, 512, frames, 24.0, 1, sound=frames / 24), {})
        for flavour, size in (("dev", "19B"), ("2.3-dev", "22B")) for frames in (49, 121)
    },
    "LTX-2 19B, LoRA, 768x512, 49 frames, 24 of 48 blocks swapped": (
        "ltxvideo2", "dev", Largest(768, 512, 49, 24.0, 1, sound=49 / 24), {"musubi_blocks_to_swap": 24}),
    "Kandinsky 5.0 Lite, LoRA, 768x512, 121 frames": (
        "kandinsky5-video", "t2v-lite-sft-5s", Largest(768, 512, 121, 24.0, 1), {}),
    "Kandinsky 5.0 Lite, LoRA, 768x512, 121 frames, from an image": (
        "kandinsky5-video", "i2v-lite-5s", Largest(768, 512, 121, 24.0, 1, first_frame=True), {}),
    "Kandinsky 5.0 Pro HD, LoRA, 1280x768, 121 frames": (
        "kandinsky5-video", "t2v-pro-sft-5s-hd", Largest(1280, 768, 121, 24.0, 1), {}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the figures")
    parser.add_argument("--only", default="", help="trace only steps whose name contains this; others' figures stay")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    results = {name: results[name] for name in STEPS if name in results}
    for name, step in STEPS.items():
        if arguments.only not in name:
            continue
        results[name] = figures(*step)
        shown = "  ".join(f"{what} {value:.4g}" for what, value in results[name].items())
        print(f"{name}:  {shown}", flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


def figures(name: str, flavour: str, largest: Largest, settings: dict[str, Any]) -> dict[str, float]:
    """Weights and peaks in GiB, and seconds of this process."""
    family = tk.family(name)
    dataset = {"id": "clips", "instance_data_dir": ".", **({} if largest.sound is None else {"audio": {}})}
    config = tk.TrainConfig(
        model_family=name,
        model_flavour=flavour,
        lora_rank=32,
        mixed_precision="bf16",
        datasets=[dataset],
        **settings,
    )

    def described(component: Any) -> Any:
        return configuration(config, family, component)

    made, stand = described("transformer"), Stand(config, family, described)
    planned, seconds = timed(lambda: training_step(config, family, made, stand, largest))
    whole, all_seconds = timed(
        lambda: trace_step(
            config,
            family,
            transformer_on_meta(made, config, family),
            lambda: stand.drawn(largest),
            alike=depth_of(made),
        )[0]
    )
    peak = max(one.peak for one in whole)
    return {
        "weights GiB": whole[-1].parts["weights"] / 2**30,
        "peak GiB": peak / 2**30,
        "planned GiB": planned.largest.peak / 2**30,
        "difference %": 100 * (planned.largest.peak / peak - 1),
        "TFLOP": (planned.work.flops + planned.work.flops_fp32) / 1e12,
        "seconds planned": seconds,
        "seconds of the whole trace": all_seconds,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return work(), time.process_time() - started


if __name__ == "__main__":
    main()
