"""What is wrong with a setting, in the words of the person who wrote it: its key, its value, and what to write."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tunerkit.config.fields import Kind, kind_of
from tunerkit.config.names import ALIASES, DATASET_ALIASES, ENVIRONMENT, SUGGESTIONS, VIDEO_ALIASES
from tunerkit.errors import Problem

Location = tuple[int | str, ...]

_LONGEST_VALUE = 120


def entry_key(name: str, index: int) -> str:
    """`("datasets", 0)` -> `"datasets[0]"`: how an entry of a list is called in messages."""
    return f"{name}[{index}]"


def key_of(location: Location) -> str:
    """`("datasets", 0, "video", "num_frames")` -> `"datasets[0].video.num_frames"`."""
    key = ""
    for part in location:
        key = f"{key}[{part}]" if isinstance(part, int) else f"{key}.{part}" if key else part
    return key


def shown(value: Any) -> Any:
    """`value`, or its beginning as text when it is long."""
    text = repr(value)
    return value if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """One problem for each setting that failed, in the order of the settings.

    The alternatives of a union fail one by one in pydantic; they are one problem here.
    """
    problems: dict[str, Problem] = {}
    for details in error.errors(include_url=False):
        problem = _problem(details, model)
        problems.setdefault(problem.key, problem)
    return list(problems.values())


def _problem(details: Any, model: type[BaseModel]) -> Problem:
    location, owner, field = located(details["loc"], model)
    value, kind = details.get("input"), details["type"]
    if kind == "extra_forbidden":
        return unknown_setting(str(location[-1]), value, owner, location[:-1])
    key = key_of(location)
    if kind == "missing":
        return Problem(key, None, "is missing", f"add it: {field.description if field else 'a value'}".rstrip("."))
    if field is None or kind in ("model_type", "dict_type", "model_attributes_type"):
        return Problem(key, shown(value), "is not an object", 'write an object: {"name": value, ...}')
    if kind == "value_error":
        message = str(details["ctx"]["error"])
    elif kind == "string_pattern_mismatch":
        return Problem(key, shown(value), "is not a value it takes", (field.description or "").rstrip("."))
    elif kind == "string_too_long":
        most = details["ctx"]["max_length"]
        return Problem(key, shown(value), f"is longer than {most} characters", "write a shorter one")
    elif kind == "literal_error":
        return _wrong_choice(key, value, field)
    else:
        message = f"is not {expected(field)}"
    return Problem(key, shown(value), message, f"write {expected(field)}{_example(field)}")


def _wrong_choice(key: str, value: Any, field: FieldInfo) -> Problem:
    choices = [str(choice) for choice in kind_of(field.annotation).choices]
    return Problem(key, shown(value), "is not one of its choices", choice_fix(str(value), choices))


def choice_fix(value: str, choices: Sequence[str], name: str = "Choices") -> str:
    """What to write instead of `value`: the nearest choice, and all of them."""
    near = nearest(value, choices)
    return f"{f'did you mean {near[0]}? {name}' if near else 'write one of'}: {', '.join(choices)}"


def located(location: Location, model: type[BaseModel]) -> tuple[Location, type[BaseModel], FieldInfo | None]:
    """The part of a pydantic location that a user knows, with the innermost model and field on the way.

    Pydantic adds the names of union members and validators to a location; they are left out.
    """
    known: list[int | str] = []
    owner: type[BaseModel] = model
    field: FieldInfo | None = None
    inner: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            known.append(part)
            continue
        if inner is None:
            break
        known.append(part)
        owner, field = inner, inner.model_fields.get(part)
        if field is None:
            break
        inner = model_in(field.annotation)
    # An index after a plain list of numbers or names belongs to the value, not to the key.
    while known and isinstance(known[-1], int) and field is not None and model_in(field.annotation) is None:
        known.pop()
    if known and isinstance(known[-1], int):
        field = None
    return tuple(known), owner, field


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model that a type holds (itself, in a list, or in a union), if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType, list):
        for part in get_args(annotation):
            found = model_in(part)
            if found is not None:
                return found
    return None


def expected(field: FieldInfo | None) -> str:
    """What a setting takes, in words: `a whole number from 1 to 1024`."""
    if field is None:
        return "a value"
    kind = kind_of(field.annotation)
    words = _words(kind, _range(field))
    return " or ".join(words) if words else "a value"


def _words(kind: Kind, limits: str) -> list[str]:
    words: list[str] = []
    if kind.flag:
        words.append("true or false")
    if kind.number:
        words.append(f"a number{limits}")
    elif kind.integer:
        words.append(f"a whole number{limits}")
    if kind.sequence:
        words.append("a list of whole numbers" if kind.integer else "a list")
    if kind.choices:
        words.append(f"one of {', '.join(str(choice) for choice in kind.choices)}")
    if kind.mapping:
        words.append("an object")
    if kind.path:
        words.append("a path")
    elif kind.text:
        words.append("text")
    return words


def _range(field: FieldInfo) -> str:
    """The limits of a number in words, with a leading blank, or nothing."""
    low, above = limit(field, "ge"), limit(field, "gt")
    high, below = limit(field, "le"), limit(field, "lt")
    if low is not None and high is not None:
        words = [f"from {_plainly(low)} to {_plainly(high)}"]
    else:
        lower = [f"of at least {_plainly(low)}"] if low is not None else []
        lower += [f"above {_plainly(above)}"] if above is not None else []
        upper = [f"{'' if lower else 'of '}at most {_plainly(high)}"] if high is not None else []
        upper += [f"below {_plainly(below)}"] if below is not None else []
        words = [" and ".join(lower + upper)] if lower or upper else []
    step = limit(field, "multiple_of")
    words += [f"that is a multiple of {step:g}"] if step is not None else []
    return "".join(f" {word}" for word in words)


def _plainly(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def limit(field: FieldInfo, name: str) -> float | None:
    """A limit of a number setting: `ge`, `gt`, `le`, `lt` or `multiple_of`."""
    for item in field.metadata:
        value = getattr(item, name, None)
        if value is not None:
            return value
    return None


def _example(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is None or field.is_required() or isinstance(default, (bool, dict, BaseModel)) or default == "":
        return ""
    return f", for example {default}"


def unknown_setting(name: str, value: Any, owner: type[BaseModel], parents: Location = ()) -> Problem:
    """The problem of a key that does not exist, with the nearest one that does, wherever it belongs."""
    key = key_of((*parents, name))
    return Problem(key, shown(value), "there is no such setting", _suggestion(name, owner, parents))


def _suggestion(name: str, owner: type[BaseModel], parents: Location) -> str:
    lowered = name.strip().lstrip("-").replace("-", "_").casefold()
    place = "in config.json" if not parents else "here"
    elsewhere = _known_places()
    own = set(owner.model_fields)
    wanted = SUGGESTIONS.get(lowered)
    if lowered in ENVIRONMENT:
        variable = lowered.upper()
        return (
            f"set it in the environment before Python starts: export {variable}=..., in a notebook %env {variable}=..."
        )
    if wanted is not None and ALIASES.get(wanted, wanted) in own:
        return f"did you mean {wanted}?"
    if lowered in elsewhere and lowered not in own:
        return f"it belongs in {elsewhere[lowered]}"
    aliases = _aliases(owner)
    near = nearest(lowered, [*own, *aliases])
    if near:
        return f"did you mean {aliases.get(near[0], near[0])}?"
    further = nearest(lowered, elsewhere)
    if further:
        return f"did you mean {further[0]}? It belongs in {elsewhere[further[0]]}"
    return f"remove it; no setting {place} has a similar name"


@cache
def _known_places() -> dict[str, str]:
    """Every setting -> where it is written."""
    from tunerkit.config.dataset_document import AudioSettings, DatasetConfig, VideoSettings
    from tunerkit.config.settings import TrainConfig

    places: dict[str, str] = {}
    for model, place in (
        (TrainConfig, "config.json"),
        (DatasetConfig, "an entry of the dataset document"),
        (VideoSettings, '"video" of an entry of the dataset document'),
        (AudioSettings, '"audio" of an entry of the dataset document'),
    ):
        for name in model.model_fields:
            places.setdefault(name, place)
    return places


def _aliases(owner: type[BaseModel]) -> dict[str, str]:
    """Other names of the settings of one model -> the name to suggest."""
    tables = {**ALIASES, **DATASET_ALIASES, **VIDEO_ALIASES}
    names = {alias: name for alias, name in tables.items() if name in owner.model_fields}
    return {**names, **({"data_backend_config": "data_backend_config"} if "datasets" in owner.model_fields else {})}


def nearest(name: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """The candidates that look most like `name`, nearest first; none when nothing is near."""
    by_lower = {candidate.casefold(): candidate for candidate in sorted(candidates)}
    wanted = name.casefold()
    found: Sequence[str] = difflib.get_close_matches(wanted, by_lower, n=count, cutoff=0.72)
    if not found and len(wanted) >= 4:
        found = sorted((low for low in by_lower if wanted in low), key=len)[:count]
    return [by_lower[low] for low in found]
