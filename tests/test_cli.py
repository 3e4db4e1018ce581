"""The command line: what each command does and prints, its exit status, and what it leaves alone."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import tunerkit as tk
from tunerkit import cli_commands, cli_output, cli_train
from tunerkit.cli import main, parse
from tunerkit.cli_output import EncodingLines, duration
from tunerkit.cli_train import StepPrinter
from tunerkit.errors import TunerkitError
from tunerkit.training.results import StepResult
from tunerkit.training.run_folder import read_metrics

Capture = pytest.CaptureFixture[str]
ROOT = Path(tk.__file__).parent.parent
LOAD_SECONDS = 120.0
"""How long a started process may take to its first step on a busy machine."""


def command(*words: object) -> list[str]:
    return [str(word) for word in words]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Reading the command line --------------------------------------------------------------------------------------


def test_errors_of_the_request_are_tunerkit_errors() -> None:
    with pytest.raises(TunerkitError, match="Fix"):
        parse(["nothing"])


def test_overrides_may_stand_anywhere() -> None:
    words = [
        "export",
        "c.json",
        "a=1",
        "--format",
        "comfyui",
        "--b-c=x=y",
        "--output",
        "f",
        "datasets.my-clips.crop=no",
    ]
    arguments = parse(words)
    assert (arguments.config, arguments.format, arguments.output) == ("c.json", "comfyui", "f")
    assert arguments.overrides == {"a": "1", "b-c": "x=y", "datasets.my-clips.crop": "no"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "no command"),
        (["trian", "x"], "train"),
        (["train"], "CONFIG"),
        (["train", "x", "faster"], "'faster'"),
        (["validate", "x", "--chekpoint", "latest"], "'--chekpoint'"),
        (["export", "x", "--format", "gguf", "--output", "f"], "gguf"),
        (["stop", "x", "now=1"], "now=1"),
        (["doctor", "--quick"], "--quick"),
    ],
)
def test_bad_usage_is_one_message_and_status_2(words: list[str], named: str, capsys: Capture) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert named in err
    assert "Fix: " in err


def test_help_and_version(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in (
        "demo",
        "dataset",
        "cache",
        "train",
        "validate",
        "export",
        "push",
        "runs",
        "pause",
        "resume",
        "stop",
        "doctor",
    ):
        assert re.search(rf"^    {name} ", listed, re.MULTILINE)
        assert main([name, "--help"]) == 0
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tunerkit {tk.__version__}\n"


def test_unexpected_error_is_a_traceback_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken(_: object) -> int:
        raise MemoryError("no room")

    monkeypatch.setattr(cli_commands, "run_doctor", broken)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: MemoryError: no room. Out of memory. Fix: gradient_checkpointing")


def test_only_the_first_process_prints_results(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["doctor"]) == 0
    assert main(["trian"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("process 1: error: ")


# Projects, clips, cache ----------------------------------------------------------------------------------------


def test_demo_names_the_next_command(project: Path, capsys: Capture) -> None:
    """On a project that exists already, nothing is made anew."""
    before = digests(project)
    assert main(command("demo", project)) == 0
    assert f"python -m tunerkit train {project}" in capsys.readouterr().out
    assert digests(project) == before


def test_demo_of_an_unknown_family(tmp_path: Path, capsys: Capture) -> None:
    assert main(command("demo", tmp_path / "x", "--family", "sora")) == 2
    assert "sanavideo" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_dataset_prints_the_table_and_writes_it(project: Path, tmp_path: Path, capsys: Capture) -> None:
    clips = sorted((project / "clips").glob("*.mp4"))
    clips[0].with_suffix(".txt").unlink()
    table = tmp_path / "table.csv"
    assert main(command("dataset", project, "--csv", table)) == 0
    out = capsys.readouterr().out
    assert all(clip.name in out for clip in clips)
    assert f"{len(clips) - 1} used, 1 dropped" in out
    with table.open(newline="", encoding="utf-8") as file:
        rows = {Path(row["file"]): row["decision"] for row in csv.DictReader(file)}
    assert rows == {clip: "dropped" if clip == clips[0] else "used" for clip in clips}


def test_notes_are_printed_once(project: Path, capsys: Capture) -> None:
    assert main(command("dataset", project, "ignore_final_epochs=true", "flow_schedule_shift=5")) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert sorted(note.split(":")[1].strip() for note in notes) == ["flow_schedule_shift", "ignore_final_epochs"]


def test_cache_of_a_cached_project_encodes_nothing(project: Path, capsys: Capture) -> None:
    count = len(list((project / "clips").glob("*.mp4")))
    assert main(command("cache", project / "config.json")) == 0
    out, err = capsys.readouterr()
    assert f"clips: 0 encoded, {count} already cached, 0 failed" in out
    assert err == ""


# Training ------------------------------------------------------------------------------------------------------

RUN = ("max_train_steps=4", "checkpoint_step_interval=2", "validation_step_interval=4", "user_prompt_library=none")
RUN += ("validation_num_inference_steps=1", "validation_num_video_frames=5", "validation_resolution=64x32")


@pytest.fixture(scope="module")
def finished(pristine_project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project with a run that the command line has finished, and what was printed."""
    folder = tmp_path_factory.mktemp("cli") / "project"
    shutil.copytree(pristine_project, folder)
    result = run_process("train", folder, *RUN)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def run_process(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunerkit", *command(*words)], capture_output=True, text=True, check=False, env=child()
    )


def child() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_train_prints_what_it_logs(finished: tuple[Path, str]) -> None:
    project, out = finished
    output = project / "output"
    rows = read_metrics(output / "metrics.jsonl")
    printed = re.findall(r"^step (\d+)/4  loss ([\d.]+)  lr (\S+)  grad norm (\S+)  ", out, re.MULTILINE)
    assert [int(step) for step, *_ in printed] == [1, 2, 3, 4]
    for (_, loss, lr, norm), row in zip(printed, rows, strict=True):
        assert float(loss) == pytest.approx(row["loss"], abs=1e-5)
        assert float(lr) == pytest.approx(row["lr"], rel=1e-2)
        assert float(norm) == pytest.approx(row["grad_norm"], rel=1e-2)
    assert f"  checkpoint: {output / 'checkpoint-2'}" in out
    for path in (output / "checkpoint-4", output / "pytorch_lora_weights.safetensors"):
        assert str(path) in out
        assert path.exists()
    videos = [Path(path) for path in re.findall(r"^  video.*?: (\S+\.mp4)", out, re.MULTILINE)]
    assert {path.parent.name for path in videos} == {"step-0", "step-4"}
    assert all(path.is_file() for path in videos)
    assert re.search(r"^4 steps, .* a second .* final loss", out, re.MULTILINE)
    assert re.search(r"^peak memory: \d+\.\d\d GiB", out, re.MULTILINE)


def test_a_finished_run_has_nothing_left_to_do(finished: tuple[Path, str], capsys: Capture) -> None:
    project, _ = finished
    losses = (project / "output" / "metrics.jsonl").read_bytes()
    assert main(command("train", project, *RUN)) == 0
    out = capsys.readouterr().out
    assert "4 steps were done before" in out
    assert "step 4/4" not in out
    assert (project / "output" / "metrics.jsonl").read_bytes() == losses


def test_validate_and_export_leave_the_run_alone(finished: tuple[Path, str], tmp_path: Path, capsys: Capture) -> None:
    """Metrics, status, settings and checkpoints of the run stay, whichever checkpoint is looked at."""
    project, _ = finished
    output = project / "output"
    before = digests(output)
    assert main(command("validate", project, "--checkpoint", "checkpoint-2", *RUN)) == 0
    assert "1 video after step 2:" in capsys.readouterr().out
    after = digests(output)
    added = {name for name in after if name not in before}
    assert {Path(name).parent for name in added} == {Path("validation/step-2")}
    assert {name: digest for name, digest in after.items() if name not in added} == before

    for layout, prefix in (("diffusers", "transformer."), ("comfyui", "diffusion_model.")):
        target = tmp_path / "sub" / f"{layout}.safetensors"
        assert main(command("export", project, "--format", layout, "--output", target, *RUN)) == 0
        assert f"adapter of checkpoint-4, {layout} layout: {target}" in capsys.readouterr().out
        assert all(key.startswith(prefix) for key in tensors(target))
    assert digests(output) == after
    # The adapter of the last checkpoint is the run's result.
    exported, final = (
        tensors(tmp_path / "sub" / "diffusers.safetensors"),
        tensors(output / "pytorch_lora_weights.safetensors"),
    )
    assert exported.keys() == final.keys()
    assert all(bool((exported[key] == final[key]).all()) for key in final)


def tensors(path: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(path)


def test_validate_base_renders_the_untrained_model(
    finished: tuple[Path, str], project: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Without any checkpoint, and with the frames that the run rendered before its first step."""
    output = tmp_path / "elsewhere"
    assert main(command("validate", project, f"output_dir={output}", "--checkpoint", "base", *RUN)) == 0
    assert "after step 0" in capsys.readouterr().out
    (video,) = (output / "validation" / "step-0").glob("*.mp4")
    assert video.read_bytes() == (finished[0] / "output" / "validation" / "step-0" / video.name).read_bytes()


def test_validate_without_a_checkpoint_or_prompt(project: Path, capsys: Capture) -> None:
    assert main(command("validate", project)) == 2
    assert "holds no whole checkpoint. Fix: train first" in capsys.readouterr().err
    assert main(command("validate", project, "validation_prompt=none", "user_prompt_library=none")) == 2
    assert "validation_prompt: there is nothing to render" in capsys.readouterr().err


def test_output_typed_in_a_shell_counts_from_the_current_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(command("validate", project, "output_dir=mine")) == 2
    assert str(tmp_path / "here" / "mine") in capsys.readouterr().err


def test_interrupt_saves_and_ends_with_130(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(_: StepPrinter, result: StepResult) -> None:
        if result.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StepPrinter, "step", interrupt)
    assert main(command("train", project, "validation_disable=true")) == 130
    err = capsys.readouterr().err
    (checkpoint,) = (project / "output").glob("checkpoint-*")
    assert str(checkpoint) in err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert "error" not in err


def test_non_finite_loss_ends_with_1_and_no_traceback(project: Path, capsys: Capture) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    (weights,) = (project / "model" / "transformer").glob("*.safetensors")
    state = load_file(weights)
    key = next(name for name in state if name.endswith("to_q.weight"))
    state[key] = torch.full_like(state[key], float("nan"))
    save_file(state, weights, metadata={"format": "pt"})
    assert main(command("train", project, "validation_disable=true")) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: the loss of step 1 is not finite \(samples: .*\.mp4.*", err.strip())


def test_a_running_training_obeys(project: Path, capsys: Capture) -> None:
    """Pause, resume and stop from another process."""
    output = project / "output"
    training = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tunerkit",
            *command("train", project, "validation_disable=true", "max_train_steps=9999"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child(),
    )
    try:
        wait_for(output, "running")
        assert main(command("pause", output)) == 0
        paused_at = wait_for(output, "paused")["step"]
        assert len(read_metrics(output / "metrics.jsonl")) == paused_at
        assert main(command("resume", output)) == 0
        wait_for(output, "running")
        assert main(command("stop", output)) == 0
        out, err = training.communicate(timeout=LOAD_SECONDS)
    finally:
        training.kill()
    assert training.returncode == 0
    assert "stopped at step" in out
    assert "warning: stopped after step" in err
    assert len(list(output.glob("checkpoint-*"))) >= 1
    capsys.readouterr()
    assert main(command("stop", output)) == 2
    assert "no training is running" in capsys.readouterr().err


def wait_for(output: Path, state: str) -> dict:
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        if (output / "status.json").is_file():
            status = json.loads((output / "status.json").read_text())
            if status["state"] == state:
                return status
        time.sleep(0.05)
    raise AssertionError(f"the run did not come to be {state}")


def test_commands_to_no_run(tmp_path: Path, capsys: Capture) -> None:
    for name in ("pause", "resume", "stop"):
        assert main(command(name, tmp_path / "nowhere")) == 2
        assert "holds no run" in capsys.readouterr().err
    # A process that has ended, without having been able to say so.
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    status = {"state": "running", "step": 3, "total_steps": 9, "pid": ended.pid}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert main(command("pause", tmp_path)) == 2
    assert "it is dead at step 3 of 9" in capsys.readouterr().err
    assert not (tmp_path / "control.json").exists()


# Lines ---------------------------------------------------------------------------------------------------------


def results(count: int, seconds: float) -> Sequence[StepResult]:
    return [StepResult(n + 1, 0.5, {}, 1e-4, 0.1, seconds, 0, ("a.mp4",)) for n in range(count)]


@pytest.mark.parametrize(
    ("steps", "seconds", "lines"),
    [
        (60, 0.01, 60),  # few: all
        (1000, 0.01, 21),  # ten seconds at two lines a second, the first and the last
        (100, 2.0, 100),  # slow: all
    ],
)
def test_step_lines_are_throttled(steps: int, seconds: float, lines: int) -> None:
    shown: list[str] = []
    now = 0.0
    printer = StepPrinter(steps, show=shown.append, clock=lambda: now)
    for result in results(steps, seconds):
        now += seconds
        printer.step(result)
    assert shown[0].startswith(f"step 1/{steps}")
    assert shown[-1].startswith(f"step {steps}/{steps}")
    assert len(shown) == pytest.approx(lines, abs=1)


def test_remaining_time_follows_recent_steps() -> None:
    """The first step, slowed by warming up, does not count for ever."""
    shown: list[str] = []
    printer = StepPrinter(100, done=90, show=shown.append, clock=lambda: 0.0)
    for number, seconds in enumerate((60.0, 2.0, 2.0, 2.0), 91):
        printer.step(StepResult(number, 0.5, {}, 1e-4, 0.1, seconds, 0, ()))
    assert shown[-1].endswith("2.00 s/step  12 s left")


def test_encoding_lines_come_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    now = 0.0
    monkeypatch.setattr(cli_output, "say", shown.append)
    progress = EncodingLines(seconds=10.0, clock=lambda: now)
    for phase in ("captions", "clips"):
        for done in range(1, 31):
            now += 1.0
            progress(phase, done, 30)
    assert shown[:3] == [
        "encoding captions: 11/30, 19 s left",
        "encoding captions: 21/30, 9 s left",
        "encoding captions: 30/30",
    ]
    assert len(shown) == 6


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599, 3600, 90060)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "25 h 01 min",
    ]


def test_peak_memory_is_at_least_what_is_held() -> None:
    """On a CPU: not below what the system reports right now."""
    import psutil

    if "RAM" in (text := cli_train.peak_memory()):
        assert float(text.split()[0]) >= psutil.Process().memory_info().rss / 2**30 - 0.01
