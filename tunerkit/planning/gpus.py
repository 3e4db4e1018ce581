"""The GPUs that videos are fine-tuned on: what the vendor's data sheets say of them, found by name.

Sources: NVIDIA's data sheets and architecture papers (Volta to Blackwell) and AMD's. Rates are those of dense matrices
with sums in float32, as PyTorch computes; sheets often print twice that (with sparsity) or, for GeForce cards, four
times (with sums in float16 as well). Memory is what the driver reports. Some cards were also sold with less memory
under the same name: where a card is present, ask it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunerkit.errors import ConfigError, Problem

_LANE_GB_PER_S = {3: 0.985, 4: 1.969, 5: 3.938}
"""PCI Express: GB/s of one lane in one direction, after the line code, by generation."""


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    Attributes:
        name: as people call it, with its memory where there are several.
        pattern: regular expression that matches the whole of `_bare(name)` for its names.
        memory_gib: memory that the driver reports, GiB; error correction has had its share.
        tflops: peak rate of bfloat16 matrix products, or of float16 ones where there is no bfloat16, in 1e12
            floating-point operations a second.
        bandwidth_gb_per_s: peak of its memory, 1e9 bytes a second.
        pcie: generation and lanes of its link to the host.
        bf16: whether bfloat16 has hardware of its own.
        fp8: whether matrix products in 8-bit floats have hardware of their own.
    """

    name: str
    pattern: str
    memory_gib: float
    tflops: float
    bandwidth_gb_per_s: float
    pcie: tuple[int, int]
    bf16: bool = True
    fp8: bool = True

    @property
    def fp32_tflops(self) -> float:
        """Peak rate of float32 convolutions, which PyTorch lets run in TF32 where there is TF32."""
        return self.tflops / (2 if self.bf16 else 8)

    @property
    def host_gb_per_s(self) -> float:
        """Peak of the link to the host in one direction, 1e9 bytes a second."""
        generation, lanes = self.pcie
        return _LANE_GB_PER_S[generation] * lanes


def _no_fp8(name: str, pattern: str, gib: float, tflops: float, bandwidth: float) -> Gpu:
    """Ampere and RDNA 3."""
    return Gpu(name, pattern, gib, tflops, bandwidth, (4, 16), fp8=False)


def _no_bf16(name: str, pattern: str, gib: float, tflops: float, bandwidth: float) -> Gpu:
    """Turing and Volta."""
    return Gpu(name, pattern, gib, tflops, bandwidth, (3, 16), bf16=False, fp8=False)


GPUS: tuple[Gpu, ...] = (
    _no_bf16("T4", r"t4", 15.0, 65, 320),
    _no_bf16("V100 16GB", r"v100.*16gb?", 16.0, 125, 900),
    _no_bf16("V100 32GB", r"v100.*32gb?", 32.0, 125, 900),
    _no_fp8("RTX 3060 12GB", r"(rtx)?3060(12gb?)?", 12.0, 25.5, 360),
    _no_fp8("RTX 3080 10GB", r"(rtx)?3080(10gb?)?", 10.0, 59.5, 760),
    _no_fp8("RTX 3090", r"(rtx)?3090", 24.0, 71, 936),
    _no_fp8("RTX 3090 Ti", r"(rtx)?3090ti", 24.0, 80, 1008),
    _no_fp8("RTX A4000", r"(rtx)?a4000", 16.0, 76.7, 448),
    _no_fp8("RTX A5000", r"(rtx)?a5000", 24.0, 111.1, 768),
    _no_fp8("RTX A6000", r"(rtx)?a6000", 48.0, 154.8, 768),
    _no_fp8("A10", r"a10", 22.5, 125, 600),
    _no_fp8("A10G", r"a10g", 22.5, 70, 600),
    _no_fp8("A30", r"a30", 24.0, 165, 933),
    _no_fp8("A40", r"a40", 45.0, 149.7, 696),
    _no_fp8("A100 40GB", r"a100(sxm4?|pcie)?40gb?", 40.0, 312, 1555),
    _no_fp8("A100 80GB", r"a100(sxm4?|pcie)?80gb?(pcie)?", 80.0, 312, 2039),
    Gpu("L4", r"l4", 22.5, 121, 300, (4, 16)),
    Gpu("L40", r"l40", 45.0, 181, 864, (4, 16)),
    Gpu("L40S", r"l40s", 45.0, 362, 864, (4, 16)),
    Gpu("RTX 4060 Ti 16GB", r"(rtx)?4060ti(16gb?)?", 16.0, 44.1, 288, (4, 8)),
    Gpu("RTX 4070", r"(rtx)?4070", 12.0, 58.3, 504, (4, 16)),
    Gpu("RTX 4070 Ti Super", r"(rtx)?4070tisuper", 16.0, 88.2, 672, (4, 16)),
    Gpu("RTX 4080", r"(rtx)?4080", 16.0, 97.5, 717, (4, 16)),
    Gpu("RTX 4080 Super", r"(rtx)?4080super", 16.0, 104.4, 736, (4, 16)),
    Gpu("RTX 4090", r"(rtx)?4090", 24.0, 165.2, 1008, (4, 16)),
    Gpu("RTX 4000 Ada", r"(rtx)?4000ada(generation)?", 20.0, 106.9, 360, (4, 16)),
    Gpu("RTX 5000 Ada", r"(rtx)?5000ada(generation)?", 32.0, 261.1, 576, (4, 16)),
    Gpu("RTX 6000 Ada", r"(rtx)?6000ada(generation)?", 48.0, 364.2, 960, (4, 16)),
    Gpu("RTX 5060 Ti 16GB", r"(rtx)?5060ti(16gb?)?", 15.9, 47.4, 448, (5, 8)),
    Gpu("RTX 5070", r"(rtx)?5070", 11.9, 61.7, 672, (5, 16)),
    Gpu("RTX 5070 Ti", r"(rtx)?5070ti", 15.9, 87.9, 896, (5, 16)),
    Gpu("RTX 5080", r"(rtx)?5080", 15.9, 112.6, 960, (5, 16)),
    Gpu("RTX 5090", r"(rtx)?5090", 31.8, 209.5, 1792, (5, 16)),
    Gpu("RTX Pro 6000", r"(rtx)?(pro6000|6000pro)(blackwell)?(workstationedition)?", 95.6, 503.8, 1792, (5, 16)),
    Gpu("RTX Pro 6000 Max-Q", r"(rtx)?(pro6000|6000pro)(blackwell)?maxq.*", 95.6, 438.9, 1792, (5, 16)),
    Gpu("RTX Pro 6000 Server", r"(rtx)?(pro6000|6000pro)(blackwell)?server.*", 95.6, 480, 1597, (5, 16)),
    Gpu("H100", r"h100(sxm5?)?(80gb?)?(hbm3)?", 79.6, 989.4, 3350, (5, 16)),
    Gpu("H100 PCIe", r"h100(80gb?)?pcie", 79.6, 756, 2039, (5, 16)),
    Gpu("H100 NVL", r"h100nvl", 93.6, 835, 3938, (5, 16)),
    Gpu("H200", r"h200(nvl|sxm5?)?(141gb?)?", 140.4, 989.4, 4800, (5, 16)),
    Gpu("B200", r"b200(180gb?)?", 179.1, 2250, 8000, (5, 16)),
    _no_fp8("RX 7900 XTX", r"(rx)?7900xtx", 24.0, 122.8, 960),
)


def gpu(name: str) -> Gpu:
    """The GPU called `name`, as `torch.cuda.get_device_name` gives it or as people write it ("4090", "a100-80g").

    Raises:
        ConfigError: no GPU of the list is called so; the message lists those nearest, or all.
    """
    found = find(str(name))
    if found is not None:
        return found
    names = [one.name for one in GPUS]
    bare = _bare(str(name))
    near = [one for one in names if bare and bare in _bare(one)]
    raise ConfigError([Problem("gpu", name, "is not in the list of GPUs", f"use one of {', '.join(near or names)}")])


def find(name: str) -> Gpu | None:
    """The GPU called `name`, or None: a laptop's chip, a part of a GPU (MIG) and other models are not in the list."""
    bare = _bare(name)
    return next((one for one in GPUS if re.fullmatch(one.pattern, bare)), None)


def _bare(name: str) -> str:
    """In lower case and without what names differ in: vendor and series, spaces and hyphens."""
    return re.sub(r"nvidia|tesla|geforce|amd|radeon|[\s_-]+", "", name.lower())
