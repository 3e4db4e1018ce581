"""What is true of each model family, behind one protocol (`tunerkit.families.base.Family`).

Importing this package loads no model library; a family imports torch and diffusers inside the calls that need them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from tunerkit.errors import ConfigError, Problem
from tunerkit.families.base import Family
from tunerkit.families.batch import Batch
from tunerkit.families.facts import Flavour

__all__ = ["Batch", "Family", "Flavour", "get", "names"]

# Module that holds each family; the class in it is found by `Family.name`.
_MODULES = (
    "tunerkit.families.sana_video.family",
    "tunerkit.families.ltx2.family",
    "tunerkit.families.kandinsky5.family",
)


@cache
def _families() -> dict[str, Family]:
    return {family.name: family for family in (import_module(module).FAMILY for module in _MODULES)}


def names() -> list[str]:
    """Canonical family names, in the order in which they are presented to people."""
    return list(_families())


def get(name: str) -> Family:
    """The family called `name`, or by one of its aliases.

    Raises:
        ConfigError: if no family has that name.
    """
    wanted = name.strip().lower()
    for family in _families().values():
        if wanted == family.name or wanted in family.aliases:
            return family
    raise ConfigError([Problem("model_family", name, "is not a known family", f"use one of {', '.join(names())}")])
