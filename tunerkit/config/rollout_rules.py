"""What settings of the rollout (scheduled sampling) can be combined, and which of them have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

_GROUP = "scheduled_sampling_"
OFFSET, PROBABILITY, START, END, RAMP, FIRST, SHAPE, SAMPLER, ORDER, REFLEX = (
    f"{_GROUP}{name}"
    for name in (
        "max_step_offset", "probability", "prob_start", "prob_end", "ramp_steps", "start_step", "ramp_shape", "sampler",
        "order", "reflexflow",
    )
)  # fmt: skip
TIMESTEPS = 1000


def rollout_problems(config: TrainConfig) -> Iterator[Problem]:
    """What of the rollout cannot be done."""
    offset = config.scheduled_sampling_max_step_offset
    if offset > TIMESTEPS:
        message = f"is longer than the whole way from noise to clip, which has {TIMESTEPS} timesteps"
        yield Problem(OFFSET, offset, message, "use 10 to 250: the distance that errors of a few sampling steps pass")


def rollout_notes(config: TrainConfig) -> Iterator[Note]:
    """Settings of the rollout without an effect."""
    changed = [key for key in type(config).model_fields if key.startswith(_GROUP) and _changed(config, key)]
    if not config.scheduled_sampling_max_step_offset:
        yield from (Note(key, f"has no effect without {OFFSET}") for key in changed)
        return
    if not ever(config):
        key = END if config.scheduled_sampling_ramp_steps else PROBABILITY
        yield Note(key, f"no sample is rolled out; set it above 0, or {OFFSET} = 0")
    idle = {PROBABILITY: f"with {RAMP}: {START} and {END} count"}
    if not config.scheduled_sampling_ramp_steps:
        idle = dict.fromkeys((START, END, SHAPE), f"without {RAMP}")
    if config.scheduled_sampling_sampler == "euler":
        idle[ORDER] = f"with {SAMPLER} = euler"
    if config.scheduled_sampling_reflexflow is False:
        idle |= {f"{REFLEX}_{name}": f"with {REFLEX} = false" for name in ("alpha", "beta1", "beta2")}
    yield from (Note(key, f"has no effect {why}") for key, why in idle.items() if key in changed)
    if config.scheduled_sampling_reflexflow is not False and config.tread_config:
        yield Note(
            REFLEX,
            "where tokens skip blocks, a prediction differs from that of the clean input for this reason as well, so "
            "errors there count for more; false trains without these terms",
        )


def ever(config: TrainConfig) -> bool:
    """Whether a sample is rolled out at any time of a run that is long enough."""
    if not config.scheduled_sampling_max_step_offset:
        return False
    if not config.scheduled_sampling_ramp_steps:
        return config.scheduled_sampling_probability > 0
    return max(config.scheduled_sampling_prob_start, config.scheduled_sampling_prob_end) > 0


def _changed(config: TrainConfig, key: str) -> bool:
    return getattr(config, key) != type(config).model_fields[key].default
