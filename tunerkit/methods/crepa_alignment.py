"""The term of the loss that aligns hidden states with features across frames (CREPA), and the projector it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.config.crepa_rules import aligned_blocks, needs_features
from tunerkit.draws import derived_seed
from tunerkit.families.batch import LossParts
from tunerkit.methods.crepa_similarity import Likeness, Neighbours, likeness, resized
from tunerkit.methods.crepa_teacher import teacher_facts
from tunerkit.methods.crepa_weight import SimilarityStop, WeightCurve
from tunerkit.methods.tap import Tap

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family
    from tunerkit.families.batch import Batch

PROJECTOR = "crepa_projector"
"""Beginning of the names of its weights among those that are trained."""
LOSS, SIMILARITY, WEIGHT = "crepa", "crepa_similarity", "crepa_weight"
"""Names of what is logged: the term before it is weighted, the mean similarity of frames to their own features in
[-1, 1], the weight."""


class Projector(torch.nn.Module):
    """Hidden states `[..., H, W, D]` in the space of the features: layer norm, then one linear layer, in float32."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.linear = torch.nn.Linear(width, features)

    def forward(self, states: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`[..., height, width, E]`; means over cells are taken before the linear layer, which gives the same as
        behind it."""
        return self.linear(resized(self.norm(states.to(self.norm.weight.dtype)), height, width))


class Alignment:
    """What CREPA adds to a run.

    The projector learns with the model: same optimizer and learning rate, clipped together. It has no average of its
    own, since nothing is rendered with it, and no part in what is exported.

    Args:
        config: resolved settings with `crepa_enabled`.
        family: the model family.
        transformer: the bare transformer.
        device: where it trains.

    Raises:
        ConfigError: the transformer has no such block.
        ModelError: the image encoder's configuration cannot be read.
    """

    def __init__(self, config: TrainConfig, family: Family, transformer: Any, device: torch.device) -> None:
        self.config, self.family, self.transformer = config, family, transformer
        self.total_steps = config.max_train_steps or 0
        """Of the run, where the weight's way down has no length of its own."""
        index, teacher = aligned_blocks(config, len(family.video_blocks(transformer)))
        self._tap, self._teacher_tap = Tap(index), None if teacher is None else Tap(teacher)
        self.stop = SimilarityStop.of(config)
        self.neighbours = _neighbours(config)
        width = family.hidden_width(transformer)
        features = teacher_facts(config).width if needs_features(config) else width
        with torch.random.fork_rng():  # the user's own random state stays as it was
            torch.manual_seed(derived_seed(config.seed, PROJECTOR))
            self.projector = Projector(width, features).to(device)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The projector's weights, float32, by the names under which they are trained."""
        return {f"{PROJECTOR}.{name}": one for name, one in self.projector.named_parameters()}

    def weight(self, number: int) -> float:
        """Weight of the term when `number` optimizer steps are done."""
        return 0.0 if self.stop.stopped else self._curve.at(number)

    def over(self, number: int) -> bool:
        """Whether there will be no term from here on."""
        return self.stop.for_good or self._curve.over(number)

    @property
    def _curve(self) -> WeightCurve:
        return WeightCurve.of(self.config, self.total_steps)

    @contextlib.contextmanager
    def taps(self, batch: Batch, number: int) -> Iterator[list[Tap]]:
        """What keeps what `added` needs, open, for the call of the transformer; none where there is no term."""
        taps = [] if self.over(number) else [tap for tap in (self._tap, self._teacher_tap) if tap is not None]
        with contextlib.ExitStack() as stack:
            for tap in taps:
                stack.enter_context(tap.open(self.family.calls(batch)))
            yield taps

    def added(self, main: LossParts, batch: Batch, features: torch.Tensor | None, number: int) -> LossParts:
        """The loss with the alignment's term. To be called inside `taps`, after the transformer.

        Args:
            main: the loss without it.
            batch: on the device.
            features: of the image encoder, `[B, T, h, w, E]`; None where they come from the model.
            number: optimizer steps done.
        """
        weight = self.weight(number)
        told = {WEIGHT: main.total.new_full((), weight)}
        if self.over(number):
            return LossParts(main.total, {**main.parts, **told})
        with torch.set_grad_enabled(weight > 0):  # else it is only watched, and may come back
            found = self._likeness(batch, features)
        loss = -found.score.mean()
        parts = {**main.parts, LOSS: loss.detach(), SIMILARITY: found.own.mean().detach(), **told}
        return LossParts(main.total + weight * loss if weight > 0 else main.total, parts)

    def _likeness(self, batch: Batch, features: torch.Tensor | None) -> Likeness:
        states, target = self._grid(batch, self._tap), self._target(batch, features)
        height, width = target.shape[2:4]
        mask = None
        if batch.loss_mask is not None:  # [B, 1, T, H, W]: what is not to be learned is not aligned either
            mask = resized(batch.loss_mask[:, 0, ..., None].float(), height, width)[..., 0]
        projected = self.projector(states, height, width)
        if not self.config.crepa_spatial_align:
            projected, target, mask = _pooled(projected, mask), _pooled(target, mask), _any(mask)
        return likeness(
            projected, target, self.neighbours, by_frames=self.config.crepa_normalize_by_frames, weight=mask
        )

    def _grid(self, batch: Batch, tap: Tap) -> torch.Tensor:
        """Hidden states `[B, T, H, W, D]`."""
        grid = self.family.token_grid(self.transformer, batch.latents)
        return self.family.on_grid(self.transformer, tap.states, grid)

    def _target(self, batch: Batch, features: torch.Tensor | None) -> torch.Tensor:
        """What hidden states are aligned with, `[B, T, h, w, E]`, without a gradient."""
        if self._teacher_tap is not None:
            return self._grid(batch, self._teacher_tap).detach().to(self.projector.norm.weight.dtype)
        if features is None:
            raise ValueError("the batch has no features, and hidden states are aligned with some")
        return features.to(self.projector.norm.weight.dtype)

    # Between steps and runs ------------------------------------------------------------------------------------

    def change(self, config: TrainConfig) -> None:
        """From now on, go by other settings of weight, threshold and neighbours; what was learned stays."""
        stop = SimilarityStop.of(config)
        stop.load_state(self.stop.state())
        self.config, self.stop, self.neighbours = config, stop, _neighbours(config)

    def average_gradients(self, processes: int) -> None:
        """Average the projector's gradients over the processes that train together."""
        if processes == 1:
            return
        import torch.distributed as dist

        for parameter in self.projector.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= processes

    def observe(self, parts: Mapping[str, float]) -> None:
        """Take in what an optimizer step logged: a high similarity may end the term."""
        if SIMILARITY in parts:
            self.stop.observe(parts[SIMILARITY])


def _neighbours(config: TrainConfig) -> Neighbours:
    return Neighbours(
        distance=config.crepa_adjacent_distance,
        tau=config.crepa_adjacent_tau or 1.0,
        cumulative=config.crepa_cumulative_neighbors,
        normalised=config.crepa_normalize_neighbour_sum,
    )


def _pooled(grid: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The (weighted) mean over each frame, `[B, T, 1, 1, E]`."""
    if mask is None:
        return grid.mean((2, 3), keepdim=True)
    weight = mask.to(grid.dtype)[..., None]
    return (grid * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-8)


def _any(mask: torch.Tensor | None) -> torch.Tensor | None:
    """1 for frames with any weight, `[B, T, 1, 1]`."""
    return None if mask is None else mask.amax((2, 3), keepdim=True).gt(0).to(mask.dtype)
