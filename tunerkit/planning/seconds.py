"""How long a phase takes on a GPU, from what a trace of it counts.

A GPU works through arithmetic and through memory one kernel after the other, while Python hands out the kernels and,
beside both, the link brings what is prefetched: the longest of the three decides. What is waited for comes on top.

No GPU reaches the figures of its data sheet, so two times are given: at best, and typically. Seconds of published LoRA
steps in bfloat16, beside what is typical here for the work that was traced of them:

    Kandinsky 5 Lite, 480x480, 49 frames, batch 2, on an H100     2.3   2.1
    the same on an L40S                                           6.4   7.1
    LTX-2.3, 736x704, 49 frames, on an H100                       4.0   4.0
    Sana Video, 480x480, 41 frames, not checkpointed, on an H100  0.6   0.4
    LTX-2, 704x384, 17 frames, batch 2, on an A100                8     3.7   (precision not stated)

Steps of many small kernels wait for Python; how long depends on the processor and the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tunerkit.planning.gpus import Gpu


@dataclass(frozen=True)
class Work:
    """What a phase asks of a machine. Works can be added, and multiplied by a number.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention in bfloat16 or float16.
        flops_fp32: the same in float32.
        touched: bytes that all other kernels read and write in the GPU's memory; see `tunerkit.planning.traffic`.
        kernels: operations of the trace that compute or copy something, views left out.
        link: bytes copied over the link to the host while nothing else happens.
        link_beside: bytes copied over the link beside other work, prefetched.
        disk: bytes read from disk while nothing else happens.
    """

    flops: float = 0.0
    flops_fp32: float = 0.0
    touched: float = 0.0
    kernels: float = 0.0
    link: float = 0.0
    link_beside: float = 0.0
    disk: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, field.name) * times for field in fields(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Reach:
    """How much of what is possible is reached.

    Attributes:
        arithmetic, memory, link: fraction of the data sheet's peak, in (0, 1].
        kernel_s: seconds that Python and the libraries need for a kernel.
        disk_gb_per_s: 1e9 bytes a second, read from disk.
    """

    arithmetic: float
    memory: float
    link: float
    kernel_s: float
    disk_gb_per_s: float


BEST = Reach(arithmetic=0.7, memory=0.85, link=0.87, kernel_s=15e-6, disk_gb_per_s=3.0)
"""A large matrix product reaches 0.8 on an H100, attention less; 55 GB/s come over a link of 63."""
TYPICAL = Reach(arithmetic=0.5, memory=0.7, link=0.75, kernel_s=50e-6, disk_gb_per_s=1.0)
"""Eager steps of these models with an adapter cost 36 to 49 us for each kernel on a core of 2.8 GHz: measured with
models as deep as the real ones, and so narrow that arithmetic costs next to nothing."""


@dataclass(frozen=True)
class Seconds:
    """An estimate.

    Attributes:
        low: at best.
        typical: with what training loops usually reach; published steps took 0.9 to 2.2 times as long.
        bound_by: what takes most of the typical time: "arithmetic", "memory", "launches", "link" or "disk".
    """

    low: float
    typical: float
    bound_by: str

    def __str__(self) -> str:
        return f"about {rounded(self.typical)}, at best {rounded(self.low)}"


def estimate(work: Work, gpu: Gpu) -> Seconds:
    """How long `work` takes on `gpu`; copies are from pinned memory."""
    typical = _parts(work, gpu, TYPICAL)
    longest = max(typical, key=lambda name: typical[name])
    return Seconds(sum(_parts(work, gpu, BEST).values()), sum(typical.values()), longest)


def _parts(work: Work, gpu: Gpu, reach: Reach) -> dict[str, float]:
    """Seconds that follow one another; of what happens at the same time only the longest is there."""
    link = gpu.host_gb_per_s * 1e9 * reach.link
    on_gpu = {
        "arithmetic": (work.flops / gpu.tflops + work.flops_fp32 / gpu.fp32_tflops) / (1e12 * reach.arithmetic),
        "memory": work.touched / (gpu.bandwidth_gb_per_s * 1e9 * reach.memory),
    }
    beside = (on_gpu, {"launches": work.kernels * reach.kernel_s}, {"link": work.link_beside / link})
    parts = dict(max(beside, key=lambda parts: sum(parts.values())))
    parts["link"] = parts.get("link", 0.0) + work.link / link
    parts["disk"] = work.disk / (reach.disk_gb_per_s * 1e9)
    return parts


def assumptions(gpu: Gpu) -> list[str]:
    """What an estimate for `gpu` rests on, a sentence each: at best, and typically."""

    def range_of(name: str, unit: str, scale: float = 1.0) -> str:
        best, typical = (getattr(reach, name) * scale for reach in (BEST, TYPICAL))
        return f"{best:.3g} {unit} ({typical:.3g} typically)"

    kind = "bfloat16" if gpu.bf16 else "float16"
    said = [
        f"{gpu.name}: {kind} arithmetic at {range_of('arithmetic', 'TFLOP/s', gpu.tflops)} of {gpu.tflops:g}.",
        f"Its memory at {range_of('memory', 'GB/s', gpu.bandwidth_gb_per_s)} of {gpu.bandwidth_gb_per_s:g}.",
        f"Copies from pinned memory at {range_of('link', 'GB/s', gpu.host_gb_per_s)} of {gpu.host_gb_per_s:.3g}: "
        f"PCI Express {gpu.pcie[0]} with {gpu.pcie[1]} lanes.",
        f"Python and the libraries need {range_of('kernel_s', 'us', 1e6)} for a kernel; nothing is compiled.",
        f"Files are read at {range_of('disk_gb_per_s', 'GB/s')}.",
        "Published steps took 0.9 to 2.2 times the typical estimate.",
    ]
    if not gpu.bf16:
        said.append("It has no bfloat16 in hardware: with mixed_precision bf16 it takes several times as long.")
    return said


def rounded(seconds: float) -> str:
    """With two digits and the unit that fits: '0.83 s', '3.4 s', '45 s', '12 min', '5.2 h'."""
    for limit, unit, length in ((99.5, "s", 1.0), (99.5 * 60, "min", 60.0), (float("inf"), "h", 3600.0)):
        if seconds < limit:
            value = seconds / length
            return f"{float(f'{value:.2g}'):g} {unit}"
    raise ValueError(f"{seconds} is no time")
