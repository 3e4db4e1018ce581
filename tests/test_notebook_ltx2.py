"""The guided notebook of LTX-2 as a batch job: it shows and plays sound, trains it, and exports both layouts."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import av
import nbformat
import pytest
from notebook_runs import ROOT, nbmake, outputs, papermill

import tunerkit as tk

pytest_plugins = ["browser.fixtures"]

LTX2 = ROOT / "notebooks" / "ltx2.ipynb"
LARGEST_BYTES = 800_000


@pytest.mark.slow
def test_the_notebook_shows_and_plays_sound(tmp_path: Path, colab_kernel: Path | None) -> None:
    """And again, with Colab's kernel where there is one: everything is found done, and shown."""
    project = tk.demo.create(tmp_path / "project", family="ltxvideo2", clips="generated").parent
    parameters = {"project": project, "max_train_steps": 12, "eval_steps_interval": 6, "output_dir": tmp_path / "out"}
    done, path = papermill(LTX2, tmp_path, **parameters)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < LARGEST_BYTES
    assert "widgets" not in notebook.metadata

    printed = "".join(outputs(notebook, "stream"))
    assert re.search(r"Loss [\d.]+ \(.*video [\d.]+, audio [\d.]+\)", printed)
    assert re.search(r"(\d+) of \1 samples have sound", printed)
    pages = "".join(outputs(notebook, "text/html"))
    (sound,) = re.findall(r"<audio src='data:audio/wav;base64,([^']+)'", pages)
    with av.open(io.BytesIO(base64.b64decode(sound)), "r") as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        assert (samples, container.streams.audio[0].rate) == (round(25 / 24 * 16000), 16000)

    videos = re.findall(r"<video src='data:video/mp4;base64,([^']+)'", pages)
    assert len(videos) >= 10  # three prompts, base and tuned, below the curves; and what the gallery has room for
    for video in videos:
        with av.open(io.BytesIO(base64.b64decode(video)), "r") as container:
            assert container.streams.audio[0].codec_context.name == "aac"
            assert sum(1 for _ in container.decode(video=0)) == 25
    assert "muted" not in pages
    match = re.search(r"Evaluation loss.*?([\d.]+) → ([\d.]+)", html.unescape(pages))
    assert match
    assert float(match[2]) < float(match[1])
    assert {file.name for file in (tmp_path / "out" / "export").iterdir()} == {
        "diffusers.safetensors",
        "comfyui.safetensors",
    }

    losses = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    again = nbmake(LTX2, tmp_path, colab_kernel, **parameters)
    assert "all 12 steps in" in "".join(outputs(again, "stream"))
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == losses
