"""Loading a base model's transformer from a folder or hub repository in diffusers layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.config.precisions import is_quantised
from tunerkit.families.checkpoint_files import (
    Source,
    base_source,
    component_config,
    load_component,
    readable,
    require_all,
)

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig


def load_transformer(
    loader: Any, config: TrainConfig, dtype: torch.dtype, quantised: Callable[[Any], Sequence[str]], **arguments: Any
) -> Any:
    """The base model's transformer in evaluation mode, streamed to where it trains and quantised as the settings say.

    Args:
        loader: its diffusers class.
        dtype: of what is not quantised.
        quantised: gives the names of the layers of a transformer that may be.
        arguments: replace values of its configuration.

    Raises:
        ModelError: as `load_component`.
    """
    from tunerkit.memory import streamed_weights as streamed
    from tunerkit.memory.quantised_linear import quantise_layers

    source, where, part = base_source(config), streamed.destination(config, dtype), "transformer"
    with readable(source.model, source.setting, part):
        files = streamed.weight_files(lambda name: file_if_there(source, f"{part}/{name}"), config.variant)
        if files:
            described = component_config(source.model, part, source.setting, source.revision)
            model: Any = streamed.empty_model(lambda: loader.from_config({**described, **arguments}), dtype)
            require_all(streamed.fill(model, streamed.stored(files), where, quantised(model)), source, part)
            model.register_to_config(_name_or_path=source.model)
            return model.eval()
    # Files of another kind, or none: whole, as the library reads them.
    options = {"subfolder": part, "revision": source.revision, "variant": config.variant, "dtype": dtype}
    model = load_component(loader, source.model, source.setting, part, **options, **arguments)
    if is_quantised(config):
        quantise_layers(model, quantised(model), where.precision, where.quantise_on)
    return model.to(where.device)


def file_if_there(source: Source, name: str) -> Path | None:
    """A file of a checkpoint, downloaded once; None where it has none of that name, or none can be fetched."""
    from huggingface_hub import errors, hf_hub_download

    folder = Path(source.model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(source.model, name, revision=source.revision))
    except errors.EntryNotFoundError:  # also where there is no network and the file was not downloaded before
        return None
