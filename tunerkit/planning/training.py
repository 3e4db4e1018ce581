"""The training step of a model of full size, from traces of a few of its blocks.

Blocks are alike, so every stretch of a step takes what it takes for two blocks, and for every further block as much
more as the third one adds. For two and more this is exact: the first block, before which nothing is learned, and the
last one, behind which the loss is, are both there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tunerkit.config.crepa_rules import BLOCK, ENABLED, TEACHER_BLOCK, check_aligned_blocks
from tunerkit.config.rollout_rules import OFFSET, ever
from tunerkit.config.tread_rules import covers, routes_of
from tunerkit.memory.offload_groups import check_depth, swapped_blocks
from tunerkit.planning.architectures import depth_of, transformer_on_meta, with_depth
from tunerkit.planning.batches import Stand
from tunerkit.planning.largest import Largest
from tunerkit.planning.rolled import always_rolled, forwards, share_of
from tunerkit.planning.routed import routed_step
from tunerkit.planning.seconds import Work
from tunerkit.planning.step import MOST_MICRO_BATCHES, trace_step
from tunerkit.planning.tracker import WEIGHTS, Segment

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

FEWEST = 2
"""Blocks from which on every further one adds the same."""


@dataclass(frozen=True)
class TracedStep:
    """A training step.

    Attributes:
        segments: its stretches in order, for as many micro-batches as were traced.
        host: bytes of weights that wait in RAM.
        micro_batches: how many were traced, of all.
        of: micro-batches of the step.
        seldom: of the work of the segments, what an average step does not do.
        on_disk: bytes of weights that wait on disk.
    """

    segments: tuple[Segment, ...]
    host: int
    micro_batches: int
    of: int
    seldom: Work = field(default_factory=Work)
    on_disk: int = 0

    @property
    def largest(self) -> Segment:
        """The stretch with the highest peak."""
        return max(self.segments, key=lambda one: one.peak)

    @property
    def work(self) -> Work:
        """Of the whole step; every micro-batch takes as much as those that were traced."""
        traced = sum((one.work for one in self.segments), start=Work()) * (self.of / self.micro_batches)
        return traced + self.seldom * -1


def training_step(
    config: TrainConfig, family: Family, settings: Mapping[str, Any], stand: Stand, largest: Largest
) -> TracedStep:
    """Trace the training step of a configuration.

    Args:
        settings: configuration of the transformer.
        stand: makes its batches.
        largest: the batch.

    Raises:
        ConfigError: the settings do not fit the transformer.
    """
    if config.musubi_blocks_to_swap:
        return swapped_step(config, family, settings, lambda one: training_step(one, family, settings, stand, largest))
    if not ever(config):
        return _traced(config, family, settings, stand, largest)
    plain = _traced(config.model_copy(update={OFFSET: 0}), family, settings, stand, largest)
    rolled = _traced(always_rolled(config), family, settings, stand, largest)
    forward = (rolled.work + plain.work * -1) * (1 / forwards(always_rolled(config)))
    average = plain.work + forward * (share_of(config) * forwards(config))
    return replace(rolled, seldom=rolled.work + average * -1)


def _traced(
    config: TrainConfig, family: Family, settings: Mapping[str, Any], stand: Stand, largest: Largest
) -> TracedStep:
    depth = depth_of(settings)
    on_disk = config.group_offload_to_disk_path is not None
    if on_disk:
        config = config.model_copy(update={"group_offload_to_disk_path": None})  # nothing is written

    check_aligned_blocks(config, depth)

    def trace(blocks: int, config: TrainConfig = config) -> tuple[list[Segment], int]:
        config = _aligned_within(config, blocks)
        transformer = transformer_on_meta(with_depth(settings, blocks), config, family)
        return trace_step(config, family, transformer, lambda: stand.drawn(largest), alike=blocks)

    group = config.group_offload_blocks_per_group
    grouped = config.enable_group_offload and config.group_offload_type == "block_level" and group > 1
    step = group if grouped else 1
    few, more = FEWEST * step, (FEWEST + 1) * step
    if config.tread_config:
        segments, host = routed_step(config, depth, step, trace)
    elif depth <= more:
        segments, host = trace(depth)
    else:
        segments, host = _extrapolated(trace(few), trace(more), few, more, depth)
    in_ram, on_disk = (0, host) if on_disk else (host, 0)
    count = config.gradient_accumulation_steps
    return TracedStep(tuple(segments), in_ram, min(count, MOST_MICRO_BATCHES), count, on_disk=on_disk)


def _aligned_within(config: TrainConfig, blocks: int) -> TrainConfig:
    """The same settings, with the blocks whose states are aligned among so many: a step takes the same whichever they
    are, as long as all tokens pass them."""
    if not config.crepa_enabled:
        return config
    routes = routes_of(config.model_copy(update={ENABLED: False}), blocks)
    free = [place for place in range(blocks) if not any(covers(route, place) for route in routes)]
    return config.model_copy(update={BLOCK: free[0], TEACHER_BLOCK: free[-1]})


def swapped_step(
    config: TrainConfig, family: Family, settings: Mapping[str, Any], step: Callable[[TrainConfig], TracedStep]
) -> TracedStep:
    """The step with some blocks swapped: as if all were, and on top the weights of those that stay. Where the swapped
    ones are among the few that are traced would be another pattern than among all.

    Args:
        step: gives the step of settings; it is the same for nearly every number of swapped blocks.

    Raises:
        ConfigError: more blocks are to be swapped than can be.
    """
    sizes = _block_sizes(config, family, settings)
    check_depth(config, len(sizes))
    swapped = swapped_blocks(len(sizes), config.musubi_blocks_to_swap)
    moved = sum(sizes[number] for number in swapped)
    staying = sum(sizes) - moved
    traced = step(
        config.model_copy(
            update={
                "musubi_blocks_to_swap": 0,
                "enable_group_offload": True,
                "group_offload_type": "block_level",
                "group_offload_blocks_per_group": 1,
                "group_offload_use_stream": len(swapped) > 1,  # whether a second one is on its way
                "group_offload_to_disk_path": None,
            }
        )
    )
    share = moved / sum(sizes)
    segments = tuple(_with_weights(one, staying, share) for one in traced.segments)
    return replace(traced, segments=segments, host=max(traced.host - staying, moved))


def _block_sizes(config: TrainConfig, family: Family, settings: Mapping[str, Any]) -> list[int]:
    """Bytes of the weights of each block, in the order in which they run."""
    one = family.blocks(transformer_on_meta(with_depth(settings, 1), config, family))
    sizes = [sum(p.nbytes for p in block.parameters()) for block in one]
    return sizes[:-1] + sizes[-1:] * depth_of(settings)


def _with_weights(segment: Segment, more: int, share: float) -> Segment:
    """With `more` bytes of weights, and only this `share` of what is copied."""
    parts = {**segment.parts, WEIGHTS: segment.parts.get(WEIGHTS, 0) + more}
    work = replace(segment.work, link_beside=segment.work.link_beside * share)
    return Segment(segment.name, segment.peak + more, parts, work)


def _extrapolated(
    few: tuple[list[Segment], int], more: tuple[list[Segment], int], at: int, then: int, depth: int
) -> tuple[list[Segment], int]:
    """Straight lines through what `at` and `then` blocks take, at `depth` blocks."""
    further = (depth - at) / (then - at)
    segments = [_line(one, other, further) for one, other in zip(few[0], more[0], strict=True)]
    return segments, _further(few[1], more[1], further)


def _line(few: Segment, more: Segment, further: float) -> Segment:
    names = dict.fromkeys([*few.parts, *more.parts])
    return Segment(
        few.name,
        _further(few.peak, more.peak, further),
        {name: _further(few.parts.get(name, 0), more.parts.get(name, 0), further) for name in names},
        few.work + (more.work + few.work * -1) * further,
    )


def _further(low: int, high: int, further: float) -> int:
    return low + round((high - low) * further)
