"""The parts of a base model on the meta device: their real classes and sizes, no weights, no download."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunerkit.config.precisions import is_quantised
from tunerkit.dtypes import model_dtype
from tunerkit.errors import ModelError
from tunerkit.families.checkpoint_files import MODEL, component_config
from tunerkit.families.published import build

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family
    from tunerkit.families.facts import PublishedComponent

_DEPTHS = {
    "SanaVideoTransformer3DModel": "num_layers",
    "LTX2VideoTransformer3DModel": "num_layers",
    "Kandinsky5Transformer3DModel": "num_visual_blocks",
}
"""By class of the transformer: what says how many blocks it has that are alike."""


def configuration(config: TrainConfig, family: Family, component: PublishedComponent) -> Mapping[str, Any]:
    """`config.json` of a component: from the files where they are on this machine, else as published.

    Raises:
        ModelError: a local checkpoint cannot be read.
    """
    model = str(config.pretrained_model_name_or_path)
    if not Path(model).exists() and model != _repository(config, family):
        with contextlib.suppress(ModelError):  # another repository of the same kind: its small files, if reachable
            return component_config(model, component, MODEL, config.revision)
    if not Path(model).exists():
        return family.published_config(str(config.model_flavour or family.default_flavour), component)
    if family.name == "ltxvideo2" and component not in ("text_encoder", "text_encoder_2"):
        from tunerkit.families.ltx2.checkpoint import checkpoint_of

        return checkpoint_of(config).config(component)
    return component_config(model, component, MODEL, config.revision)


def _repository(config: TrainConfig, family: Family) -> str:
    flavour = family.flavour(str(config.model_flavour or family.default_flavour))
    return family.flavours[flavour or family.default_flavour].repo


def published_in_float32(config: TrainConfig, family: Family) -> Sequence[PublishedComponent]:
    """Components of the base model whose published files hold float32 weights, as far as that is known."""
    known: Mapping[str, Sequence[PublishedComponent]] = sibling(family, "published").FLOAT32
    return known.get(str(config.pretrained_model_name_or_path), ())


def sibling(family: Family, name: str) -> Any:
    """A module of the family's own package."""
    return import_module(f"{type(family).__module__.rpartition('.')[0]}.{name}")


def depth_of(settings: Mapping[str, Any]) -> int:
    """How many blocks that are alike a transformer has, by its configuration."""
    return int(settings[_DEPTHS[settings["_class_name"]]])


def with_depth(settings: Mapping[str, Any], blocks: int) -> dict[str, Any]:
    """The configuration of the same transformer with another number of blocks."""
    return {**settings, _DEPTHS[settings["_class_name"]]: blocks}


def transformer_on_meta(settings: Mapping[str, Any], config: TrainConfig, family: Family) -> Any:
    """The transformer of a configuration as the family loads it, quantised as the settings say."""
    if settings.get("attention_type") == "nabla" and not config.sparse_attention:
        settings = {**settings, "attention_type": "regular"}
    transformer = on_meta(settings, model_dtype(config))
    if settings.get("attention_type") == "nabla":
        from tunerkit.families.kandinsky5.attention import use_nabla

        use_nabla(transformer)
    if is_quantised(config):
        from tunerkit.memory.quantised_linear import quantise_layers

        quantise_layers(transformer, family.quantised_layers(transformer), config.base_model_precision)
    return transformer


def on_meta(settings: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A model of diffusers or transformers on the meta device, in the dtypes that `from_pretrained` gives it.

    Args:
        settings: its configuration, as `published.build` takes it.
        dtype: of its weights; what its class keeps in float32 is kept so.
    """
    with torch.device("meta"):
        model = build(settings)
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not any(part in name for part in kept):
            tensor.data = tensor.data.to(dtype)
    return model.requires_grad_(False)
