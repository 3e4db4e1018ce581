"""What each training method costs: the step with it against the plain step.

At full size, a step of a run with the published model is traced on the meta device: counted are floating-point
operations (a multiply-add is two) and the most bytes that a GPU would hold at one time. On one CPU core, real steps of
a smaller model of the same class are timed, the plain step and the others in turns: about as many tokens of picture,
text and sound for its width as at full size, and fewer blocks. Given is the median of the ratios of neighbouring steps,
in CPU seconds, which other processes on the machine lengthen little.

    python benchmarks/methods.py
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import tunerkit as tk
from tunerkit.families.published import build
from tunerkit.planning.batches import Largest, Stand
from tunerkit.planning.training import training_step
from tunerkit.training.batches import Drawn
from tunerkit.training.engine import Engine

CPU = torch.device("cpu")
PLAIN = "plain"


def tread(ratio: float) -> dict[str, Any]:
    """Settings with the route of the guides: all blocks but the first two and the last one."""
    route = {"selection_ratio": ratio, "start_layer_idx": 2, "end_layer_idx": -2}
    return {"tread_config": {"routes": [route]}}


def rollout(timesteps: int, *, reflexflow: bool) -> dict[str, Any]:
    """Settings by which every clip is rolled out, over as many timesteps at most."""
    return {
        "scheduled_sampling_max_step_offset": timesteps,
        "scheduled_sampling_probability": 1.0,
        "scheduled_sampling_reflexflow": reflexflow,
    }


METHODS: dict[str, Mapping[str, Any]] = {
    PLAIN: {},
    "TREAD, a quarter skips blocks 2 to -2": tread(0.25),
    "TREAD, half skips blocks 2 to -2": tread(0.5),
    "CREPA at block 8, features cached": {"crepa_enabled": True, "crepa_block_index": 8},
    "rollout of every clip by up to 25 timesteps": rollout(25, reflexflow=False),
    "the same with ReflexFlow": rollout(25, reflexflow=True),
}
"""Name -> settings that turn it on."""


@dataclass(frozen=True)
class Case:
    """A model and a batch; `smaller` is what its configuration has less of on the CPU, where texts have `cpu_text`
    tokens."""

    family: str
    flavour: str
    batch: Largest
    cpu_batch: Largest
    cpu_text: int
    smaller: Mapping[str, Any]


CASES = {
    "LTX-2, 48 blocks": Case(
        "ltxvideo2",
        "dev",
        Largest(768, 512, 121, 24.0, 1, sound=121 / 24),
        Largest(320, 192, 57, 24.0, 1, sound=0.5),
        80,
        {
            "num_layers": 12, "num_attention_heads": 5, "attention_head_dim": 64, "cross_attention_dim": 320,
            "caption_channels": 320, "audio_num_attention_heads": 5, "audio_attention_head_dim": 32,
            "audio_cross_attention_dim": 160,
        },
    ),
    "Kandinsky 5 Lite, 32 blocks": Case(
        "kandinsky5-video",
        "t2v-lite-sft-5s",
        Largest(768, 512, 121, 24.0, 1),
        Largest(192, 128, 25, 24.0, 1),
        40,
        {"num_visual_blocks": 12, "model_dim": 320, "ff_dim": 1280, "time_dim": 128, "in_text_dim": 320},
    ),
}  # fmt: skip


def settings_of(case: Case, *, small: bool) -> Callable[[Any], Mapping[str, Any]]:
    """The configuration of each component by its name."""
    family = tk.family(case.family)

    def settings(component: Any) -> Mapping[str, Any]:
        published = family.published_config(case.flavour, component)
        return {**published, **case.smaller} if small and component == "transformer" else published

    return settings


def config_of(case: Case, method: Mapping[str, Any], precision: str) -> tk.TrainConfig:
    dataset = {"id": "clips", "instance_data_dir": ".", **({} if case.batch.sound is None else {"audio": {}})}
    return tk.TrainConfig(
        model_family=case.family,
        model_flavour=case.flavour,
        mixed_precision=precision,
        lora_rank=16,
        datasets=[dataset],
        **method,
    )


def full_size(case: Case, method: Mapping[str, Any]) -> dict[str, float]:
    """Floating-point operations and most bytes on the GPU of a step at full size, with gradient checkpointing."""
    config, family, settings = config_of(case, method, "bf16"), tk.family(case.family), settings_of(case, small=False)
    stand = Stand(config, family, settings)
    step = training_step(config, family, settings("transformer"), stand, case.batch)
    return {"flops": step.work.flops + step.work.flops_fp32, "peak bytes": step.largest.peak}


def small_step(case: Case, method: Mapping[str, Any]) -> Callable[[], float]:
    """A real step of the smaller model on the CPU; calling it gives the CPU seconds that it took."""
    config, family, settings = config_of(case, method, "no"), tk.family(case.family), settings_of(case, small=True)
    torch.manual_seed(0)
    engine = Engine(config, family, build(settings("transformer")), CPU)
    drawn = _filled(Stand(config, family, settings).drawn(case.cpu_batch), case.cpu_text)
    done = 0

    def step() -> float:
        nonlocal done
        started = time.process_time()
        engine.step([lambda: drawn], done, 1e-4)
        done += 1
        return time.process_time() - started

    return step


def _filled(drawn: Drawn, tokens: int) -> Drawn:
    """A stand-in batch with numbers in its empty tensors, and texts of `tokens` tokens."""
    source = torch.Generator().manual_seed(0)
    text = {name: one[:, :tokens] if one.ndim == 3 else one for name, one in drawn.batch.text.items()}
    batch, audio = replace(drawn.batch, text=text), drawn.batch.audio
    tensors = [batch.latents, drawn.noise, *batch.text.values()]
    if audio is not None and drawn.audio_noise is not None:
        tensors += [audio.latents, drawn.audio_noise]
    if drawn.features is not None:
        tensors.append(drawn.features)
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=source))
    drawn.sigma.fill_(0.5)
    return replace(drawn, batch=batch)


def seconds(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a step with each method, and their ratio to the plain step's."""
    steps = {name: small_step(case, method) for name, method in METHODS.items()}
    for step in steps.values():
        step()
    taken = [{name: step() for name, step in steps.items()} for _ in range(rounds)]
    return {
        name: {
            "seconds": statistics.median(one[name] for one in taken),
            "ratio": statistics.median(one[name] / one[PLAIN] for one in taken),
        }
        for name in steps
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each kind on the CPU")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cpu = platform.processor() or platform.machine()
    results: dict[str, Any] = {"device": f"CPU ({cpu}), 1 thread, torch {torch.__version__}"}
    for title, case in CASES.items():
        counted = {name: full_size(case, method) for name, method in METHODS.items()}
        measured = seconds(case, arguments.rounds)
        print(f"{title}: {case.batch.label}; on the CPU {case.smaller}, {case.cpu_batch.label}")
        results[title] = {"batch": case.batch.label, "batch on the CPU": case.cpu_batch.label, "methods": {}}
        for name in METHODS:
            share = counted[name]["flops"] / counted[PLAIN]["flops"]
            print(
                f"  {name}: {counted[name]['flops'] / 1e12:.1f} TFLOP ({share:.3f} of the plain step), "
                f"{counted[name]['peak bytes'] / 2**30:.2f} GiB; on the CPU {measured[name]['seconds']:.2f} s "
                f"({measured[name]['ratio']:.3f})"
            )
            results[title]["methods"][name] = {**counted[name], "flops ratio": share, **measured[name]}
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
