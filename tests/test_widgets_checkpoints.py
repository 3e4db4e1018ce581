"""The checkpoint browser and the list of runs, on real run folders without a process; clicks as a page sends them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from widget_messages import click

import tunerkit as tk
from tunerkit_widgets import surroundings
from tunerkit_widgets.checkpoint_browser import CheckpointBrowser, CheckpointRun
from tunerkit_widgets.gallery import ValidationGallery
from tunerkit_widgets.list_rows import ago_words, size_words
from tunerkit_widgets.run_list import MOST_ROWS, ListedRun, RunList
from tunerkit_widgets.texts import text

STEPS = (10, 20, 30)
EVALUATIONS = {0: 2.0, 10: 0.9, 20: 0.5, 30: 0.7}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_run(folder: Path, *, state: str = "done", step: int = 30, pid: int = 2**22 + 1, ago: float = 120) -> Path:
    """A run folder as a training leaves it, without any process."""
    folder.mkdir(parents=True)
    status = {"state": state, "step": step, "total_steps": 30, "pid": pid, "time": time.time() - ago, "loss": 0.25}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "config.json").write_text(json.dumps({"model_family": "sanavideo", "output_dir": str(folder)}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with three checkpoints, of which the second has the lowest evaluation loss."""
    made = make_run(tmp_path / "runs" / "fox")
    (made / "metrics.jsonl").write_text(lines([{"step": step, "loss": 1 / step} for step in range(1, 31)]))
    (made / "evaluation.jsonl").write_text(lines([{"step": step, "loss": loss} for step, loss in EVALUATIONS.items()]))
    for step in STEPS:
        checkpoint = made / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "adapter.safetensors").write_bytes(b"0" * 2**20)
        (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "files": {}}))
    return made


@pytest.fixture
def on_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(surroundings.VARIABLE, "0")


@pytest.fixture
def table(folder: Path, request: pytest.FixtureRequest) -> CheckpointBrowser:
    request.getfixturevalue("on_page")
    return CheckpointBrowser(tk.attach(folder))


def pick(dropdown: Any, label: str) -> None:
    index = [str(option) for option in dropdown._options_labels].index(label)
    data = {"method": "update", "state": {"index": index}, "buffer_paths": []}
    dropdown._handle_msg({"content": {"data": data}, "buffers": []})


def visible(widget: Any) -> bool:
    return widget.layout.display != "none"


def page(widget: Any) -> str:
    """All HTML that a widget shows."""
    children = getattr(widget, "children", ())
    return str(getattr(widget, "value", "")) + "".join(page(child) for child in children if visible(child))


def test_a_run_has_what_the_widgets_use(folder: Path) -> None:
    run = tk.attach(folder)
    as_checkpoints: CheckpointRun = run
    as_listed: ListedRun = run
    assert [one.step for one in as_checkpoints.checkpoints()] == list(STEPS)
    assert as_listed.status.state == "done"


# Checkpoints ---------------------------------------------------------------------------------------------------


def test_the_table_marks_best_and_final(table: CheckpointBrowser) -> None:
    assert table.best == 20
    rows = [table.cells(one) for one in table.checkpoints]
    assert [(row[0], row[2], row[-1]) for row in rows] == [
        ("10", "0.9000", "–"),
        ("20", "0.5000", "best"),
        ("30", "0.7000", "final"),
    ]
    assert rows[0][1] == "0.1000"
    assert rows[0][3] == "1.0 MiB"
    assert "Checkpoints: 3, 3.0 MiB" in page(table.widget)
    assert not visible(table.view._actions)  # type: ignore[union-attr]


def test_resume_from_gives_the_value_of_the_setting(table: CheckpointBrowser, folder: Path) -> None:
    view = table.view
    assert view is not None
    click(view.choosers[20])
    assert view.choosers[20].button_style == "info"
    assert view.choosers[10].button_style == ""
    assert visible(view._actions)
    assert table.chosen is None
    click(view.resume_button)
    assert table.chosen == view.value.value == str(folder / "checkpoint-20")
    assert visible(view.value)
    config = tk.TrainConfig(model_family="sanavideo", output_dir=folder, resume_from_checkpoint=table.chosen)
    assert config.resume_from_checkpoint == table.chosen


def test_delete_asks_first_and_says_what_it_freed(table: CheckpointBrowser, folder: Path) -> None:
    view = table.view
    assert view is not None
    click(view.choosers[10])
    click(view.resume_button)
    click(view.delete_button)
    assert "Delete checkpoint-10 and free 1.0 MiB?" in page(table.widget)
    click(view.keep_button)
    assert not visible(view._asking)
    assert (folder / "checkpoint-10").is_dir()

    click(view.delete_button)
    click(view.confirm_button)
    assert not (folder / "checkpoint-10").exists()
    assert "checkpoint-10 is deleted; 1.0 MiB freed." in view.message.value
    assert list(view.choosers) == [20, 30]
    assert table.chosen is None
    assert not visible(view.value)
    assert not visible(view._actions)


@pytest.mark.parametrize("action", ["resume_button", "export_button", "delete_button", "confirm_button"])
def test_a_checkpoint_that_vanished_is_said_and_leaves_the_table(
    table: CheckpointBrowser, folder: Path, action: str
) -> None:
    view = table.view
    assert view is not None
    click(view.choosers[20])
    shutil.rmtree(folder / "checkpoint-20")
    click(getattr(view, action))
    assert "checkpoint-20 is not there any more." in view.message.value
    assert "Details" not in view.message.value
    assert list(view.choosers) == [10, 30]
    assert table.best == 30


def test_a_run_folder_that_vanished_leaves_an_empty_table(table: CheckpointBrowser, folder: Path) -> None:
    shutil.rmtree(folder)
    assert table.view is not None
    click(table.view.refresh_button)
    assert "There are no checkpoints yet." in page(table.widget)


def test_export_shows_the_path_or_the_reason(table: CheckpointBrowser, monkeypatch: pytest.MonkeyPatch) -> None:
    view = table.view
    assert view is not None
    asked: list[tuple[str, str, str]] = []

    def export(path: Path, format: str, checkpoint: str) -> Path:
        asked.append((path.name, format, checkpoint))
        assert view.export_button.disabled
        assert "exporting checkpoint-30" in view.message.value
        if format == "diffusers":
            raise tk.TunerkitError("it trains no LoRA. Fix: use transformer/")
        return path

    monkeypatch.setattr(table.run, "export", export)
    click(view.choosers[30])
    click(view.export_button)
    assert "it trains no LoRA. Fix: use transformer/" in view.message.value
    assert not view.export_button.disabled
    pick(view.format, "comfyui")
    click(view.export_button)
    assert asked[1] == ("checkpoint-30-comfyui.safetensors", "comfyui", "checkpoint-30")
    assert str(table.run.output_dir / "export" / "checkpoint-30-comfyui.safetensors") in view.message.value


def test_compare_hands_both_steps_to_the_gallery(table: CheckpointBrowser, folder: Path) -> None:
    view = table.view
    assert view is not None
    click(view.choosers[30])
    click(view.compare_button)
    assert "validation_step_interval" in view.message.value

    for step in (0, 12, 30):
        video = folder / "validation" / f"step-{step}" / "fox-64x48-7.mp4"
        video.parent.mkdir(parents=True)
        video.write_bytes(b"")
    pick(view.other, "10")
    click(view.compare_button)
    assert "compares step 12 with step 30" in view.message.value
    assert table.gallery is not None
    assert table.gallery.widget.wipe == {"row": "fox-64x48-7", "left": "12", "right": "30"}
    assert view.gallery.children == (table.gallery.widget,)

    shared = ValidationGallery(folder)
    other = CheckpointBrowser(folder, gallery=shared)
    assert other.view is not None
    click(other.view.choosers[10])
    click(other.view.compare_button)
    assert shared.widget.shown == ["0", "12"]
    assert other.view.gallery.children == ()


def test_without_widgets_there_is_a_table(folder: Path) -> None:
    table = CheckpointBrowser(folder)
    assert table.widget is None
    assert "<table>" in table.static()
    assert str(table).splitlines()[2].split()[0] == "20"
    assert str(table).endswith("Checkpoints: 3, 3.0 MiB")
    for step in STEPS:
        table.delete(step)
    assert str(table) == "There are no checkpoints yet."


# Runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(folder: Path, request: pytest.FixtureRequest) -> RunList:
    request.getfixturevalue("on_page")
    top = folder.parent
    make_run(top / "street" / "lr-1", state="running", step=12, pid=os.getpid(), ago=1)
    make_run(top / "street" / "lr-2", state="running", step=3, ago=86400 * 3)
    (top / "street" / "lr-2" / "config.json").write_text("{")
    return RunList(top)


def test_the_list_names_state_and_progress_of_every_run(runs: RunList) -> None:
    assert [one.name for one in runs.runs] == ["street/lr-1", "fox", "street/lr-2"]
    rows = [one.cells(time.time()) for one in runs.runs]
    assert rows[0][1:5] == ("sanavideo", text("dashboard.state_running"), "12 of 30", "0.2500")
    assert rows[1][5] == "2 min ago"
    assert (rows[2][1], rows[2][5]) == ("–", "3 days ago")
    assert runs.runs[2].status.state == "died"
    view = runs.view
    assert view is not None
    assert [stop.disabled for _, stop in view.buttons.values()] == [False, True, True]
    assert "street/lr-2" in page(runs.widget)


def test_attach_gives_a_line_of_code(runs: RunList, folder: Path) -> None:
    assert runs.view is not None
    click(runs.view.buttons["fox"][0])
    assert runs.view.code.value == f"run = tk.attach({str(folder)!r})"
    assert runs.chosen is not None
    assert runs.chosen.output_dir == folder


def test_stop_asks_first(runs: RunList, folder: Path) -> None:
    view, control = runs.view, folder.parent / "street" / "lr-1" / "control.json"
    assert view is not None
    click(view.buttons["street/lr-1"][1])
    assert "Stop street/lr-1 after its step?" in page(runs.widget)
    click(view.keep_button)
    assert not visible(view._asking)
    assert not control.exists()
    click(view.buttons["street/lr-1"][1])
    click(view.confirm_button)
    assert json.loads(control.read_text())["command"] == "stop"
    assert "street/lr-1 stops after its step." in view.message.value


def test_a_run_that_ended_or_vanished_meanwhile_is_said(runs: RunList, folder: Path) -> None:
    view, running = runs.view, folder.parent / "street" / "lr-1"
    assert view is not None
    click(view.buttons["street/lr-1"][1])
    status = json.loads((running / "status.json").read_text())
    (running / "status.json").write_text(json.dumps(status | {"state": "done"}))
    click(view.confirm_button)
    assert "no training is running" in view.message.value
    assert view.buttons["street/lr-1"][1].disabled
    shutil.rmtree(running)
    click(view.buttons["street/lr-1"][0])
    assert "street/lr-1 is not there any more." in view.message.value
    assert "street/lr-1" not in view.buttons
    shutil.rmtree(folder.parent)
    click(view.refresh_button)
    assert "is no folder" in view.message.value
    assert "Details" not in view.message.value
    assert view.buttons == {}


def test_many_runs_and_none(tmp_path: Path) -> None:
    assert str(RunList(tmp_path)) == "There are no runs at or below this folder."
    for number in range(MOST_ROWS + 2):
        make_run(tmp_path / f"run-{number}", ago=number)
    many = RunList(tmp_path)
    assert many.widget is None
    assert many.static().count("<tr>") == MOST_ROWS + 1
    assert str(many).endswith("2 older runs are not shown.")
    assert RunList(tmp_path / "run-3").runs[0].name == "run-3"


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1.5 * 2**20, "1.5 MiB"), (3 * 2**40, "3.0 TiB")]
)
def test_sizes(size: float, words: str) -> None:
    assert size_words(size) == words


def test_times_ago() -> None:
    words = [ago_words(then, 1_000_000) for then in (1_000_001, 999_941, 999_940, 990_000, 1.0, None)]
    assert words == ["0 s ago", "59 s ago", "1 min ago", "2 h ago", "11 days ago", "–"]
