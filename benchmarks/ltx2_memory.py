"""What one training step of LTX-2 at full size needs, without its weights: the step is traced, nothing is computed.

A LoRA step with gradient checkpointing of the 19B and the 22B model, 768x512 with sound, 49 and 121 frames, through the
same code as in a run. Printed are the bytes of the weights and the most that is alive at one time: a floor for the
memory of a GPU, on which attention without a fused kernel, the allocator's rounding and the CUDA context come on top.

    python benchmarks/ltx2_memory.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from full_size import LTX2_MODELS, ltx2_step  # pyright: ignore[reportMissingImports]

RESULTS = Path(__file__).parent / "results" / "ltx2_memory.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for model in LTX2_MODELS:
        for frames in (49, 121):
            started = time.perf_counter()
            traced = ltx2_step(model, frames, fake=True)
            name = f"LTX-2 {model}, LoRA, 768x512, {frames} frames"
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
