"""What a sweep is asked for: names and values checked against the notebook and the settings, before anything runs."""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerkit.errors import ConfigError, MissingExtraError, Problem, TunerkitError

OUTPUT = "output_dir"
"""The parameter of a notebook that says where its run writes to."""
LONGEST_LABEL = 60
_CHOICES = re.compile(r"^@param\s*(\[.*?\])(.*)$")
_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "None": "nothing"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook.

    Attributes:
        name: its name.
        default: its value in the notebook; None where that is no plain value.
        type: its annotation, for example `int` or `float | None`; empty where there is none.
        choices: the values that its form offers, where it takes no others.
    """

    name: str
    default: Any
    type: str
    choices: tuple[Any, ...] = ()

    def read(self, value: Any) -> Any:
        """`value` as the notebook gets it.

        Raises:
            ValueError: it is not what the annotation says; the text says what is wanted.
        """
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        kinds = [kind.strip() for kind in self.type.split("|")] if self.type else []
        for kind in kinds:
            fits, read = _read(value, kind)
            if fits:
                return read
        if kinds:
            raise ValueError(" or ".join(_WORDS.get(kind, kind) for kind in kinds))
        return value


@dataclass(frozen=True)
class RunPlan:
    """One run.

    Attributes:
        settings: what distinguishes it, for the tables.
        parameters: everything that the notebook is given, `output_dir` only if it was asked for.
    """

    settings: Mapping[str, Any]
    parameters: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The same for the same parameters; runs are found again by it."""
        return json.dumps(self.parameters, sort_keys=True)

    @property
    def label(self) -> str:
        """The settings as part of a folder's name."""
        words = [f"{name}-{short(value)}" for name, value in self.settings.items()]
        text = re.sub(r"[^A-Za-z0-9.+_-]+", "-", "_".join(words)).strip("-.")
        return text[:LONGEST_LABEL].rstrip("-._") or "run"


@dataclass(frozen=True)
class SweepPlan:
    """All runs that are asked for, checked."""

    notebook: Path
    runs: tuple[RunPlan, ...]


def short(value: Any) -> str:
    """A value in few letters: `0.0001`, `1e-05`, `16`."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def notebook_parameters(notebook: str | os.PathLike[str]) -> dict[str, Parameter]:
    """The parameters of a notebook by name, in its order.

    Raises:
        TunerkitError: there is no such notebook, it cannot be read, or it has no parameters cell.
        MissingExtraError: papermill is not installed.
    """
    path = Path(notebook)
    if not path.is_file():
        raise TunerkitError(f"notebook {str(path)!r} is not a file. Fix: name an .ipynb file")
    try:
        from papermill import inspect_notebook
    except ImportError as error:
        raise MissingExtraError("a sweep", "papermill", "workbench") from error
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found = inspect_notebook(str(path)) if any(_is_parameters(cell) for cell in cells) else {}
    except Exception as error:  # what the notebook reader raises depends on what is wrong with the file
        raise TunerkitError(
            f"notebook {str(path)!r} cannot be read: {error}. Fix: open and save it in Jupyter"
        ) from error
    if not found:
        raise TunerkitError(
            f"notebook {str(path)!r} has no parameters to vary. Fix: give the cell with its settings the tag "
            "'parameters', one `name: type = value` per line"
        )
    return {name: _parameter(name, facts) for name, facts in found.items()}


def plan_sweep(
    notebook: str | os.PathLike[str],
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    runs: Sequence[Mapping[str, Any]] | None = None,
    base: Mapping[str, Any] | None = None,
) -> SweepPlan:
    """Check what is asked for, without running anything.

    Args:
        notebook: the notebook, with a cell tagged `parameters`.
        grid: parameter -> its values; every combination is a run.
        runs: or the runs one by one, each as parameter -> value.
        base: parameters that are the same in every run.

    Raises:
        ConfigError: every wrong name and value at once.
        TunerkitError: as `notebook_parameters`.
    """
    parameters = notebook_parameters(notebook)
    problems: list[Problem] = []
    check = _Check(Path(notebook), parameters, problems)
    shared = {name: check.value("base", name, value) for name, value in _pairs("base", base, problems)}
    asked = _asked(grid, runs, check, problems)
    plans = {plan.identity: plan for plan in (RunPlan(own, {**shared, **own}) for own in asked)}
    places = [plan.parameters[OUTPUT] for plan in plans.values() if plan.parameters.get(OUTPUT)]
    if len(places) > len({os.path.abspath(place) for place in places}):
        problems.append(
            Problem(
                OUTPUT, places[0], "is the same for several runs", "leave it out; each run gets a folder of its own"
            )
        )
    if problems:
        raise ConfigError(problems)
    return SweepPlan(Path(notebook).absolute(), tuple(plans.values()))


class _Check:
    """Checks single values, and collects what is wrong."""

    def __init__(self, notebook: Path, parameters: Mapping[str, Parameter], problems: list[Problem]) -> None:
        self._notebook, self._parameters, self._problems = notebook, parameters, problems

    def value(self, place: str, name: str, value: Any) -> Any:
        """`value` as the notebook gets it; anything at all where it is wrong."""
        key = f"{place}.{name}"
        parameter = self._parameters.get(name)
        if parameter is None:
            return self._unknown(key, name)
        try:
            value = parameter.read(value)
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            wanted = str(error) if type(error) is ValueError and parameter.type else "a plain value, as JSON has them"
            self._problems.append(Problem(key, value, "is not what the notebook takes", f"write {wanted}"))
            return repr(value)
        if value != parameter.default:  # the notebook's own value may mean "leave it as it is"
            self._problems += _wrong_choice(key, value, parameter) or _wrong_setting(key, name, value)
        return value

    def _unknown(self, key: str, name: str) -> None:
        from tunerkit.config.problems import nearest

        if all(problem.key != key for problem in self._problems):
            near = nearest(name, self._parameters)
            fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(self._parameters)}"
            self._problems.append(Problem(key, None, f"{self._notebook.name} has no such parameter", fix))


def _asked(grid: Any, runs: Any, check: _Check, problems: list[Problem]) -> list[dict[str, Any]]:
    """What distinguishes each run."""
    if (grid is None) == (runs is None):
        problems.append(Problem("grid", None, "a sweep needs either grid or runs", "give one of the two"))
        return []
    if grid is not None:
        columns: list[list[tuple[str, Any]]] = []
        for name, values in _pairs("grid", grid, problems):
            if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence) or not values:
                fix = "write a list with at least one value, also for a single one: [value]"
                problems.append(Problem(f"grid.{name}", values, "is not a list of values", fix))
                continue
            columns.append([(name, check.value("grid", name, value)) for value in values])
        if not columns and not problems:
            problems.append(Problem("grid", None, "is empty", "name at least one parameter and its values"))
        return [dict(pairs) for pairs in itertools.product(*columns)]
    if isinstance(runs, (str, bytes, Mapping)) or not isinstance(runs, Sequence) or not runs:
        problems.append(Problem("runs", runs, "is not a list of runs", 'write [{"name": value}, ...]'))
        return []
    return [
        {name: check.value(f"runs[{index}]", name, value) for name, value in _pairs(f"runs[{index}]", run, problems)}
        for index, run in enumerate(runs)
    ]


def _pairs(place: str, given: Any, problems: list[Problem]) -> list[tuple[str, Any]]:
    if given is None:
        return []
    if not isinstance(given, Mapping):
        problems.append(Problem(place, given, "is not an object", 'write {"name": value, ...}'))
        return []
    return [(str(name), value) for name, value in given.items()]


def _wrong_choice(key: str, value: Any, parameter: Parameter) -> list[Problem]:
    from tunerkit.config.problems import choice_fix

    if not parameter.choices or value in parameter.choices:
        return []
    choices = [str(choice) for choice in parameter.choices if choice != ""]
    return [Problem(key, value, "is not one of its choices", choice_fix(str(value), choices))]


def _wrong_setting(key: str, name: str, value: Any) -> list[Problem]:
    """What the settings say of a parameter that has the name of one."""
    from tunerkit.config.settings import TrainConfig

    if name not in TrainConfig.model_fields:
        return []
    try:
        TrainConfig(**{name: value})
    except ConfigError as error:
        own = [problem for problem in error.problems if re.split(r"[.\[]", problem.key)[0] == name]
        return [Problem(key, value, problem.message, problem.fix) for problem in own]
    return []


def _is_parameters(cell: Any) -> bool:
    return "parameters" in cell.get("metadata", {}).get("tags", [])


def _parameter(name: str, facts: Mapping[str, Any]) -> Parameter:
    try:
        default = ast.literal_eval(str(facts["default"]))
    except (ValueError, SyntaxError):
        default = None
    kind = str(facts["inferred_type_name"])
    kind = "" if kind == "None" else re.sub(r"^(?:typing\.)?Optional\[(.*)\]$", r"\1 | None", kind)
    match = _CHOICES.match(str(facts["help"]).strip())
    choices: tuple[Any, ...] = ()
    if match and '"allow-input":true' not in match[2].replace(" ", ""):
        try:
            choices = tuple(ast.literal_eval(match[1]))
        except (ValueError, SyntaxError):
            choices = ()
    return Parameter(name, default, kind, choices)


def _read(value: Any, kind: str) -> tuple[bool, Any]:
    """Whether a value is of a kind, and the value as that kind."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "int":
        whole = number and float(value).is_integer()
        return whole, int(value) if whole else value
    if kind == "float":
        finite = number and math.isfinite(value)
        return finite, float(value) if finite else value
    if kind in ("str", "bool"):
        return isinstance(value, {"str": str, "bool": bool}[kind]), value
    if kind in ("None", "NoneType"):
        return value is None, value
    for word, types in (("list", (list, tuple)), ("tuple", (list, tuple)), ("dict", (Mapping,))):
        if re.match(rf"{word}\b", kind, re.IGNORECASE):
            return isinstance(value, types), list(value) if isinstance(value, tuple) else value
    return True, value  # an annotation that this does not know
