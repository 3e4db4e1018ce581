"""Sweeps that run, fail, are killed, interrupted and started again; all but the last with a notebook that pretends."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from notebook_runs import nbmake, outputs, papermill
from sweep_notebooks import pretend_notebook

import tunerkit as tk
from tunerkit import batch
from tunerkit.batch import gpus
from tunerkit.batch.folders import SweepFolder
from tunerkit.running.locks import FileLock

ROOT = Path(tk.__file__).parent.parent
SWEEP = """
import sys, json, argparse
from tunerkit.cli_sweep import run_sweep
asked = argparse.Namespace(notebook=sys.argv[1], sweep=sys.argv[2], parallel=2, output_dir=None)
try:
    sys.exit(run_sweep(asked))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The processes of a sweep import what the tests do, and none outlives its test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "widgets")]))
    yield
    sweep = SweepFolder(tmp_path / "out")
    pids = [sweep.pid(), *(run.state().get("pid") for run in sweep.runs() if run.alive)]
    for pid in filter(None, pids):
        os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def start(notebook: Path, folder: Path, **asked: object) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    request = folder.parent / "sweep.json"
    request.write_text(json.dumps({**asked, "output_dir": str(folder)}))
    command = [sys.executable, "-c", SWEEP, str(notebook), str(request)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def states(folder: Path) -> list[str]:
    return [row.state for row in batch.read_sweep(folder)]


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others_and_only_what_is_new_or_failed_runs_again(tmp_path: Path) -> None:
    notebook, folder = pretend_notebook(tmp_path), tmp_path / "out"
    seen: list[str] = []
    grid = {"learning_rate": [0.001], "behaviour": ["fail", "train"]}
    result = batch.sweep(notebook, grid, output_dir=folder, parallel=2, on_change=lambda row: seen.append(row.state))
    failed, done = result
    assert (failed.state, done.state) == ("failed", "done")
    assert sorted(seen) == ["done", "failed", "running", "running"]
    assert failed.error == "cell 3: ValueError: the loss is <not> a number"
    assert "ValueError" in failed.log.read_text()
    assert "training with 0.001" in done.log.read_text()
    assert done.notebook.parent.name == "002-learning_rate-0.001_behaviour-train"
    assert (done.loss, done.evaluation, done.evaluation_step) == (pytest.approx(1 / 1.5), pytest.approx(0.897), 3)
    assert (done.step, done.total_steps, done.peak_memory) == (5, 5, 2**30)
    assert done.video == done.output / "validation" / "step-5" / "fox-64x48-1.mp4"
    assert result.best is done
    for row in result:
        executed = nbformat.read(row.notebook, as_version=4)
        assert "widgets" not in executed.metadata
        assert row.notebook.stat().st_size < 300_000
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["state"], row["behaviour"], row["loss"][:6]) for row in table] == [
        ("failed", "fail", ""),
        ("done", "train", "0.6666"),
    ]

    (failed.output / "mended").touch()
    grid = {"learning_rate": [0.001, 0.01], "behaviour": ["fail", "train"]}
    again = batch.sweep(notebook, grid, output_dir=folder, parallel=2)
    assert [row.state for row in again] == ["done", "done", "failed", "done"]
    assert [row.number for row in again] == [1, 2, 3, 4]
    assert (done.output / "starts").read_text().count("started") == 1
    assert again.best is not None
    assert again.best.settings == {"learning_rate": 0.01, "behaviour": "train"}
    with pytest.raises(tk.TunerkitError, match="holds runs already"):
        batch.sweep(notebook, grid, output_dir=folder, resume=False)


@pytest.mark.slow
def test_a_killed_sweep_is_taken_up_again(tmp_path: Path) -> None:
    """Runs that outlived it are waited for, not started twice; a killed run is one that failed."""
    notebook, folder = pretend_notebook(tmp_path), tmp_path / "out"
    asked = {"grid": {"learning_rate": [0.001, 0.01]}, "base": {"behaviour": "wait"}}
    first = start(notebook, folder, **asked)
    outputs = [folder / f"00{number}-learning_rate-{rate}" / "output" for number, rate in ((1, 0.001), (2, 0.01))]
    wait_for(lambda: all((output / "waiting").exists() for output in outputs))
    first.kill()
    first.wait()
    assert states(folder) == ["running", "running"]
    assert not batch.sweep_goes_on(folder)
    os.kill(json.loads((outputs[0].parent / "state.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: states(folder) == ["interrupted", "running"])
    assert batch.read_sweep(folder).rows[0].error == "its process was killed"
    (outputs[0] / "go").touch()

    second = start(notebook, folder, **asked)
    wait_for(lambda: batch.sweep_goes_on(folder))
    with pytest.raises(tk.TunerkitError, match="in use by another sweep"):
        batch.sweep(notebook, {"learning_rate": [0.5]}, output_dir=folder)
    (outputs[1] / "go").touch()
    printed, _ = second.communicate(timeout=120)
    assert second.returncode == 0, printed
    assert "2 of 2 runs are done" in printed
    assert states(folder) == ["done", "done"]
    assert (outputs[1] / "starts").read_text().count("started") == 1


@pytest.mark.slow
def test_an_interrupt_ends_the_runs_cleanly_and_the_same_call_goes_on(tmp_path: Path) -> None:
    notebook, folder = pretend_notebook(tmp_path), tmp_path / "out"
    asked = {"grid": {"behaviour": ["wait", "die"]}}
    process = start(notebook, folder, **asked)
    output = folder / "001-behaviour-wait" / "output"
    wait_for(lambda: (output / "waiting").exists() and states(folder)[1] == "failed")
    batch.stop_sweep(folder)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "0 of 2 runs are done. The same call with the same output_dir goes on from there" in printed
    assert (output / "checkpoint").exists()
    interrupted, died = batch.read_sweep(folder)
    assert interrupted.state == "interrupted"
    assert "KeyboardInterrupt" in interrupted.error
    assert "DeadKernelError" in died.error

    (output / "go").touch()
    result = batch.sweep(notebook, {"behaviour": ["wait"]}, output_dir=folder)
    assert [row.state for row in result] == ["done"]  # what failed and is no longer asked for is not shown


def test_one_run_at_a_time_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    two = [gpus.Gpu("0", "GPU-a"), gpus.Gpu("1", "GPU-b")]
    waited: list[str] = []
    with gpus.one_gpu(two, lambda: waited.append("first")) as first:
        with gpus.one_gpu(two, lambda: waited.append("second")) as second:
            assert (first, second) == (two[0], two[1])
            monkeypatch.setattr(gpus.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt), gpus.one_gpu(two, lambda: waited.append("third")):
                pass
        with gpus.one_gpu(two, lambda: waited.append("fourth")) as freed:
            assert freed == two[1]
    assert waited == ["third"]
    with gpus.one_gpu([], lambda: waited.append("none")) as none:
        assert none is None


def test_a_lock_falls_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = "import sys, time; from pathlib import Path; from tunerkit.running.locks import FileLock\n"
    code += "lock = FileLock(Path(sys.argv[1])); assert lock.acquire(); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert not FileLock(path).acquire()
    process.kill()
    process.wait()
    assert FileLock(path).acquire(2)


@pytest.mark.slow
def test_the_guided_notebook_sweeps_another(project: Path, tmp_path: Path) -> None:
    """`sweep.ipynb` as a batch job: each run is `sana_video.ipynb` with another learning rate, really trained."""
    folder = tmp_path / "sweep"
    asked = {"project": project, "max_train_steps": 2, "eval_steps_interval": 2, "output_dir": folder}
    done, _ = papermill(ROOT / "notebooks" / "sweep.ipynb", tmp_path, **asked)
    assert done.returncode == 0, done.stderr[-3000:]
    result = batch.read_sweep(folder)
    assert [row.state for row in result] == ["done", "done"], str(result)
    for row in result:
        assert row.step == 2
        assert row.loss is not None
        assert row.evaluation is not None
        assert row.video is not None
        assert row.peak_memory is not None
        assert row.notebook.stat().st_size < 300_000
        assert (row.output / "pytorch_lora_weights.safetensors").is_file()
    page = (folder / "report.html").read_text()
    assert page.count("src='data:video/mp4;base64,") == 2

    again = nbmake(ROOT / "notebooks" / "sweep.ipynb", tmp_path, **asked)
    assert "2 runs:" in "".join(outputs(again, "stream"))
    assert [row.seconds for row in batch.read_sweep(folder)] == [row.seconds for row in result]
