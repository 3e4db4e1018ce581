"""The files a run is watched through: torn lines, full disks, dead processes, commands, failures. No process trains."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tunerkit as tk
from tunerkit.cli import main
from tunerkit.running import json_files, status
from tunerkit.running.control import Control, Orders, write_change, write_command
from tunerkit.running.json_files import JsonLines, JsonLinesWriter
from tunerkit.running.processes import is_running, process_started
from tunerkit.running.status import StatusWriter, read_status
from tunerkit.training.evaluation_plan import EvaluationPlan
from tunerkit.training.preparing import StoppedEarlyError, ToldProgress
from tunerkit.training.run_folder import RunFolder, read_metrics

MakeConfig = Callable[..., tk.TrainConfig]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for one that trains."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def write_status(folder: Path, pid: int, **facts: Any) -> None:
    row = {**status.starting_row(pid), "state": "running", "step": 3, "total_steps": 9, **facts}
    (folder / "status.json").write_text(json.dumps(row))


def test_a_rejected_start_leaves_the_settings_of_what_was_trained(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """What a process asked for counts while it prepares, and no longer once it has failed."""
    trained, asked = tmp_path / "config.json", tmp_path / "requested_settings.json"
    trained.write_text("{}")
    asked.write_text("{}")
    os.utime(trained, (1, 1))
    run = tk.Run(tmp_path)
    write_status(tmp_path, sleeper.pid, state="preparing")
    assert run.settings_file == asked
    write_status(tmp_path, sleeper.pid, state="failed", error="refused")
    assert run.settings_file == trained


# Files ---------------------------------------------------------------------------------------------------------


def test_lines_are_read_while_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    assert lines.rows() == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in lines.rows()] == [1, 2]
    with path.open("a") as file:
        file.write('ep": 3}\nnonsense\n[4]\n{"step": 5}\n')
    assert [row["step"] for row in lines.rows()] == [1, 2, 3, 5]
    (tmp_path / "other").write_text('{"step": 1}\n')
    (tmp_path / "other").replace(path)
    assert [row["step"] for row in lines.rows()] == [1]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "los')  # killed here
    writer = JsonLinesWriter(path)
    assert writer.append({"step": 2}) is None
    assert writer.append({"step": 3}) is None
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    error = JsonLinesWriter(Path("/dev/full")).append({"step": 1})
    assert error is not None
    assert error.errno == errno.ENOSPC


def test_a_full_disk_makes_the_status_old_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CHANGE_SECONDS", 0.02)
    writer = StatusWriter(tmp_path, dict)
    writer.start("preparing")
    real = Path.write_text

    def full(path: Path, *_: Any, **__: Any) -> int:
        real(path, "{")  # half of it went through
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        writer.update(state="running", step=5)
        time.sleep(0.1)
        assert json_files.read_object(tmp_path / "status.json") is not None
        assert read_status(tmp_path).state == "preparing"  # type: ignore[union-attr]
    time.sleep(0.2)
    found = read_status(tmp_path)
    writer.close()
    assert found is not None
    assert (found.state, found.step, found.alive) == ("running", 5, True)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_heart_beats_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CHANGE_SECONDS", 0.02)
    monkeypatch.setattr(status, "HEARTBEAT_SECONDS", 0.1)
    folder = RunFolder(tmp_path)
    folder.lock()
    first = read_status(tmp_path)
    time.sleep(0.3)
    second = read_status(tmp_path)
    folder.close()
    assert first is not None
    assert second is not None
    assert (second.heartbeat or 0) > (first.heartbeat or 0)
    assert second.state == "preparing"
    assert (second.memory_peak or 0) >= (second.memory_used or 0) > 10**6
    assert second.disk_free
    last = read_status(tmp_path)
    assert last is not None
    assert last.state == "stopped"


# Status --------------------------------------------------------------------------------------------------------


def test_who_is_dead(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    elsewhere = f"not-{socket.gethostname()}"
    (tmp_path / "out.log").write_text("".join(f"line {n}\n" for n in range(50)))
    started = process_started(sleeper.pid)
    states = {}
    for name, facts in {
        "same": {},
        "reused": {"process_started": (started or 0) - 5},
        "elsewhere": {"host": elsewhere},
        "silent": {"host": elsewhere, "time": time.time() - 31},
    }.items():
        write_status(tmp_path, sleeper.pid, **facts)
        states[name] = tk.attach(tmp_path).status.state
    assert states == {"same": "running", "reused": "died", "elsewhere": "running", "silent": "died"}
    write_status(tmp_path, sleeper.pid)
    sleeper.kill()
    while is_running(sleeper.pid, started):  # a zombie: nobody has asked for its exit status
        time.sleep(0.01)
    found = tk.attach(tmp_path).status
    assert (found.state, found.alive, found.log) == ("died", False, tuple(f"line {n}" for n in range(30, 50)))
    assert "at step 3 of 9" in str(found.error)
    write_status(tmp_path, sleeper.pid, state="done")
    assert tk.attach(tmp_path).status.state == "done"
    (tmp_path / "status.json").write_text('{"state": "runn')
    assert tk.attach(tmp_path).status.state == "died"
    with pytest.raises(tk.TunerkitError, match="holds no run"):
        tk.attach(tmp_path / "nowhere")


def test_waiting_tells_changes_and_raises_what_went_wrong(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    write_status(tmp_path, sleeper.pid)
    run = tk.attach(tmp_path)
    assert run.wait(timeout=0.05).state == "running"
    seen: list[str] = []

    def changed(found: tk.RunStatus) -> None:
        seen.append(found.state)
        if len(seen) == 1:
            write_status(tmp_path, sleeper.pid, state="paused")
        else:
            sleeper.kill()

    with pytest.raises(tk.RunFailedError, match="died") as caught:
        asyncio.run(run.finished(changed, every=0.01))
    assert seen == ["running", "paused", "died"]
    assert caught.value.status.state == "died"


def test_the_end_of_the_waiting_is_not_the_end_of_the_run(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    write_status(tmp_path, sleeper.pid)
    run = tk.attach(tmp_path)

    async def interrupted() -> BaseException:
        waiting = asyncio.ensure_future(run.finished(every=0.01))
        await asyncio.sleep(0.05)
        waiting.cancel()
        return (await asyncio.gather(waiting, return_exceptions=True))[0]  # type: ignore[return-value]

    error = asyncio.run(interrupted())
    assert isinstance(error, asyncio.CancelledError)

    def interrupt(_: tk.RunStatus) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        asyncio.run(run.finished(interrupt))
    assert "goes on" in caught.value._render_traceback_()[0]  # type: ignore[attr-defined]
    assert sleeper.poll() is None
    assert run.status.state == "running"


def test_runs_of_a_folder(tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    for name, began in (("sweep/a", 1.0), ("sweep/b", 2.0), ("sweep/b/cache/x", 3.0)):
        (tmp_path / name).mkdir(parents=True)
        write_status(tmp_path / name, sleeper.pid, started=began, loss=0.5)
    assert [run.output_dir.name for run in tk.runs(tmp_path)] == ["b", "a"]
    assert main(["runs", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["folder", "state", "step", "loss", "when"]
    assert [line[:4] for line in lines[1:]] == [[f"sweep/{name}", "running", "3/9", "0.50000"] for name in "ba"]
    assert main(["runs", str(tmp_path / "sweep" / "b" / "cache" / "y")]) == 2


# Commands ------------------------------------------------------------------------------------------------------


def test_no_request_is_lost_and_each_is_reported_once(tmp_path: Path) -> None:
    control = Control(tmp_path)
    assert control.orders() == Orders()
    for command in ("pause", "save", "validate", "save"):
        write_command(tmp_path, command)
    assert control.orders() == Orders("pause", frozenset({"save", "validate"}))
    assert control.orders() == Orders("pause")
    write_command(tmp_path, "save")
    write_command(tmp_path, "run")
    assert control.orders() == Orders("run", frozenset({"save"}))
    (tmp_path / "control.json").write_text('{"command": "st')
    assert control.orders() == Orders()
    control.clear()
    (tmp_path / "control.json").write_text('{"command": "save"}')  # as a person writes it
    assert control.orders() == Orders("run", frozenset({"save"}))
    assert control.orders() == Orders()


def test_no_change_of_settings_is_lost_and_each_is_reported_once(tmp_path: Path) -> None:
    control = Control(tmp_path)
    write_change(tmp_path, {"crepa_lambda": 0.1})
    write_command(tmp_path, "save")
    write_change(tmp_path, {"crepa_lambda": 0.2, "tread_config": None})
    both = ({"crepa_lambda": 0.1}, {"crepa_lambda": 0.2, "tread_config": None})
    assert control.orders() == Orders("run", frozenset({"save"}), both)
    assert control.orders() == Orders()
    write_change(tmp_path, {"seed": 1})
    assert control.orders() == Orders(changes=({"seed": 1},))


def test_stop_ends_the_encoding(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock()
    shown: list[tuple[str, int, int]] = []
    told = ToldProgress(folder, lambda *words: shown.append(words))
    told("clips", 1, 3)
    folder._status._write()
    activity = tk.attach(tmp_path).status.activity
    tk.attach(tmp_path).stop()
    with pytest.raises(StoppedEarlyError):
        told("clips", 2, 3)
    folder.close()
    assert activity == "encoding clips 1 of 3"
    assert shown == [("clips", 1, 3), ("clips", 2, 3)]


def test_a_paused_run_saves_and_stays_paused(make_config: MakeConfig) -> None:
    trainer = tk.Trainer(make_config(max_train_steps=50, checkpoint_step_interval=100)).prepare()
    run = tk.attach(trainer.config.output_path)
    run.pause()
    seen: list[str] = []

    def person() -> None:
        until(lambda: run.status.state == "paused")
        run.save_now()
        until(lambda: len(run.checkpoints()) == 1)
        until(lambda: run.status.state == "paused")
        seen.append(run.status.state)
        run.stop()

    thread = threading.Thread(target=person)
    thread.start()
    results = list(trainer.steps())
    thread.join()
    write_status(run.output_dir, os.getpid())
    with pytest.raises(tk.TunerkitError, match="in use by a Trainer of this notebook"):
        tk.start(trainer.config)
    trainer.close()
    assert results == []
    assert seen == ["paused"]
    assert [info.step for info in run.checkpoints()] == [0]
    kinds = [event["kind"] for event in run.events()]
    assert kinds.count("checkpoint") == 2  # when asked for, and at the stop
    assert [event["number"] for event in run.events()] == list(range(1, len(kinds) + 1))
    assert run.events(after=2) == run.events()[2:]


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Evaluation ----------------------------------------------------------------------------------------------------


def test_evaluation_is_due_with_checkpoints_unless_an_interval_is_set() -> None:
    assert EvaluationPlan().due(7, 200, 0.0, saved=True)
    assert not EvaluationPlan().due(7, 200, 0.0)
    assert not EvaluationPlan(5).due(7, 200, 0.0, saved=True)
    assert not EvaluationPlan(0).due(200, 200, 0.0, saved=True)


def test_evaluations_of_a_run_and_of_its_continuation(make_config: MakeConfig) -> None:
    config = make_config(max_train_steps=4, checkpoint_step_interval=2, eval_steps_interval=2)
    assert not [note for note in config.notes if note.key == "eval_steps_interval"]
    run = None
    for count in (3, None):  # resumes at step 2: its evaluation is known, what came after is measured anew
        trainer = tk.Trainer(config).prepare()
        list(trainer.steps(count, evaluate=True))
        trainer.close()
        run = tk.attach(config.output_path)
    assert run is not None
    rows = run.evaluations()
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert len((config.output_path / "evaluation.jsonl").read_text().splitlines()) == 3
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [(info.step, info.evaluation, info.is_final) for info in run.checkpoints()] == [
        (2, rows[1]["loss"], False),
        (4, rows[2]["loss"], True),
    ]
    summary = run.summary()
    assert summary["state"] == "done"
    assert summary["first_evaluation"] == rows[0]["loss"]
    assert Path(summary["weights"]).is_file()
    size = run.checkpoints()[0].size_bytes
    assert run.delete_checkpoint(2) == size > 10_000
    assert [info.step for info in run.checkpoints()] == [4]
    with pytest.raises(tk.CheckpointError, match="no checkpoint-2"):
        run.delete_checkpoint(2)


def test_videos_with_their_prompts(make_config: MakeConfig) -> None:
    config = make_config(
        validation_disable=False, max_train_steps=1, validation_step_interval=1, user_prompt_library=None,
        validation_prompt="a red ball", validation_num_inference_steps=2,
    )  # fmt: skip
    trainer = tk.Trainer(config).prepare()
    results = list(trainer.steps())
    trainer.close()
    run = tk.attach(config.output_path)
    assert run.videos(step=1) == list(results[0].videos)
    assert run.compare() == list(zip(run.videos(step=0), run.videos(step=1), strict=True))
    assert run.compare(step=1, other=7) == []
    assert [(video.step, video.prompt, video.comparison is None) for video in run.videos()] == [
        (0, "a red ball", True),
        (1, "a red ball", False),
    ]
    assert replace(run.videos()[0], step=1, path=run.videos()[1].path, comparison=run.videos()[1].comparison) in (
        run.videos()
    )
    assert {event["path"] for event in run.events() if event["kind"] == "video"} == {
        video.path.relative_to(run.output_dir).as_posix() for video in run.videos()
    }
