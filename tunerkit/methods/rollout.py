"""Scheduled sampling for flow matching: training on what the model itself makes of a noisier input (rollout).

When a video is rendered, every step starts from what the step before it made, errors included; in training it starts
from a point exactly on the line between clip and noise. Here some samples start at a higher noise level
`sigma' > sigma`, on the line, and follow the model's own velocity down to `sigma`, without gradients. What comes out
lies beside the line:

    d x / d sigma = v(x, sigma)        from   x(sigma') = (1 - sigma') x_0 + sigma' eps   to   x(sigma)

It is trained towards the clip from where it is, not from where it should have been. The noise for which `x` would lie
on the line is `n = (x - (1 - sigma) x_0) / sigma`, so a loss with `n` in place of `eps` takes `x` as its input, and as
its target `n - x_0 = (x - x_0) / sigma`: the straight way from `x` to the clip.

Throughout, `n` is what is integrated in place of `x`, since families take noise: an Euler step `x + (s2 - s1) v` from
`s1` to `s2` is `n + (s2 - s1) / s2 (v - (n - x_0))`. For a model without an error `v = n - x_0`, and nothing changes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.draws import generator
from tunerkit.families.flow import TIMESTEPS, broadcast
from tunerkit.methods.reflexflow import Reflex

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family
    from tunerkit.families.batch import Batch, LossParts
    from tunerkit.families.prediction import Predicted, Prediction

ROLLED = "rolled_out"
"""Name of what is logged: the share of the samples that were rolled out."""
LONGEST_STEP = 25
"""Timesteps that a step of the integration goes at most: those of a sampler with 40 steps."""
MULTISTEP = {1: (1.0,), 2: (1.5, -0.5), 3: (23 / 12, -16 / 12, 5 / 12)}
"""Weights of the newest velocities, the last one first: Adams-Bashforth methods by their order (Hairer, Norsett and
Wanner, Solving Ordinary Differential Equations I, III.1, eq. 1.5)."""


@dataclass(frozen=True)
class Draws:
    """Noise levels and noise of samples, as `Family.predict` takes them.

    Attributes:
        sigma: `[B]`.
        noise: like the latents.
        audio_sigma: `[B]`; None = `sigma`.
        audio_noise: like the audio latents; None without sound.
    """

    sigma: torch.Tensor
    noise: torch.Tensor
    audio_sigma: torch.Tensor | None = None
    audio_noise: torch.Tensor | None = None

    def predict(self, family: Family, transformer: Any, batch: Batch) -> Prediction:
        """What the transformer predicts of `batch` with these."""
        return family.predict(
            transformer,
            batch,
            sigma=self.sigma,
            noise=self.noise,
            audio_sigma=self.audio_sigma,
            audio_noise=self.audio_noise,
        )


@dataclass(frozen=True)
class Rolled:
    """A batch of which some samples are rolled out.

    Attributes:
        draws: of the whole batch; samples that are not rolled out have the ones they had.
        places: which are, on the CPU.
        clean: what the transformer predicted of them before they were; None where that is not asked for.
        reflex: the terms that it is asked for; None = none.
    """

    draws: Draws
    places: Sequence[int]
    clean: Prediction | None = None
    reflex: Reflex | None = None

    def losses(self, prediction: Prediction) -> LossParts:
        """The loss of what is predicted with `draws`."""
        losses = prediction.losses()
        if self.reflex is not None:
            losses = self.reflex.losses(prediction, losses, self.clean, self.places)
        share = losses.total.new_full((), len(self.places) / len(self.draws.sigma))
        return replace(losses, parts={**losses.parts, ROLLED: share})


class Rollout:
    """Rolls samples out, as the settings `scheduled_sampling_*` say.

    Args:
        transformer: the bare transformer: processes may roll out different numbers of samples, so nothing that they do
            together may happen.
    """

    def __init__(self, config: TrainConfig, family: Family, transformer: Any) -> None:
        self._config, self._family, self._transformer = config, family, transformer
        self._reflex = Reflex.of(config) if config.scheduled_sampling_reflexflow is not False else None
        multistep = config.scheduled_sampling_sampler != "euler"
        self._order = config.scheduled_sampling_order if multistep else 1

    @classmethod
    def of(cls, config: TrainConfig, family: Family, transformer: Any) -> Rollout | None:
        """None where no sample is ever rolled out."""
        return cls(config, family, transformer) if config.scheduled_sampling_max_step_offset else None

    def rolled(self, batch: Batch, draws: Draws, batch_number: int, step: int) -> Rolled:
        """Roll out some samples of a batch.

        Args:
            batch, draws: on the device.
            batch_number: with the seed it determines who is rolled out, and from where.
            step: optimizer steps done.
        """
        lengths = drawn_lengths(self._config, len(draws.sigma), batch_number, step)
        places = [place for place, length in enumerate(lengths) if length > 0]
        if not places:
            return Rolled(draws, places, reflex=self._reflex)
        some = _batch_of(batch, places)
        before = Draws(*(_of(one, places) for one in (draws.sigma, draws.noise, draws.audio_sigma, draws.audio_noise)))
        with torch.no_grad(), _evaluating(self._transformer):
            clean = None
            if self._reflex is not None and self._reflex.weighs:
                clean = before.predict(self._family, self._transformer, some)
            after = self._integrated(some, before, [lengths[place] for place in places])
        noise = _put_back(draws.noise, places, after.noise)
        sound = _put_back(draws.audio_noise, places, after.audio_noise)
        return Rolled(replace(draws, noise=noise, audio_noise=sound), places, clean, self._reflex)

    def _integrated(self, batch: Batch, draws: Draws, lengths: Sequence[float]) -> Draws:
        """Follow the model's velocity down to the noise levels of `draws`, from `lengths` above them."""
        count = steps_over(max(lengths))
        span = torch.tensor(lengths, dtype=draws.sigma.dtype, device="cpu").to(draws.sigma.device)
        levels = _levels(draws.sigma, span, count)
        sound_levels = levels if draws.audio_sigma is None else _levels(draws.audio_sigma, span, count)
        past: list[torch.Tensor] = []
        past_sound: list[torch.Tensor] = []
        for at in range(count):
            here = replace(draws, sigma=levels[at], audio_sigma=sound_levels[at])
            made = here.predict(self._family, self._transformer, batch)
            noise = _stepped(draws.noise, made.video, past, self._order, levels[at], levels[at + 1])
            sound = draws.audio_noise
            if sound is not None and made.audio is not None:
                ends = sound_levels[at], sound_levels[at + 1]
                sound = _stepped(sound, made.audio, past_sound, self._order, *ends)
            draws = replace(draws, noise=noise, audio_noise=sound)
        return draws


def probability_at(config: TrainConfig, step: int) -> float:
    """Share of the samples that are rolled out when `step` optimizer steps are done.

    Nothing before the start; then `scheduled_sampling_probability`, or with a ramp from its start to its end, where it
    stays.
    """
    since = step - config.scheduled_sampling_start_step
    if since < 0:
        return 0.0
    if not config.scheduled_sampling_ramp_steps:
        return config.scheduled_sampling_probability
    done = min(1.0, since / config.scheduled_sampling_ramp_steps)
    if config.scheduled_sampling_ramp_shape == "cosine":
        done = (1.0 - math.cos(math.pi * done)) / 2.0
    start, end = config.scheduled_sampling_prob_start, config.scheduled_sampling_prob_end
    return start + (end - start) * done


def drawn_lengths(config: TrainConfig, samples: int, batch_number: int, step: int) -> list[float]:
    """How far above its noise level each sample starts, in [0, 1]; 0 = it is not rolled out."""
    source = generator(config.seed, "rollout", batch_number)
    chances, numbers = torch.rand(2, samples, generator=source, dtype=torch.float64, device="cpu").tolist()
    probability = probability_at(config, step)
    return [
        length_at(config, number) if chance < probability else 0.0
        for chance, number in zip(chances, numbers, strict=True)
    ]


def length_at(config: TrainConfig, number: float) -> float:
    """The distance in (0, 1] that a uniform `number` in [0, 1) gives.

    With the longest distance `m` and `u = 1 - number`: `u m` (uniform), `u^2 m` (biased_early: mostly short),
    `(1 - (1 - u)^2) m` (biased_late: mostly long).
    """
    u = 1.0 - number
    share = {"uniform": u, "biased_early": u**2, "biased_late": 1.0 - number**2}
    return share[config.scheduled_sampling_strategy] * config.scheduled_sampling_max_step_offset / TIMESTEPS


def steps_over(length: float) -> int:
    """Even steps of the integration, none of them too long, over a distance in (0, 1]."""
    return max(1, math.ceil(length * TIMESTEPS / LONGEST_STEP - 1e-9))


def _levels(sigma: torch.Tensor, span: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Noise levels `[B]` of an integration in `count` even steps, from `span` above `sigma` down to it.

    The start is no pure noise beyond 1, and no more than twice `sigma`: an error of the velocity counts in `n` by
    `(sigma' - sigma) / sigma`, which would grow without bounds near 0. This way the noise that is trained on differs
    from the one that was drawn by no more than the velocities do.
    """
    away = torch.minimum(span, torch.minimum(sigma, 1.0 - sigma)).clamp_min(0.0)
    return [sigma + away * ((count - at) / count) for at in range(count)] + [sigma]


def _stepped(
    noise: torch.Tensor,
    predicted: Predicted,
    past: list[torch.Tensor],
    order: int,
    start: torch.Tensor,
    end: torch.Tensor,
) -> torch.Tensor:
    """`n` after a step from noise level `start` `[B]` down to `end`.

    Args:
        past: velocities of the steps before, the last one first; the newest is put in front. A step takes as many as
            there are and `order` allows.
    """
    past.insert(0, predicted.velocity.to(predicted.target.dtype))
    del past[order:]
    weights = MULTISTEP[len(past)]
    velocity = sum((one * weight for one, weight in zip(past, weights, strict=True)), start=-predicted.target)
    share = (end - start) / end.clamp_min(torch.finfo(end.dtype).tiny)
    return noise + broadcast(share, noise) * velocity


@contextlib.contextmanager
def _evaluating(transformer: Any) -> Iterator[None]:
    """Inside, the transformer has no dropout."""
    training = transformer.training
    transformer.eval()
    try:
        yield
    finally:
        transformer.train(training)


def _of(tensor: Any, places: Sequence[int]) -> Any:
    """The samples of a tensor, all of them without a copy; None stays None."""
    return tensor if tensor is None or len(places) == len(tensor) else tensor[list(places)]


def _batch_of(batch: Batch, places: Sequence[int]) -> Batch:
    """The samples of a batch."""
    audio = batch.audio
    if audio is not None:
        audio = replace(
            audio,
            latents=_of(audio.latents, places),
            heard=_of(audio.heard, places),
            given=_of(audio.given, places),
        )
    return replace(
        batch,
        latents=_of(batch.latents, places),
        text={key: _of(one, places) for key, one in batch.text.items()},
        fps=_of(batch.fps, places),
        first_frame=_of(batch.first_frame, places),
        image=_of(batch.image, places),
        loss_mask=_of(batch.loss_mask, places),
        audio=audio,
        names=tuple(batch.names[place] for place in places) if batch.names else (),
    )


def _put_back(whole: Any, places: Sequence[int], some: Any) -> Any:
    """`whole`, with the samples at `places` replaced; None stays None."""
    if whole is None or len(places) == len(whole):
        return some
    return whole.index_copy(0, torch.tensor(places, device="cpu").to(whole.device), some)
