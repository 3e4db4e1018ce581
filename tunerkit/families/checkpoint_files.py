"""The small files of a base model's checkpoint, read without loading any weight.

A checkpoint is a local folder in diffusers layout or a hub repository; both are read through the same calls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tunerkit.errors import ModelError

_EDGE = 1 << 20  # bytes hashed at each end of a large weight file


def component_config(model: str, subfolder: str, setting: str, revision: str | None = None) -> dict[str, Any]:
    """`config.json` of one component (`model_index.json` when `subfolder` is empty).

    Args:
        model: local folder or hub id.
        subfolder: for example `"transformer"`; `""` for the pipeline's index.
        setting: name of the setting that `model` comes from, for messages.
        revision: hub revision.

    Raises:
        ModelError: if the file is missing, unreachable or not JSON.
    """
    name = f"{subfolder}/config.json" if subfolder else "model_index.json"
    path = _local_file(model, name, setting, revision)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{setting} = {model!r}: {path} cannot be read ({error}). Fix: download it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{setting} = {model!r}: {path} holds no settings. Fix: download it again")
    return found


def load_component(loader: Any, model: str, setting: str, what: str, **arguments: Any) -> Any:
    """`loader.from_pretrained(model, **arguments)`, or one clear error.

    Weights that the files do not hold would be left random by the libraries, with a log line; here that is an error.

    Args:
        loader: a diffusers model class.
        model: local folder or hub id.
        setting: name of the setting that `model` comes from.
        what: the component as people call it (`"transformer"`).
        arguments: passed on to `from_pretrained`.

    Raises:
        ModelError: if files are missing, damaged or do not fit the class.
    """
    with readable(model, setting, what):
        loaded, info = loader.from_pretrained(model, output_loading_info=True, **arguments)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{setting} = {model!r}: the {what}'s files lack {len(missing)} weights ({missing[0]}, ...). Fix: download "
            "the checkpoint again"
        )
    return loaded


@contextmanager
def readable(model: str, setting: str, what: str) -> Iterator[None]:
    """Turns what libraries raise for missing or damaged files into a ModelError that names setting and component."""
    import torch
    from huggingface_hub import errors
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        cause = error if isinstance(error, errors.GatedRepoError) else error.__cause__
        if isinstance(cause, errors.GatedRepoError):
            reason, fix = _hub_trouble(cause, model)
            raise ModelError(f"{setting} = {model!r}: the {what} cannot be loaded ({reason}). Fix: {fix}") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{setting} = {model!r}: the {what} cannot be loaded ({reason}). Fix: download the checkpoint again, or "
            "name a complete folder in diffusers layout"
        ) from error


def _local_file(model: str, name: str, setting: str, revision: str | None) -> Path:
    folder = Path(model)
    if folder.is_dir():
        path = folder / name
        if path.is_file():
            return path
        raise ModelError(
            f"{setting} = {model!r}: the folder has no {name}. Fix: point it to a folder in diffusers layout "
            "(model_index.json, transformer/, vae/, text_encoder/, ...)"
        )
    return hub_file(model, name, setting, revision)


def hub_file(model: str, name: str, setting: str, revision: str | None) -> Path:
    """A file of a hub repository, downloaded once.

    Raises:
        ModelError: it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except Exception as error:
        reason, fix = _hub_trouble(error, model)
        raise ModelError(
            f"{setting} = {model!r}: {name} could not be fetched from the hub ({reason}). Fix: {fix}"
        ) from error


def _hub_trouble(error: BaseException, model: str) -> tuple[str, str]:
    """What a failed download means and what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{model}"
    sign_in = "run `hf auth login`, or set HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            return "its authors have to grant access (gated)", f"accept the licence at {page}, then {sign_in}"
        case errors.RepositoryNotFoundError():
            return "there is no such repository, or it is private", f"check the name; for a private one, {sign_in}"
        case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
            return "the repository has no such file", f"check the name against the files listed at {page}"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return (
                "the hub cannot be reached, or HF_HUB_OFFLINE is set, and the file was not downloaded before",
                "check the network, remove HF_HUB_OFFLINE, or give a local folder",
            )
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{type(error).__name__}: {line}", "check the name, the network or HF_TOKEN, or give a local folder"


@cache
def _hub_commit(model: str, subfolder: str, setting: str, revision: str | None) -> str:
    """Commit of the snapshot that holds a component (`.../snapshots/<commit>/[<subfolder>/]config.json`)."""
    name = f"{subfolder}/config.json" if subfolder else "config.json"
    path = _local_file(model, name, setting, revision)
    return path.parents[1 if subfolder else 0].name


def component_identity(
    model: str,
    subfolders: tuple[str, ...],
    revision: str | None = None,
    setting: str = "pretrained_model_name_or_path",
) -> dict[str, Any]:
    """What names the weights of some components for a cache key: equal weights give equal identities.

    A hub repository is named by its id and commit; a local folder by the content of its small files and the size and
    both ends of its large ones, so it may be moved, and a replaced weight file is noticed.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"repo": model, "commit": _hub_commit(model, subfolders[0], setting, revision)}
    digest = hashlib.sha256()
    for subfolder in subfolders:
        for path in sorted((folder / subfolder).rglob("*")):
            if not path.is_file():
                continue
            digest.update(f"{path.relative_to(folder).as_posix()}:{path.stat().st_size}:".encode())
            try:
                digest.update(_edges(path))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise ModelError(
                    f"{path} cannot be read ({reason}). Fix: make the files of the model readable for this user"
                ) from error
    return {"content": digest.hexdigest()}


def _edges(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_EDGE)
        size = path.stat().st_size
        if size <= _EDGE:
            return head
        file.seek(max(_EDGE, size - _EDGE))
        return head + file.read()
