"""The guided notebooks in a real JupyterLab and a real browser, as somebody meets them who opens them and runs all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import Browser, LabNotebook, LabServer, copy_with
from notebook_runs import ROOT

pytest_plugins = ["browser.fixtures"]

GUIDED = {"sana_video": 12, "ltx2": 12, "kandinsky5": 13}
"""Notebook -> players on its page: three prompts, base and tuned, below the curves and in the gallery; Kandinsky's
renders one more."""
STEPS = 4
SECONDS = 240
"""For Run All, on a busy machine."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED)
def test_a_visit(name: str, browser: Browser, lab: LabServer, pictures: Path | None) -> None:
    """Run All as it is, an edit, Run All again with a new kernel, and the page loaded again."""
    file = f"{name}/{name}.ipynb"
    changed = {"max_train_steps": STEPS, "eval_steps_interval": STEPS // 2}
    copy_with(ROOT / "notebooks" / f"{name}.ipynb", lab.root / file, **changed)
    with browser.open(lab, file) as notebook:
        notebook.run_all(SECONDS)
        check_page(notebook, GUIDED[name], lab.root / name)
        photograph(notebook, pictures, name)
        check_edit(notebook)

        (losses,) = (lab.root / name).glob("demo-project/*/output/metrics.jsonl")
        trained = losses.read_bytes()
        notebook.restart_kernel()
        notebook.run_all(SECONDS)
        assert notebook.failed_cells() == {}
        assert f"all {STEPS} steps in" in notebook.text()
        assert losses.read_bytes() == trained

        notebook.save()
        notebook.reload()
        check_edit(notebook)
        assert all(video.plays for video in notebook.videos())
        assert f"all {STEPS} steps in" in notebook.text()
        assert notebook.errors == []
        assert notebook.outside == []


def photograph(notebook: LabNotebook, folder: Path | None, name: str) -> None:
    """Keep pictures of the page in both themes, where they are asked for."""
    if folder is not None:
        notebook.picture(folder / f"{name}_light.png")
        notebook.picture(folder / f"{name}_dark.png", dark=True)


def check_page(notebook: LabNotebook, players: int, folder: Path) -> None:
    """Every cell has run, nothing complained, and every video plays in the size it was rendered in."""
    assert notebook.failed_cells() == {}
    assert notebook.errors == []
    assert notebook.outside == []
    assert f"All {STEPS} steps are done" in notebook.text()
    rendered = [file.name for file in folder.glob("demo-project/*/output/**/*.mp4")]
    sizes = {
        tuple(map(int, match.groups())) for match in map(re.compile(r".+-(\d+)x(\d+)-.+").fullmatch, rendered) if match
    }
    videos = notebook.videos()
    assert [video for video in videos if not video.plays] == []
    assert len(videos) == players
    assert {(video.width, video.height) for video in videos} == sizes
    assert all(video.label and video.seconds > 0.5 for video in videos)


def check_edit(notebook: LabNotebook) -> None:
    """A wrong value shows its message under the field and cannot be saved; a right one clears it."""
    message = "whole number from 1 to 1024"
    before = notebook.value("LoRA rank")
    notebook.set("LoRA rank", -3)
    notebook.wait_field_text("LoRA rank", message)
    notebook.wait_enabled("Save", False)
    notebook.set("LoRA rank", before)
    notebook.wait_field_text("LoRA rank", message, gone=True)
    notebook.wait_enabled("Save")
