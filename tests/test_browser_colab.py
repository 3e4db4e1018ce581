"""The main flow with the versions that Colab has, in the browser (JupyterLab 3.6) and as a batch job."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nbformat
import pytest
from browser import Browser, LabServer, copy_with
from browser.fixtures import kernel_folder
from notebook_runs import ROOT, outputs, papermill
from test_browser_notebooks import SECONDS, STEPS, check_edit, check_page, photograph

pytest_plugins = ["browser.fixtures"]

SANA = ROOT / "notebooks" / "sana_video.ipynb"
VERSIONS = {
    "ipykernel": "6.17.1",
    "ipywidgets": "7.7.1",
    "ipython": "7.34.0",
    "anywidget": "0.9.21",
    "jupyterlab": "3.6",
}


def test_the_bed_has_colabs_versions_and_our_libraries(colab_python: Path) -> None:
    script = (
        "import importlib.metadata as m, importlib.util as u, json, sys;"
        f"print(json.dumps([[m.version(n) for n in {list(VERSIONS)}], u.find_spec('torch') is not None]))"
    )
    done = subprocess.run([str(colab_python), "-c", script], capture_output=True, text=True, check=True)
    versions, torch_found = json.loads(done.stdout)
    assert all(version.startswith(wanted) for version, wanted in zip(versions, VERSIONS.values(), strict=True))
    assert torch_found


@pytest.mark.slow
def test_in_the_browser(browser: Browser, colab_lab: LabServer, pictures: Path | None) -> None:
    copy_with(SANA, colab_lab.root / "sana" / SANA.name, max_train_steps=STEPS, eval_steps_interval=STEPS // 2)
    with browser.open(colab_lab, f"sana/{SANA.name}") as notebook:
        notebook.run_all(SECONDS)
        check_page(notebook, 12, colab_lab.root / "sana")
        photograph(notebook, pictures, "colab")
        check_edit(notebook)
        notebook.run_all(SECONDS)
        assert notebook.failed_cells() == {}
        assert notebook.errors == []


@pytest.mark.slow
def test_as_a_batch_job(colab_python: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel, in the place of the one that papermill would start."""
    monkeypatch.setenv("JUPYTER_PATH", str(kernel_folder(colab_python, tmp_path / "jupyter")))
    done, path = papermill(SANA, tmp_path, project=project, max_train_steps=STEPS, output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(path, as_version=4)
    assert f"All {STEPS} steps are done" in "".join(outputs(notebook, "stream"))
    assert "".join(outputs(notebook, "text/html")).count("<video src=") == 12
    assert not outputs(notebook, "application/vnd.jupyter.widget-view+json")
