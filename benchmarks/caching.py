"""How close filling the cache comes to what the VAE alone can do, and what the form of a cache file costs.

In one process, on clips made for it, in rounds, so that a busy machine slows all the same:

- `vae`: the VAE alone, on tensors that are ready in memory
- `cache`: `build_cache` as it is used: decode, resize, encode and write, the decoding in threads
- `in turn`: decode the whole clip, resize it with torch, encode it, write it; then the next clip

torch uses one thread, which leaves the other cores to the decoder, as a GPU does. The clips and the VAE are chosen so
that encoding is the larger part, as it is with the real model. Printed are the medians over the rounds of the ratios of
samples per second: `cache` to `vae` (aim: 0.9) and `cache` to `in turn`.

    python benchmarks/caching.py
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import tunerkit as tk
from tunerkit.cache.store import Store
from tunerkit.data.decode import decode

SOURCE, FRAMES_IN_FILE, RATE = (1280, 720), 96, 16
CLIPS, FRAMES, EDGE = 6, 33, 128
"""Clips, frames used of each, and shorter edge that the model sees."""
VAE_WIDTH = 4
"""Channels of the VAE's outermost layers; the real one has 96."""
AIM = 0.9
RESULTS = Path(__file__).parent / "results" / "caching.json"


@dataclass(frozen=True)
class Setup:
    """What all ways work on: the project, its samples, the loaded VAE and the ready pixels `[1, 3, T, H, W]`."""

    config: tk.TrainConfig
    samples: list[Any]
    vae: Any
    pixels: list[torch.Tensor]


def make_project(folder: Path) -> tk.TrainConfig:
    """A demo project with its own clips, and a VAE of the given width."""
    from diffusers import AutoencoderKLWan

    path = tk.demo.create(folder, family="sanavideo", clips="generated")
    shutil.rmtree(folder / "clips")
    (folder / "clips").mkdir()
    for number in range(CLIPS):
        write_clip(folder / "clips" / f"{number}.mp4", number)
        (folder / "clips" / f"{number}.txt").write_text("moving shapes")
    stored = json.loads((folder / "model" / "vae" / "config.json").read_text())
    settings = {key: value for key, value in stored.items() if not key.startswith("_")}
    torch.manual_seed(0)
    AutoencoderKLWan(**{**settings, "base_dim": VAE_WIDTH}).save_pretrained(folder / "model" / "vae")
    video = {"num_frames": FRAMES, "min_frames": FRAMES}
    return tk.resolve(
        tk.load_config(
            path,
            validation_disable=True,
            **{"datasets.0.resolution": EDGE, "datasets.0.video": video},
        )
    )


def write_clip(path: Path, seed: int) -> None:
    """Smooth noise that drifts, in H.264: about as hard to decode as filmed material."""
    width, height = SOURCE
    source = np.random.default_rng(seed)
    coarse = torch.from_numpy(source.random((1, 3, height // 8, 2 * width // 8), dtype=np.float32))
    canvas = torch.nn.functional.interpolate(coarse, size=(height, 2 * width), mode="bilinear")[0]
    picture = (canvas.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "23"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(FRAMES_IN_FILE):
            view = picture[:, 4 * number : 4 * number + width]
            grain = source.integers(0, 12, view.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view // 2 + grain), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def set_up(folder: Path) -> Setup:
    config = make_project(folder)
    tk.build_cache(config, progress=False)  # captions, and everything is imported
    samples = list(tk.inspect_dataset(config).samples)
    vae = tk.family("sanavideo").load_vae(config, torch.device("cpu"))
    pixels = [torch.from_numpy(decode(sample)).permute(3, 0, 1, 2)[None] / 127.5 - 1 for sample in samples]
    return Setup(config, samples, vae, pixels)


def vae_alone(setup: Setup) -> float:
    family = tk.family("sanavideo")
    started = time.perf_counter()
    for pixels in setup.pixels:
        family.encode_latents(setup.vae, pixels)
    return len(setup.pixels) / (time.perf_counter() - started)


def through_the_cache(setup: Setup) -> float:
    """`build_cache` on an empty folder; loading the VAE and looking at the folder are no part of the samples' time."""
    folder = Path(setup.config.vae_cache_dir(setup.config.media_datasets[0]))
    shutil.rmtree(folder, ignore_errors=True)
    family_class: Any = type(tk.family("sanavideo"))
    load, started = family_class.load_vae, 0.0

    def loaded(*arguments: Any) -> Any:
        nonlocal started
        vae = load(*arguments)
        started = time.perf_counter()
        return vae

    report = tk.inspect_dataset(setup.config)
    before = time.perf_counter()
    done: list[float] = []
    family_class.load_vae = loaded
    try:
        result = tk.build_cache(setup.config, report=report, progress=lambda *_: done.append(time.perf_counter()))
    finally:
        family_class.load_vae = load
    assert result.latents_encoded == len(setup.samples)
    assert before < started
    return len(setup.samples) / (done[-1] - started)


def in_turn(setup: Setup) -> float:
    """One clip after the other, each decoded to its end."""
    family = tk.family("sanavideo")
    store = Store(Path(setup.config.cache_path) / "in-turn")
    started = time.perf_counter()
    for number, sample in enumerate(setup.samples):
        with av.open(str(sample.file)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        clip = torch.from_numpy(frames[:FRAMES]).permute(0, 3, 1, 2).float() / 127.5 - 1
        width, height = sample.resized
        clip = torch.nn.functional.interpolate(clip, size=(height, width), mode="bilinear", antialias=True)
        (x, y), (width, height) = sample.crop, sample.size
        pixels = clip[:, :, y : y + height, x : x + width].permute(1, 0, 2, 3)[None]
        store.put(f"{number:064x}", {"latents": family.encode_latents(setup.vae, pixels)[0]}, {})
    return len(setup.samples) / (time.perf_counter() - started)


def decode_rate(setup: Setup) -> float:
    started = time.perf_counter()
    for sample in setup.samples:
        decode(sample)
    return len(setup.samples) / (time.perf_counter() - started)


def filling(rounds: int) -> dict[str, Any]:
    ways: dict[str, Callable[[Setup], float]] = {"vae": vae_alone, "cache": through_the_cache, "in turn": in_turn}
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(Path(folder) / "project")
        measured: list[dict[str, float]] = []
        for number in range(rounds + 1):
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            measured.append({name: ways[name](setup) for name in order})
        width, height = setup.samples[0].size
        decoding = decode_rate(setup)
    measured = measured[1:]  # the first warms up
    return {
        "clips": f"{CLIPS} clips of {FRAMES_IN_FILE} frames {SOURCE[0]}x{SOURCE[1]} H.264, used as {FRAMES} frames "
        f"{width}x{height}; Wan VAE of base_dim {VAE_WIDTH}, float32, 1 thread",
        "samples_per_second": {
            **{name: statistics.median(one[name] for one in measured) for name in ways},
            "decoding alone, 1 caller": decoding,
        },
        "cache_to_vae": statistics.median(one["cache"] / one["vae"] for one in measured),
        "cache_to_in_turn": statistics.median(one["cache"] / one["in turn"] for one in measured),
    }


def store_speed(files: int = 40) -> dict[str, dict[str, float]]:
    """MB/s of latents per form of the file, and its size relative to the tensor, page cache warm."""
    source = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 16, 11, 30, 52, generator=source)
    smooth = torch.nn.functional.interpolate(coarse, size=(21, 60, 104), mode="trilinear")[0]
    # As large as those of 81 frames of 832x480; like them smooth with grain, so that the last digits are random.
    latents = smooth + 0.1 * torch.randn(smooth.shape, generator=source)
    megabytes = latents.numel() * latents.element_size() * files / 1e6
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = (Store(Path(folder) / kind, compress=kind == "zstd") for kind in ("plain", "zstd"))
        gzipped = Path(folder) / "gzip"
        gzipped.mkdir()

        def write_gzip(name: str) -> None:
            buffer = io.BytesIO()
            torch.save(latents, buffer)
            (gzipped / name).write_bytes(gzip.compress(buffer.getvalue(), 6))

        def read_gzip(name: str) -> None:
            torch.load(io.BytesIO(gzip.decompress((gzipped / name).read_bytes())), weights_only=True)

        forms: dict[str, tuple[Callable[[str], Any], Callable[[str], Any]]] = {
            "safetensors": (lambda name: plain.put(name, {"latents": latents}, {}), plain.get),
            "safetensors + zstd": (lambda name: packed.put(name, {"latents": latents}, {}), packed.get),
            "torch.save + gzip": (write_gzip, read_gzip),
        }
        for form, (write, read) in forms.items():
            count = files if form != "torch.save + gzip" else max(2, files // 10)  # it takes a second for each
            names = [f"{number:064x}" for number in range(count)]
            write_seconds, read_seconds = (_seconds(call, names) for call in (write, read))
            place = {"safetensors": plain.folder, "safetensors + zstd": packed.folder}.get(form, gzipped)
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            share = megabytes * count / files
            results[form] = {
                "write_mb_per_second": share / write_seconds,
                "read_mb_per_second": share / read_seconds,
                "size": size / 1e6 / share,
            }
    return results


def _seconds(call: Callable[[str], Any], names: list[str]) -> float:
    started = time.perf_counter()
    for name in names:
        call(name)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each way fills the cache")
    parser.add_argument("--output", type=Path, default=RESULTS, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cpu = platform.processor() or platform.machine()
    results: dict[str, Any] = {"device": f"CPU ({cpu}), torch {torch.__version__}", **filling(arguments.rounds)}
    print(results["clips"])
    for name, rate in results["samples_per_second"].items():
        print(f"  {name}: {rate:.2f} samples/s")
    verdict = "ok" if results["cache_to_vae"] >= AIM else "under the aim"
    print(f"filling the cache against the VAE alone: {results['cache_to_vae']:.3f} (aim {AIM}: {verdict})")
    print(f"filling the cache against clip after clip: {results['cache_to_in_turn']:.2f} times as fast")
    results["store"] = store_speed()
    for form, figures in results["store"].items():
        print(f"  {form}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
