"""A loss that can be compared between steps and between runs: fixed samples, captions, noise levels and noise.

The training loss jumps with every draw of sigma; averaged over the same few draws each time, the trend shows within
some steps. The idea is spacepxl's (demystifying-sd-finetuning); noise levels are the midpoints of equal parts of
(0, 1), the same for every family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tunerkit.data.sampler import Draw
from tunerkit.draws import generator
from tunerkit.training.batches import Drawn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunerkit.data.samples import Sample
    from tunerkit.training.batches import BatchSource
    from tunerkit.training.engine import Engine

NOISE_LEVELS = 8
_SEED = 0  # not the run's seed: runs with different seeds stay comparable


def evaluation_loss(engine: Engine, source: BatchSource, samples: Sequence[Sample]) -> float:
    """Mean loss of up to `num_eval_images` evenly spread samples at 8 noise levels each, in evaluation mode.

    Every sample counts equally. Captions are never dropped; nothing random is drawn from the run.
    """
    count = min(len(samples), engine.config.num_eval_images)
    chosen = [samples[place * len(samples) // count] for place in range(count)]
    losses: list[torch.Tensor] = []
    with engine.rendering(ema=False):
        for place, sample in enumerate(chosen):
            batch = source.single(sample)
            for level in range(NOISE_LEVELS):
                draws = generator(_SEED, "evaluation", place, level)
                drawn = Drawn(
                    draw=Draw(place, 0, (place,)),
                    batch=batch,
                    sigma=torch.tensor([(level + 0.5) / NOISE_LEVELS]),
                    noise=torch.randn(batch.latents.shape, generator=draws),
                    audio_noise=None
                    if batch.audio is None
                    else torch.randn(batch.audio.latents.shape, generator=draws),
                )
                losses.append(drawn.losses(engine.family, engine.transformer, engine.device).total)
    return float(torch.stack(losses).mean())
