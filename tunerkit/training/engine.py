"""One optimizer step on a loaded transformer: forward, backward, clip, update, EMA. Knows no files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.draws import derived_seed
from tunerkit.errors import NonFiniteLossError
from tunerkit.memory.offload_groups import place_transformer
from tunerkit.methods.crepa_alignment import Alignment
from tunerkit.training.averaging import averaged_weights, averages
from tunerkit.training.batches import Drawn
from tunerkit.training.blocks import BlockRunner
from tunerkit.training.ema import EMA
from tunerkit.training.objective import Objective
from tunerkit.training.optimizers import build_optimizer
from tunerkit.training.weights import TrainedWeights, adapter_state, add_adapter

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family


@dataclass(frozen=True)
class Update:
    """What one optimizer step saw: mean loss, its parts, gradient norm, sample names, epoch."""

    loss: float
    parts: dict[str, float]
    grad_norm: float
    samples: tuple[str, ...]
    epoch: int


class Engine:
    """Transformer, trained weights, optimizer and EMA of a run.

    Args:
        config: resolved settings.
        family: the model family.
        transformer: the base transformer in the dtype of `mixed_precision`, on the CPU.
        device: where to train.
        processes: number of processes that train together (DistributedDataParallel when above 1).
    """

    def __init__(
        self, config: TrainConfig, family: Family, transformer: Any, device: torch.device, processes: int = 1
    ) -> None:
        self.config, self.family, self.device, self.processes = config, family, device, processes
        self.initial_adapter: dict[str, torch.Tensor] = {}
        """Starting factors of initialisations that change the base model (PiSSA, OLoRA); else empty."""
        if config.model_type == "lora":
            add_adapter(transformer, family, config)
            if config.lora_init_type in ("pissa", "olora"):
                self.initial_adapter = {k: v.clone() for k, v in adapter_state(transformer).items()}
        self.transformer = transformer
        blocks = family.blocks(transformer)
        self.offloader = place_transformer(transformer, blocks, config, device)
        self.alignment = Alignment(config, family, transformer, device) if config.crepa_enabled else None
        """With the projector, which stays where the alignment is switched off later."""
        beside = self.alignment.parameters if self.alignment else None
        self.weights = TrainedWeights(self.transformer, config, beside)
        self._random = config.lora_dropout > 0
        self._runner = BlockRunner(
            family.video_blocks(transformer),
            checkpointing=config.gradient_checkpointing,
            random_inside=self._random,
            offloader=self.offloader,
        )
        self._runner.install(self.transformer)
        self.objective = self.objective_for(config)
        self.optimizer = build_optimizer(config, self.weights.optimized.values())
        self.ema = self._make_ema()
        self.scaler = (
            torch.amp.GradScaler(device.type)  # pyright: ignore[reportPrivateImportUsage]
            if config.mixed_precision == "fp16"
            else None
        )
        self._called = self._wrap()
        self.transformer.train()

    def objective_for(self, config: TrainConfig) -> Objective:
        """What is minimised with other settings; `change` takes it over.

        Raises:
            ConfigError: they do not fit the transformer.
        """
        alignment = self.alignment if config.crepa_enabled else None
        return Objective(config, self.family, self.transformer, self._runner, self.device, alignment)

    def change(self, config: TrainConfig, objective: Objective) -> None:
        """From the next step on, go by other settings of the objective, the clipping and the length."""
        if self.alignment is not None:
            self.alignment.change(config)
        self.config, self.objective = config, objective

    def _make_ema(self) -> EMA | None:
        if not self.config.use_ema:
            return None
        return EMA(
            self.weights.of_model,
            decay=self.config.ema_decay,
            update_interval=self.config.ema_update_interval,
            warmup_steps=self.config.ema_warmup_steps,
            device=self.device if self.config.ema_device == "accelerator" else "cpu",
        )

    def _wrap(self) -> Any:
        if self.processes == 1:
            return self.transformer
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device.index] if self.device.type == "cuda" else None
        # Where a batch has no sound, or none that is learned, some adapters have no share in the loss.
        return DistributedDataParallel(
            self.transformer, device_ids=devices, find_unused_parameters=self.family.sound is not None
        )

    def step(self, batches: Sequence[Callable[[], Drawn]], number: int, lr: float) -> Update:
        """Accumulate the gradients of `batches`, then update once.

        Args:
            batches: calls that give the micro-batches in order.
            number: steps done before this one.
            lr: learning rate of this step.

        Raises:
            NonFiniteLossError: before anything is updated, naming the samples.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.weights.zero_gradients()
        losses: list[torch.Tensor] = []
        parts: dict[str, list[torch.Tensor]] = {}
        names: list[str] = []
        epoch = 0
        for place, read in enumerate(batches):
            drawn = read()
            last = place == len(batches) - 1
            with self._draws(drawn.draw.number), self._local_gradients(last):
                result = self.objective.losses(drawn, self._called, number)
                self._backward(result.total / len(batches))
            losses.append(result.total.detach())
            for key, value in result.parts.items():
                parts.setdefault(key, []).append(value)
            names += drawn.batch.names
            epoch = drawn.draw.epoch
        loss = self._mean(losses)
        if not torch.isfinite(torch.tensor(loss)):
            raise self._not_finite("loss", number, names)
        grad_norm = self._update(number, names)
        told = {key: self._mean(v) for key, v in parts.items()}
        if self.alignment is not None:
            self.alignment.observe(told)
        return Update(loss, told, grad_norm, tuple(names), epoch)

    # The pieces of a step --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _draws(self, batch_number: int) -> Iterator[None]:
        """Dropout inside the model draws from the global generator: seed it for this batch, then give it back."""
        if not self._random:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derived_seed(self.config.seed, "dropout", batch_number))
            yield

    def _local_gradients(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Between processes, gradients are averaged once per step, in the last micro-batch."""
        if self.processes == 1 or last:
            return contextlib.nullcontext()
        return self._called.no_sync()

    def _backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _update(self, number: int, names: Sequence[str]) -> float:
        """Clip and update; the 2-norm of the gradients before clipping."""
        if self.alignment is not None:
            self.alignment.average_gradients(self.processes)
        self.weights.gather_gradients()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.weights.optimized.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        grad_norm = float(norm)
        finite = grad_norm - grad_norm == 0.0  # neither NaN nor infinite
        if not finite and self.scaler is None:
            raise self._not_finite("gradient", number, names)
        if finite and self.config.max_grad_norm > 0:
            if self.config.grad_clip_method == "value":
                torch.nn.utils.clip_grad_value_(parameters, self.config.max_grad_norm)
            else:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        if self.scaler is None:
            self.optimizer.step()
        else:  # skips the update when float16 gradients overflowed, and lowers the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.weights.publish()
        if self.ema is not None:
            self.ema.update(number + 1)
        return grad_norm

    def _mean(self, values: Sequence[torch.Tensor]) -> float:
        """Mean over micro-batches and processes."""
        mean = torch.stack([value.float() for value in values]).mean()
        if self.processes > 1:
            import torch.distributed as dist

            dist.all_reduce(mean, op=dist.ReduceOp.SUM)
            mean = mean / self.processes
        return float(mean)

    def _not_finite(self, what: str, number: int, names: Sequence[str]) -> NonFiniteLossError:
        self.weights.zero_gradients()
        return NonFiniteLossError(
            f"the {what} of step {number + 1} is not finite (samples: {', '.join(dict.fromkeys(names))}). Nothing was "
            "updated and the last checkpoint is whole. Fix: look at these clips, lower learning_rate, or use "
            "mixed_precision = bf16 instead of fp16; then start again to resume from the last checkpoint"
        )

    @contextlib.contextmanager
    def kept_weights(self) -> Iterator[None]:
        """Inside, the transformer holds the weights to keep: the trained ones, or the average of an optimizer that
        makes one."""
        if not averages(self.optimizer):
            yield
            return
        try:
            with averaged_weights(self.optimizer):
                self.weights.publish()
                yield
        finally:
            self.weights.publish()

    @contextlib.contextmanager
    def rendering(self, *, ema: bool) -> Iterator[Any]:
        """The bare transformer in evaluation mode, with the weights to keep, or the EMA's if asked; restored
        afterwards."""
        swap = self.ema.applied() if ema and self.ema is not None else self.kept_weights()
        self.transformer.eval()
        try:
            with torch.no_grad(), swap:
                self.weights.publish()
                yield self.transformer
        finally:
            self.weights.publish()
            self.transformer.train()
