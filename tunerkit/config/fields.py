"""How one setting is declared, and how a value as people write it becomes a value of the setting's type.

A setting may arrive as a Python value, as JSON, or as text from a command line ("true", "1e-4", "64", "none"). The
conversion depends only on the declared type and happens in one place, `Settings`, so it is the same whether a setting
comes from a file, a call, an override or an assignment.
"""

from __future__ import annotations

import json
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tunerkit.errors import ConfigError

Group = Literal["model", "adapter", "training", "optimizer", "data", "validation", "checkpoints", "memory", "tracking"]

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})
NONE_WORDS = frozenset({"none", "null", ""})


def setting(default: Any, description: str, *, group: Group = "data", **limits: Any) -> Any:
    """Declare a setting.

    Args:
        default: its value when it is not given, or a callable that makes it; None where the model family or another
            setting decides; `...` where it must be given.
        description: one line, shown beside the field in forms.
        group: the section of a form it stands in.
        limits: pydantic's `ge`, `gt`, `le`, `lt`, `min_length`, ...
    """
    if callable(default):
        limits["default_factory"] = default
    else:
        limits["default"] = default
    return Field(description=description, json_schema_extra={"group": group}, **limits)


@dataclass(frozen=True)
class Kind:
    """What values a declared type takes."""

    none: bool = False
    flag: bool = False
    integer: bool = False
    number: bool = False
    text: bool = False
    path: bool = False
    sequence: bool = False
    mapping: bool = False
    choices: tuple[Any, ...] = ()


@cache
def kind_of(annotation: Any) -> Kind:
    """The kinds of value that a type such as `int | list[int] | None` or `Literal["no", "bf16"]` takes."""
    members = _members(annotation)
    classes = [get_origin(member) or member for member in members]
    return Kind(
        none=types.NoneType in classes,
        flag=bool in classes,
        integer=int in classes,
        number=float in classes,
        text=str in classes,
        path=Path in classes,
        sequence=any(cls in (list, tuple) for cls in classes),
        mapping=any(isinstance(cls, type) and issubclass(cls, (Mapping, dict, BaseModel)) for cls in classes),
        choices=tuple(choice for member in members if get_origin(member) is Literal for choice in get_args(member)),
    )


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, without `Annotated` wrappers."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def converted(value: Any, kind: Kind) -> Any:
    """`value` as the kind takes it, or unchanged when it has no reading; the type check follows.

    Raises:
        ValueError: for what would pass as something else: true/false as 1 and 0, bytes as text.
    """
    if isinstance(value, (bytes, bytearray)):
        raise ValueError("is bytes")
    if isinstance(value, str):
        return _from_text(value, kind)
    if isinstance(value, bool):
        if (kind.integer or kind.number) and not kind.flag:
            raise ValueError("is true/false where a number is wanted")
        return value
    if isinstance(value, (int, float)) and kind.text and not (kind.integer or kind.number or kind.flag):
        return str(value)
    if isinstance(value, Mapping) and kind.mapping:
        return plain(value)
    if isinstance(value, os.PathLike):
        return _absolute(os.fspath(value)) if kind.path else os.fspath(value) if kind.text else value
    return value


def plain(value: Any) -> Any:
    """`value` with the types that JSON gives back: lists for tuples, text for paths, also inside objects."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _from_text(text: str, kind: Kind) -> Any:
    word = text.strip()
    lower = word.casefold()
    for choice in kind.choices:
        if str(choice).casefold() == lower:
            return choice
    if kind.none and lower in NONE_WORDS and not (lower == "" and kind.text):
        return None
    if kind.flag and lower in TRUE_WORDS | FALSE_WORDS:
        return lower in TRUE_WORDS
    if kind.integer or kind.number:
        number = _number(word, whole=not kind.number)
        if number is not None:
            return number
    if kind.mapping and word[:1] in ("{", "["):
        return _json_or_text(word)
    if kind.sequence and not kind.text:
        parts = (part.strip() for part in word.split(","))
        return _json_or_text(word) if word.startswith("[") else [part for part in parts if part]
    if kind.mapping and "=" in word:
        return dict(_pair(part) for part in word.split(",") if "=" in part)
    if kind.path:
        return _absolute(word)
    return text


def _number(word: str, *, whole: bool) -> int | float | None:
    """The number that `word` spells ("64", "1e-4", and "1e5" for a whole number), or None."""
    try:
        return int(word)
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        return None
    return int(number) if whole and number.is_integer() else number


def _json_or_text(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _pair(text: str) -> tuple[str, Any]:
    """`"eps=1e-6"` -> `("eps", 1e-6)`; the value's type follows from its spelling."""
    name, _, word = text.partition("=")
    word = word.strip()
    lower = word.casefold()
    if lower in ("true", "false"):
        return name.strip(), lower == "true"
    if lower in ("none", "null"):
        return name.strip(), None
    number = _number(word, whole=False)
    return name.strip(), word if number is None else number


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


class Settings(BaseModel):
    """Base of every group of settings: nothing unknown is taken, and every change is checked again."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        # The schema of some 250 settings takes a while to build: not at import.
        defer_build=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        return converted(value, kind_of(field.annotation))

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a checked value.

        Raises:
            ConfigError: if the value is not one the setting takes, or there is no such setting.
        """
        from tunerkit.config.problems import problems_of, unknown_setting

        if not name.startswith("_") and name not in type(self).model_fields:
            raise ConfigError([unknown_setting(name, value, type(self))])
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise ConfigError(problems_of(error, type(self))) from None
