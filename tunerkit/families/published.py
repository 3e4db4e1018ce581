"""The configuration files of published checkpoints, made from what differs from the classes' defaults.

So a plan can be made of a model that was never downloaded. A family's own `published` module holds the differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunerkit.errors import ModelError


def complete(table: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` of a component holds.

    Args:
        table: what differs from the defaults of its class, and the class itself: as `_class_name` for a class of
            diffusers, as `model_type` and `architectures` for one of transformers.
    """
    return _of_transformers(table) if "model_type" in table else _of_diffusers(table)


def _of_diffusers(table: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of the constructor, which diffusers writes into the file as well."""
    import inspect

    parameters = inspect.signature(_diffusers_class(table["_class_name"]).__init__).parameters
    defaults = {name: each.default for name, each in parameters.items() if name != "self"}
    unknown = table.keys() - defaults.keys() - {"_class_name"}
    if unknown:
        raise TypeError(f"{table['_class_name']} does not take {', '.join(sorted(unknown))}")
    return {**defaults, **table}


def _of_transformers(table: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    return AutoConfig.for_model(**table).to_diff_dict()


def build(config: Mapping[str, Any]) -> Any:
    """The model of a configuration, with random weights on the default device.

    At full size only under `torch.device("meta")`.

    Args:
        config: as `complete` gives it, or as `config.json` of a component holds it.
    """
    if "_class_name" in config:
        return _diffusers_class(config["_class_name"]).from_config(dict(config))
    import transformers

    return getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(**config))


def _diffusers_class(name: str) -> Any:
    """The class called `name` of diffusers or of its LTX-2 pipeline, where connectors and vocoders are defined.

    Raises:
        ModelError: the installed diffusers has no such class.
    """
    import diffusers
    from diffusers.pipelines import ltx2
    from diffusers.pipelines.ltx2 import vocoder

    for place in (diffusers, ltx2, vocoder):
        if hasattr(place, name):
            return getattr(place, name)
    raise ModelError(f"diffusers {diffusers.__version__} has no {name}. Fix: install the release that the model names")
