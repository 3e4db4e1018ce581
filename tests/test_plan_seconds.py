"""GPUs by name, and the time that work takes on them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

import tunerkit as tk
from tunerkit.planning.gpus import GPUS, find, gpu
from tunerkit.planning.seconds import BEST, TYPICAL, Work, assumptions, estimate, rounded

DEVICE_NAMES = {
    "Tesla T4": "T4",
    "Tesla V100-SXM2-16GB": "V100 16GB",
    "Tesla V100-PCIE-32GB": "V100 32GB",
    "NVIDIA GeForce RTX 3060": "RTX 3060 12GB",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
    "NVIDIA GeForce RTX 3090 Ti": "RTX 3090 Ti",
    "NVIDIA RTX A4000": "RTX A4000",
    "NVIDIA RTX A6000": "RTX A6000",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100-PCIE-40GB": "A100 40GB",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA A100 80GB PCIe": "A100 80GB",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4060 Ti": "RTX 4060 Ti 16GB",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX Pro 6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX Pro 6000 Max-Q",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX Pro 6000 Server",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H200": "H200",
    "AMD Radeon RX 7900 XTX": "RX 7900 XTX",
}
"""As `torch.cuda.get_device_name` gives them."""
NICKNAMES = {
    "4090": "RTX 4090",
    "rtx3090": "RTX 3090",
    "RTX 3060 12G": "RTX 3060 12GB",
    "4060 ti 16g": "RTX 4060 Ti 16GB",
    "a6000": "RTX A6000",
    "a100-80g": "A100 80GB",
    "H100 SXM": "H100",
    "RTX 6000 Pro": "RTX Pro 6000",
}
PUBLISHED = [  # GPU, traced work, published seconds
    ("H100", Work(flops=492e12, touched=2.63e12, kernels=14911), 2.267),  # Kandinsky 5 Lite, 480x480x49, batch 2
    ("L40S", Work(flops=492e12, touched=2.63e12, kernels=14911), 6.379),
    ("H100", Work(flops=343e12, touched=2.22e12, kernels=79613), 3.993),  # LTX-2.3, 736x704x49
    ("H100", Work(flops=74e12, touched=0.60e12, kernels=7264), 0.597),  # Sana Video, 480x480x41, not checkpointed
    ("A100 80GB", Work(flops=151e12, touched=1.11e12, kernels=73551), 8.0),  # LTX-2, 704x384x17, batch 2
]


@pytest.mark.parametrize(("name", "found"), [*DEVICE_NAMES.items(), *NICKNAMES.items()])
def test_gpus_are_found_by_the_names_of_devices_and_of_people(name: str, found: str) -> None:
    assert gpu(name).name == found


def test_every_name_is_that_of_one_gpu_only() -> None:
    bare = [re.sub(r"[\s-]", "", one.name.lower()) for one in GPUS]
    for own, name in zip(GPUS, bare, strict=True):
        assert [one.name for one in GPUS if re.fullmatch(one.pattern, name)] == [own.name]
        assert gpu(own.name) is own


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "", "A100"])
def test_other_chips_and_parts_of_a_gpu_are_not_taken_for_whole_ones(name: str) -> None:
    assert find(name) is None


def test_an_unknown_gpu_is_refused_with_the_names_that_are_known() -> None:
    with pytest.raises(tk.ConfigError, match=r"gpu = 'A100': is not in .* GPUs. Fix: use one of A100 40GB, A100 80GB$"):
        gpu("A100")
    with pytest.raises(tk.ConfigError) as caught:
        gpu("9090")
    assert all(one.name in str(caught.value) for one in GPUS)


def test_figures_hang_together_as_data_sheets_do() -> None:
    for one in GPUS:
        assert 9 < one.memory_gib < 200
        assert 20 < one.tflops < 2500
        assert 200 < one.bandwidth_gb_per_s < 9000
        assert one.bf16 or not one.fp8
    assert gpu("4090").host_gb_per_s == pytest.approx(31.5, rel=1e-3)
    assert gpu("4060 Ti").host_gb_per_s == pytest.approx(15.75, rel=1e-3)
    assert gpu("H100").host_gb_per_s == pytest.approx(63, rel=1e-3)
    assert gpu("A100 80GB").fp32_tflops == 156  # TF32
    assert gpu("T4").fp32_tflops == pytest.approx(8.1, rel=0.01)


@pytest.mark.parametrize(("name", "work", "published"), PUBLISHED)
def test_published_steps_lie_above_the_best_and_around_the_typical(name: str, work: Work, published: float) -> None:
    expected = estimate(work, gpu(name))
    assert expected.low < published
    assert 0.85 < published / expected.typical < 2.2


def test_arithmetic_and_memory_follow_one_another() -> None:
    card = replace(gpu("H100"), tflops=100, bandwidth_gb_per_s=1000)
    found = estimate(Work(flops=1e14, touched=1e12, kernels=1), card)
    assert found.typical == pytest.approx(1 / TYPICAL.arithmetic + 1 / TYPICAL.memory)
    assert found.low == pytest.approx(1 / BEST.arithmetic + 1 / BEST.memory)
    assert found.bound_by == "arithmetic"


def test_what_happens_beside_costs_nothing_until_it_takes_longest() -> None:
    card = gpu("4090")
    step = Work(flops=1e14, kernels=1000)
    alone = estimate(step, card).typical
    a_second = card.host_gb_per_s * 1e9 * TYPICAL.link
    assert estimate(step + Work(link_beside=0.9 * alone * a_second), card).typical == alone
    streamed = estimate(step + Work(link_beside=5 * a_second), card)
    assert (streamed.typical, streamed.bound_by) == (pytest.approx(5), "link")
    assert estimate(step + Work(link=5 * a_second), card).typical == pytest.approx(alone + 5)
    launches = estimate(step + Work(kernels=1e6), card)
    assert (launches.typical, launches.bound_by) == (pytest.approx(1_001_000 * TYPICAL.kernel_s), "launches")
    read = estimate(step + Work(disk=60e9), card)
    assert (read.typical, read.bound_by) == (pytest.approx(alone + 60), "disk")


def test_float32_takes_longer_the_more_where_there_is_no_tf32() -> None:
    half, full = Work(flops=1e14), Work(flops_fp32=1e14)
    for name, times in (("A100 80GB", 2), ("T4", 8)):
        assert estimate(full, gpu(name)).typical == pytest.approx(times * estimate(half, gpu(name)).typical)


def test_works_add_up_and_multiply() -> None:
    one = Work(1, 2, 3, 4, 5, 6, 7)
    assert one + one == 2 * one == one * 2 == Work(2, 4, 6, 8, 10, 12, 14)
    assert sum([one, one], Work()) == 2 * one


def test_the_assumptions_state_their_figures() -> None:
    said = "\n".join(assumptions(gpu("4090")))
    for figure in (
        "bfloat16",
        "116 TFLOP/s (82.6 typically) of 165.2",
        "of 1008",
        "of 31.5",
        "16 lanes",
        "50 typically",
    ):
        assert figure in said
    assert "has no bfloat16 in hardware" in assumptions(gpu("T4"))[-1]


def test_bytes_that_kernels_move_are_counted() -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from tunerkit.planning.traffic import starts_kernel, touched

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore - of torch
            result = func(*args, **(kwargs or {}))
            if starts_kernel(func):
                seen.append((func._schema.name, touched(args, result)))
            return result

    seen: list[tuple[str, int]] = []
    with torch.device("meta"):
        a, row = torch.empty(8, 16), torch.empty(16, dtype=torch.bfloat16)  # 512 and 32 bytes
        with Counter():
            a.view(16, 8).transpose(0, 1)[2:].detach()
            torch.empty_like(a)
            assert seen == []
            _ = a + a
            a.mul_(2.0)
            a.to(torch.bfloat16)
            torch.cat([a, a])
            _ = row.expand(8, 16) * row.expand(8, 16)
    assert seen == [
        ("aten::add", 3 * 512),
        ("aten::mul_", 2 * 512),
        ("aten::_to_copy", 512 + 256),
        ("aten::cat", 4 * 512),
        ("aten::mul", 2 * 32 + 256),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.8342, "0.83 s"), (3.44, "3.4 s"), (99.4, "99 s"), (99.6, "1.7 min"), (3600.0, "60 min"), (1e5, "28 h")],
)
def test_times_have_two_digits(seconds: float, text: str) -> None:
    assert rounded(seconds) == text


def test_an_estimate_is_said_in_words() -> None:
    found = estimate(Work(flops=1e15), gpu("4090"))
    assert str(found) == f"about {rounded(found.typical)}, at best {rounded(found.low)}"


def test_no_model_library_is_needed() -> None:
    code = "import sys, tunerkit.planning.seconds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
