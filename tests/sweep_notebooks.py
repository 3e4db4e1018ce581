"""A small notebook that pretends to train, for sweeps: it writes what a run leaves, in a second and without torch."""

from __future__ import annotations

from pathlib import Path

import nbformat

PARAMETERS = """\
learning_rate: float = 0.0  # @param {"type":"number"}
lora_rank: int = 0  # @param {"type":"integer"}
model_type: str = ""  # @param ["", "lora", "full"]
max_train_steps: int = 5  # @param {"type":"integer"}
behaviour: str = "train"
output_dir: str = ""
"""
TRAIN = """\
import json, os, time
from pathlib import Path

import av
import numpy as np

folder = Path(output_dir)
(folder / "validation" / "step-5").mkdir(parents=True, exist_ok=True)
print("training with", learning_rate)
if behaviour == "fail" and not (folder / "mended").exists():
    raise ValueError("the loss is <not> a number")
if behaviour == "die":
    os.kill(os.getpid(), 9)
if behaviour == "wait":
    try:
        (folder / "waiting").touch()
        while not (folder / "go").exists():
            time.sleep(0.05)
    finally:
        (folder / "checkpoint").touch()
with open(folder / "starts", "a") as file:
    file.write("started\\n")
with open(folder / "metrics.jsonl", "w") as file:
    for step in range(1, max_train_steps + 1):
        file.write(json.dumps({"step": step, "loss": 1 / (1 + 100 * learning_rate * step)}) + "\\n")
with open(folder / "evaluation.jsonl", "w") as file:
    for step in (0, 3, 5):
        file.write(json.dumps({"step": step, "loss": 0.9 - learning_rate * step + 0.5 * (step == 5)}) + "\\n")
status = {"state": "done", "step": max_train_steps, "total_steps": max_train_steps, "pid": os.getpid()}
(folder / "status.json").write_text(json.dumps({**status, "memory": {"peak": 2**30}}))
with av.open(str(folder / "validation" / "step-5" / "fox-64x48-1.mp4"), "w") as container:
    stream = container.add_stream("libx264", rate=8)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for number in range(8):
        picture = np.full((48, 64, 3), (30 * number, 255 - 30 * number, 120), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
    container.mux(stream.encode())
"""


def pretend_notebook(folder: Path, parameters: str = PARAMETERS, train: str = TRAIN) -> Path:
    """Write the notebook into a folder.

    Its `behaviour` is `train`, `fail` (until there is a file `mended` in its output), `die`, or `wait` (for a file
    `go` in its output; an interrupt leaves a file `checkpoint`).
    """
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    head = nbformat.v4.new_code_cell(parameters)
    head.metadata["tags"] = ["parameters"]
    notebook.cells = [head, nbformat.v4.new_code_cell(train)]
    path = folder / "pretend.ipynb"
    nbformat.write(notebook, path)
    return path
