"""One trainer at a time in a notebook."""

from __future__ import annotations

import weakref

import tunerkit as tk
from tunerkit_widgets.surroundings import headless, quiet_libraries, show
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import text

_open: weakref.WeakSet[tk.Trainer] = weakref.WeakSet()


def open_trainer(config: tk.TrainConfig) -> tk.Trainer:
    """Prepare a trainer and say where it stands.

    A trainer that this notebook opened before is closed first: it holds the model in memory and the output folder
    locked, and cells are run again. What it has trained since its last checkpoint is saved.

    Raises:
        ConfigError, DatasetError, ModelError, CheckpointError: as `Trainer` and `Trainer.prepare`.
    """
    if headless():
        quiet_libraries()
    close_trainers()
    trainer = tk.Trainer(config)
    trainer.prepare()
    _open.add(trainer)
    _show_state(trainer)
    return trainer


def close_trainers() -> None:
    """Save and close what `open_trainer` opened: frees the GPU's memory and the output folder."""
    for trainer in list(_open):
        _open.discard(trainer)
        try:
            step, folder = trainer.global_step, trainer.config.output_path
            if step and not trainer.done and not (folder / f"checkpoint-{step}").exists():
                trainer.save_checkpoint()
        finally:
            trainer.close()


def _show_state(trainer: tk.Trainer) -> None:
    step, total = trainer.global_step, trainer.total_steps
    if trainer.done:
        state = text("trainer.done", step=step)
    elif step:
        state = text("trainer.resumed", step=step, total=total)
    else:
        state = text("trainer.new", total=total)
    clips = len(trainer.report.samples) if trainer.report else 0
    rows = [
        (text("trainer.state"), state),
        (text("trainer.model"), f"{trainer.family.title} ({trainer.config.model_type})"),
        (text("trainer.clips"), str(clips)),
        (text("trainer.folder"), str(trainer.config.output_path)),
    ]
    show(table_html(rows), table_text(rows))
