"""The names of cache entries: everything that shaped an entry is part of its name, so none can be stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tunerkit.data.decode import DECODE_RECIPE

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.families.facts import TextKind

MASK_RECIPE = 1
"""Version of the weights: it changes when the same mask would be reduced to other weights."""
SOUND_RECIPE = 1
"""Version of the decoding of sound: it changes when the same span would give another waveform."""


class EntryNamer:
    """Names the cache entries of one run. The model files are looked at once: when it is made, those of the audio VAE
    when the first sound is named.

    A latent is shaped by the source file's content, the frames, size and crop taken from it, the VAE's weights and
    the family's recipe (precision, tiling, normalisation); a text entry by the text, whether it is a positive or a
    negative, the encoder's weights and the family's recipe. A mask's weights are shaped by the mask instead of the
    clip, and by the VAE through its latent grid. Sound is shaped by the content of the file that holds it, the span
    taken of it, the waveform's format, the audio VAE's weights and the family's recipe. Features are shaped by the
    frames that stand for the latent ones and the image encoder, and by the VAE not at all.

    Folder names, file names and dates are not part of a name. A file's time of change says nothing about its
    pixels: copying, downloading or checking out a dataset sets it anew, and the whole cache would be lost. What a
    change of content changes is the digest of the file's size and content, and that is in the name.
    """

    def __init__(self, config: TrainConfig, family: Family) -> None:
        self._config, self._family = config, family
        pixels = {"family": family.name, "decoder": DECODE_RECIPE, "weights": family.identity(config, "vae")}
        text_weights = family.identity(config, "text")
        self._latents = _started({**pixels, "kind": "latents", "recipe": family.vae_recipe(config)})
        self._masks = _started(
            {**pixels, "kind": "mask", "recipe": MASK_RECIPE, "temporal_compression": family.temporal_compression}
        )
        self._texts = _started(
            {"kind": "text", "family": family.name, "weights": text_weights, "recipe": family.text_recipe(config)}
        )

    def latents(self, sample: Sample, fallback: str = "") -> str:
        """Name of the entry that holds the latents of `sample`.

        Args:
            sample: what is taken of a file.
            fallback: how memory was saved to encode it at all, see `entries.FALLBACKS`; empty = as configured.
        """
        source = sample.source
        name = self._latents.copy()
        name.update(f"{source.digest} {sample.kind} {source.rotation}{_geometry(sample)}".encode())
        if fallback:
            name.update(f" {fallback}".encode())
        return name.hexdigest()

    def mask(self, sample: Sample) -> str:
        """Name of the entry that holds the weights of the mask of `sample`.

        Raises:
            ValueError: the sample has no mask.
        """
        mask = sample.mask
        if mask is None:
            raise ValueError(f"{sample.name} has no mask")
        name = self._masks.copy()
        name.update(f"{mask.digest} {mask.kind}{_geometry(sample)}".encode())
        return name.hexdigest()

    def sound(self, sample: Sample) -> str:
        """Name of the entry that holds the audio latents of `sample`; silence of one length is the same everywhere.

        Raises:
            ValueError: the sample has no sound.
        """
        sound = sample.sound
        if sound is None:
            raise ValueError(f"{sample.name} has no sound")
        name = self._sounds.copy()
        content = "silence" if sound.silent else f"{sound.digest} {round(sound.start * 1e6)}"
        name.update(f"{content} {round(sound.seconds * 1e6)}".encode())
        return name.hexdigest()

    @cached_property
    def _sounds(self) -> hashlib._Hash:
        # Only now: most runs train no sound, and their checkpoint may hold no audio VAE.
        family, config = self._family, self._config
        return _started(
            {
                "kind": "sound",
                "family": family.name,
                "decoder": SOUND_RECIPE,
                "format": asdict(family.sound) if family.sound else None,
                "weights": family.identity(config, "audio_vae"),
                "recipe": family.sound_recipe(config),
            }
        )

    def features(self, sample: Sample) -> str:
        """Name of the entry that holds an image encoder's features of `sample`."""
        from tunerkit.methods.crepa_teacher import teacher_sample

        name = self._features.copy()
        taken = teacher_sample(sample, self._family.temporal_compression)
        name.update(f"{sample.source.digest} {sample.kind} {sample.source.rotation}{_geometry(taken)}".encode())
        return name.hexdigest()

    @cached_property
    def _features(self) -> hashlib._Hash:
        # Only now: most runs have no image encoder.
        from tunerkit.dtypes import text_dtype
        from tunerkit.methods.crepa_teacher import CELL, FEATURE_RECIPE, teacher_identity

        config = self._config
        return _started(
            {
                "kind": "features",
                "decoder": DECODE_RECIPE,
                "weights": teacher_identity(config),
                "recipe": [FEATURE_RECIPE, CELL, config.crepa_encoder_image_size, str(text_dtype(config))],
            }
        )

    def text(self, text: str, kind: TextKind) -> str:
        """Name of the entry that holds the text tensors of `text`."""
        name = self._texts.copy()
        name.update(json.dumps([kind, text]).encode())  # escaped: a broken file name can bring half a character
        return name.hexdigest()


def _started(facts: Mapping[str, Any]) -> hashlib._Hash:
    """SHA-256 of the facts that all names of a kind share, as canonical JSON; to be copied and continued."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(f"{text}\n".encode())


def _geometry(sample: Sample) -> str:
    """Frames, scaled size, crop box; numbers between separators, so that no two samples share a text."""
    (resized_width, resized_height), (width, height), (x, y) = sample.resized, sample.size, sample.crop
    frames = _numbers(sample.frame_indices)
    return f" {resized_width}x{resized_height} {width}x{height} {x},{y} {frames}"


@lru_cache(maxsize=1024)
def _numbers(indices: tuple[int, ...]) -> str:
    """The frame numbers as text; most samples of a dataset share theirs."""
    return ",".join(map(str, indices))
