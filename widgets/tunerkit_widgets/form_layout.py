"""Which settings a form shows, and where; the boxes that they stand in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

import tunerkit as tk
from tunerkit import SettingInfo, describe
from tunerkit_widgets.setting_field import UNSET, Options, SettingField
from tunerkit_widgets.texts import language, language_names, text

DATA_FOLDER = "data_folder"
"""The folder of the first dataset: no setting of its own, but what everybody changes first."""

MAIN = (
    "model_family",
    "model_flavour",
    "pretrained_model_name_or_path",
    DATA_FOLDER,
    "model_type",
    "lora_rank",
    "max_train_steps",
    "learning_rate",
    "train_batch_size",
    "validation_prompt",
    "output_dir",
)
"""Always in sight, in this order."""

FOLDED = ("training", "optimizer", "adapter", "data", "validation", "checkpoints", "model", "memory")
"""Groups that unfold to the rest of what this version acts on."""

FOLDED_LABEL_WIDTH = "260px"
"""Folded settings have the names that they have in config.json; the longest has 36 letters."""

Value = Callable[[str], Any]
"""Setting -> its value so far."""


def main_field(name: str, value: Value) -> SettingField:
    """A field that is always in sight."""
    infos = {info.name: info for info in describe()}
    label = text(f"label.{name}")
    if name == DATA_FOLDER:
        folder = replace(infos["output_dir"], name=name, description=text("help.data_folder"))
        return SettingField(folder, value(name), label=label, placeholder=text("field.folder"))
    info = infos[name]
    if name == "model_family":
        return SettingField(info, value(name), label=label, options=_family_options())
    if name == "model_flavour":
        return SettingField(info, value(name), label=label, options=flavour_options(value("model_family")))
    if name == "pretrained_model_name_or_path":
        return SettingField(info, value(name), label=label, suggestions=published(value("model_family")))
    return SettingField(info, value(name), label=label, lines=name == "validation_prompt")


def folded_infos(group: str) -> list[SettingInfo]:
    """The settings of a folded group."""
    return [
        info
        for info in describe()
        if info.group == group and info.active and info.name not in MAIN and info.control != "group"
    ]


def flavour_options(family_name: str | None) -> Options:
    """The family's own choice, then its published checkpoints that can be trained."""
    family = _family(family_name)
    if family is None:
        return [(text("field.unset"), UNSET)]
    default = text("field.default", value=family.default_flavour)
    trained = {name: flavour for name, flavour in family.flavours.items() if not flavour.refused}
    named = [(f"{name} ({flavour.note})" if flavour.note else name, name) for name, flavour in trained.items()]
    return [(default, UNSET), *named]


def published(family_name: str | None) -> list[str]:
    """Hub ids of the family's checkpoints that can be trained."""
    family = _family(family_name)
    return [flavour.repo for flavour in family.flavours.values() if not flavour.refused] if family else []


def _family_options() -> Options:
    return [(tk.family(name).title, name) for name in tk.families.names()]


def _family(name: str | None) -> Any:
    try:
        return tk.family(name) if name else None
    except tk.ConfigError:
        return None  # the form says so when it checks the settings


# Boxes ---------------------------------------------------------------------------------------------------------


def language_field() -> Any:
    """The choice of a language."""
    return widgets.Dropdown(
        options=[(name, code) for code, name in language_names().items()],
        value=language(),
        style={"description_width": "auto"},
    )


def count_button() -> Any:
    """Of its own width, also beside a line that is longer than the page is wide."""
    return widgets.Button(
        description=text("form.count"),
        icon="refresh",
        tooltip=text("form.count_help"),
        layout=widgets.Layout(flex="none"),
    )


def folded_groups() -> Any:
    """An empty box for each group that unfolds, under its name."""
    groups = widgets.Accordion(children=[widgets.VBox() for _ in FOLDED], selected_index=None)
    for number, group in enumerate(FOLDED):
        groups.set_title(number, text(f"group.{group}"))
    return groups


def grid(children: list[Any], least: str = "380px") -> Any:
    """As many columns of at least this width as the page has room for."""
    columns = f"repeat(auto-fit, minmax({least}, 1fr))"
    return widgets.GridBox(children, layout=widgets.Layout(grid_template_columns=columns, grid_gap="2px 16px"))


def close_all(widget: Any) -> None:
    """Take a widget and all inside it off the page and out of the kernel's memory."""
    for child in getattr(widget, "children", ()):
        close_all(child)
    widget.close()
