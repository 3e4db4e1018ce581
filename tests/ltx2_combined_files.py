"""Tiny combined files of LTX-2 for the tests, and changed copies of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunerkit.demo import ltx2
from tunerkit.demo.ltx2_combined import write_combined
from tunerkit.families.ltx2.combined_file import CombinedFile

SETTING = "pretrained_model_name_or_path"
VERSIONS = ("2.0", "2.3")


def tiny_checkpoint(folder: Path, version: str) -> Path:
    """A checkpoint in diffusers layout, with its combined file beside the components."""
    torch.manual_seed(0)
    ltx2.build(folder, ["a robot dances", "a red ball rolls over the grass"], version)
    write_combined(folder, folder / "combined.safetensors", version)
    return folder


def combined(folder: Path) -> CombinedFile:
    return CombinedFile(folder / "combined.safetensors", SETTING)


def rewrite(
    folder: Path,
    target: Path,
    *,
    drop: str | None = None,
    add: Mapping[str, torch.Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> CombinedFile:
    """The combined file of `folder` with some of it changed."""
    source = folder / "combined.safetensors"
    with safe_open(source, framework="pt") as file:
        kept = dict(file.metadata()) if metadata is None else dict(metadata)
    tensors = {name: tensor for name, tensor in load_file(source).items() if name != drop}
    save_file({**tensors, **(add or {})}, target / "changed.safetensors", metadata=kept)
    return CombinedFile(target / "changed.safetensors", SETTING)
