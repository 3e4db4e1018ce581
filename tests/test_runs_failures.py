"""What goes wrong with a run: what is refused before it starts, and memory that does not suffice."""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.cli import main
from tunerkit.devices import is_out_of_memory
from tunerkit.running import memory as memory_module
from tunerkit.running.memory import memory_hint
from tunerkit.training.run_folder import RunFolder

MakeConfig = Callable[..., tk.TrainConfig]
GIB = 2**30


def test_settings_are_refused_before_anything_starts(make_config: MakeConfig) -> None:
    config = make_config(validation_disable=False, validation_resolution="97x64")
    with pytest.raises(tk.ConfigError, match="validation_resolution"):
        tk.start(config)
    with pytest.raises(tk.ConfigError, match="optimizer"):
        tk.start(make_config(optimizer="bnb-adamw8bit"))
    assert not (config.output_path / "out.log").exists()


@pytest.mark.parametrize("whole_run", [True, False])
def test_out_of_memory_in_a_step(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, whole_run: bool) -> None:
    trainer = tk.Trainer(make_config(max_train_steps=4, train_batch_size=2)).prepare()
    big: list[weakref.ref[torch.Tensor]] = []

    def step(*_: Any) -> None:
        activations = torch.zeros(1000)
        big.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of ...")

    monkeypatch.setattr(trainer.loaded.engine, "step", step)
    with pytest.raises(tk.OutOfMemoryError) as caught:
        list(trainer.steps()) if whole_run else trainer.step()
    assert "train_batch_size = 1" in str(caught.value)
    assert big[0]() is None, "the failed step's tensors are still referred to"
    found = tk.attach(trainer.config.output_path).status
    trainer.close()
    if not whole_run:  # whoever takes single steps decides what comes next
        assert found.state == "preparing"
        return
    assert found.state == "failed"
    assert found.error == "memory ran out (CUDA out of memory)"
    assert found.hint == caught.value.hint
    assert [event["text"] for event in tk.attach(trainer.config.output_path).events() if event["kind"] == "error"] == [
        found.error
    ]


def test_out_of_memory_while_loading_ends_the_command(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("tunerkit.training.trainer.load", load)
    assert main(["train", str(project), "validation_disable=true", "max_train_steps=2"]) == 1
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    found = tk.attach(project / "output").status
    assert (found.state, found.alive) == ("failed", True)  # this process
    assert found.hint is not None
    assert found.hint in err
    RunFolder(project / "output").lock()  # it was given up


def test_hints_follow_the_settings(make_config: MakeConfig) -> None:
    def hint(**changes: Any) -> str:
        video = {"datasets.demo-clips.video.num_frames": 81, "datasets.demo-clips.video.min_frames": 9}
        small = {"datasets.demo-clips.resolution": 480, "datasets.demo-clips.resolution_type": "pixel_area"}
        settings = {"train_batch_size": 1, "gradient_checkpointing": True, **video, **small, **changes}
        return memory_hint(tk.resolve(make_config(**settings)))

    assert hint(train_batch_size=4, gradient_checkpointing=False) == (
        "set train_batch_size = 1 (it is 4); if that is not enough, set gradient_checkpointing = true"
    )
    fewer, smaller = hint().split("; if that is not enough, ")
    assert fewer == "lower video.num_frames of the datasets: 81 -> 49 frames"
    assert smaller == "lower resolution: 480 -> 384 pixels"
    tiny = {"datasets.demo-clips.video.num_frames": 1, "datasets.demo-clips.video.min_frames": 1}
    full = hint(**tiny, **{"datasets.demo-clips.resolution": 128}, model_type="full")
    assert full == "set model_type = lora"
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


# Advice from a plan --------------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many bytes of memory the GPU has that there is none of."""

    def memory(size: int) -> None:
        monkeypatch.setattr(memory_module, "_gpu_memory", lambda _: size)

    return memory


def test_a_hint_comes_from_the_plan_for_the_gpu(make_config: MakeConfig, on_gpu: Callable[[int], None]) -> None:
    config = tk.resolve(make_config(train_batch_size=2, gradient_checkpointing=False))
    needed = tk.plan(config).peak + GIB // 2
    on_gpu(needed - 2**20)
    hint = memory_hint(config)
    found = tk.plan(config, (needed - 2**20) / GIB).changes
    assert found[-1].fits
    for change in found:
        assert all(f"{name} = {json.dumps(value)}" in hint for name, value in change.settings.items())
        assert change.meaning in hint
    assert hint.startswith("set ")
    assert hint.endswith("by its plan, the run then takes 0.0 of 0.5 GiB")
    on_gpu(80 * GIB)  # it should have fitted: the plan has no advice
    assert memory_hint(config).startswith("set train_batch_size = 1 (it is 2); if that is not enough")


def test_without_a_plan_the_rules_advise(
    make_config: MakeConfig, on_gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tk.resolve(make_config(train_batch_size=2))
    on_gpu(GIB // 2)
    attention, began = torch.nn.functional.scaled_dot_product_attention, time.monotonic()
    monkeypatch.setattr(memory_module, "PLANNING_SECONDS", 0.0)
    rules = "set train_batch_size = 1 (it is 2); if that is not enough"
    assert memory_hint(config.model_copy(update={"lora_rank": 5})).startswith(rules)
    assert time.monotonic() - began < 20
    assert torch.nn.functional.scaled_dot_product_attention is attention  # the plan leaves nothing behind
    monkeypatch.setattr(memory_module, "_gpu_memory", _fail)
    assert memory_hint(config).startswith(rules)


def test_a_deadline_ends_what_computes() -> None:
    with memory_module._at_most(60.0):
        assert torch.ones(2).sum() == 2
    with pytest.raises(TimeoutError), memory_module._at_most(0.0):
        torch.empty(2, device="meta").sum()


def _fail(*_: Any) -> None:
    raise RuntimeError("the driver is gone")


@pytest.mark.parametrize("others", [False, True])
def test_warnings_are_on_the_console_where_nobody_else_takes_them(
    others: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python prints warnings itself only as long as nobody takes them, and the run's own record of them does."""
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()] if others else [])
    monkeypatch.setattr(logging.getLogger("tunerkit"), "handlers", [])
    folder, second = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    for one in (folder, second):
        one.lock()
    logging.getLogger("tunerkit").warning("checkpoint-2 is damaged")
    for one in (folder, second):
        one.close()
        assert '"text": "checkpoint-2 is damaged"' in (one.path / "events.jsonl").read_text()
    assert capsys.readouterr().err.count("checkpoint-2 is damaged") == (0 if others else 1)
