"""Words of one's own, rendered with a checkpoint of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tunerkit.config.prompts import safe_name
from tunerkit.errors import TunerkitError

if TYPE_CHECKING:
    from tunerkit.running.run import Run
    from tunerkit.validation.render import Rendering

_LETTERS = 40
"""Of the prompt in the name of its file."""


def render(run: Run, prompt: str, seed: int | None, checkpoint: str) -> list[Rendering]:
    """As `Run.render`, with the checkpoint as the command line takes it."""
    from tunerkit.running.launch import run_command

    if not prompt.strip():
        raise TunerkitError("render(): the prompt is empty. Fix: write what the video shows")
    if not run.status.ended:
        raise TunerkitError(
            f"the training in {run.output_dir} goes on and holds the device. Fix: wait for it or stop it; its own "
            "prompts are rendered by run.validate_now()"
        )
    name = nickname(prompt)
    with TemporaryDirectory(prefix="tunerkit-") as folder:
        library = Path(folder) / "prompts.json"
        library.write_text(json.dumps({name: prompt}), encoding="utf-8")
        # This prompt alone, once: everything else of the validation stays as it is.
        words = [
            "validation_prompt=",
            "validation_input=",
            "validation_using_datasets=false",
            "num_validation_images=1",
        ]
        words += [f"user_prompt_library={library}"] + ([] if seed is None else [f"validation_seed={seed}"])
        words += [f"output_dir={run.output_dir}"]  # where the run lies now
        run_command("validate", str(run.settings_file), "--checkpoint", checkpoint, *words)
    made = [video for video in run.videos() if video.nickname == name and seed in (None, video.seed)]
    newest = max((video.path.stat().st_mtime_ns for video in made), default=0)
    step = next((video.step for video in made if video.path.stat().st_mtime_ns == newest), None)
    return [video for video in made if video.step == step]


def nickname(prompt: str) -> str:
    """What the videos of a prompt are called: how it begins, and a mark that tells it from others that begin so.

    >>> nickname("A fox.")
    'A_fox-e58a'
    """
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:4]
    return f"{safe_name(prompt)[:_LETTERS].strip('._-')}-{mark}"
