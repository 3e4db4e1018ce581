"""What the trainer costs per step: `Trainer.step()` against the barest PyTorch loop, in one process.

Both train the same LoRA on the same model with the same cached batch, alternating in short runs so that a busy machine
slows both. Printed is the median, over all pairs of neighbouring runs, of the ratio of their step times, at about 40 ms
and at about 200 ms a step.

    python benchmarks/step_overhead.py
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tunerkit as tk

RUN = 5
"""Steps of one kind in a row."""
# attention heads, layers, batch size (chosen for the step time on one CPU core), and the ratio to stay under
SIZES = {"about 40 ms": (4, 3, 1, 1.10), "about 200 ms": (8, 6, 2, 1.02)}


def make_project(folder: Path, heads: int, layers: int, batch_size: int) -> tk.TrainConfig:
    """A demo project whose transformer has the given size."""
    from diffusers import SanaVideoTransformer3DModel

    path = tk.demo.create(folder, family="sanavideo")
    for clip in (folder / "clips").iterdir():  # one bucket, so that every batch has the same shape
        if not clip.name.startswith("bunny-"):
            clip.unlink()
    stored = json.loads((folder / "model" / "transformer" / "config.json").read_text())
    settings: dict[str, Any] = {key: value for key, value in stored.items() if not key.startswith("_")}
    width = heads * settings["attention_head_dim"]
    settings |= {
        "num_attention_heads": heads,
        "num_cross_attention_heads": heads,
        "cross_attention_dim": width,
        "num_layers": layers,
    }
    torch.manual_seed(0)
    SanaVideoTransformer3DModel(**settings).save_pretrained(folder / "model" / "transformer")
    return tk.load_config(
        path,
        validation_disable=True,
        train_batch_size=batch_size,
        **{"datasets.0.repeats": 1},  # an even number of visits: no smaller last batch
        gradient_checkpointing=False,
        max_train_steps=10_000,
        checkpoint_step_interval=10_000,
        lora_rank=16,
    )


def bare_loop(trainer: tk.Trainer) -> Callable[[], float]:
    """The least a LoRA step can be: one fixed batch, no files, no checks, the same model class and adapter."""
    from diffusers import SanaVideoTransformer3DModel
    from peft import LoraConfig

    loaded, config = trainer.loaded, trainer.config
    model: Any = SanaVideoTransformer3DModel.from_pretrained(
        config.pretrained_model_name_or_path, subfolder="transformer"
    )
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, fused=True)
    batch = loaded.source.make(0).batch
    text, mask = batch.text["prompt_embeds"].float(), batch.text["prompt_attention_mask"]

    def step() -> float:
        noise = torch.randn_like(batch.latents)
        u = torch.sigmoid(torch.randn(len(noise)))
        sigma = 3 * u / (1 + 2 * u)
        s = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - s) * batch.latents + s * noise
        prediction = model(
            noisy,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=sigma * 1000,
            return_dict=False,
        )[0]
        loss = torch.nn.functional.mse_loss(prediction, noise - batch.latents)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        return loss.item()

    return step


def milliseconds(call: Callable[[], Any], count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1000)
    return times


def measure(folder: Path, heads: int, layers: int, batch_size: int, steps: int) -> dict[str, float]:
    trainer = tk.Trainer(make_project(folder, heads, layers, batch_size)).prepare()
    bare = bare_loop(trainer)
    calls: dict[str, Callable[[], Any]] = {"bare": bare, "tunerkit": trainer.step}
    for call in calls.values():
        milliseconds(call, 5)
    rounds: list[dict[str, float]] = []
    for number in range(max(2, steps // RUN)):
        order = list(calls) if number % 2 == 0 else list(calls)[::-1]
        rounds.append({name: statistics.median(milliseconds(calls[name], RUN)) for name in order})
    trainer.close()
    medians = {name: statistics.median(pair[name] for pair in rounds) for name in calls}
    return {**medians, "ratio": statistics.median(pair["tunerkit"] / pair["bare"] for pair in rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps of each kind and size")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cpu = platform.processor() or platform.machine()
    results: dict[str, Any] = {"device": f"CPU ({cpu}), 1 thread, torch {torch.__version__}"}
    for name, (heads, layers, batch_size, limit) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder) / "project", heads, layers, batch_size, arguments.steps)
        results[name] = result
        verdict = "ok" if result["ratio"] <= limit else "over the limit"
        print(
            f"{name}: bare {result['bare']:.1f} ms, tunerkit {result['tunerkit']:.1f} ms, "
            f"ratio {result['ratio']:.3f} (limit {limit}: {verdict})"
        )
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
