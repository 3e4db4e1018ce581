"""What a plan counts: bytes of storages as long as they are held, operations, and copies."""

from __future__ import annotations

import torch

from tunerkit.planning.tracker import StorageTracker


def test_storages_are_counted_once_and_as_long_as_they_are_held() -> None:
    tracker = StorageTracker("cpu")
    with tracker:
        tracker.mark("first")
        held = torch.ones(1000)  # 4000 bytes
        view = held[10:20]
        gone = held + 1.0
        del gone
        tracker.mark("second")
        weight = torch.ones(100)
        tracker.label("weights", [weight])
        tracker.to_host([held, view])
    first, second = tracker.segments()[1:]
    assert first.peak == 2 * 4096
    assert second.peak == 4096 + 512
    assert second.parts == {"activations": 4096, "weights": 512}
    assert tracker.current == 512
    assert tracker.host_bytes == 4000


def test_a_trace_counts_operations_and_copies_without_memory() -> None:
    tracker = StorageTracker()
    with tracker:
        tracker.mark("product")
        left, right = torch.empty(8, 16, device="meta"), torch.empty(16, 4, device="meta", dtype=torch.float32)
        made = (left @ right).to(torch.bfloat16)
        kept = made.to("cpu")  # stays without content, on the host
        number = float(made.sum())
        known = int(torch.tensor([3.0, 5.0]).amax())  # of a tensor with content
        back = torch.empty_like(kept)
        with tracker.host():
            master = torch.empty(1 << 40, dtype=torch.uint8, device="cpu")  # a terabyte
        back = torch.empty(1 << 20, dtype=torch.uint8, device="meta")
        back.copy_(master[: 1 << 20])
    work = tracker.segments()[-1].work
    assert (work.flops_fp32, work.flops) == (2 * 8 * 16 * 4, 0)
    assert (number, known) == (1.0, 5)
    assert kept.is_meta
    assert tracker.host_bytes == (1 << 40) + kept.nbytes
    assert work.link_beside == 1 << 20
    assert tracker.segments()[-1].peak < 2**21
