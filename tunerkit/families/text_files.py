"""Loading text encoders: for their hidden states alone, streamed to where they stay, quantised on the way."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tunerkit.config.precisions import UNCHANGED
from tunerkit.families.checkpoint_files import Source, load_component, readable, require_all
from tunerkit.families.transformer_files import file_if_there

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.memory.streamed_weights import Destination

_BASE = "model"
"""What the weight files of transformers are called, without endings."""


def load_text_model(
    loader: Any,
    config: TrainConfig,
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    *,
    number: int = 1,
    subfolder: str = "text_encoder",
) -> Any:
    """A text encoder on `device`, in evaluation mode, without what sees pictures or guesses words.

    Args:
        loader: its transformers class.
        source: the checkpoint that it lies in.
        dtype: of what is not quantised.
        number: which one of the family's it is, from 1.

    Raises:
        ModelError: as `load_component`.
    """
    from tunerkit.memory.quantised_linear import quantise_layers
    from tunerkit.memory.quantised_text import UNREAD, leave_out_unread, text_layers
    from tunerkit.memory.streamed_weights import text_destination

    where = text_destination(config, number, dtype, device)
    what = "text encoder" if number == 1 else "second text encoder"
    with readable(source.model, source.setting, what):
        model = _streamed(loader, source, subfolder, where, what)
    if model is None:
        options = {"subfolder": subfolder, "revision": source.revision or "main", "dtype": dtype}
        model = load_component(loader, source.model, source.setting, what, unused=UNREAD, **options)
        leave_out_unread(model)
        if where.precision != UNCHANGED:
            quantise_layers(model, text_layers(model), where.precision, where.quantise_on)
        model.to(device)
    return model.requires_grad_(False).eval()


def _streamed(loader: Any, source: Source, subfolder: str, where: Destination, what: str) -> Any:
    """The model from its safetensors files, one tensor after the other; None where transformers has to read them whole.

    That is so where there are no such files, where they hold quantised weights, and where tensors of theirs become
    others than by a new name.
    """
    from tunerkit.memory import streamed_weights as streamed
    from tunerkit.memory.quantised_text import leave_out_unread, text_layers

    def fetch(name: str) -> Path | None:
        return file_if_there(source, str(PurePosixPath(subfolder) / name))

    single = fetch(f"{_BASE}.safetensors")  # transformers takes it before shards
    files = [single] if single else streamed.weight_files(fetch, None, _BASE)
    if not files:
        return None
    revision = source.revision or "main"
    described = loader.config_class.from_pretrained(source.model, subfolder=subfolder, revision=revision)
    if any(getattr(described, key, None) for key in ("quantization_config", "transformers_weights")):
        return None
    described.name_or_path = source.model
    model: Any = streamed.empty_model(lambda: loader._from_config(described, dtype=where.dtype), where.dtype)
    places = _places(model, (name for file in files for name in streamed.header(file).tensors))
    if places is None:
        return None
    leave_out_unread(model)
    kept = model.state_dict()
    places = {name: place for name, place in places.items() if place in kept}
    tensors = ((places[name], tensor) for name, tensor in streamed.stored(files, places))
    require_all(streamed.fill(model, tensors, where, text_layers(model)), source, what)
    return model


def _places(model: Any, names: Iterable[str]) -> dict[str, str] | None:
    """The weight in `model` that each tensor of its files is, for those that it has, found as `from_pretrained` does:
    checkpoints keep the names of the release that wrote them.

    None where transformers has other rules than these, or where a tensor is more than one weight or a part of one.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:
        return None
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix, weights = model.base_model_prefix, model.state_dict()
    places: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        place, converted = rename_source_key(name, renamings, converters, prefix, weights)
        if place not in weights and name in weights:
            place, converted = rename_source_key(name, [], [], prefix, weights)
        if place in weights:
            if converted is not None or place in taken:
                return None
            places[name] = place
            taken.add(place)
    return places
