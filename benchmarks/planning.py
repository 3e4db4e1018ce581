"""What starting a run over a large, already cached dataset costs: seconds and memory before the first step.

Measured are the inspection of the dataset (every file listed and its size and time compared with what is remembered),
the lookup of every sample in the cache, and the plan of batches. Each size runs in a process of its own, so that its
peak memory is its own. The dataset is hard links to one clip; what probing and encoding would have left behind is
written beforehand, by the same functions, so that neither is part of the figures.

    python benchmarks/planning.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = (1_000, 10_000, 100_000)
PER_FOLDER, PER_SEED = 1_000, 10_000
"""Files in a folder; links to one file, of which file systems allow a limited number."""
LIMIT_SECONDS, LIMIT_BYTES = 5.0, 1024**3


def prepare(folder: Path, count: int) -> Path:
    """A project with `count` remembered and cached clips; returns its config file."""
    import torch

    import tunerkit as tk
    from tunerkit import families
    from tunerkit.cache.entries import Cache
    from tunerkit.data.discover import discover
    from tunerkit.data.inspect import inspect_dataset
    from tunerkit.data.media_memory import MediaMemory
    from tunerkit.data.probe import read_media

    path = tk.demo.create(folder, family="sanavideo")
    clips = folder / "clips"
    original = next(clip for clip in sorted(clips.iterdir()) if clip.suffix == ".mp4")
    data, settled = original.read_bytes(), time.time_ns() - 10**11
    for clip in clips.iterdir():
        clip.unlink()
    seed = folder / "seed.mp4"
    for number in range(count):
        part = clips / f"{number // PER_FOLDER:03}"
        part.mkdir(exist_ok=True)
        if number % PER_SEED == 0:
            seed.unlink(missing_ok=True)
            seed.write_bytes(data)
            os.utime(seed, ns=(settled, settled))
        os.link(seed, part / f"{number:06}.mp4")
        caption = part / f"{number:06}.txt"
        caption.write_text(f"Clip {number}: a person walks along a street in the evening, seen from above.")
        os.utime(caption, ns=(settled, settled))

    config = tk.load_config(path)
    dataset = config.media_datasets[0]
    memory = MediaMemory.of(dataset, clips, config)
    media = read_media(seed)
    for found in discover(clips, dataset.id).files:
        memory.remember(found.name, found.stamp, media)
    memory.save()
    cache = Cache(config, families.get(str(config.model_family)))
    # One content, so one entry holds the latents of all; every sample is looked up by its own name all the same.
    cache.put_latents(inspect_dataset(config).samples[0], torch.zeros(4, 2, 4, 4))
    return path


def measure(path: Path) -> dict[str, float]:
    """Plan a prepared project once, in this process."""
    import tunerkit as tk
    from tunerkit import families
    from tunerkit.cache.entries import Cache
    from tunerkit.cache.keys import EntryNamer
    from tunerkit.data.inspect import inspect_dataset
    from tunerkit.data.sampler import BatchPlan

    config = tk.load_config(path)
    family = families.get(str(config.model_family))
    EntryNamer(config, family)  # loads the model's libraries: no part of planning, though its memory counts

    marks = [time.perf_counter()]
    samples = inspect_dataset(config).require_samples()
    marks.append(time.perf_counter())
    cache = Cache(config, family)
    cached = sum(map(cache.has_latents, samples))
    marks.append(time.perf_counter())
    plan = BatchPlan(samples, 2, config.seed)
    plan.draw(0)
    marks.append(time.perf_counter())
    if cached != len(samples):
        raise SystemExit(f"{len(samples) - cached} of {len(samples)} samples were not found in the cache")
    inspected, looked_up, planned = (later - earlier for earlier, later in zip(marks, marks[1:], strict=False))
    return {
        "samples": len(samples),
        "inspect": inspected,
        "cache lookup": looked_up,
        "batch plan": planned,
        "seconds": marks[-1] - marks[0],
        # In KiB on Linux, in bytes on macOS.
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def in_own_process(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of samples")
    default = Path(__file__).parent / "results" / "planning.json"
    parser.add_argument("--output", type=Path, default=default, help="write the figures to this JSON file")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    results: dict[str, Any] = {"device": f"CPU ({platform.processor() or platform.machine()}), {os.cpu_count()} cores"}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = prepare(Path(folder) / "project", size)
            runs = [in_own_process(path) for _ in range(3)]
        result = results[str(size)] = min(runs, key=lambda run: run["seconds"])
        within = result["seconds"] <= LIMIT_SECONDS and result["peak bytes"] <= LIMIT_BYTES
        print(
            f"{size:>7,} samples: {result['seconds']:.2f} s ({result['seconds'] / size * 1e6:.0f} us each: inspect "
            f"{result['inspect']:.2f}, cache lookup {result['cache lookup']:.2f}, batch plan "
            f"{result['batch plan']:.2f}), peak {result['peak bytes'] / 2**20:.0f} MiB"
            f"{'' if within else ', over the limit of 5 s and 1 GiB'}",
            flush=True,
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
