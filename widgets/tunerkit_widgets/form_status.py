"""The lines at the end of a form: whether its settings are right, in words."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping
from typing import Any

import tunerkit as tk
from tunerkit_widgets.form_layout import DATA_FOLDER
from tunerkit_widgets.guard import ERROR_COLOUR, GOOD_COLOUR, QUIET_COLOUR
from tunerkit_widgets.texts import text


def status_html(config: tk.TrainConfig | None, problems: int, shown: Mapping[str, Any], fields: Collection[str]) -> str:
    """What the settings amount to, or how many problems there are; those without a field in sight are written out.

    Args:
        config: resolved settings; None where they are wrong.
        problems: how many there are.
        shown: one of them by field.
        fields: those in sight.
    """
    if config is None:
        words = text("form.problem") if problems == 1 else text("form.problems", count=problems)
        others = "".join(f"<li>{html.escape(str(p))}</li>" for name, p in shown.items() if name not in fields)
        return f"<b role='alert' style='color:{ERROR_COLOUR}'>✗ {html.escape(words)}</b><ul>{others}</ul>"
    kind = text("form.lora", rank=config.lora_rank) if config.model_type == "lora" else text("form.full")
    steps = config.max_train_steps or text("form.epochs", count=config.num_train_epochs)
    words = text("form.ready", kind=kind, steps=steps, folder=config.output_path)
    return f"<b style='color:{GOOD_COLOUR}'>✓ {html.escape(words)}</b>{notes_html(config)}"


def notes_html(config: tk.TrainConfig) -> str:
    """The notes on resolved settings, folded; empty without one."""
    if not config.notes:
        return ""
    items = "".join(f"<li>{html.escape(str(note))}</li>" for note in config.notes)
    title = html.escape(text("form.notes", count=len(config.notes)))
    return f"<details style='color:{QUIET_COLOUR}'><summary>{title}</summary><ul>{items}</ul></details>"


def field_name(key: str) -> str:
    """The field that shows a problem of the setting `key`."""
    if key == "data_backend_config" or key.endswith("instance_data_dir"):
        return DATA_FOLDER
    return key.partition("[")[0].partition(".")[0] if not key.startswith("datasets") else key
