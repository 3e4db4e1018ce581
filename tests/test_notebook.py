"""The guided notebook: what is committed, and what a run of it leaves, alone and as a batch job."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import av
import nbformat
import pytest
from notebook_runs import ROOT, cells, outputs, papermill

import tunerkit as tk

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANA = ROOT / "notebooks" / "sana_video.ipynb"
OWN_PARAMETERS = {"project", "data_folder", "evaluate_every"}
LONGEST_CELL = 15
LARGEST_BYTES = 300_000


# As committed --------------------------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def committed(request: pytest.FixtureRequest) -> Any:
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook


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
    assert "## If it failed" in committed.cells[-1].source


def test_every_parameter_is_a_typed_documented_setting_left_open(committed: Any) -> None:
    tagged = [i for i, cell in enumerate(committed.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = committed.cells[tagged[0]].source.splitlines()
    told = committed.cells[tagged[0] - 1].source
    rest = "\n".join(cell.source for cell in committed.cells[tagged[0] + 1 :])
    for line in lines:
        match = re.fullmatch(r'(\w+): (str|int|float) = (""|0|0\.0)  # @param .+', line)
        assert match, line
        name = match[1]
        assert f"| `{name}` |" in told
        assert name in OWN_PARAMETERS or name in tk.TrainConfig.model_fields
        assert re.search(rf"\b{name}\b", rest)


# As run --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_is_the_batch_job(project: Path, tmp_path: Path) -> None:
    """The first run trains and leaves a notebook that shows it all by itself; the second finds everything done."""
    folder = tmp_path / "job"
    folder.mkdir()
    parameters = {"project": project, "max_train_steps": 30, "evaluate_every": 3, "output_dir": folder / "out"}
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
    assert pages.count("<video src=") == 12  # three prompts, base and tuned, in two cells
    assert "base model" in pages
    match = re.search(r"([\d.]+) → ([\d.]+) \((-\d+)%\)", html.unescape(pages))
    assert match
    assert float(match[2]) < 0.9 * float(match[1])

    made = folder / "out"
    assert (made / "pytorch_lora_weights.safetensors").is_file()
    assert {file.name for file in (made / "export").iterdir()} == {"diffusers.safetensors", "comfyui.safetensors"}
    losses = (made / "metrics.jsonl").read_bytes()

    again, path = papermill(SANA, folder, **parameters)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (made / "metrics.jsonl").read_bytes() == losses
    pages = "".join(outputs(nbformat.read(path, as_version=4), "text/html"))
    assert "complete: all 30 steps are done" in pages
    assert pages.count("<video src=") == 6


@pytest.mark.slow
def test_a_wrong_parameter_ends_the_job_with_its_name(project: Path, tmp_path: Path) -> None:
    done, path = papermill(SANA, tmp_path, project=project, lora_rank=-4)
    assert done.returncode != 0
    assert "lora_rank" in done.stderr
    assert "from 1 to 1024" in done.stderr
    assert not (project / "output" / "metrics.jsonl").exists()
    assert path.is_file()
