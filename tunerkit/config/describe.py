"""What forms need to know of each setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from tunerkit.config.fields import kind_of
from tunerkit.config.inactive import DATASET_INACTIVE, INACTIVE, REFUSED
from tunerkit.config.problems import expected, limit, model_in

Control = Literal["flag", "choice", "integer", "number", "path", "text", "list", "object", "group"]


@dataclass(frozen=True)
class SettingInfo:
    """One setting, as a form shows it.

    Attributes:
        name: the setting.
        group: the section it stands in.
        description: one line.
        control: what kind of value it takes.
        default: its value when it is not given.
        optional: whether it may be left open (None).
        choices: the legal values of a choice.
        minimum: least value of a number, if there is one.
        maximum: greatest value of a number, if there is one.
        expected: what it takes, in words.
        active: whether this version acts on it.
    """

    name: str
    group: str
    description: str
    control: Control
    default: Any
    optional: bool
    choices: tuple[Any, ...]
    minimum: float | None
    maximum: float | None
    expected: str
    active: bool


def describe(model: type[BaseModel] | None = None) -> list[SettingInfo]:
    """The settings of a model (`TrainConfig` when not given; also `DatasetConfig`, `VideoSettings`), by group."""
    if model is None:
        from tunerkit.config.settings import TrainConfig

        model = TrainConfig
    found = [_info(name, model) for name in model.model_fields]
    groups = list(dict.fromkeys(info.group for info in found))
    return sorted(found, key=lambda info: groups.index(info.group))


def _info(name: str, model: type[BaseModel]) -> SettingInfo:
    field = model.model_fields[name]
    kind = kind_of(field.annotation)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    inactive = DATASET_INACTIVE if model.__name__ == "DatasetConfig" else {**INACTIVE, **REFUSED}
    low, high = limit(field, "ge"), limit(field, "le")
    return SettingInfo(
        name=name,
        group=str(extra.get("group", "data")),
        description=field.description or "",
        control=_control(field.annotation),
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        optional=kind.none,
        choices=kind.choices,
        minimum=low if low is not None else limit(field, "gt"),
        maximum=high if high is not None else limit(field, "lt"),
        expected=expected(field),
        active=name not in inactive,
    )


def _control(annotation: Any) -> Control:
    kind = kind_of(annotation)
    if model_in(annotation) is not None:
        return "group"
    order: tuple[tuple[bool, Control], ...] = (
        (kind.flag, "flag"),
        (bool(kind.choices), "choice"),
        (kind.number, "number"),
        (kind.integer, "integer"),
        (kind.path, "path"),
        (kind.text, "text"),
        (kind.mapping, "object"),
        (kind.sequence, "list"),
    )
    for applies, control in order:
        if applies:
            return control
    return "text"
