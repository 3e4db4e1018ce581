"""Tensors and optimizer state as safetensors and JSON files. Nothing is pickled, so a file cannot run code.

An optimizer becomes two files:

    optimizer.safetensors   `<parameter name>/<state key>` for the state tensors, and `#group.<i>/<key>` for
                            tensors that an optimizer keeps in its i-th parameter group
    optimizer.json          {"format": 1, "optimizer": class, "parameters": {name: {"shape", "dtype"}},
                            "groups": [{"parameters": [names], "options": {...}, "changed": [keys]}],
                            "values": {name: {key: number, boolean, text or null}}}

`options` leaves out the learning rate, which the schedule sets at every step. An option that the optimizer
itself changed while running (`changed`: counters, set-up flags) is state and comes back with it. All others
are settings: the ones the resumed run was started with hold.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tunerkit.errors import CheckpointError
from tunerkit.files import read_json, write_json

FORMAT = 1
TENSORS = "optimizer.safetensors"
VALUES = "optimizer.json"
_OS_ERROR = re.compile(r"os error (\d+)")
# Ways to compute the same step, chosen by device; a difference is not worth a note.
_IMPLEMENTATION = {"foreach", "fused", "capturable", "triton"}


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors of any device, layout and dtype to one safetensors file.

    Not atomic by itself: it is meant for a checkpoint's temporary folder.

    Raises:
        OSError: the file cannot be written, for one because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(_separate(tensors), os.fspath(path), metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        match = _OS_ERROR.search(str(error))
        code = int(match[1]) if match else errno.EIO
        raise OSError(code, os.strerror(code) if match else str(error), os.fspath(path)) from error


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file to the CPU.

    Raises:
        CheckpointError: the file is missing, torn, or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(os.fspath(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Fix: resume from an earlier checkpoint.") from error


def optimizer_to_files(optimizer: Optimizer, names: Sequence[str], folder: str | os.PathLike[str]) -> None:
    """Write the optimizer's state into `folder`.

    Args:
        optimizer: any torch optimizer whose state is tensors, numbers, texts and None.
        names: of its parameters, in the order of its groups; each once.
        folder: exists.

    Raises:
        ValueError: `names` does not fit the parameters.
        OSError: a file cannot be written.
    """
    named = _named(optimizer, names)
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, parameter in named.items():
        values[name] = _split(optimizer.state.get(parameter, {}), f"{name}/", tensors)
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        options = {key: value for key, value in group.items() if key not in ("params", "lr")}
        plain = _split(options, f"#group.{index}/", tensors)
        members = {id(parameter) for parameter in group["params"]}
        groups.append(
            {
                "parameters": [name for name, parameter in named.items() if id(parameter) in members],
                "options": plain,
                "changed": [key for key in plain if _changed(optimizer, key, plain[key])],
            }
        )
    document = {
        "format": FORMAT,
        "optimizer": _kind(optimizer),
        "parameters": {name: _form(parameter) for name, parameter in named.items()},
        "groups": groups,
        "values": {name: entries for name, entries in values.items() if entries},
    }
    save_tensors(Path(folder) / TENSORS, tensors)
    write_json(Path(folder) / VALUES, document)


def optimizer_from_files(
    optimizer: Optimizer, names: Sequence[str], folder: str | os.PathLike[str], *, optional: str | None = None
) -> list[str]:
    """Put a saved state into a fresh optimizer, bit for bit; it then continues as the saved one would have.

    Args:
        optimizer: made with the settings of this run, over the same parameters. Its state is replaced.
        names: of its parameters, in the order of its groups.
        folder: where `optimizer_to_files` wrote.
        optional: parameters whose names begin so may be missing there, and then have no state yet, or stand there for
            nothing; None = all must be the same.

    Returns:
        One line per option whose setting differs from the saved run's; the current setting holds.

    Raises:
        CheckpointError: a file is missing or torn, the optimizer is of another kind, or the parameters differ
            in name, shape, dtype or grouping; the message names the first difference and nothing was changed.
        ValueError: `names` does not fit the parameters.
    """
    named = _named(optimizer, names)
    path = Path(folder) / VALUES
    try:
        document = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Fix: resume from an earlier checkpoint.") from error
    _require_same(optimizer, named, document, path, optional)
    tensors = load_tensors(Path(folder) / TENSORS)

    state: dict[Tensor, dict[str, Any]] = {
        named[name]: dict(entries) for name, entries in document["values"].items() if name in named
    }
    group_tensors: list[dict[str, Tensor]] = [{} for _ in optimizer.param_groups]
    owner_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for key, tensor in tensors.items():
        owner, _, entry = key.rpartition("/")
        if owner.startswith("#group."):
            group_tensors[int(owner.removeprefix("#group."))][entry] = tensor
            continue
        parameter = named.get(owner)
        if parameter is None:
            continue
        placed = _placed(optimizer, owner_of[id(parameter)], parameter, entry, tensor)
        state.setdefault(parameter, {})[entry] = placed
    optimizer.state.clear()
    optimizer.state.update(state)
    differences: list[str] = []
    for group, saved, extra in zip(optimizer.param_groups, document["groups"], group_tensors, strict=True):
        for key, value in saved["options"].items():
            value = tuple(value) if isinstance(value, list) else value
            if key in saved["changed"]:
                group[key] = value
            elif key in group and group[key] != value and key not in _IMPLEMENTATION:
                differences.append(f"{key} is {group[key]!r} now; the checkpoint was trained with {value!r}")
        group.update(extra)
    return list(dict.fromkeys(differences))


def _require_same(
    optimizer: Optimizer, named: Mapping[str, Tensor], document: Any, path: Path, optional: str | None
) -> None:
    """Raise CheckpointError unless the saved optimizer is of this kind and over these parameters."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not an optimizer state of format {FORMAT}. Fix: resume from another checkpoint."
        )
    if (saved_kind := document["optimizer"]) != _kind(optimizer):
        raise CheckpointError(
            f"{path} holds the state of {saved_kind}, and this run uses {_kind(optimizer)}. Fix: set "
            "optimizer back to that of the saved run, or start from the weights alone (init_lora, and no "
            "resume_from_checkpoint)."
        )
    same = "Fix: resume with the model and adapter settings of the saved run, or start a new run."
    saved: dict[str, Any] = document["parameters"]
    free = {name for name in {*named, *saved} if optional and name.startswith(optional)}
    for name in [*named, *saved]:
        if name in free and not (name in saved and name in named):
            continue
        if name not in saved:
            raise CheckpointError(f"{path}: {name} is trained now, but was not in the saved run. {same}")
        if name not in named:
            raise CheckpointError(f"{path}: {name} was trained in the saved run, but is not now. {same}")
        if (form := _form(named[name])) != saved[name]:
            before, now = (f"{entry['dtype']} {entry['shape']}" for entry in (saved[name], form))
            raise CheckpointError(f"{path}: {name} is {now} now and was {before} in the saved run. {same}")
    left_out = {id(parameter) for name, parameter in named.items() if name in free}
    sizes = [sum(id(parameter) not in left_out for parameter in group["params"]) for group in optimizer.param_groups]
    saved_sizes = [sum(name not in free for name in group["parameters"]) for group in document["groups"]]
    if sizes != saved_sizes:
        raise CheckpointError(
            f"{path}: parameter groups of {saved_sizes} were saved, and there are {sizes} now. {same}"
        )


def _placed(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, key: str, tensor: Tensor) -> Tensor:
    """A saved state tensor on the device and in the memory layout its optimizer expects.

    `Optimizer.load_state_dict` is not used: it casts every state to the parameter's dtype, and a bfloat16 run
    would then continue from rounded numbers.
    """
    if key in ("step", "mu_product") and tensor.dim() == 0:
        # torch keeps these counters in host memory, unless a kernel on the device reads them.
        on_device = group.get("fused") or group.get("capturable")
        return tensor.to(parameter.device if on_device else "cpu")
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device)
    if getattr(optimizer, "is_paged", False) and hasattr(optimizer, "get_state_buffer"):
        # bitsandbytes: a state that may move to host memory must live in a buffer of its page manager.
        return optimizer.get_state_buffer(parameter, dtype=tensor.dtype).copy_(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    # Element-wise kernels walk through memory: the state must have the parameter's strides.
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _split(entries: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the tensors of `entries` into `tensors` under `prefix`; returns the rest, which must be plain."""
    plain: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Tensor):
            tensors[prefix + key] = value
        else:
            plain[key] = list(value) if isinstance(value, tuple) else value
    return plain


def _changed(optimizer: Optimizer, key: str, value: Any) -> bool:
    """Whether the optimizer itself changed an option since it was made."""
    if key not in optimizer.defaults:
        return True
    default = optimizer.defaults[key]
    return value != (list(default) if isinstance(default, tuple) else default)


def _named(optimizer: Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(names) != len(parameters) or len(set(names)) != len(names):
        raise ValueError(f"{len(set(names))} different names for {len(parameters)} parameters")
    return dict(zip(names, parameters, strict=True))


def _kind(optimizer: Optimizer) -> str:
    """The package and class, without the modules between them, which packages move about."""
    return f"{type(optimizer).__module__.partition('.')[0]}.{type(optimizer).__qualname__}"


def _form(parameter: Tensor) -> dict[str, Any]:
    return {"shape": list(parameter.shape), "dtype": str(parameter.dtype).removeprefix("torch.")}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in host memory, contiguous, each in its own storage: safetensors refuses shared ones."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        ready = tensor.detach().to("cpu").contiguous()
        storage = ready.untyped_storage()
        if storage.nbytes() != ready.nbytes or storage.data_ptr() in seen:
            ready = ready.clone()
        seen.add(ready.untyped_storage().data_ptr())
        separate[name] = ready
    return separate
