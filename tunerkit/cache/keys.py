"""The names of cache entries: everything that shaped an entry is part of its name, so none can be stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunerkit.data.decode import DECODE_RECIPE

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family, TextKind


def entry_name(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the facts as canonical JSON, hexadecimal."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class EntryNamer:
    """Names the cache entries of one run. The model files are looked at once, when it is made.

    A latent is shaped by the source file's content, the frames, size and crop taken from it, the VAE's weights and
    the family's recipe (precision, tiling, normalisation); a text entry by the text, whether it is a positive or a
    negative, the encoder's weights and the family's recipe. Folder names and dates are not part of a name: a cache
    can be moved and shared.
    """

    def __init__(self, config: TrainConfig, family: Family) -> None:
        from tunerkit.families.checkpoint_files import component_identity

        model = str(config.pretrained_model_name_or_path)
        vae = str(config.pretrained_vae_model_name_or_path or model)
        vae_revision = config.revision if vae == model else None
        self._vae_facts = {
            "kind": "latents",
            "family": family.name,
            "weights": component_identity(vae, family.subfolders["vae"], vae_revision),
            "recipe": family.vae_recipe(config),
        }
        self._text_facts = {
            "kind": "text",
            "family": family.name,
            "weights": component_identity(model, family.subfolders["text"], config.revision),
            "recipe": family.text_recipe(config),
        }

    def latents(self, sample: Sample) -> str:
        """Name of the entry that holds the latents of `sample`."""
        return entry_name(
            {
                **self._vae_facts,
                "decoder": DECODE_RECIPE,
                "source": [sample.source.digest, sample.source.rotation],
                "frames": sample.frame_indices,
                "resized": sample.resized,
                "crop": sample.crop,
                "size": sample.size,
            }
        )

    def text(self, text: str, kind: TextKind) -> str:
        """Name of the entry that holds the text tensors of `text`."""
        return entry_name({**self._text_facts, "text": text, "as": kind})
