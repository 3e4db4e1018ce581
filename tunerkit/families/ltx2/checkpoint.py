"""Where LTX-2's components come from: a folder or hub repository in diffusers layout, or one combined file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tunerkit.errors import ModelError
from tunerkit.families.checkpoint_files import (
    MODEL,
    Source,
    component_config,
    component_identity,
    hub_file,
    load_component,
    readable,
)

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

Layers = Callable[[Any], Sequence[str]]
"""Gives names of layers of a transformer."""
Part = Literal["transformer", "vae", "audio_vae", "connectors", "vocoder"]

FILE = "ltx2_checkpoint_filename"
TEXT_ENCODER = "pretrained_text_encoder_model_name_or_path"
GEMMA = "google/gemma-3-12b-it-qat-q4_0-unquantized"
"""The text encoder that belongs to a combined file, which does not hold it."""

SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
"""The published sampling schedule of the dev models; a combined file holds none."""


class Checkpoint(Protocol):
    """What the family asks of a checkpoint, whatever its layout."""

    def config(self, part: Part) -> dict[str, Any]:
        """The diffusers configuration of a part, with `_class_name`."""
        ...

    def load(self, part: Part, dtype: torch.dtype) -> Any:
        """A part on the CPU, frozen or not as its class makes it."""
        ...

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype, quantised: Layers) -> Any:
        """The transformer where it trains, its layers that `quantised` names as `config` says, the rest in `dtype`."""
        ...

    def identity(self, *parts: Part) -> dict[str, Any]:
        """What names the weights of some parts: equal weights give equal identities."""
        ...

    def scheduler(self) -> Any:
        """The sampling schedule."""
        ...


class DiffusersCheckpoint:
    """A folder or hub repository with a sub-folder for each part."""

    def __init__(self, model: str, setting: str, revision: str | None = None) -> None:
        self.model, self._setting, self._revision = model, setting, revision

    def config(self, part: Part) -> dict[str, Any]:
        return component_config(self.model, part, self._setting, self._revision)

    def load(self, part: Part, dtype: torch.dtype) -> Any:
        return load_component(
            part_class(str(self.config(part).get("_class_name"))),
            self.model,
            self._setting,
            part.replace("_", " "),
            subfolder=part,
            revision=self._revision,
            dtype=dtype,
        )

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype, quantised: Layers) -> Any:
        from tunerkit.families.transformer_files import load_transformer

        loader = part_class(str(self.config("transformer").get("_class_name")))
        return load_transformer(loader, config, dtype, quantised)

    def identity(self, *parts: Part) -> dict[str, Any]:
        return component_identity(self.model, parts, self._revision)

    def scheduler(self) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        with readable(self.model, self._setting, "scheduler"):
            return FlowMatchEulerDiscreteScheduler.from_pretrained(
                self.model, subfolder="scheduler", revision=self._revision
            )


class CombinedCheckpoint:
    """One file with all parts but the text encoder."""

    def __init__(self, file: Path, setting: str, flavour: str | None) -> None:
        from tunerkit.families.ltx2.combined_file import CombinedFile

        self._file = CombinedFile(file, setting)
        if flavour is not None:
            self._file.require_version(flavour)

    def config(self, part: Part) -> dict[str, Any]:
        return self._file.config(part)

    def load(self, part: Part, dtype: torch.dtype) -> Any:
        return self._file.load(part, dtype)

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype, quantised: Layers) -> Any:
        from tunerkit.memory.streamed_weights import destination

        return self._file.load_transformer(destination(config, dtype), quantised)

    def identity(self, *parts: Part) -> dict[str, Any]:
        return self._file.identity(parts)

    def scheduler(self) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER)


def checkpoint_of(config: TrainConfig) -> Checkpoint:
    """The checkpoint that the settings name.

    Raises:
        ModelError: a combined file is named and cannot be read or fetched.
    """
    model, name = str(config.pretrained_model_name_or_path), config.ltx2_checkpoint_filename
    if name is None and not model.endswith(".safetensors"):
        folder = Path(model)
        files = sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []
        if files and not (folder / "transformer").exists():
            raise ModelError(
                f"{MODEL} = {model!r} holds {', '.join(files)} and no transformer/. Fix: set {FILE} to the file's name"
            )
        return DiffusersCheckpoint(model, MODEL, config.revision)
    return _combined(model, name, config.revision, config.model_flavour)


@cache
def _combined(model: str, name: str | None, revision: str | None, flavour: str | None) -> CombinedCheckpoint:
    if model.endswith(".safetensors"):
        file = Path(model)
        if not file.is_file():
            raise ModelError(f"{MODEL} = {model!r}: there is no such file. Fix: correct the path")
        return CombinedCheckpoint(file, MODEL, flavour)
    folder = Path(model)
    if not folder.is_dir():
        return CombinedCheckpoint(hub_file(model, str(name), FILE, revision), FILE, flavour)
    file = folder / str(name)
    if not file.is_file():
        found = sorted(path.name for path in folder.glob("*.safetensors"))
        there = f"it holds {', '.join(found)}" if found else "it holds no .safetensors file"
        raise ModelError(f"{FILE} = {name!r}: {folder} has no such file ({there}). Fix: name a file of that folder")
    return CombinedCheckpoint(file, FILE, flavour)


@dataclass(frozen=True)
class TextSource(Source):
    """Where Gemma and its tokenizer come from.

    Attributes:
        inside: whether they lie in `text_encoder/` and `tokenizer/` of a whole checkpoint, or are a model of their own.
    """

    inside: bool

    def folder(self, part: str) -> str:
        """Sub-folder of `text_encoder` or `tokenizer`."""
        return part if self.inside else ""

    def identity(self) -> dict[str, Any]:
        """What names its weights in a cache key."""
        folders = ("text_encoder", "tokenizer") if self.inside else ("",)
        return component_identity(self.model, folders, self.revision, self.setting)


def text_source(config: TrainConfig) -> TextSource:
    """The text encoder that the settings name, or that belongs to the checkpoint."""
    own = config.pretrained_text_encoder_model_name_or_path
    model = str(config.pretrained_model_name_or_path)
    if own is not None:
        return TextSource(own, TEXT_ENCODER, None, (Path(own) / "text_encoder").is_dir())
    if config.ltx2_checkpoint_filename is None and not model.endswith(".safetensors"):
        return TextSource(model, MODEL, config.revision, True)
    folder = Path(model).parent if model.endswith(".safetensors") else Path(model)
    if (folder / "text_encoder").is_dir():
        return TextSource(str(folder), MODEL, None, True)
    return TextSource(GEMMA, TEXT_ENCODER, None, False)


def part_class(name: str) -> Any:
    """The diffusers class called `name`.

    Raises:
        ModelError: LTX-2 has no such part.
    """
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    known = {
        "LTX2VideoTransformer3DModel": diffusers.LTX2VideoTransformer3DModel,
        "AutoencoderKLLTX2Video": diffusers.AutoencoderKLLTX2Video,
        "AutoencoderKLLTX2Audio": diffusers.AutoencoderKLLTX2Audio,
        "LTX2TextConnectors": LTX2TextConnectors,
        "LTX2Vocoder": LTX2Vocoder,
        "LTX2VocoderWithBWE": LTX2VocoderWithBWE,
    }
    if name not in known:
        raise ModelError(
            f"{MODEL}: a {name} is no part of LTX-2 2.0 or 2.3. Fix: set model_family to the family of that checkpoint"
        )
    return known[name]
