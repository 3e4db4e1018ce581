"""A training run that kills itself without warning; started by test_crashes.py.

    python crash_run.py CONFIG OUTPUT WHERE

WHERE: `caching` (while the second latent is written), `step` (inside the optimizer's 5th step), `checkpoint` (while the
second checkpoint is written).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

import tunerkit as tk


def die_at(owner: Any, name: str, call_number: int) -> None:
    """Replace `owner.name` by a function that kills the process at its `call_number`-th call."""
    original = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call_number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def main() -> None:
    config_path, output, where = sys.argv[1:]
    torch.set_num_threads(1)
    if where == "caching":
        import tunerkit.files

        # Between writing the temporary file and renaming it. Captions are cached first: count on from there.
        die_at(tunerkit.files, "flush_file", int(os.environ["DIE_AT"]))
    elif where == "step":
        die_at(torch.optim.AdamW, "step", 5)
    elif where == "checkpoint":
        import tunerkit.training.state

        # optimizer_to_files comes after the weights: the second checkpoint is half written.
        die_at(tunerkit.training.state, "optimizer_to_files", 2)
    trainer = tk.Trainer(tk.load_config(config_path, output_dir=output, validation_disable=True)).prepare()
    for _ in trainer.steps():
        pass


if __name__ == "__main__":
    main()
