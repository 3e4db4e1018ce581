"""What the settings of the evaluation loss must agree with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunerkit.config.problems import choice_fix
from tunerkit.errors import Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig


EVALUATION = ("eval_timesteps", "num_eval_images", "eval_dataset_id", "eval_dataset_pooling")
"""Settings that decide what the evaluation loss is the mean of."""


def evaluation_problems(config: TrainConfig) -> Iterator[Problem]:
    """`eval_dataset_id` must be the id of an enabled dataset of clips: else others would be evaluated instead."""
    wanted = config.eval_dataset_id
    usable = [dataset.id for dataset in config.datasets if dataset.has_clips]
    if not wanted or not usable or wanted in usable:
        return
    disabled = any(dataset.id == wanted and dataset.disabled for dataset in config.datasets)
    message = "is disabled, so nothing of it is there to evaluate" if disabled else "is the id of no dataset of clips"
    yield Problem("eval_dataset_id", wanted, message, choice_fix(wanted, usable, "Datasets"))
