"""A training step in which tokens skip blocks: the blocks are not all alike, but those of a stretch are.

As without routes, a few blocks are traced; here a few of every stretch: before a route, within it, behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tunerkit.config.tread_rules import routes_of
from tunerkit.planning.tracker import Segment

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.config.tread_rules import Route

    Trace = Callable[[int, TrainConfig], tuple[list[Segment], int]]

FEWEST = 2
"""Blocks of a stretch from which on every further one adds the same."""


def routed_step(config: TrainConfig, depth: int, group: int, trace: Trace) -> tuple[list[Segment], int]:
    """What the step of a transformer with `depth` blocks takes, and the bytes that wait on the host.

    Args:
        group: blocks that are offloaded together, whose pattern is kept.
        trace: gives this for a number of blocks, and settings that fit it.

    Raises:
        ConfigError: the routes do not fit the blocks.
    """
    routes = routes_of(config, depth)
    stretches = stretches_of(routes, depth)
    lengths = [one.stop - one.start for one in stretches]
    few = [min(length, FEWEST * group + (length - FEWEST * group) % group) for length in lengths]
    # The most is taken in the first or the last blocks, which must see all tokens for that, however few are traced.
    if routes[0].first < FEWEST or routes[-1].last == depth - 1 or sum(lengths) <= sum(few) + group:
        return trace(depth, config)

    def traced(counts: Sequence[int]) -> tuple[list[Segment], int]:
        return trace(sum(counts), shorter(config, routes, stretches, counts))

    base, host = traced(few)
    segments, all_host = base, host
    for place, (length, count) in enumerate(zip(lengths, few, strict=True)):
        if length > count:
            more, more_host = traced([*few[:place], count + group, *few[place + 1 :]])
            times = (length - count) // group
            segments = [_grown(*one, times) for one in zip(segments, base, more, strict=True)]
            all_host += (more_host - host) * times
    return segments, all_host


def stretches_of(routes: Sequence[Route], depth: int) -> list[range]:
    """The numbers of the blocks of every stretch, in order; none is empty."""
    edges = sorted({0, depth, *(route.first for route in routes), *(route.last + 1 for route in routes)})
    return [range(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def shorter(
    config: TrainConfig, routes: Sequence[Route], stretches: Sequence[range], counts: Sequence[int]
) -> TrainConfig:
    """The same settings for a transformer of which every stretch has `counts` blocks only."""
    starts = {one.start: sum(counts[:place]) for place, one in enumerate(stretches)}
    ends = {one.stop - 1: sum(counts[: place + 1]) - 1 for place, one in enumerate(stretches)}
    entries = [
        {"selection_ratio": one.ratio, "start_layer_idx": starts[one.first], "end_layer_idx": ends[one.last]}
        for one in routes
    ]
    return config.model_copy(update={"tread_config": {"routes": entries}})


def _grown(now: Segment, base: Segment, more: Segment, times: int) -> Segment:
    """`now`, and `times` what `more` takes beyond `base`."""
    names = dict.fromkeys([*now.parts, *more.parts])
    parts = {
        name: now.parts.get(name, 0) + (more.parts.get(name, 0) - base.parts.get(name, 0)) * times for name in names
    }
    peak, work = now.peak + (more.peak - base.peak) * times, now.work + (more.work + base.work * -1) * times
    return replace(now, peak=peak, parts=parts, work=work)
