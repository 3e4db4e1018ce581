"""Offloading: which blocks, how weights are kept, and which settings are refused or noted."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.config.memory_rules import check_depth
from tunerkit.memory import disk
from tunerkit.memory.masters import Master, Pinned
from tunerkit.memory.offload import Group, _Coming
from tunerkit.memory.offload_groups import swapped_blocks

LEAVES = {"enable_group_offload": True, "group_offload_type": "leaf_level"}


def test_swapped_blocks_are_spread() -> None:
    assert swapped_blocks(48, 4) == [6, 18, 30, 42]
    assert swapped_blocks(5, 3) == [0, 2, 4]
    assert swapped_blocks(20, 19) == sorted(set(swapped_blocks(20, 19)))
    for count in range(2, 40):
        for swapped in range(1, count):
            numbers = swapped_blocks(count, swapped)
            assert len(set(numbers)) == swapped
            assert 0 <= numbers[0] <= numbers[-1] < count


def test_weights_of_any_layout_survive() -> None:
    tensors = [
        torch.randn(3, 5).t(), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.randn(7)[::2],
        torch.arange(6, dtype=torch.int8), torch.tensor(2.5, dtype=torch.bfloat16), torch.empty(0, 4),
        torch.randn(5).to(torch.float8_e4m3fn),
    ]  # fmt: skip
    master = Master(tensors)
    for tensor, read in zip(tensors, master.read(master.buffer.clone()), strict=True):
        assert torch.equal(tensor.float(), read.float())
        assert read.dtype == tensor.dtype
        assert not read.numel() or read.data_ptr() % 64 == 0
    assert master.read(master.buffer)[0].stride() == tensors[0].stride()
    assert master.read(master.buffer)[1].stride() == tensors[1].stride()


# On a GPU: the order of calls ----------------------------------------------------------------------------------------


class Stream:
    """Writes down what is asked of it."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def record_event(self) -> str:
        self.calls.append(f"{self.name} records")
        return "event"

    def wait_event(self, event: str) -> None:
        self.calls.append(f"{self.name} waits for the {event}")

    def wait_stream(self, other: Stream) -> None:
        self.calls.append(f"{self.name} waits for {other.name}")


def test_a_copy_waits_for_its_memory_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    @contextlib.contextmanager
    def within(stream: Stream) -> Iterator[None]:
        calls.append(f"on {stream.name}")
        yield
        calls.append("back")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("compute", calls))
    monkeypatch.setattr(torch.cuda, "stream", within)
    layer = torch.nn.Linear(2, 2)
    weight = layer.weight.detach().clone()
    group = Group([layer], [(layer, "weight")], lambda buffer: buffer)
    side: Any = Stream("side", calls)
    coming = _Coming(group, torch.empty(group.bytes, dtype=torch.uint8), side)
    assert calls == ["compute records"]
    group.use(coming.arrived())
    assert torch.equal(layer.weight, weight)
    assert calls[1:] == ["side waits for the event", "on side", "back", "compute waits for side"]
    calls.clear()
    _Coming(group, torch.empty(group.bytes, dtype=torch.uint8), side).give_up()
    assert calls == ["compute records"]  # nothing was copied


def test_ram_is_locked_as_long_as_it_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    locked: list[int] = []

    class Runtime:
        refuses = False

        def cudaHostRegister(self, address: int, *_: int) -> int:  # noqa: N802
            if not self.refuses:
                locked.append(address)
            return 2 if self.refuses else 0

        def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
            locked.remove(address)
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    store = Pinned()
    buffer = torch.zeros(8, dtype=torch.uint8)
    address = buffer.data_ptr()
    assert store(buffer) is buffer
    view = buffer.view(torch.int64)
    del buffer
    gc.collect()
    assert locked == [address]
    del view
    gc.collect()
    assert locked == []
    monkeypatch.setattr(Runtime, "refuses", True)
    for _ in range(2):  # said once
        assert store(torch.full((8,), 3, dtype=torch.uint8)).sum() == 24
    assert len([message for message in caplog.messages if "locked in RAM" in message]) == 1


# Disk --------------------------------------------------------------------------------------------------------------


def test_only_what_dead_processes_left_is_deleted(tmp_path: Path) -> None:
    host, dead, alive = disk._host(), 2**22 + 1, os.getppid()
    names = [f"offload-transformer-{host}-{pid}-abc" for pid in (dead, alive)]
    for name in (*names, f"offload-transformer-elsewhere-{dead}-abc", "photos"):
        (tmp_path / name).mkdir()
    store = disk.OnDisk(tmp_path, "transformer")
    assert not (tmp_path / names[0]).exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        names[1], f"offload-transformer-elsewhere-{dead}-abc", "photos", store.folder.name,
    }  # fmt: skip


@pytest.mark.parametrize("way", [{"enable_group_offload": True}, {"group_offload_vae": True}])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path, way: dict[str, Any]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "clips").mkdir()
    clips = {"id": "clips", "instance_data_dir": str(tmp_path / "clips")}
    for path, words in ((tmp_path / "file", "is not a folder"), (tmp_path / "file" / "below", "file is not a folder")):
        config = tk.TrainConfig(
            model_family="sanavideo",
            output_dir=tmp_path / "out",
            max_train_steps=1,
            datasets=[clips],
            group_offload_to_disk_path=path,
            **way,
        )
        with pytest.raises(tk.ConfigError, match=f"group_offload_to_disk_path = .*{words}.*Fix: name a folder"):
            tk.Trainer(config)


def test_a_full_or_forbidden_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(tk.TunerkitError, match=r"group_offload_to_disk_path = .*file.*Fix: "):
        disk.OnDisk(tmp_path / "file", "transformer")
    monkeypatch.setattr(disk, "_SPARE", 1 << 60)
    with pytest.raises(tk.TunerkitError, match=r"GB left.*Fix: "):
        disk.OnDisk(tmp_path, "transformer")(torch.zeros(4, dtype=torch.uint8))


# What has no effect (what is refused, test_memory_combinations.py has) --------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"musubi_block_swap_device": "disk"}, "musubi_block_swap_device"),
        ({"group_offload_use_stream": True}, "group_offload_use_stream"),
        ({"group_offload_type": "leaf_level"}, "group_offload_type"),
        ({"group_offload_to_disk_path": "elsewhere"}, "group_offload_to_disk_path"),
        ({"group_offload_blocks_per_group": 2}, "group_offload_blocks_per_group"),
        ({**LEAVES, "group_offload_blocks_per_group": 2}, "group_offload_blocks_per_group"),
    ],
)
def test_what_has_no_effect_is_noted(settings: dict[str, Any], key: str) -> None:
    [note] = tk.TrainConfig(**settings).notes
    assert note.key == key
    assert "no effect without" in note.message


def test_one_block_has_to_stay() -> None:
    config = tk.TrainConfig(musubi_blocks_to_swap=20)
    check_depth(config, 21)
    check_depth(config, 4, 17)
    check_depth(config, None, 2)
    with pytest.raises(tk.ConfigError, match=r"20 blocks.*set it to 0 to 19"):
        check_depth(config, 20)
