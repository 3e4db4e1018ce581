"""The cache as a run sees it: latents of a sample, tensors of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.cache.keys import EntryNamer
from tunerkit.cache.store import Store

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family, TextKind


class Cache:
    """Entries of one run. Text lies in `config.text_cache_dir`, latents in each dataset's own folder."""

    def __init__(self, config: TrainConfig, family: Family) -> None:
        self.namer = EntryNamer(config, family)
        self.text_store = Store(config.text_cache_dir)
        self.latent_stores = {
            dataset.id: Store(Path(config.vae_cache_dir(dataset))) for dataset in config.media_datasets
        }

    def has_latents(self, sample: Sample) -> bool:
        return self.namer.latents(sample) in self.latent_stores[sample.dataset]

    def has_text(self, text: str, kind: TextKind) -> bool:
        return self.namer.text(text, kind) in self.text_store

    def latents(self, sample: Sample) -> torch.Tensor:
        """Clean normalised latents, float32 `[C, T, H, W]`. Raises CacheEntryError."""
        return self.latent_stores[sample.dataset].get(self.namer.latents(sample))["latents"]

    def text(self, text: str, kind: TextKind) -> dict[str, torch.Tensor]:
        """The family's text tensors, without a batch dimension. Raises CacheEntryError."""
        return self.text_store.get(self.namer.text(text, kind))

    def put_latents(self, sample: Sample, latents: torch.Tensor) -> None:
        facts = {"file": sample.file.name, "bucket": sample.bucket, "frames": sample.frame_indices}
        self.latent_stores[sample.dataset].put(self.namer.latents(sample), {"latents": latents}, facts)

    def put_text(self, text: str, kind: TextKind, tensors: dict[str, torch.Tensor]) -> None:
        self.text_store.put(self.namer.text(text, kind), tensors, {"text": text, "as": kind})
