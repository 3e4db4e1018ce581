"""The guided notebook: what is committed, and what a run of it leaves, as a batch job and as a test."""

from __future__ import annotations

import base64
import html
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import nbformat
import pytest
from notebook_runs import ROOT, cells, nbmake, outputs, papermill

import tunerkit as tk

NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
SANA = ROOT / "notebooks" / "sana_video.ipynb"
BUILD = ROOT / "notebooks" / "source" / "build.py"
OWN_PARAMETERS = {"project", "data_folder", "language", "method"}
LONGEST_CELL = 16
LARGEST_BYTES = 300_000


# As committed --------------------------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())
def committed(request: pytest.FixtureRequest) -> Any:
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_they_are_as_their_source_has_them() -> None:
    """All of them, in every language, and nothing else."""
    done = subprocess.run([sys.executable, str(BUILD), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0 not as their source has them\n")
    names = {path.relative_to(ROOT / "notebooks").as_posix() for path in NOTEBOOKS}
    kinds = ("sana_video", "ltx2", "kandinsky5", "sweep")
    assert names == {f"{folder}{name}.ipynb" for folder in ("", "es/", "hi/", "ja/") for name in kinds}


def test_languages_differ_in_words_alone() -> None:
    for path in NOTEBOOKS:
        english = nbformat.read(ROOT / "notebooks" / path.name, as_version=4)
        other = nbformat.read(path, as_version=4)
        language = "" if path.parent.name == "notebooks" else path.parent.name
        assert [cell.cell_type for cell in other.cells] == [cell.cell_type for cell in english.cells]
        line = f'language: str = "{language}"'
        for ours, theirs in zip(cells(english, "code"), cells(other, "code"), strict=True):
            assert theirs.source == ours.source.replace('language: str = ""', line)
        # Names of settings and files, links and commands are the same in all languages.
        for ours, theirs in zip(cells(english, "markdown"), cells(other, "markdown"), strict=True):
            assert sorted(re.findall(r"`[^`\n]+`", theirs.source)) == sorted(re.findall(r"`[^`\n]+`", ours.source))
            assert theirs.source.count("|") == ours.source.count("|")


def test_nothing_of_a_run_is_committed(committed: Any) -> None:
    assert set(committed.metadata) <= {"kernelspec", "language_info"}
    for cell in cells(committed, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}


def test_cells_are_short_and_told(committed: Any) -> None:
    assert committed.cells[0].source.startswith("# ")
    for cell in cells(committed, "code"):
        assert len(cell.source.splitlines()) <= LONGEST_CELL
    last = committed.cells[-1].source
    assert re.search(r"^## ", last, re.MULTILINE)
    assert last.count("\n| ") >= 5


def test_every_parameter_is_a_typed_documented_setting_left_open(committed: Any) -> None:
    tagged = [i for i, cell in enumerate(committed.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = committed.cells[tagged[0]].source.splitlines()
    told = committed.cells[tagged[0] - 1].source
    rest = "\n".join(cell.source for cell in committed.cells[tagged[0] + 1 :])
    for line in lines:
        match = re.fullmatch(r'(\w+): (str|int|float) = ("(?:es|hi|ja|)"|0|0\.0)  # @param .+', line)
        assert match, line
        name = match[1]
        assert name == "language" or match[3] in ('""', "0", "0.0")
        assert f"| `{name}` |" in told
        assert name in OWN_PARAMETERS or name in tk.TrainConfig.model_fields
        assert re.search(rf"\b{name}\b", rest)


# As run --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_is_the_batch_job(project: Path, tmp_path: Path) -> None:
    """The first run trains and leaves a notebook that shows it all by itself; the second finds everything done."""
    folder = tmp_path / "job"
    folder.mkdir()
    parameters = {"project": project, "max_train_steps": 30, "eval_steps_interval": 3, "output_dir": folder / "out"}
    done, path = papermill(SANA, folder, **parameters)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < LARGEST_BYTES
    assert "widgets" not in notebook.metadata
    assert not outputs(notebook, "application/vnd.jupyter.widget-view+json")

    printed = "".join(outputs(notebook, "stream"))
    assert "All 30 steps are done" in printed
    assert "step 30 of 30" in printed
    assert len(base64.b64decode(outputs(notebook, "image/png")[0])) > 5000
    pages = "".join(outputs(notebook, "text/html"))
    for source in re.findall(r"<video src='data:video/mp4;base64,([^']+)'", pages):
        with av.open(io.BytesIO(base64.b64decode(source)), "r") as container:
            assert sum(1 for _ in container.decode(video=0)) == 17
            assert container.streams.video[0].codec_context.name == "h264"
    assert pages.count("<video src=") == 12  # three prompts, base and tuned, below the curves and in the gallery
    assert "base model" in pages
    match = re.search(r"([\d.]+) → ([\d.]+) \((-\d+)%\)", html.unescape(pages))
    assert match
    assert float(match[2]) < 0.9 * float(match[1])

    made = folder / "out"
    assert (made / "pytorch_lora_weights.safetensors").is_file()
    assert {file.name for file in (made / "export").iterdir()} == {"diffusers.safetensors", "comfyui.safetensors"}
    losses = (made / "metrics.jsonl").read_bytes()

    check_page_plays_offline(path)
    notebook = nbmake(SANA, folder, **parameters)
    assert (made / "metrics.jsonl").read_bytes() == losses
    assert "all 30 steps in" in "".join(outputs(notebook, "stream"))
    assert "".join(outputs(notebook, "text/html")).count("<video src=") == 12


def check_page_plays_offline(notebook: Path) -> None:
    """`nbconvert --to html` makes a page whose videos need neither files nor addresses."""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(notebook), "--output", "page.html"]
    subprocess.run(command, check=True, capture_output=True)
    page = (notebook.parent / "page.html").read_text()
    assert len(re.findall(r"<video[^>]* src=[\"']data:video/mp4;base64,", page)) == 12
    assert not re.search(r"<(?:video|img|audio|source)[^>]* src=[\"'](?!data:)", page)


@pytest.mark.slow
def test_a_wrong_parameter_ends_the_job_with_its_name(project: Path, tmp_path: Path) -> None:
    done, path = papermill(SANA, tmp_path, project=project, lora_rank=-4)
    assert done.returncode != 0
    assert "lora_rank" in done.stderr
    assert "from 1 to 1024" in done.stderr
    assert not (project / "output" / "metrics.jsonl").exists()
    assert path.is_file()
