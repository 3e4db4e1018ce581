"""What one training step of the real models needs, without their weights: the step is traced, nothing is computed.

A LoRA step at 768x512 with gradient checkpointing, of LTX-2 19B and 22B with sound and of Kandinsky 5.0 Lite and Pro,
through the same code as in a run. Printed are the bytes of the weights and the most that is alive at one time: a floor
for the memory of a GPU, on which attention without a fused kernel, the allocator's rounding and the CUDA context come
on top.

    python benchmarks/traced_memory.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from full_size import Traced, kandinsky5_step, ltx2_step  # pyright: ignore[reportMissingImports]

RESULTS = Path(__file__).parent / "results" / "traced_memory.json"
STEPS: dict[str, Callable[[], Traced]] = {
    **{f"LTX-2 {model}, LoRA, 768x512, {frames} frames": partial(ltx2_step, model, frames, fake=True)
       for model in ("19B", "22B") for frames in (49, 121)},
    **{f"Kandinsky 5.0 {model}, LoRA, 768x512, {frames} frames": partial(kandinsky5_step, model, frames)
       for model in ("Lite", "Pro") for frames in (61, 121)},
    "Kandinsky 5.0 Lite, LoRA, 768x512, 121 frames, from an image": partial(
        kandinsky5_step, "Lite", 121, from_image=True),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the figures")
    parser.add_argument("--only", default="", help="trace only steps whose name contains this; others' figures stay")
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for name, step in STEPS.items():
        if arguments.only not in name:
            continue
        started = time.perf_counter()
        traced = step()
        results[name] = {"weights GiB": traced.weights / 2**30, "peak GiB": traced.peak / 2**30}
        print(
            f"{name}: weights {traced.weights / 2**30:.1f} GiB, peak {traced.peak / 2**30:.1f} GiB "
            f"(traced in {time.perf_counter() - started:.0f} s)",
            flush=True,
        )
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
