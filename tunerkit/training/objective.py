"""The loss of a training step: the family's own, and what the methods that are turned on change and add.

Only training asks here. The evaluation loss and validation take `Drawn.losses` and the bare transformer, in which no
method has a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.config.tread_rules import routes_of
from tunerkit.families.prediction import Prediction
from tunerkit.methods.rollout import Draws, Rollout
from tunerkit.methods.tread import Router

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family
    from tunerkit.families.batch import LossParts
    from tunerkit.methods.crepa_alignment import Alignment
    from tunerkit.training.batches import Drawn
    from tunerkit.training.blocks import BlockRunner


class Objective:
    """What a run minimises.

    Args:
        config: resolved settings.
        family: the model family.
        transformer: the bare transformer.
        runner: what runs its blocks.
        device: where it trains.
        alignment: what aligns hidden states with features; None = nothing does.
    """

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        transformer: Any,
        runner: BlockRunner,
        device: torch.device,
        alignment: Alignment | None = None,
    ) -> None:
        self.config, self.family, self.transformer = config, family, transformer
        self.runner, self.device, self.alignment = runner, device, alignment
        self.routes = routes_of(config, len(family.video_blocks(transformer)))
        self.rollout = Rollout.of(config, family, transformer)

    def losses(self, drawn: Drawn, called: Any, number: int) -> LossParts:
        """The loss of a micro-batch.

        Args:
            drawn: the batch and its draws, on the CPU.
            called: the transformer as it is called: itself, or wrapped for several processes.
            number: optimizer steps done.
        """
        there, losses = self._rolled_out(drawn.to(self.device), number)
        router, alignment = self.router(drawn), self.alignment
        if alignment is None:
            with self.runner.watched(router=router):
                return losses(there.predict(self.family, called))
        with alignment.taps(drawn.batch, number) as taps:
            with self.runner.watched(router=router, taps=taps):
                main = losses(there.predict(self.family, called))
            return alignment.added(main, there.batch, there.features, number)

    def router(self, drawn: Drawn) -> Router | None:
        """What routes the tokens of a batch, drawn on the CPU; None where all pass all blocks."""
        if not self.routes:
            return None
        return Router(
            self.routes,
            self.family.token_arguments,
            seed=self.config.seed,
            batch_number=drawn.draw.number,
            calls=self.family.calls(drawn.batch),
            trained=self._trained(drawn),
        )

    def _rolled_out(self, there: Drawn, number: int) -> tuple[Drawn, Callable[[Prediction], LossParts]]:
        """The draws to train on, and what makes a loss of the prediction from them."""
        if self.rollout is None:
            return there, Prediction.losses
        draws = Draws(there.sigma, there.noise, there.audio_sigma, there.audio_noise)
        rolled = self.rollout.rolled(there.batch, draws, there.draw.number, number)
        return replace(there, noise=rolled.draws.noise, audio_noise=rolled.draws.audio_noise), rolled.losses

    def _trained(self, drawn: Drawn) -> torch.Tensor | None:
        """Tokens that a loss mask trains, bool `[B, S]`: those with a weight above 0 anywhere in their patch."""
        mask = drawn.batch.loss_mask
        if mask is None:
            return None
        grid = self.family.token_grid(self.transformer, drawn.batch.latents)
        return torch.nn.functional.adaptive_max_pool3d(mask, grid).flatten(1).to(self.device) > 0
