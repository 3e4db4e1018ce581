"""The guided notebook of Kandinsky 5.0 Video as a batch job, image to video: it trains, renders and exports, and what
it loads into the stock pipeline renders what the trainer did. (The browser runs it from text.)"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import av
import nbformat
import numpy as np
import pytest
from notebook_runs import ROOT, nbmake, outputs, papermill
from PIL import Image

import tunerkit as tk
import tunerkit_widgets as tw

pytest_plugins = ["browser.fixtures"]

KANDINSKY = ROOT / "notebooks" / "kandinsky5.ipynb"
LARGEST_BYTES = 350_000
STEPS = 12
FRAMES, WIDTH, HEIGHT = 17, 96, 64
PLAYERS = 2 * 3 * 2 + 1
"""In two places three prompts or more, base and tuned; and the video of the stock pipeline."""
RED = (200, 40, 40)
CLIP = "black-box-diagonal"
"""The first of the longest clips, which the notebook renders with the stock pipeline."""


def pixels(path: Path) -> np.ndarray:
    """All frames of a video, float `[T, H, W, 3]` in 0..255."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)


def run(tmp_path: Path, flavour: str, **parameters: object) -> tuple[Any, Path]:
    """The executed notebook and its output folder, of a job on a small project of `flavour`."""
    project = tk.demo.create(
        tmp_path / "project",
        family="kandinsky5-video",
        clips="generated",
        model_flavour=flavour,
        validation_using_datasets=flavour.startswith("i2v-"),
        num_eval_images=1,
        vae_dtype="fp32",  # as the notebook loads the stock pipeline, so that both decode alike
    )
    out = tmp_path / "out"
    done, path = papermill(
        KANDINSKY,
        tmp_path,
        project=project.parent,
        max_train_steps=STEPS,
        eval_steps_interval=STEPS // 2,
        output_dir=out,
        **parameters,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < LARGEST_BYTES
    assert "widgets" not in notebook.metadata
    assert f"All {STEPS} steps are done" in "".join(outputs(notebook, "stream"))
    return notebook, out


def check_result(notebook: Any, out: Path) -> None:
    """What both modes leave: a lower loss, both layouts, and players that hold whole videos."""
    pages = "".join(outputs(notebook, "text/html"))
    match = re.search(r"Evaluation loss.*?([\d.]+) → ([\d.]+)", html.unescape(pages))
    assert match
    assert float(match[2]) < 0.97 * float(match[1])
    players = re.findall(r"<video src='data:video/mp4;base64,([^']+)'", pages)
    assert len(players) >= PLAYERS
    for player in players:
        with av.open(io.BytesIO(base64.b64decode(player)), "r") as container:
            assert sum(1 for _ in container.decode(video=0)) == FRAMES
    assert {file.name for file in (out / "export").glob("*.safetensors")} == {
        "diffusers.safetensors",
        "comfyui.safetensors",
    }


def check_stock_rendering(out: Path, nickname: str) -> None:
    """The stock pipeline renders as the trainer did of the same prompt, and not as the base model did."""
    name = f"{nickname}-{WIDTH}x{HEIGHT}-42.mp4"
    base, tuned = (pixels(out / "validation" / step / name) for step in ("step-0", f"step-{STEPS}"))
    stock = pixels(out / "export" / f"step-{STEPS}" / f"diffusers-{WIDTH}x{HEIGHT}-42.mp4")
    assert stock.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.abs(stock - tuned).mean() < 0.5
    assert np.abs(stock - base).mean() > 5


@pytest.mark.slow
def test_image_to_video(tmp_path: Path, colab_kernel: Path | None) -> None:
    """Of five videos, one starts from a given image, one from a clip, three from frames that were rendered.

    Then once more, with Colab's kernel where there is one: the training is found done.
    """
    Image.new("RGB", (200, 100), RED).save(tmp_path / "red.png")
    given = tmp_path / "frames.json"
    given.write_text(json.dumps([{"image": "red.png", "prompt": "A red wall.", "nickname": "wall"}]))
    notebook, out = run(tmp_path, "i2v-lite-5s", validation_input=given)
    assert "Kandinsky5I2VPipeline, sampling shift 10" in "".join(outputs(notebook, "stream"))
    check_result(notebook, out)
    check_stock_rendering(out, CLIP)

    size = f"{WIDTH}x{HEIGHT}-42"
    made = {video.stem for video in (out / "validation" / f"step-{STEPS}").glob("*-42.mp4")}
    rendered = {picture.stem for picture in (out / "validation" / "first-frames").glob("*.png")}
    assert made == {f"{name}-{size}" for name in ("wall", CLIP, "validation", "blue-ball", "green-box")}
    assert rendered == {f"{name}-{size}" for name in ("validation", "blue-ball", "green-box")}
    for step in ("step-0", f"step-{STEPS}"):
        wall = pixels(out / "validation" / step / f"wall-{size}.mp4")
        assert np.abs(wall[0].mean((0, 1)) - RED).max() < 20, step

    losses = (out / "metrics.jsonl").read_bytes()
    parameters = {"project": tmp_path / "project", "max_train_steps": STEPS, "eval_steps_interval": STEPS // 2}
    again = nbmake(KANDINSKY, tmp_path, colab_kernel, **parameters, validation_input=given, output_dir=out)
    assert f"all {STEPS} steps in" in "".join(outputs(again, "stream"))
    assert (out / "metrics.jsonl").read_bytes() == losses


def test_a_first_project_takes_the_frames_of_its_flavour(tmp_path: Path) -> None:
    for flavour, frames in ((None, 121), ("t2v-lite-10s", 241), ("i2v-lite-5s", 121), ("unknown", 121)):
        (dataset,) = tw.new_project(tmp_path, "kandinsky5-video", flavour).datasets
        assert (dataset.video.num_frames, dataset.video.min_frames) == (frames, 17)
        assert not dataset.takes_sound
