"""What settings must be true together; each rule yields the problems it finds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunerkit.config.choices import OPTIMIZERS
from tunerkit.config.crepa_rules import crepa_notes, crepa_problems
from tunerkit.config.dataset_rules import dataset_notes, dataset_problems
from tunerkit.config.evaluation_rules import evaluation_problems
from tunerkit.config.inactive import refused_problems
from tunerkit.config.memory_rules import offload_notes, offload_problems, state_problems
from tunerkit.config.optimizer_rules import optimizer_notes, optimizer_problems
from tunerkit.config.precisions import precision_notes, precision_problems
from tunerkit.config.problems import choice_fix
from tunerkit.config.reporting_rules import reporting_notes, reporting_problems
from tunerkit.config.rollout_rules import rollout_notes, rollout_problems
from tunerkit.config.translate import WAVES
from tunerkit.config.tread_rules import route_problems
from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

_SIZES = re.compile(r"\d+x\d+(,\d+x\d+)*")
_EDGES = range(16, 8193)


def problems_between(config: TrainConfig) -> list[Problem]:
    """Everything that is wrong between settings whose own values are legal."""
    return [
        *_length(config),
        *_schedule(config),
        *optimizer_problems(config),
        *_names(config),
        *_validation(config),
        *refused_problems(config),
        *precision_problems(config),
        *offload_problems(config),
        *state_problems(config),
        *reporting_problems(config),
        *route_problems(config),
        *crepa_problems(config),
        *evaluation_problems(config),
        *rollout_problems(config),
        *dataset_problems(config),
    ]


def advice(config: TrainConfig) -> Iterator[Note]:
    """Notes about legal settings that do less than they seem to."""
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        yield Note("lr_warmup_steps", "lr_scheduler = constant has no warmup; constant_with_warmup has one")
    if config.delete_quarantined_files and not config.delete_problematic_images:
        yield Note("delete_quarantined_files", "has no effect without delete_problematic_images, which keeps the list")
    yield from optimizer_notes(config)
    yield from precision_notes(config)
    yield from offload_notes(config)
    yield from crepa_notes(config)
    yield from rollout_notes(config)
    yield from reporting_notes(config)
    yield from dataset_notes(config)


def _length(config: TrainConfig) -> Iterator[Problem]:
    if config.max_train_steps and config.num_train_epochs:
        yield Problem(
            "num_train_epochs",
            config.num_train_epochs,
            f"is set together with max_train_steps = {config.max_train_steps}; the run can end by one of them only",
            "set one of the two to 0",
        )


def _schedule(config: TrainConfig) -> Iterator[Problem]:
    name, warmup = config.lr_scheduler, config.lr_warmup_steps
    if name == "constant" or not warmup:
        return
    decays = name != "constant_with_warmup"
    end = config.lr_decay_steps if decays and config.lr_decay_steps else config.max_train_steps
    # A saved configuration must not look like one of SimpleTuner's, whose warmup is as long as the run.
    ambiguous = name in WAVES and config.lr_decay_steps is None and warmup == end
    if end and (warmup > end or ambiguous):
        which = "lr_decay_steps" if end == config.lr_decay_steps and decays else "max_train_steps"
        yield Problem(
            "lr_warmup_steps",
            warmup,
            f"leaves nothing after the warmup: {which} = {end}",
            f"set it below {end}, for example {max(1, end // 20)}",
        )
    if decays and config.lr_end > config.learning_rate:
        yield Problem(
            "lr_end", config.lr_end, f"is above learning_rate = {config.learning_rate:g}", "set it below learning_rate"
        )


def _names(config: TrainConfig) -> Iterator[Problem]:
    if config.optimizer not in OPTIMIZERS:
        fix = choice_fix(config.optimizer, OPTIMIZERS, "All")
        yield Problem("optimizer", config.optimizer, "is not a known optimizer", fix)
    if config.peft_lora_target_modules is not None and not config.peft_lora_target_modules:
        yield Problem("peft_lora_target_modules", [], "names no layer", "name at least one, or leave it out")


def _validation(config: TrainConfig) -> Iterator[Problem]:
    sizes = config.validation_resolution
    if sizes is not None and not (_SIZES.fullmatch(sizes) and all(int(e) in _EDGES for e in re.findall(r"\d+", sizes))):
        yield Problem(
            "validation_resolution",
            sizes,
            f"is not a list of sizes of {_EDGES.start} to {_EDGES.stop - 1} pixels",
            "write WIDTHxHEIGHT, several separated by commas, for example 832x480",
        )
    if config.validation_seed == []:
        yield Problem("validation_seed", [], "holds no seed", "write at least one number, or leave it out")
