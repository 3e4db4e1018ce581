"""Notebooks and folders for looking at the widgets: written in a moment, with nothing trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np

import tunerkit as tk
from tunerkit.batch import plan_sweep
from tunerkit.batch.folders import SweepFolder

SIZE = (160, 96)
"""Pixels, width and height, of the made-up validation videos."""
FRAMES, FPS = 36, 12.0
STEPS = (0, 20, 40)
PROMPTS = {"ball": "A red ball rolls over a green meadow", "song": "A blue ball hums a long low note"}
"""By nickname; the song has sound."""
BALLS = ((220, 60, 50), (60, 90, 230))
"""Colours, red green blue."""

SETTINGS = {
    "max_train_steps": 6000,
    "validation_step_interval": 100_000,
    "checkpoint_step_interval": 100_000,
    "validation_num_inference_steps": 2,
    "user_prompt_library": None,
    "eval_loss_disable": True,
}
"""A training that lasts for minutes and saves and renders when it is told to."""


def write_notebook(path: Path, *cells: str, kernel: str = "python3") -> Path:
    """Write a notebook of these code cells, for the kernel of that name."""
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    document.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, path)
    return path


def opening(project: Path, **settings: object) -> str:
    """The first cell: the packages, and as `config` the project's settings with some changed."""
    load = f"config = tk.load_config({str(project / 'config.json')!r}, **{settings!r})"
    return f"import tunerkit as tk\nimport tunerkit_widgets as tw\n\n{load}"


FOLLOW = "run = tk.start(config)\nawait tw.follow(run)"


def write_rounds(output: Path) -> Path:
    """Write rounds of validation videos at STEPS; the folder, as that of a run."""
    for step in STEPS:
        folder = output / "validation" / f"step-{step}"
        about = {}
        for number, (name, prompt) in enumerate(PROMPTS.items()):
            film = f"{name}-{SIZE[0]}x{SIZE[1]}-7.mp4"
            tone = 0.2 * np.sin(np.arange(int(24_000 * FRAMES / FPS)) / 20) if name == "song" else None
            tk.write_mp4(folder / film, _rolling_ball(number, step), FPS, tone, 24_000)
            about[film] = {"prompt": prompt, "image": None, "frames": FRAMES, "fps": FPS, "guidance": [3.0]}
            about[film] |= {"seed": 7, "size": list(SIZE)}
        (folder / "renderings.json").write_text(json.dumps(about))
    return output


def _rolling_ball(colour: int, step: int) -> np.ndarray:
    """Frames [T, H, W, 3]; the more steps, the rounder the ball."""
    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    power = 0.7 + step / 30
    frames = np.zeros((FRAMES, height, width, 3), np.uint8)
    frames[..., 1] = (80 + 90 * y / height).astype(np.uint8)
    for number, frame in enumerate(frames):
        middle = 24 + (width - 48) * number / (FRAMES - 1)
        ball = (np.abs(x - middle) ** power + np.abs(y - height / 2) ** power) < 20**power
        frame[ball] = BALLS[colour % len(BALLS)]
    return frames


def write_dataset(project: Path, folder: Path) -> Path:
    """A copy of a demo project with three of its clips and one that is too short; its config.json."""
    folder.mkdir(parents=True)
    for name in ("config.json", "multidatabackend.json", "user_prompt_library.json"):
        shutil.copyfile(project / name, folder / name)
    shutil.copytree(project / "model", folder / "model")
    (folder / "clips").mkdir()
    for number, clip in enumerate(sorted((project / "clips").glob("*.mp4"))[:3]):
        shutil.copyfile(clip, folder / "clips" / f"clip-{number}.mp4")
        (folder / "clips" / f"clip-{number}.txt").write_text(f"A rabbit in shot {number}, seen from the side.\n")
    tk.write_mp4(folder / "clips" / "too-short.mp4", _rolling_ball(0, 40)[:3], 16)
    (folder / "clips" / "too-short.txt").write_text("A ball that is gone at once.\n")
    return folder / "config.json"


def write_sweep(folder: Path, notebook: Path) -> Path:
    """A sweep of two runs of a notebook, of which one is done; its folder."""
    runs = SweepFolder(folder).prepare(plan_sweep(notebook, {"learning_rate": [1e-3, 1e-2]}), {})
    done = runs[0]
    done.output.mkdir(parents=True)
    losses = "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 6))
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        (done.output / name).write_text(losses)
    (done.output / "status.json").write_text(json.dumps({"state": "done", "step": 5, "total_steps": 5}))
    tk.write_mp4(done.output / "validation" / "step-5" / "ball-160x96-7.mp4", _rolling_ball(0, 40), FPS)
    done.write_state(state="done", seconds=65.0, error="")
    return folder
