"""The sweep's widgets, without kernel and browser: edits and clicks as a page would send them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_notebooks import pretend_notebook
from test_sweep_report import leave
from widget_messages import click, edit

import tunerkit as tk
from tunerkit import batch
from tunerkit.batch.folders import SweepFolder
from tunerkit_widgets import surroundings
from tunerkit_widgets.sweep_launcher import SweepLauncher, values_of
from tunerkit_widgets.sweep_table import SweepTable


@pytest.fixture
def on_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook with somebody in front of it."""
    monkeypatch.setenv(surroundings.VARIABLE, "0")


@pytest.fixture
def launcher(tmp_path: Path, request: pytest.FixtureRequest) -> SweepLauncher:
    request.getfixturevalue("on_page")
    return SweepLauncher(pretend_notebook(tmp_path), tmp_path / "out")


def begun(folder: Path, notebook: Path, grid: dict[str, Any]) -> list[Any]:
    return SweepFolder(folder).prepare(batch.plan_sweep(notebook, grid), {})


def test_values_are_checked_as_they_are_written(launcher: SweepLauncher) -> None:
    assert "output_dir" not in launcher.fields
    assert launcher.start_button.disabled
    assert "Tick what to vary" in launcher.summary.value
    tick, values, message = launcher.fields["lora_rank"]
    assert values.disabled
    assert "otherwise 0" in message.value

    edit(tick, True)
    assert not values.disabled
    assert "not a list of values" in message.value
    edit(values, "4, -8")
    assert "a whole number from 1 to 1024" in message.value
    assert launcher.start_button.disabled
    edit(values, "4, 8, 16")
    assert "otherwise 0" in message.value
    assert "3 runs (3)" in launcher.summary.value

    edit(launcher.fields["model_type"][0], True)
    edit(launcher.fields["model_type"][1], "lora, ful")
    assert "did you mean full" in launcher.fields["model_type"][2].value
    edit(launcher.fields["model_type"][1], "lora, full")
    assert "6 runs (3 × 2)" in launcher.summary.value
    assert launcher.grid == {"lora_rank": [4, 8, 16], "model_type": ["lora", "full"]}
    assert not launcher.start_button.disabled

    edit(tick, False)
    edit(launcher.fields["model_type"][1], "lora")
    assert "1 run<" in launcher.summary.value


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("1e-4, 3e-4", [1e-4, 3e-4]),
        (".5,", [0.5]),
        ("a cat, a dog", ["a cat", "a dog"]),
        ('"a cat, asleep", "a dog"', ["a cat, asleep", "a dog"]),
        ("True, None, nan", [True, None, "nan"]),
        (" ", []),
    ],
)
def test_values_as_people_write_them(words: str, values: list[Any]) -> None:
    assert values_of(words) == values


def test_start_and_stop_are_processes_of_their_own(launcher: SweepLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}

    def start(notebook: Path, grid: dict[str, Any], **more: Any) -> int:
        started.update(notebook=notebook, grid=grid, **more)
        return 1

    monkeypatch.setattr(batch, "start_sweep", start)
    click(launcher.stop_button)
    assert "no sweep works in" in launcher.summary.value
    edit(launcher.fields["lora_rank"][0], True)
    edit(launcher.fields["lora_rank"][1], "4")
    edit(launcher.parallel, 2)
    edit(launcher.folder, str(launcher.notebook.parent / "other"))
    click(launcher.start_button)
    folder = launcher.notebook.parent / "other"
    assert started == {"notebook": launcher.notebook, "grid": {"lora_rank": [4]}, "output_dir": folder, "parallel": 2}
    assert "goes on when this notebook is closed" in launcher.summary.value

    def refuse(*_: Any, **__: Any) -> int:
        raise tk.TunerkitError("a sweep works in <there> already")

    monkeypatch.setattr(batch, "start_sweep", refuse)
    click(launcher.start_button)
    assert "works in &lt;there&gt; already" in launcher.summary.value


@pytest.mark.usefixtures("on_page")
def test_the_table_follows_what_the_runs_leave(tmp_path: Path) -> None:
    table = SweepTable(tmp_path / "out")
    assert "No results yet" in table._page.value
    first, second = begun(tmp_path / "out", pretend_notebook(tmp_path), {"lora_rank": [4, 8]})
    click(table.refresh_button)
    assert "2 runs: 2 queued" in table._page.value
    leave(first.output, [0.5, 0.25], [0.5])
    first.write_state(state="done", seconds=3.0, error="")
    table.refresh()
    assert "0.25" in table._page.value
    assert "data:video/mp4" in table._page.value
    sent = table._page.value
    second.write_state(state="queued", more="the same on the page")
    table.refresh()
    assert table._page.value is sent
    assert asyncio.run(table.finished()) is not None


def test_where_nobody_can_click_the_results_stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = pretend_notebook(tmp_path)
    launcher = SweepLauncher(notebook, tmp_path / "out")
    assert launcher.widget is None
    launcher._ipython_display_()
    assert "lora_rank" in capsys.readouterr().out
    (run,) = begun(tmp_path / "out", notebook, {"lora_rank": [4]})
    leave(run.output, [0.5], [0.5])
    run.write_state(state="done", seconds=3.0, error="")
    page = launcher.static()
    assert "<video src='data:video/mp4;base64," in page
    assert len(page) < 200_000
    table = SweepTable(tmp_path / "out")
    table._ipython_display_()
    assert "run 1, lora_rank=4: done, loss 0.5" in capsys.readouterr().out


def test_a_broken_sweep_says_why_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that cannot begin leaves its words, and they are shown."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(tk.TunerkitError, match="ended at once: status 1"):
        batch.start_sweep(pretend_notebook(tmp_path), {"lora_rank": [4]}, output_dir=tmp_path / "out")
