"""Runs in processes of their own: start, attach, commands, and what they survive."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tunerkit as tk
from tunerkit.running.launch import REQUEST_FILE
from tunerkit.running.processes import is_running

MakeConfig = Callable[..., tk.TrainConfig]
LONG = {"max_train_steps": 100_000, "checkpoint_step_interval": 5, "eval_steps_interval": 0}
PARENT = """
import sys, time
import tunerkit as tk
run = tk.start(tk.load_config(sys.argv[1]))
print(run.status.pid, flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(600)
"""
SECONDS = 120.0


@pytest.fixture
def ended() -> Iterator[list[Path]]:
    """Folders whose runs are ended after the test."""
    folders: list[Path] = []
    yield folders
    for folder in folders:
        if (folder / "status.json").is_file() and tk.attach(folder).status.alive:
            tk.attach(folder).kill()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        time.sleep(0.05)


def trains(run: tk.Run) -> None:
    before = run.status.step
    until(lambda: run.status.step > before, f"a step after {before}: {run.status}")


@pytest.mark.slow
def test_the_life_of_a_run(make_config: MakeConfig, ended: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(**LONG)
    ended.append(config.output_path)
    run = tk.start(config)
    assert json.loads((run.output_dir / REQUEST_FILE).read_text())["max_train_steps"] == 100_000
    trains(run)
    pid = run.status.pid
    caplog.clear()
    assert tk.start(config).status.pid == pid
    assert not caplog.records
    with pytest.raises(tk.TunerkitError, match=r"goes on with other settings: learning_rate: 0\.003, not 0\.125"):
        tk.start(config.changed(learning_rate=0.125))
    assert run.status.pid == pid
    assert run.config.learning_rate == 0.003
    again = tk.attach(config.output_path)

    run.pause()
    until(lambda: run.status.state == "paused", "a pause")
    step = run.status.step
    run.save_now()
    until(lambda: any(info.step == step for info in run.checkpoints()), "a checkpoint while it is paused")
    again.resume()
    trains(run)
    run.stop()
    stopped = asyncio.run(run.finished())
    assert (stopped.state, stopped.alive) == ("stopped", False)
    assert [row["step"] for row in run.metrics()] == list(range(1, stopped.step + 1))
    assert "stopped at step" in "\n".join(run.log())
    with pytest.raises(tk.TunerkitError, match="it is stopped at step"):
        run.pause()

    finish = config.changed(max_train_steps=stopped.step + 1)
    done = tk.start(finish).wait()
    assert (done.state, done.step) == ("done", stopped.step + 1)
    assert run.summary()["weights"]
    with caplog.at_level(logging.WARNING, "tunerkit"):
        assert tk.start(finish).status.started == done.started
    assert f"max_train_steps = {2 * done.step}" in caplog.text
    with pytest.raises(tk.TunerkitError, match=r"is done with other settings: lora_rank: .* choose another output_dir"):
        tk.start(finish.changed(lora_rank=3))
    target = run.export(run.output_dir / "exported" / "lora.safetensors", format="comfyui")
    assert target.stat().st_size > 1000
    with pytest.raises(tk.TunerkitError, match="checkpoint-1"):
        run.export(target, checkpoint=1)

    moved = run.output_dir.with_name("moved")
    run.output_dir.rename(moved)  # where its settings still name the old place
    run = tk.attach(moved)
    assert run.config.output_path == moved
    (video,) = run.render("A red box.", seed=3)
    assert video.path.is_relative_to(moved)
    assert (video.prompt, video.seed, video.step) == ("A red box.", 3, done.step)
    assert run.videos() == [video]
    with pytest.raises(tk.TunerkitError, match="the prompt is empty"):
        run.render(" ")


@pytest.mark.slow
def test_a_run_outlives_what_started_it(make_config: MakeConfig, tmp_path: Path, ended: list[Path]) -> None:
    """Interrupt and end of the parent's whole process group, as a kernel gets them; then kill -9 of the run itself."""
    config = make_config(**LONG)
    ended.append(config.output_path)
    path = config.save(tmp_path / "run.json")
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for _ in range(2)  # at the same moment: one starts, the other attaches
    ]
    pids = {int((parent.stdout.readline() if parent.stdout else "") or -1) for parent in parents}
    assert len(pids) == 1
    pid = pids.pop()
    run = tk.attach(config.output_path)
    assert run.status.pid == pid
    assert sum(event["text"] == "preparing" for event in run.events()) == 1
    trains(run)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for parent in parents:
            if parent.poll() is None:
                os.killpg(parent.pid, number)
        trains(run)
    for parent in parents:
        parent.wait(timeout=SECONDS)
    assert run.status.pid == pid

    until(lambda: bool(run.checkpoints()), "a checkpoint")
    run.kill()
    died = run.wait(timeout=SECONDS)
    assert (died.state, died.alive) == ("died", False)
    assert died.log
    assert "at step" in str(died.error)
    with pytest.raises(tk.RunFailedError, match="died"):
        asyncio.run(run.finished())
    with (run.output_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99')  # torn by the kill
    saved = run.checkpoints()[-1].step
    again = tk.start(config)
    assert not is_running(pid, None)
    trains(again)
    assert f"from step {saved}" in "\n".join(again.log(200))
    rows = again.metrics()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.slow
def test_what_goes_wrong_later_is_in_the_status(make_config: MakeConfig, project: Path, ended: list[Path]) -> None:
    config = make_config(max_train_steps=2)
    ended.append(config.output_path)
    for clip in (project / "clips").rglob("*.mp4"):
        clip.write_bytes(b"no video")
    run = tk.start(config)
    failed = run.wait(timeout=SECONDS)
    assert failed.state == "failed"
    assert failed.error
    assert failed.log
    assert any(line.startswith("error: ") for line in run.log(200))  # it tells of every clip
