"""The cache as a run sees it: latents, mask, sound and features of a sample, tensors of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.cache.keys import EntryNamer
from tunerkit.cache.store import Store

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.families.facts import TextKind

FALLBACKS = ("in parts", "tiled", "cpu")
"""Ways of encoding a clip when memory is short, in the order they are tried; part of the entry's name."""


class Cache:
    """Entries of one run. Text lies in `config.text_cache_dir`, all that is of a clip in its dataset's own folder.

    Attributes:
        text_store: the store of the texts.
        latent_stores: dataset id -> store, of every dataset that is trained or evaluated on.
        unwritable: folders that were found to take no more files; a warning was given for each.
    """

    def __init__(self, config: TrainConfig, family: Family) -> None:
        self.namer = EntryNamer(config, family)
        self._needed = ("latents", "first_frame") if family.encodes_first_frame else ("latents",)
        self.unwritable: set[Path] = set()
        compress = config.compress_disk_cache
        self.text_store = Store(config.text_cache_dir, compress=compress)
        self.latent_stores = {
            dataset.id: Store(Path(config.vae_cache_dir(dataset)), compress=compress)
            for dataset in (*config.media_datasets, *config.eval_datasets)
        }

    # Latents ---------------------------------------------------------------------------------------------------

    def has_latents(self, sample: Sample) -> bool:
        """Whether the latents are there by now, made as configured or with a fallback."""
        return self._latents_name(sample) is not None

    def without_latents(self, samples: Iterable[Sample]) -> list[Sample]:
        """The samples whose latents are not cached, from one listing of the folders: for planning, where asking the
        disk about each of a hundred thousand samples would take minutes on a network."""
        for store in self.latent_stores.values():
            store.refresh()
        return [
            sample
            for sample in samples
            if not any(self.latent_stores[sample.dataset].listed(name) for name in self._latents_names(sample))
        ]

    def latents(self, sample: Sample) -> torch.Tensor:
        """Clean normalised latents, float32 `[C, t, h, w]`. Raises CacheEntryError."""
        return self.clip(sample)["latents"]

    def clip(self, sample: Sample) -> dict[str, torch.Tensor]:
        """All that the VAE made of a sample: "latents", and "first_frame" where the family encodes that one alone too.

        Returns:
            Clean normalised latents, float32: `[C, t, h, w]`, and of the first frame `[C, 1, h, w]`.

        Raises:
            CacheEntryError: the entry is gone, damaged or incomplete; a damaged or incomplete one is removed.
        """
        name = self._latents_name(sample) or self.namer.latents(sample)
        return self.latent_stores[sample.dataset].get(name, self._needed)

    def put_latents(
        self, sample: Sample, latents: torch.Tensor, fallback: str = "", first_frame: torch.Tensor | None = None
    ) -> None:
        """Write the latents of a sample.

        Args:
            latents: `[C, t, h, w]`.
            fallback: how memory was saved, see `FALLBACKS`.
            first_frame: latents of the first frame alone, `[C, 1, h, w]`, where the family encodes it.

        Raises:
            NonFiniteEntryError: there are NaN or infinite values.
            OSError: the folder cannot be written or the disk is full.
        """
        facts = {"file": sample.file.name, "bucket": sample.bucket, "frames": sample.frame_indices}
        if fallback:
            facts["fallback"] = fallback
        tensors = {"latents": latents} if first_frame is None else {"latents": latents, "first_frame": first_frame}
        self.latent_stores[sample.dataset].put(self.namer.latents(sample, fallback), tensors, facts)

    def _latents_names(self, sample: Sample) -> Iterator[str]:
        """The names that latents of a sample can have, the configured one first."""
        yield self.namer.latents(sample)
        for fallback in FALLBACKS:
            yield self.namer.latents(sample, fallback)

    def _latents_name(self, sample: Sample) -> str | None:
        store = self.latent_stores[sample.dataset]
        return next((name for name in self._latents_names(sample) if name in store), None)

    # Masks -----------------------------------------------------------------------------------------------------

    def has_mask(self, sample: Sample) -> bool:
        """Whether the weights of the sample's mask are there. The sample must have a mask (ValueError)."""
        return self.namer.mask(sample) in self.latent_stores[sample.dataset]

    def mask(self, sample: Sample) -> torch.Tensor:
        """Weights in [0, 1] on the latent grid, float32 `[1, t, h, w]`. Raises CacheEntryError."""
        return self.latent_stores[sample.dataset].get(self.namer.mask(sample))["weights"]

    def put_mask(self, sample: Sample, weights: torch.Tensor) -> None:
        """Write the weights of the sample's mask, `[1, t, h, w]`."""
        name = self.namer.mask(sample)
        facts = {"mask": sample.mask.file.name if sample.mask else "", "bucket": sample.bucket}
        self.latent_stores[sample.dataset].put(name, {"weights": weights.float()}, facts)

    # Sound -----------------------------------------------------------------------------------------------------

    def has_sound(self, sample: Sample) -> bool:
        """Whether the audio latents are there by now. The sample must have sound (ValueError)."""
        return self.namer.sound(sample) in self.latent_stores[sample.dataset]

    def without_sound(self, samples: Iterable[Sample]) -> list[Sample]:
        """The samples, all with sound, whose audio latents are not cached: see `without_latents`."""
        for store in self.latent_stores.values():
            store.refresh()
        return [sample for sample in samples if not self.latent_stores[sample.dataset].listed(self.namer.sound(sample))]

    def sound(self, sample: Sample) -> torch.Tensor:
        """Clean normalised audio latents, float32 `[L, D]`. Raises CacheEntryError."""
        return self.latent_stores[sample.dataset].get(self.namer.sound(sample))["audio"]

    def put_sound(self, sample: Sample, latents: torch.Tensor) -> None:
        """Write the audio latents of a sample, `[L, D]`; raises as `put_latents`."""
        sound = sample.sound
        told = "silence" if sound is None or sound.silent else f"{sound.file.name} from {sound.start:.2f} s"
        facts = {"sound": told, "seconds": f"{sound.seconds:.2f}" if sound else ""}
        self.latent_stores[sample.dataset].put(self.namer.sound(sample), {"audio": latents.float()}, facts)

    # Features --------------------------------------------------------------------------------------------------

    def has_features(self, sample: Sample) -> bool:
        """Whether the image encoder's features of the sample's frames are there by now."""
        return self.namer.features(sample) in self.latent_stores[sample.dataset]

    def without_features(self, samples: Iterable[Sample]) -> list[Sample]:
        """The samples whose features are not cached: see `without_latents`."""
        for store in self.latent_stores.values():
            store.refresh()
        return [s for s in samples if not self.latent_stores[s.dataset].listed(self.namer.features(s))]

    def features(self, sample: Sample) -> torch.Tensor:
        """Features on a grid of each latent frame, float16 `[t, h, w, E]`. Raises CacheEntryError."""
        return self.latent_stores[sample.dataset].get(self.namer.features(sample), ("features",))["features"]

    def put_features(self, sample: Sample, features: torch.Tensor) -> None:
        """Write the features of a sample, `[t, h, w, E]`; raises as `put_latents`."""
        facts = {"features": sample.file.name, "bucket": sample.bucket}
        self.latent_stores[sample.dataset].put(self.namer.features(sample), {"features": features.half()}, facts)

    # Text ------------------------------------------------------------------------------------------------------

    def has_text(self, text: str, kind: TextKind) -> bool:
        """Whether the tensors of a text are there by now."""
        return self.namer.text(text, kind) in self.text_store

    def text(self, text: str, kind: TextKind) -> dict[str, torch.Tensor]:
        """The family's text tensors, without a batch dimension. Raises CacheEntryError."""
        return self.text_store.get(self.namer.text(text, kind))

    def put_text(self, text: str, kind: TextKind, tensors: dict[str, torch.Tensor]) -> None:
        """Write the tensors of a text; raises as `put_latents`."""
        self.text_store.put(self.namer.text(text, kind), tensors, {"text": text, "as": kind})
