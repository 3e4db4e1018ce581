"""Routes of tokens past blocks (TREAD): how `tread_config` is read, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunerkit.config.problems import entry_key
from tunerkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

KEY = "tread_config"
_RATIO, _FIRST, _LAST = "selection_ratio", "start_layer_idx", "end_layer_idx"
_EXAMPLE = '{"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}'
_TAPS = ("crepa_block_index", "crepa_teacher_block_index")


@dataclass(frozen=True)
class Route:
    """A span of blocks that a share of the tokens skips.

    Attributes:
        first, last: numbers of its first and its last block, from 0.
        ratio: share of the tokens that skip it, in (0, 1).
    """

    first: int
    last: int
    ratio: float


def route_problems(config: TrainConfig) -> Iterator[Problem]:
    """What is wrong with `tread_config`, whatever the model's number of blocks is."""
    document = config.tread_config
    if not document:
        return
    entries = document.get("routes")
    if not isinstance(entries, list) or not entries:
        message = "holds no route" if entries == [] else "is no list of routes"
        yield Problem(f"{KEY}.routes", entries, message, f"write {_EXAMPLE}, or leave {KEY} out")
        entries = []
    for name in document:
        if name != "routes":
            yield Problem(f"{KEY}.{name}", document[name], "is not known", f"write {_EXAMPLE}")
    for number, entry in enumerate(entries):
        yield from _entry_problems(entry, _place(number))


def refused_routing(config: TrainConfig, family: Family) -> Iterator[Problem]:
    """Where the model needs all of its tokens in every block."""
    refusal = family.routing_refusal(config) if config.tread_config else None
    if refusal is not None:
        reason, _, fix = refusal.partition(". Fix: ")
        yield Problem(KEY, config.tread_config, reason, fix)


def _place(number: int) -> str:
    return entry_key(f"{KEY}.routes", number)


def _entry_problems(entry: Any, place: str) -> Iterator[Problem]:
    if not isinstance(entry, Mapping):
        yield Problem(place, entry, "is no route", f"write {_EXAMPLE}")
        return
    for name in (_RATIO, _FIRST, _LAST):
        value = entry.get(name)
        if value is None:
            yield Problem(f"{place}.{name}", value, "is missing", f"write all of {_RATIO}, {_FIRST}, {_LAST}")
        elif name == _RATIO:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                fix = "write a number above 0 and below 1, for example 0.5"
                yield Problem(f"{place}.{name}", value, "is no share of the tokens that skip the blocks", fix)
        elif isinstance(value, bool) or not isinstance(value, int):
            fix = "write a whole number; -1 is the last block"
            yield Problem(f"{place}.{name}", value, "is no number of a block", fix)
    for name in entry:
        if name not in (_RATIO, _FIRST, _LAST):
            fix = f"a route has {_RATIO}, {_FIRST}, {_LAST} only"
            yield Problem(f"{place}.{name}", entry[name], "is not known", fix)


def check_routes(config: TrainConfig, blocks: int | None) -> None:
    """The routes must lie within the blocks of the transformer, and an aligned block outside of them.

    Args:
        blocks: how many the picture's tokens pass; None = not known.

    Raises:
        ConfigError: they do not.
    """
    if blocks is not None:
        routes_of(config, blocks)


def routes_of(config: TrainConfig, blocks: int) -> tuple[Route, ...]:
    """The routes of a transformer with `blocks` blocks; empty where tokens are not routed.

    Raises:
        ConfigError: a route does not fit, or covers the block whose states are aligned.
    """
    problems = list(route_problems(config))
    if problems:
        raise ConfigError(problems)
    entries: Any = (config.tread_config or {}).get("routes", [])
    routes: list[Route] = []
    for number, entry in enumerate(entries):
        place, span = _place(number), {}
        for name in (_FIRST, _LAST):
            given = entry[name]
            span[name] = given + blocks if given < 0 else given
            if not 0 <= span[name] < blocks:
                message = f"is no block of the transformer, which has {blocks}"
                fix = f"use 0 to {blocks - 1}, or -1 to {-blocks} counted from the end"
                problems.append(Problem(f"{place}.{name}", given, message, fix))
        route = Route(span[_FIRST], span[_LAST], float(entry[_RATIO]))
        before = routes[-1].last if routes else -1
        if not all(0 <= block < blocks for block in (route.first, route.last)):
            continue
        if route.last < route.first:
            message = f"ends the route before its start: block {route.last} of {blocks}, and it starts at {route.first}"
            problems.append(Problem(f"{place}.{_LAST}", entry[_LAST], message, f"use {route.first} or more"))
        elif route.first <= before:
            message = f"starts within or before the route in front of it, which ends at block {before} of {blocks}"
            fix = f"use {before + 1} or more, or order the routes by their blocks"
            problems.append(Problem(f"{place}.{_FIRST}", entry[_FIRST], message, fix))
        routes.append(route)
    for key in _TAPS if config.crepa_enabled else ():
        tap = getattr(config, key)
        problems += [_tapped(key, tap, route) for route in routes if tap is not None and covers(route, tap)]
    if problems:
        raise ConfigError(problems)
    return tuple(routes)


def covers(route: Route, block: int) -> bool:
    """Whether some tokens are missing behind `block`; behind the last one of a route all are there."""
    return route.first <= block < route.last


def _tapped(key: str, tap: int, route: Route) -> Problem:
    free = [f"a block before {route.first}"] if route.first else []
    return Problem(
        key,
        tap,
        f"lies in a route of {KEY} (blocks {route.first} to {route.last}), where some tokens are missing",
        f"use {' or '.join([*free, f'block {route.last} or a later one'])}",
    )
