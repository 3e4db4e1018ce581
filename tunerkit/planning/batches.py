"""Stand-ins of a batch's tensors, without content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.config.crepa_rules import needs_features
from tunerkit.data.sampler import Draw
from tunerkit.dtypes import text_dtype
from tunerkit.families.batch import Audio, Batch
from tunerkit.planning.largest import Largest, of_sample
from tunerkit.training.batches import Drawn

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family

FLOAT32, FLOAT16 = 4, 2
AUDIO_COMPRESSION = 4
"""Spectra that one latent of LTX-2's audio VAE stands for."""


class Stand:
    """Makes batches without content for one model.

    Args:
        settings: configuration of each component by its name, as far as it is needed.
    """

    def __init__(self, config: TrainConfig, family: Family, settings: Callable[[Any], Mapping[str, Any]]) -> None:
        self._config, self.family = config, family
        self._transformer, self._vae, self._settings = settings("transformer"), settings("vae"), settings

    def drawn(self, largest: Largest) -> Drawn:
        """A batch with its noise, on the CPU, as the data loader gives it."""
        batch = self.batch(largest)
        audio = batch.audio
        return Drawn(
            Draw(0, 0, tuple(range(largest.clips))),
            batch,
            sigma=torch.full((largest.clips,), 0.5),
            noise=torch.empty_like(batch.latents),
            audio_sigma=torch.full((largest.clips,), 0.5)
            if audio and self._config.audio_sigma == "independent"
            else None,
            audio_noise=torch.empty_like(audio.latents) if audio else None,
            features=self._features(largest),
        )

    def batch(self, largest: Largest) -> Batch:
        latents = torch.empty(largest.clips, *self.latent_shape(largest))
        given = torch.ones(largest.clips, dtype=torch.bool) if largest.first_frame else None
        alone = given is not None and self.family.encodes_first_frame
        return Batch(
            latents=latents,
            text=self.text(largest),
            fps=torch.full((largest.clips,), largest.fps),
            first_frame=given,
            image=latents[:, :, :1].clone() if alone else None,
            first_frame_method=self._config.first_frame_conditioning_method,
            loss_mask=torch.ones_like(latents[:, :1]) if largest.mask else None,
            audio=self._audio(largest),
            names=("clip",) * largest.clips,
        )

    def latent_shape(self, largest: Largest) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a clip's latents."""
        vae = self._vae
        channels = vae.get("latent_channels") or vae.get("z_dim") or 16
        factor = vae.get("spatial_compression_ratio") or vae.get("scale_factor_spatial") or 8
        frames = self.family.latent_frames(largest.frames)
        return int(channels), frames, largest.height // int(factor), largest.width // int(factor)

    def _features(self, largest: Largest) -> torch.Tensor | None:
        """What an image encoder is aligned with; None where nothing is."""
        shape = feature_shape(self._config, self.family, largest)
        return None if shape is None else torch.empty(largest.clips, *shape, dtype=torch.float16)

    @property
    def alone(self) -> int:
        """Latent frames that a first frame makes that is encoded alone as well."""
        return int(self.family.encodes_first_frame)

    @property
    def audio_width(self) -> int:
        """Channels of a latent of sound."""
        return int(self._transformer["audio_in_channels"])

    def text(self, largest: Largest) -> dict[str, torch.Tensor]:
        """The cached tensors of a batch's texts."""
        clips, dtype, model = largest.clips, text_dtype(self._config), self._transformer
        if self.family.name == "sanavideo":
            from tunerkit.families.sana_video.text import TOKENS

            return {
                "prompt_embeds": torch.empty(clips, TOKENS, model["caption_channels"], dtype=dtype),
                "prompt_attention_mask": torch.ones(clips, TOKENS, dtype=torch.int64),
            }
        if self.family.name == "ltxvideo2":
            from tunerkit.families.ltx2.text import TOKENS

            inside = model.get("use_prompt_embeddings", True)
            widths = [
                model["caption_channels"] if inside else model[key]
                for key in ("cross_attention_dim", "audio_cross_attention_dim")
            ]
            names = ("prompt_embeds", "audio_prompt_embeds")
            return {
                name: torch.empty(clips, TOKENS, width, dtype=dtype) for name, width in zip(names, widths, strict=True)
            }
        return {
            "prompt_embeds": torch.empty(clips, largest.tokens, model["in_text_dim"], dtype=dtype),
            "pooled": torch.empty(clips, model["in_text_dim2"], dtype=dtype),
        }

    def _audio(self, largest: Largest) -> Audio | None:
        if largest.sound is None:
            return None
        length = self.audio_latents(largest.sound)
        conditioned = self._config.sound_conditioning_probability > 0
        return Audio(
            latents=torch.empty(largest.clips, length, self.audio_width),
            heard=torch.ones(largest.clips, dtype=torch.bool),
            given=torch.zeros(largest.clips, dtype=torch.bool) if conditioned else None,
            loss_weight=self._config.audio_loss_weight,
        )

    def audio_latents(self, seconds: float) -> int:
        """Latents of so much sound."""
        from tunerkit.families.ltx2.sound import audio_latents

        vae = self._settings("audio_vae")
        return audio_latents(seconds, vae["sample_rate"] / vae["mel_hop_length"] / AUDIO_COMPRESSION)


def feature_shape(config: TrainConfig, family: Family, clip: Largest) -> tuple[int, int, int, int] | None:
    """Latent frames, height, width and channels of a clip's cached features; None where none are needed."""
    if not needs_features(config):
        return None
    from tunerkit.methods.crepa_teacher import teacher_facts

    facts = teacher_facts(config)
    grid = facts.grid((clip.width, clip.height), config.crepa_encoder_image_size)
    return family.latent_frames(clip.frames), *grid, facts.width


def latent_bytes(stand: Stand, config: TrainConfig, sample: Sample) -> int:
    """Bytes of a clip's cached latents, sound and features."""
    one = of_sample(config, sample)
    channels, frames, height, width = stand.latent_shape(one)
    picture = channels * (frames + stand.alone) * height * width
    heard = 0 if one.sound is None else stand.audio_latents(one.sound) * stand.audio_width
    shape = feature_shape(config, stand.family, one)
    return (picture + heard) * FLOAT32 + (0 if shape is None else prod(shape) * FLOAT16)


def tensors_of(drawn: Drawn) -> Iterator[torch.Tensor]:
    """Every tensor of a batch and of its draws."""
    batch, audio = drawn.batch, drawn.batch.audio
    values: list[Any] = [
        drawn.sigma, drawn.noise, drawn.audio_sigma, drawn.audio_noise, batch.latents, *batch.text.values(), batch.fps,
        batch.first_frame, batch.image, batch.loss_mask, drawn.features,
    ]  # fmt: skip
    if audio is not None:
        values += [audio.latents, audio.heard, audio.given]
    yield from (one for one in values if one is not None)
