"""A loss that can be compared between steps and between runs: fixed samples, captions, noise levels and noise.

The training loss jumps with every draw of sigma; averaged over the same few draws each time, the trend shows within
some steps. The idea is spacepxl's (demystifying-sd-finetuning); noise levels are the midpoints of equal parts of
(0, 1), the same for every family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.data.sampler import Draw
from tunerkit.draws import generator
from tunerkit.families.flow import weighted_mse
from tunerkit.training.batches import Drawn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.batch import Batch
    from tunerkit.families.prediction import Predicted, Prediction
    from tunerkit.training.batches import BatchSource
    from tunerkit.training.engine import Engine

TOGETHER = 1 << 17
"""Numbers in the latents of one call of the transformer: noise levels of smaller clips go through it together, which is
faster there. The clip alone decides, so that the same sums are made on every machine and in every run."""
_SEED = 0  # not the run's seed: runs with different seeds stay comparable


@dataclass(frozen=True)
class Evaluation:
    """A measured loss; in every mean, each clip and each noise level counts equally.

    Attributes:
        loss: of all clips at all noise levels.
        datasets: id -> loss of its clips; empty where the datasets are pooled.
        sigmas: noise level, as words -> loss of all clips at it.
        parts: picture ("video") and sound ("audio", of the clips that have some); empty where there is no sound.
    """

    loss: float
    datasets: Mapping[str, float] = field(default_factory=dict)
    sigmas: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """What evaluation.jsonl says of it: all that is not empty."""
        return {name: value for name, value in asdict(self).items() if value != {}}


@dataclass(frozen=True)
class _Measured:
    """Losses of one clip at each noise level, float32 `[levels]`; `audio` is None where none is heard."""

    total: torch.Tensor
    video: torch.Tensor
    audio: torch.Tensor | None


def noise_levels(count: int) -> list[float]:
    """`(k + 1/2) / count`, from the lowest."""
    return [(level + 0.5) / count for level in range(count)]


def chosen_samples(config: TrainConfig, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Dataset id -> `num_eval_images` evenly spread samples of it; of all datasets together, under "", where they are
    pooled."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault("" if config.eval_dataset_pooling else sample.dataset, []).append(sample)
    return {name: _spread(group, config.num_eval_images) for name, group in groups.items()}


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    count = min(len(samples), most)
    return [samples[place * len(samples) // count] for place in range(count)]


def evaluate(engine: Engine, source: BatchSource, samples: Sequence[Sample]) -> Evaluation:
    """The family's own loss of some of the samples at `eval_timesteps` noise levels each, in evaluation mode.

    Captions are never dropped, no method has a part in it, and nothing random is drawn from the run.
    """
    sigmas = noise_levels(engine.config.eval_timesteps)
    found: dict[str, list[_Measured]] = {}
    with engine.rendering(ema=False):
        for name, chosen in chosen_samples(engine.config, samples).items():
            found[name] = [_measured(engine, source.single(one), place, sigmas) for place, one in enumerate(chosen)]
    totals = {name: torch.stack([one.total for one in clips]).cpu().double() for name, clips in found.items()}
    together = torch.cat(list(totals.values()))
    return Evaluation(
        loss=float(together.mean()),
        datasets={name: float(losses.mean()) for name, losses in totals.items() if name},
        sigmas={f"{sigma:.4g}": float(loss) for sigma, loss in zip(sigmas, together.mean(0), strict=True)},
        parts=_parts([one for clips in found.values() for one in clips]),
    )


def _parts(clips: Sequence[_Measured]) -> dict[str, float]:
    heard = [one.audio for one in clips if one.audio is not None]
    if not heard:
        return {}
    video = [one.video for one in clips]
    return {name: float(torch.stack(of).cpu().double().mean()) for name, of in (("video", video), ("audio", heard))}


def _measured(engine: Engine, batch: Batch, place: int, sigmas: Sequence[float]) -> _Measured:
    """The losses of a batch of one clip, the `place`-th of its dataset."""
    found: list[Prediction] = []
    for drawn in _draws(batch, place, sigmas):
        found.append(drawn.to(engine.device).predict(engine.family, engine.transformer))
    video = torch.cat([_per_sample(one.video) for one in found])
    sound = [(one.audio, one.audio_loss_weight) for one in found if one.audio is not None]
    if not sound or batch.audio is None or not bool(batch.audio.heard.all()):
        return _Measured(video, video, None)
    audio, weight = torch.cat([_per_sample(one) for one, _ in sound]), sound[0][1]
    return _Measured(video + weight * audio if weight else video, video, audio)


def _per_sample(predicted: Predicted) -> torch.Tensor:
    return weighted_mse(predicted.velocity, predicted.target, predicted.weight)


def _draws(batch: Batch, place: int, sigmas: Sequence[float]) -> Iterator[Drawn]:
    """The clip at every noise level, in calls of as many levels as `TOGETHER` allows; each level has its own noise."""
    together = max(1, TOGETHER // batch.latents.numel())
    for first in range(0, len(sigmas), together):
        levels = range(first, min(first + together, len(sigmas)))
        sources = [generator(_SEED, "evaluation", place, level) for level in levels]
        noise = [torch.randn(batch.latents.shape, generator=source) for source in sources]
        sound = None
        if batch.audio is not None:
            sound = torch.cat([torch.randn(batch.audio.latents.shape, generator=source) for source in sources])
        yield Drawn(
            draw=Draw(place, 0, (place,)),
            batch=_repeated(batch, len(levels)),
            sigma=torch.tensor([sigmas[level] for level in levels]),
            noise=torch.cat(noise),
            audio_noise=sound,
        )


def _repeated(batch: Batch, count: int) -> Batch:
    """A batch of one clip as one of `count` of it; nothing is copied."""

    def of(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.expand(count, *tensor.shape[1:])

    def maybe(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else of(tensor)

    sound = batch.audio
    return replace(
        batch,
        latents=of(batch.latents),
        text={name: of(tensor) for name, tensor in batch.text.items()},
        fps=of(batch.fps),
        first_frame=maybe(batch.first_frame),
        image=maybe(batch.image),
        loss_mask=maybe(batch.loss_mask),
        audio=sound and replace(sound, latents=of(sound.latents), heard=of(sound.heard)),
        names=batch.names * count,
    )
