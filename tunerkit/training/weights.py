"""Which weights are trained, and in which precision.

No autocast is used: the transformer runs in the dtype it is loaded in, exactly as the inference pipeline runs it, and
parts that compute in float32 on purpose (linear attention sums, for one) stay in float32.

- LoRA: the base is frozen in the dtype of `mixed_precision`; the adapter's weights are float32.
- Full fine-tuning in bf16 or fp16: the live weights are 16 bit; the optimizer works on float32 masters that are copied
  into them after each step. Optimizers that round stochastically or compensate (adamw_bf16, optimi-*) work on the live
  weights themselves and need no masters.
- With `optimizer_cpu_offload_method` the optimizer works on copies in RAM, where its state is then as well. With
  `optimizer_offload_gradients` each gradient goes there as soon as the backward pass has made it, and the device never
  holds all of them; those of several micro-batches are then added up in the precision of the copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tunerkit.draws import derived_seed
from tunerkit.errors import CheckpointError, ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

ADAPTER = "default"
_OWN_ROUNDING = ("adamw_bf16", "optimi-")


def add_adapter(transformer: Any, family: Family, config: TrainConfig) -> None:
    """Freeze the transformer and add a LoRA whose weights are float32.

    Raises:
        ConfigError: if the target modules do not exist or a rank does not fit the model.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    targets = config.peft_lora_target_modules or family.lora_targets(config)
    _check_targets(transformer, targets, family.lora_targets(config), config.lora_rank)
    init = {"default": True}.get(config.lora_init_type, config.lora_init_type)
    transformer.requires_grad_(False)
    with torch.random.fork_rng():  # the user's own random state stays as it was
        torch.manual_seed(derived_seed(config.seed, "adapter"))
        transformer.add_adapter(
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha or config.lora_rank,  # pyright: ignore[reportArgumentType] - may be fractional
                lora_dropout=config.lora_dropout,
                init_lora_weights=init,  # pyright: ignore[reportArgumentType] - names are checked by the settings
                target_modules=targets,
                use_dora=config.use_dora,
                use_rslora=config.use_rslora,
            ),
            adapter_name=ADAPTER,
        )
    cast_training_params([transformer], torch.float32)


def _check_targets(transformer: Any, targets: list[str], usual: list[str], rank: int) -> None:
    found = {
        target: {
            name: module
            for name, module in transformer.named_modules()
            if name == target or name.endswith(f".{target}")
        }
        for target in targets
    }
    problems = [problem for target, modules in found.items() if (problem := _target_problem(target, modules, usual))]
    widths = [min(m.weight.shape[:2]) for ms in found.values() for m in ms.values() if hasattr(m, "weight")]
    if widths and rank > min(widths):
        problems.append(
            Problem(
                "lora_rank",
                rank,
                f"is larger than the smallest adapted layer ({min(widths)} wide), where it can add nothing",
                f"use at most {min(widths)}",
            )
        )
    if problems:
        raise ConfigError(problems)


def _target_problem(target: str, modules: dict[str, Any], usual: list[str]) -> Problem | None:
    """What is wrong with one target; `modules` are those that it names, `usual` the family's own targets."""
    if not modules:
        return Problem(
            "peft_lora_target_modules",
            target,
            "matches no module of the transformer",
            f"use names such as {', '.join(usual)}, or leave the setting out",
        )
    layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Embedding)
    others = [name for name, module in modules.items() if not isinstance(module, layers)]
    if not others:
        return None
    longer = sorted({".".join(name.split(".")[-target.count(".") - 2 :]) for name in modules if name not in others})
    return Problem(
        "peft_lora_target_modules",
        target,
        f"names {others[0]} as well, a {type(modules[others[0]]).__name__}, and only single layers can be adapted",
        f"write longer names, of {', '.join(longer)}" if longer else "name the layers inside it",
    )


def adapter_state(transformer: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights under peft's names, detached, on their device."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    return {key: value.detach() for key, value in state.items()}


def load_adapter_state(transformer: Any, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Put `state` (names as from `adapter_state`) into the adapter.

    Raises:
        CheckpointError: if names or shapes do not fit, naming the first difference and `source`.
    """
    from peft import set_peft_model_state_dict

    own = adapter_state(transformer)
    fix = "Fix: use the lora_rank, targets and base model it was trained with"
    if missing := sorted(set(own) ^ set(state)):
        raise CheckpointError(f"{source}: adapter weights do not fit this model ({missing[0]} differs). {fix}")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{source}: {key} is {tuple(state[key].shape)}, this run needs {tuple(value.shape)}. {fix}"
            )
    set_peft_model_state_dict(transformer, dict(state), adapter_name=ADAPTER)


class TrainedWeights:
    """The parameters that an optimizer step changes, with masters where it cannot work on the live weights.

    Attributes:
        live: name -> parameter of the transformer.
        optimized: name -> parameter the optimizer holds: the live one, or its master.

    Args:
        transformer: with its adapter, if it gets one.
        config: resolved settings.
        beside: name -> weights that learn with the model and are no part of it.
    """

    def __init__(
        self, transformer: Any, config: TrainConfig, beside: Mapping[str, torch.nn.Parameter] | None = None
    ) -> None:
        if config.model_type == "full":
            transformer.requires_grad_(True)
        self.live: dict[str, torch.nn.Parameter] = {
            name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad
        } | dict(beside or {})
        self._beside = frozenset(beside or ())
        rounds_itself = config.optimizer.startswith(_OWN_ROUNDING)
        in_ram = config.optimizer_cpu_offload_method != "none"

        def optimized(live: torch.nn.Parameter) -> torch.nn.Parameter:
            keeps = live.dtype == torch.float32 or (rounds_itself and live.dtype == torch.bfloat16)
            dtype = live.dtype if keeps else torch.float32
            if in_ram:
                return torch.nn.Parameter(live.detach().to("cpu", dtype, copy=True))
            return live if keeps else torch.nn.Parameter(live.detach().to(dtype))

        self.optimized = {name: optimized(parameter) for name, parameter in self.live.items()}
        self._masters = [
            (parameter, self.optimized[name])
            for name, parameter in self.live.items()
            if self.optimized[name] is not parameter
        ]
        if config.optimizer_offload_gradients and in_ram:
            for live, master in self._masters:
                live.register_post_accumulate_grad_hook(lambda live, master=master: self.move_gradient(live, master))

    @property
    def has_masters(self) -> bool:
        """Whether the optimizer works on copies rather than on the live weights."""
        return bool(self._masters)

    @property
    def count(self) -> int:
        """Number of trained values of the model."""
        return sum(parameter.numel() for name, parameter in self.live.items() if name not in self._beside)

    @property
    def of_model(self) -> dict[str, torch.nn.Parameter]:
        """Those of `optimized` that are part of the model."""
        return {name: parameter for name, parameter in self.optimized.items() if name not in self._beside}

    @property
    def beside_model(self) -> dict[str, torch.nn.Parameter]:
        """Those of `optimized` that are no part of it."""
        return {name: parameter for name, parameter in self.optimized.items() if name in self._beside}

    def gather_gradients(self) -> None:
        """Move the live gradients to the masters, in their precision."""
        for parameter, master in self._masters:
            if parameter.grad is not None:
                self.move_gradient(parameter, master)

    def move_gradient(self, live: torch.Tensor, master: torch.Tensor) -> None:
        """Add the gradient of a live weight to that of its master, and free it."""
        assert live.grad is not None
        gradient = live.grad.to(master, copy=True)
        live.grad = None
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the live weights, rounding to nearest."""
        for parameter, master in self._masters:
            parameter.copy_(master)

    @torch.no_grad()
    def adopt(self) -> None:
        """Copy the live weights into the masters, after something else changed them."""
        for parameter, master in self._masters:
            master.copy_(parameter)

    def zero_gradients(self) -> None:
        for parameter in (*self.live.values(), *self.optimized.values()):
            parameter.grad = None

    def state(self, *, beside: bool = False) -> dict[str, torch.Tensor]:
        """The tensors that the optimizer works on, no copies: by name, of the model or of what is `beside` it."""
        chosen = self.beside_model if beside else self.of_model
        return {name: parameter.detach() for name, parameter in chosen.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor], source: str, *, beside: bool = False) -> None:
        """Restore what `state()` gave.

        Raises:
            CheckpointError: naming the first weight that is missing or has another shape.
        """
        wanted = self.beside_model if beside else self.of_model
        for name, parameter in wanted.items():
            given = state.get(name)
            if given is None or given.shape != parameter.shape:
                found = "is missing" if given is None else f"is {tuple(given.shape)}"
                raise CheckpointError(
                    f"{source}: {name} {found}, this run needs {tuple(parameter.shape)}. Fix: resume with the "
                    "model, lora_rank and targets of that checkpoint, or choose another output_dir"
                )
        if extra := sorted(set(state) - set(wanted)):
            raise CheckpointError(
                f"{source}: holds {extra[0]}, which this run does not train. Fix: resume with the settings of that "
                "checkpoint, or choose another output_dir"
            )
        for name, parameter in wanted.items():
            parameter.copy_(state[name])
        self.publish()
