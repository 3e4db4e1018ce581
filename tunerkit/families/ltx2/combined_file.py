"""LTX-2's combined `.safetensors` file: transformer, both VAEs, vocoder and connectors under their original names.

Nothing reads the file as a whole: the header names and places every tensor, and one component is loaded at a time. Its
model is made without memory for the weights, and the tensors of the file take their places.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import ModelError
from tunerkit.families.ltx2.combined_configs import Config, Version, config_from_shapes, finish
from tunerkit.families.ltx2.combined_metadata import config_from_metadata
from tunerkit.families.ltx2.combined_names import Component, sort_names
from tunerkit.families.safetensors_header import Header, read_header

if TYPE_CHECKING:
    import torch

    from tunerkit.memory.streamed_weights import Destination

_FILES: dict[Version, str] = {
    "2.0": "ltx-2-19b-dev.safetensors of Lightricks/LTX-2",
    "2.3": "ltx-2.3-22b-dev.safetensors of Lightricks/LTX-2.3",
}
_FLAVOURS: dict[Version, str] = {"2.0": "2.0", "2.3": "2.3-dev"}
_PRECISIONS = ("BF16", "F16", "F32", "F64")
_EDGE = 4096  # bytes hashed at each end of a tensor
_SHOWN = 3  # tensor names in a message


class CombinedFile:
    """A combined file of LTX-2 2.0 or 2.3; making one reads its header only.

    Attributes:
        version: "2.0" (19B) or "2.3" (22B), from the tensors it holds.
        unused: names of tensors that belong to none of the components.

    Args:
        path: the file.
        setting: name of the setting that `path` comes from, for messages.

    Raises:
        ModelError: it cannot be read, is damaged, is not LTX-2 of these versions, or is quantised.
    """

    def __init__(self, path: Path, setting: str) -> None:
        self.path, self._setting = path, setting
        try:
            self._header: Header = read_header(path)
        except OSError as error:
            raise self._error(f"it cannot be read ({error.strerror})", "correct the path") from error
        except ValueError as error:
            raise self._error(f"{error}", "download the file again") from error
        self._names, self.unused = sort_names(self._header.tensors)
        self._refuse_later_versions()
        self.version: Version = self._recognise()
        self._refuse_quantised()

    def require_version(self, flavour: str) -> None:
        """Checks that the file is of the version that `flavour` (`model_flavour`) names.

        Raises:
            ModelError: it is of another one.
        """
        wanted: Version = "2.3" if flavour.startswith("2.3") else "2.0"
        if wanted != self.version:
            raise self._error(
                f"the file is LTX-2 {self.version}, but model_flavour = {flavour!r} is {wanted}",
                f"set model_flavour to {_FLAVOURS[self.version]!r}, or name {_FILES[wanted]}",
            )

    def config(self, component: Component) -> Config:
        """The diffusers configuration of a component, with `_class_name`.

        Raises:
            ModelError: the component is missing, or its description does not make sense.
        """
        shapes = self._shapes(component)
        try:
            found = config_from_shapes(component, self.version, shapes)
        except KeyError as error:
            raise self._error(f"its {_words(component)} lacks {error.args[0]}") from error
        try:
            return finish(component, {**found, **config_from_metadata(component, self._metadata)}, shapes)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise self._error(
                f"the config in its metadata cannot be used for the {_words(component)} ({error})",
                f"name a file with the original metadata, such as {_FILES[self.version]}",
            ) from error

    def load(self, component: Component, dtype: torch.dtype) -> Any:
        """A component on the CPU in `dtype`, in evaluation mode.

        Raises:
            ModelError: tensors are missing, unknown or of another shape; all of the component's are checked first.
        """
        from tunerkit.memory.streamed_weights import Destination

        return self._filled(component, Destination(dtype))

    def load_transformer(self, where: Destination, quantised: Callable[[Any], Sequence[str]]) -> Any:
        """The transformer where `where` says, its layers that `quantised` names quantised, in evaluation mode.

        Raises:
            ModelError: as `load`.
        """
        return self._filled("transformer", where, quantised)

    def _filled(
        self, component: Component, where: Destination, quantised: Callable[[Any], Sequence[str]] | None = None
    ) -> Any:
        from tunerkit.memory.streamed_weights import fill

        model = self._empty_model(component, where.dtype)
        self._check_fit(component, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        fill(model, self._tensors(component), where, quantised(model) if quantised else ())
        return model.eval()

    def identity(self, components: Sequence[Component]) -> dict[str, Any]:
        """What names some components in a cache key: equal weights and configuration give equal identities.

        Name, type, shape and both ends of every tensor are hashed (small ones whole), and no position in the file: so
        a component keeps its identity when another one of the file changes.

        Raises:
            ModelError: as `config`.
        """
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for component in components:
                digest.update(json.dumps([component, self.config(component)], sort_keys=True).encode())
                for name, original in sorted(self._names[component].items()):
                    entry = self._header.tensors[original]
                    digest.update(json.dumps([name, entry.dtype, entry.shape]).encode())
                    for start in (entry.start, max(entry.start, entry.end - _EDGE)):
                        file.seek(start)
                        digest.update(file.read(min(_EDGE, entry.end - start)))
        return {"content": digest.hexdigest()}

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        try:
            metadata = json.loads(self._header.metadata.get("config", "{}"))
        except ValueError as error:
            raise self._error(f"the config in its metadata is not JSON ({error})") from error
        return metadata if isinstance(metadata, dict) else {}

    def _shapes(self, component: Component) -> dict[str, tuple[int, ...]]:
        names = self._names[component]
        if not names:
            raise self._error(
                f"it holds no {_words(component)}", f"name a combined file, such as {_FILES[self.version]}"
            )
        return {name: self._header.tensors[original].shape for name, original in names.items()}

    def _empty_model(self, component: Component, dtype: torch.dtype) -> Any:
        from tunerkit.families.ltx2.checkpoint import part_class
        from tunerkit.memory.streamed_weights import empty_model

        config = self.config(component)
        try:
            return empty_model(lambda: part_class(config["_class_name"]).from_config(config), dtype)
        except (ValueError, TypeError, LookupError, ArithmeticError, UnboundLocalError) as error:
            raise self._error(f"its {_words(component)} is of a form that diffusers does not know ({error})") from error

    def _check_fit(self, component: Component, wanted: Mapping[str, tuple[int, ...]]) -> None:
        found, names = self._shapes(component), self._names[component]
        missing = [name for name in wanted if name not in found]
        unknown = [names[name] for name in found if name not in wanted]
        misshapen = [f"{names[n]} {list(found[n])}" for n in wanted if n in found and found[n] != wanted[n]]
        complaints = [
            f"lacks {_list(missing)}" if missing else "",
            f"has {_list(unknown)} that LTX-2 does not have" if unknown else "",
            f"has {_list(misshapen)} of another shape than its configuration says" if misshapen else "",
        ]
        if any(complaints):
            raise self._error(f"its {_words(component)} {'; it '.join(filter(None, complaints))}")

    def _tensors(self, component: Component) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a component as the file holds them, by diffusers name; mapped, and read when they are used."""
        from tunerkit.memory.streamed_weights import mapped

        names = self._names[component].items()
        return mapped(self.path, [(name, self._header.tensors[original]) for name, original in names])

    def _refuse_later_versions(self) -> None:
        transformer, vae = self._names["transformer"], self._names["vae"]
        stated = re.match(r"(\d+)\.(\d+)", self._header.metadata.get("model_version", ""))
        later = (
            (stated is not None and (int(stated[1]), int(stated[2])) > (2, 3))
            or "gemma_config" in self._header.metadata
            or "keyframes_abs_pos_embedding" in transformer
            or _has_part(transformer, "transformer_blocks.0.ff.net.2.weight", "transformer_blocks.0.ff.net.2.bias")
            or "decoder.conv_in_x_t.weight" in vae
            or any(name.startswith("duration_head.") for name in self.unused)
        )
        if later:
            raise self._error(
                "the file is of LTX-2.5, which cannot be trained here: its Gemma 4 text encoder, diffusion decoder, "
                "duration head and weights in several files are not supported",
                f"use LTX-2.3 or 2.0: {_FILES['2.3']}, or {_FILES['2.0']}",
            )

    def _recognise(self) -> Version:
        transformer = self._names["transformer"]
        if "proj_in.weight" not in transformer or "audio_proj_in.weight" not in transformer:
            raise self._error(
                "it is no combined file of LTX-2 (it has no audio-video transformer under model.diffusion_model)",
                f"name {_FILES['2.0']}, {_FILES['2.3']}, or a folder in diffusers layout",
            )
        return "2.3" if any(name.startswith("prompt_adaln.") for name in transformer) else "2.0"

    def _refuse_quantised(self) -> None:
        for names in self._names.values():
            for original in names.values():
                dtype = self._header.tensors[original].dtype
                if dtype not in _PRECISIONS:
                    raise self._error(
                        f"its weights are quantised ({original} is {dtype}), and training needs them in full",
                        f"name the bf16 file: {_FILES[self.version]}",
                    )

    def _error(self, problem: str, fix: str = "download the file again, or name another one") -> ModelError:
        return ModelError(f"{self._setting} = {str(self.path)!r}: {problem}. Fix: {fix}")


def _words(component: Component) -> str:
    return {"vae": "video VAE", "audio_vae": "audio VAE"}.get(component, component)


def _has_part(names: Mapping[str, str], present: str, absent: str) -> bool:
    return present in names and absent not in names


def _list(names: Sequence[str]) -> str:
    """`5 tensors (a, b, c, ...)`."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"
