"""Settings of a run, checked before anything is loaded, and again where they change between two steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunerkit.config.names import ALIASES
from tunerkit.config.reading import canonical_key
from tunerkit.config.settings import TrainConfig
from tunerkit.errors import ConfigError, Problem
from tunerkit.project import resolve

if TYPE_CHECKING:
    from tunerkit.families.base import Family

_ALIGNMENT = """
    crepa_enabled crepa_lambda crepa_scheduler crepa_warmup_steps crepa_decay_steps crepa_lambda_end crepa_power
    crepa_cutoff_step crepa_similarity_threshold crepa_similarity_ema_decay crepa_threshold_mode crepa_adjacent_distance
    crepa_adjacent_tau crepa_cumulative_neighbors crepa_normalize_neighbour_sum crepa_normalize_by_frames
    crepa_spatial_align
"""
_OPTIMIZER = """
    learning_rate lr_scheduler lr_warmup_steps lr_end lr_power lr_num_cycles lr_decay_steps lr_scale lr_scale_sqrt
    max_grad_norm grad_clip_method
"""
_COURSE = """
    max_train_steps num_train_epochs checkpoint_step_interval checkpoints_total_limit validation_step_interval
    eval_steps_interval eval_epoch_interval eval_loss_disable
"""
CHANGEABLE = frozenset(
    ["tread_config", *_ALIGNMENT.split(), *_OPTIMIZER.split(), *_COURSE.split()]
    + [name for name in TrainConfig.model_fields if name.startswith("scheduled_sampling_")]
)
"""Settings that a step reads anew: nothing that is loaded, cached or learned depends on them."""


_ANEW = (
    "call save_checkpoint() and close(), and prepare a trainer with the new settings: it resumes there, or says why not"
)


def check_settings(config: TrainConfig, family: Family) -> None:
    """What a run could not be started with on this machine.

    Args:
        config: resolved settings.

    Raises:
        ConfigError: every problem, at once.
    """
    from tunerkit.config.memory_rules import folder_problems, process_problems
    from tunerkit.reporting.starting import check_reporting
    from tunerkit.training.optimizers import check_optimizer
    from tunerkit.validation.render import check_rendering

    problems = [
        *check_optimizer(config),
        *process_problems(config),
        *folder_problems(config),
        *check_reporting(config),
    ]
    if not config.validation_disable:
        problems += check_rendering(config, family)
    if problems:
        raise ConfigError(problems)


def changed_settings(
    config: TrainConfig, family: Family, settings: dict[str, Any], *, has_projector: bool
) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings that a run is to go on with, and what is new of them: setting -> value as JSON has it.

    Args:
        config: resolved settings that it trains with.
        settings: those to change.
        has_projector: whether it was loaded with what `crepa_enabled` trains.

    Raises:
        ConfigError: every problem of the result, and every setting that cannot change between two steps, at once.
    """
    refused = [name for name in settings if _is_fixed(name)]
    problems = [_fixed(name, settings[name]) for name in refused]
    wanted = {name: value for name, value in settings.items() if name not in refused}
    try:
        result = resolve(config.changed(**wanted))
        check_settings(result, family)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    before, after = config.model_dump(mode="json"), result.model_dump(mode="json")
    new = {name: value for name, value in after.items() if value != before[name]}
    problems += [_fixed(name, value) for name, value in new.items() if name not in CHANGEABLE]
    if result.crepa_enabled and not has_projector:
        message = "needs a projector and features of the clips, and this trainer was prepared without"
        problems.append(Problem("crepa_enabled", True, message, _ANEW))
    if problems:
        raise ConfigError(problems)
    return result, new


def _is_fixed(name: str) -> bool:
    """Whether it is the name of a setting that cannot change; a name that is not known is for others to refuse."""
    key = canonical_key(name).partition(".")[0]
    key = ALIASES.get(key, key)
    return key in TrainConfig.model_fields and key not in CHANGEABLE


def _fixed(name: str, value: Any) -> Problem:
    return Problem(name, value, "cannot change while the run is loaded", _ANEW)
