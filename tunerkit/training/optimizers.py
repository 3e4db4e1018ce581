"""The optimizers by name: what exists, what each needs, and how settings become one.

Settings reach an optimizer in this order, later ones win: its own defaults (those of its package, listed in
`_TABLE` where they differ), `weight_decay`, `optimizer_beta1` and `optimizer_beta2`, then `optimizer_config`.

Two kinds take the learning rate in their own way:

* prodigy (K. Mishchenko and A. Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023) estimates
  the distance d to the solution while it runs, and the rate of a step is d times `learning_rate`, which is best 1.
* adamw_schedulefree (A. Defazio et al., "The Road Less Scheduled", 2024) averages the weights in place of letting the
  rate decay; see `tunerkit.training.averaging`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tunerkit.errors import ConfigError, MissingExtraError, Problem

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer


class OptimizerSettings(Protocol):
    """The settings an optimizer is built from; `TrainConfig` has them."""

    @property
    def optimizer(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def optimizer_config(self) -> Mapping[str, Any] | None: ...
    @property
    def optimizer_beta1(self) -> float | None: ...
    @property
    def optimizer_beta2(self) -> float | None: ...
    @property
    def weight_decay(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...


@dataclass(frozen=True)
class _Entry:
    """Where an optimizer's class is and what it needs.

    `module` and `name` locate the class; `package` is what pip calls the package and `extra` the extra that
    brings it; `defaults` are keyword arguments that are passed unless the settings say otherwise.
    """

    module: str
    name: str
    package: str = "torch"
    extra: str | None = None
    needs_cuda: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _torch(name: str, **defaults: Any) -> _Entry:
    return _Entry("torch.optim", name, defaults=defaults)


def _optimi(name: str) -> _Entry:
    return _Entry("optimi", name, package="torch-optimi", extra="optimi")


def _bitsandbytes() -> dict[str, _Entry]:
    """The 32 and 8 bit forms, resident and paged (paged states move to host memory under pressure)."""
    entries: dict[str, _Entry] = {}
    for name in ("Adam", "AdamW", "Lion", "AdEMAMix", "Adagrad"):
        for bits in ("", "8bit"):
            for paged in ("", "Paged"):
                if name == "Adagrad" and paged:
                    continue
                key = f"bnb-{name.lower()}{bits}{'-paged' if paged else ''}"
                entries[key] = _Entry(
                    "bitsandbytes.optim",
                    f"{paged}{name}{bits}",
                    "bitsandbytes",
                    "bitsandbytes",
                    needs_cuda=True,
                )
    return entries


# What its authors advise for diffusion models. Growth without a limit is written as a number that JSON can hold.
_PRODIGY = {"safeguard_warmup": True, "use_bias_correction": True, "weight_decay": 0.01, "growth_rate": 1e30}

_TABLE: dict[str, _Entry] = {
    "torch-adamw": _torch("AdamW"),
    "torch-adam": _torch("Adam"),
    "torch-sgd": _torch("SGD"),
    "torch-radam": _torch("RAdam"),
    "torch-nadam": _torch("NAdam"),
    "torch-rmsprop": _torch("RMSprop"),
    "torch-adagrad": _torch("Adagrad"),
    "torch-adadelta": _torch("Adadelta"),
    "torch-adafactor": _torch("Adafactor"),
    "torch-adamax": _torch("Adamax"),
    "torch-asgd": _torch("ASGD"),
    "adamw_bf16": _Entry("tunerkit.training.adamw_bf16", "AdamWBF16"),
    "adamw_8bit": _Entry("tunerkit.training.adamw_8bit", "AdamW8bit"),
    "adamw_schedulefree": _Entry("schedulefree", "AdamWScheduleFree", "schedulefree", "schedulefree"),
    "prodigy": _Entry("prodigyopt", "Prodigy", "prodigyopt", "prodigy", defaults=_PRODIGY),
    "muon": _Entry("tunerkit.training.muon", "Muon"),
    "optimi-adamw": _optimi("AdamW"),
    "optimi-stableadamw": _optimi("StableAdamW"),
    "optimi-adam": _optimi("Adam"),
    "optimi-lion": _optimi("Lion"),
    "optimi-radam": _optimi("RAdam"),
    "optimi-ranger": _optimi("Ranger"),
    "optimi-adan": _optimi("Adan"),
    "optimi-sgd": _optimi("SGD"),
    **_bitsandbytes(),
}

_FUSED = {"torch-adamw", "torch-adam"}
# What other trainers call them, or what comes nearest to an optimizer that is not offered here.
_INSTEAD = {
    "adamw": "torch-adamw",
    "adam": "torch-adam",
    "sgd": "torch-sgd",
    "lion": "optimi-lion",
    "adafactor": "torch-adafactor",
    "adamw8bit": "bnb-adamw8bit",
    "ao-adamw8bit": "adamw_8bit",
    "ao-adamw4bit": "adamw_8bit",
    "ao-adamfp8": "adamw_8bit",
    "ao-adamwfp8": "adamw_8bit",
    "schedulefree": "adamw_schedulefree",
    "torch-muon": "muon",
    "dadaptation": "prodigy",
    "soap": "muon",
}
# Keywords that another setting decides, or that change how the training loop has to call the optimizer.
_RESERVED = {"params", "lr", "args", "maximize", "differentiable", "capturable", "gradient_release"} | {
    "is_paged",
    "optim_bits",
    "warmup_steps",
    "fsdp_in_use",
}
_ELSEWHERE = {"lr": "learning_rate", "warmup_steps": "lr_warmup_steps"}
"""Keywords of optimizers -> the setting that decides them."""


def optimizer_names() -> tuple[str, ...]:
    """Every value of the setting `optimizer`, whether or not its package is installed."""
    return tuple(_TABLE)


def check_optimizer(config: OptimizerSettings) -> list[Problem]:
    """What would stop `build_optimizer`, found before anything is loaded; empty when nothing would.

    torch is imported only when an answer depends on it: CUDA for the bitsandbytes optimizers, the legal
    keywords when some are given.
    """
    name = config.optimizer
    entry = _TABLE.get(name)
    if entry is None:
        return [_unknown(name)]
    if not _installed(entry):
        return [
            Problem(
                "optimizer",
                name,
                f"needs the package {entry.package}, which is not installed",
                f"pip install 'tunerkit[{entry.extra}]', or optimizer = torch-adamw",
            )
        ]
    if entry.needs_cuda and (problem := _without_cuda(name)) is not None:
        return [problem]
    arguments, problems = _arguments(config, entry)
    return problems or (_tried(config, entry, arguments) if config.optimizer_config else [])


def _tried(config: OptimizerSettings, entry: _Entry, arguments: dict[str, Any]) -> list[Problem]:
    """What an optimizer says to its values when it updates a few numbers: some look at them only then."""
    import torch

    parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16 if _only_bf16(entry) else None))
    parameter.grad = torch.ones_like(parameter)
    try:
        _made(config.optimizer, entry, arguments, [parameter]).step()
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        return [_refused(config, error)]
    return []


def _only_bf16(entry: _Entry) -> bool:
    return entry.name == "AdamWBF16"


def build_optimizer(config: OptimizerSettings, parameters: Iterable[Parameter]) -> Optimizer:
    """Make the optimizer that the settings describe, for these parameters in one group.

    Raises:
        MissingExtraError: its package is not installed.
        ConfigError: the name is unknown, CUDA is needed and missing, a keyword does not exist for this
            optimizer, or a value is out of its range.
    """
    entry = _TABLE.get(config.optimizer)
    if entry is not None and not _installed(entry):
        raise MissingExtraError(f"optimizer = {config.optimizer!r}", entry.package, entry.extra)
    if problems := check_optimizer(config):
        raise ConfigError(problems)
    assert entry is not None
    arguments, _ = _arguments(config, entry)
    try:
        return _made(config.optimizer, entry, arguments, list(parameters))
    except (TypeError, ValueError) as error:
        raise ConfigError([_refused(config, error)]) from error


def _made(name: str, entry: _Entry, arguments: dict[str, Any], parameters: list[Parameter]) -> Optimizer:
    if name in _FUSED and not {"fused", "foreach"} & arguments.keys():
        return _fused_if_possible(_class_of(entry), parameters, arguments)
    with contextlib.redirect_stdout(io.StringIO()):  # prodigyopt prints
        optimizer = _class_of(entry)(parameters, **arguments)
    train = getattr(optimizer, "train", None)  # a schedule-free one would wait for it
    if train is not None:
        train()
    return optimizer


def _refused(config: OptimizerSettings, error: Exception) -> Problem:
    """That the optimizer does not take the values that were asked for."""
    asked = {name: getattr(config, name) for name in ("optimizer_beta1", "optimizer_beta2", "weight_decay")}
    given = {**{name: value for name, value in asked.items() if value is not None}, **(config.optimizer_config or {})}
    fix = "correct the value in optimizer_config, optimizer_beta1, optimizer_beta2 or weight_decay"
    return Problem("optimizer", config.optimizer, f"refuses {given}: {error}", fix)


def step_rate(optimizer: Optimizer, learning_rate: float) -> float:
    """The rate that the next step is made with: that of the schedule, times what the optimizer itself estimates."""
    return learning_rate * optimizer.param_groups[0].get("d", 1.0)


def _fused_if_possible(kind: type[Optimizer], parameters: list[Parameter], arguments: dict[str, Any]) -> Optimizer:
    """One kernel for all parameters where torch has one for their devices, else one kernel per operation."""
    try:
        return kind(parameters, **arguments, fused=True)  # pyright: ignore[reportCallIssue]
    except RuntimeError:
        return kind(parameters, **arguments, foreach=True)  # pyright: ignore[reportCallIssue]


def _arguments(config: OptimizerSettings, entry: _Entry) -> tuple[dict[str, Any], list[Problem]]:
    """Keyword arguments for the optimizer's class, and what is wrong with those that were asked for."""
    arguments: dict[str, Any] = {"lr": config.learning_rate, **entry.defaults}
    asked = dict(config.optimizer_config or {})
    betas = (config.optimizer_beta1, config.optimizer_beta2)
    if entry.module.startswith("tunerkit.training.adamw_"):
        arguments["seed"] = config.seed or 0
    if not asked and config.weight_decay is None and betas == (None, None):
        return arguments, []
    legal = {
        name: parameter.default
        for name, parameter in inspect.signature(_class_of(entry)).parameters.items()
        if name not in _RESERVED
    }
    problems: list[Problem] = []
    if config.weight_decay is not None:
        if "weight_decay" in legal:
            arguments["weight_decay"] = config.weight_decay
        else:
            problems.append(_no_such("weight_decay", config.weight_decay, config.optimizer))
    if "betas" in legal:
        # Adan and AdEMAMix have a third one, which keeps its default.
        default = tuple(arguments.get("betas", legal["betas"]))
        given = tuple(value if own is None else own for own, value in zip(betas, default, strict=False))
        if given != default[:2]:
            arguments["betas"] = (*given, *default[2:])
    else:
        keys = ("optimizer_beta1", "optimizer_beta2")
        problems += [
            _no_such(key, beta, config.optimizer) for key, beta in zip(keys, betas, strict=True) if beta is not None
        ]
    for key, value in asked.items():
        if key in legal:
            arguments[key] = tuple(value) if isinstance(value, list) else value
        else:
            problems.append(_unknown_keyword(key, value, config.optimizer, list(legal)))
    if entry.name == "AdamWScheduleFree" and not arguments.get("betas", (0.9,))[0]:
        message = "leaves nothing of the average that adamw_schedulefree trains with"
        problems.append(Problem("optimizer_beta1", 0.0, message, "set it above 0; 0.9 is usual"))
    return arguments, problems


def _class_of(entry: _Entry) -> type[Optimizer]:
    return getattr(importlib.import_module(entry.module), entry.name)


def _installed(entry: _Entry) -> bool:
    return importlib.util.find_spec(entry.module.partition(".")[0]) is not None


def _without_cuda(name: str) -> Problem | None:
    import torch

    if torch.cuda.is_available():
        return None
    return Problem(
        "optimizer",
        name,
        "runs on CUDA GPUs only, and torch finds none",
        "optimizer = torch-adamw, or adamw_bf16 to save memory",
    )


def _unknown(name: str) -> Problem:
    nearest = _INSTEAD.get(name.lower()) or next(iter(difflib.get_close_matches(name, _TABLE, n=1)), None)
    fix = f"one of {', '.join(_TABLE)}"
    return Problem("optimizer", name, "is not a known optimizer", f"{nearest}, or {fix}" if nearest else fix)


def _unknown_keyword(key: str, value: Any, optimizer: str, legal: list[str]) -> Problem:
    if key in _ELSEWHERE:
        return Problem(f"optimizer_config.{key}", value, "is set elsewhere", f"use {_ELSEWHERE[key]}")
    return Problem(
        f"optimizer_config.{key}",
        value,
        f"{optimizer} has no such option",
        f"use one of {', '.join(sorted(legal))}",
    )


def _no_such(key: str, value: Any, optimizer: str) -> Problem:
    return Problem(key, value, f"{optimizer} has no such option", f"remove {key}, or choose another optimizer")
