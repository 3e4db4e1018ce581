"""A model's weights, read one tensor at a time and put straight where they stay, quantised on the way.

The model is made without memory for its weights, and no file is read as a whole: beside the finished model, only the
tensor that is under way takes memory, of the machine as well as of the GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunerkit.config.precisions import TEXT, UNCHANGED
from tunerkit.devices import run_device
from tunerkit.families.safetensors_header import Entry, Header, read_header
from tunerkit.memory.disk import OnDisk
from tunerkit.memory.masters import Store
from tunerkit.memory.quantised_linear import Quantised, quantise_layers

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

CPU = torch.device("cpu")
_PIECE = 64 << 20  # bytes; the largest models are mapped in some 700 pieces
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Destination:
    """Where weights go, and as what.

    Attributes:
        dtype: of what is not quantised.
        device: where they stay.
        precision: of the layers that are, a value of `base_model_precision`.
        quantise_on: where they are quantised.
        rounded: quantise weights in `dtype`, as of a model that is quantised when it has been loaded, not in that of
            the file.
        store: keeps on the CPU what was changed on the way, and is mapped from the file no more.
    """

    dtype: torch.dtype
    device: torch.device = CPU
    precision: str = UNCHANGED
    quantise_on: torch.device = CPU
    rounded: bool = False
    store: Store | None = None


def destination(config: TrainConfig, dtype: torch.dtype) -> Destination:
    """Where the settings put a transformer: on the device that trains, or in RAM where parts of it are offloaded."""
    device = run_device(config)
    offloaded = config.musubi_blocks_to_swap or config.enable_group_offload
    return Destination(dtype, CPU if offloaded else device, config.base_model_precision, _quantising(config))


def text_destination(config: TrainConfig, number: int, dtype: torch.dtype, device: torch.device) -> Destination:
    """Text encoder `number`, from 1, on `device`; on disk until it is offloaded there.

    Raises:
        TunerkitError: the disk cannot be written to.
    """
    disk = config.group_offload_to_disk_path if config.group_offload_text_encoder else None
    store = None if disk is None else OnDisk(disk, "text_encoder")
    return Destination(dtype, device, getattr(config, TEXT[number - 1]), _quantising(config), rounded=True, store=store)


def _quantising(config: TrainConfig) -> torch.device:
    return CPU if config.quantize_via == "cpu" else run_device(config)


def empty_model(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> torch.nn.Module:
    """What `make` makes, without memory for its parameters; buffers that no file holds are computed in `dtype`."""
    from accelerate import init_empty_weights

    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with init_empty_weights(include_buffers=False):
            return make()
    finally:
        torch.set_default_dtype(usual)


def fill(
    model: torch.nn.Module, tensors: Iterable[tuple[str, torch.Tensor]], where: Destination, quantised: Sequence[str]
) -> list[str]:
    """Give an empty model its weights.

    Args:
        model: as from `empty_model`; its layers called `quantised` become quantised ones where `where` says so.
        tensors: names and values in any order, each on the CPU; those that the model has no place for are passed over.

    Returns:
        names of weights that `tensors` did not hold.

    Raises:
        ValueError: a tensor has another shape than its place.
    """
    missing = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if where.precision != UNCHANGED:
        quantise_layers(model, quantised, where.precision)
    for name, tensor in tensors:
        if name not in missing:
            continue
        if missing[name] != tensor.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, and its place is {list(missing[name])}")
        _put(model, name, tensor, where)
        del missing[name]
    if not missing:
        model.to(where.device)  # what no file holds
    return sorted(missing)


def _put(model: torch.nn.Module, name: str, tensor: torch.Tensor, where: Destination) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if isinstance(module, Quantised) and leaf == "weight":
        module.fill(tensor.to(where.quantise_on, where.dtype if where.rounded else None), where.device)
        for parameter in module.parameters(recurse=False):
            if parameter is not module.bias:
                parameter.data = _kept(parameter.data, where)
        return
    value = tensor.to(where.device, _dtype_of(model, name, tensor, where.dtype))
    if value is not tensor:
        value = _kept(value, where)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(value, requires_grad=value.is_floating_point())
    else:
        module._buffers[leaf] = value


def _kept(value: torch.Tensor, where: Destination) -> torch.Tensor:
    """The same, kept by the `store`."""
    if where.store is None or value.device != CPU or not value.numel():
        return value
    return where.store(value.flatten().view(torch.uint8)).view(value.dtype).view(value.shape)


def _dtype_of(model: Any, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype that diffusers loads a weight in: some parts of a model stay in float32, numbers that are no weights
    as they are."""
    if not tensor.is_floating_point():
        return tensor.dtype
    exact = getattr(model, "_keep_in_fp32_modules", None) or ()
    return torch.float32 if not set(exact).isdisjoint(name.split(".")) else dtype


def mapped(file: Path, entries: Iterable[tuple[str, Entry]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a safetensors file in their order there, mapped and read when they are used.

    Writing to them does not change the file. They are mapped in pieces: whatever was read through a mapping counts as
    memory as long as it exists, mapping the whole file fails where it is larger than the memory, and every mapping
    holds the file open, which a process may do some thousand times.
    """
    for piece in _pieces(sorted(entries, key=lambda item: item[1].start)):
        first, last = piece[0][1].start, max(entry.end for _, entry in piece)
        content = np.memmap(file, np.uint8, "c", first, (last - first,)) if last > first else None
        for name, entry in piece:
            dtype = _DTYPES[entry.dtype]
            if content is None or entry.start == entry.end:
                yield name, torch.empty(entry.shape, dtype=dtype)
            else:
                part = torch.from_numpy(content[entry.start - first : entry.end - first])
                yield name, part.view(dtype).view(entry.shape)


def _pieces(entries: Sequence[tuple[str, Entry]]) -> Iterator[list[tuple[str, Entry]]]:
    """Neighbours that span at most `_PIECE` bytes, or one larger tensor."""
    piece: list[tuple[str, Entry]] = []
    for item in entries:
        if piece and item[1].end - piece[0][1].start > _PIECE:
            yield piece
            piece = []
        piece.append(item)
    if piece:
        yield piece


def stored(files: Iterable[Path], wanted: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of tensors in safetensors files, in the order of the files.

    Args:
        wanted: their names; None = all.

    Raises:
        ValueError: as `header`.
        OSError: a file cannot be read.
    """
    for file in files:
        yield from mapped(file, [item for item in header(file).tensors.items() if wanted is None or item[0] in wanted])


def header(file: Path) -> Header:
    """What a safetensors file holds.

    Raises:
        ValueError: it is damaged, or holds a number format that torch does not know.
        OSError: it cannot be read.
    """
    try:
        found = read_header(file)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    for name, entry in found.tensors.items():
        if entry.dtype not in _DTYPES:
            raise ValueError(f"{file.name}: {name} is {entry.dtype}, which is not known here")
    return found


def weight_files(
    fetch: Callable[[str], Path | None], variant: str | None, base: str = "diffusion_pytorch_model"
) -> list[Path]:
    """The safetensors files of a model; empty where it has none.

    Args:
        fetch: gives a file of the model's folder by its name, or None where there is no such file.
        variant: as of `from_pretrained`.
        base: what they are called, without endings.

    Raises:
        ValueError: a file that the index names is not there, or the index cannot be read.
    """
    stem = f"{base}.{variant}" if variant else base
    indices = [f"{stem}.safetensors.index.json"]
    if variant:
        indices.append(f"{base}.safetensors.index.{variant}.json")
    index = next((found for name in indices if (found := fetch(name)) is not None), None)
    names = [f"{stem}.safetensors"] if index is None else _indexed(index)
    found = {name: fetch(name) for name in names}
    lost = [name for name, path in found.items() if path is None]
    if lost and index is not None:
        raise ValueError(f"{index.name} names {lost[0]}, which is not there")
    return [path for path in found.values() if path is not None]


def _indexed(index: Path) -> list[str]:
    content: Mapping[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    try:
        return sorted(set(content["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index.name} is no index of weights") from error
