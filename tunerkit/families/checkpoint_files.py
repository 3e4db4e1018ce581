"""The files of a base model's checkpoint: where the settings say they are, whether they fit, and how they are loaded.

A checkpoint is a local folder in diffusers layout or a hub repository; both are read through the same calls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import ModelError

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

MODEL, VAE = "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path"

_EDGE = 1 << 20  # bytes hashed at each end of a large weight file


@dataclass(frozen=True)
class Source:
    """Where a component comes from.

    Attributes:
        model: local folder or hub id.
        setting: name of the setting that says so, for messages.
        revision: hub revision.
    """

    model: str
    setting: str
    revision: str | None


@dataclass(frozen=True)
class VaeKind:
    """The VAE that a family's transformer was trained with.

    Attributes:
        class_name: its diffusers class.
        title: as people call it.
        channels: key of its configuration that holds the number of latent channels.
        normalisation: keys of its configuration that say how latents are normalised.
    """

    class_name: str
    title: str
    channels: str
    normalisation: tuple[str, ...]


def base_source(config: TrainConfig) -> Source:
    """The base model that the settings name."""
    return Source(str(config.pretrained_model_name_or_path), MODEL, config.revision)


def vae_source(config: TrainConfig) -> Source:
    """The VAE that the settings name, or the base model's own. `revision` is the base model's, so no other VAE's."""
    base = base_source(config)
    named = config.pretrained_vae_model_name_or_path
    return base if named in (None, base.model) else Source(str(named), VAE, None)


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


def load_component(
    loader: Any, model: str, setting: str, what: str, *, unused: tuple[str, ...] = (), **arguments: Any
) -> Any:
    """`loader.from_pretrained(model, **arguments)`, or one clear error.

    Weights that the files do not hold would be left random by the libraries, with a log line; here that is an error.

    Args:
        loader: a diffusers or transformers model class.
        model: local folder or hub id.
        setting: name of the setting that `model` comes from.
        what: the component as people call it (`"transformer"`).
        unused: parts of names of weights that nothing depends on, and that may therefore be missing.
        arguments: passed on to `from_pretrained`.

    Raises:
        ModelError: if files are missing, damaged or do not fit the class.
    """
    with readable(model, setting, what):
        loaded, info = loader.from_pretrained(model, output_loading_info=True, **arguments)
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in unused))
    require_all(missing, Source(model, setting, None), what)
    return loaded


def require_all(missing: Sequence[str], source: Source, what: str) -> None:
    """No weight may be missing.

    Raises:
        ModelError: naming the first.
    """
    if missing:
        raise ModelError(
            f"{source.setting} = {source.model!r}: the {what}'s files lack {len(missing)} weights ({missing[0]}, ...). "
            "Fix: download the checkpoint again"
        )


def load_vae(loader: Any, config: TrainConfig, dtype: torch.dtype) -> Any:
    """The VAE that the settings name, or the base model's own, on the CPU."""
    source = vae_source(config)
    return load_component(
        loader, source.model, source.setting, "VAE", subfolder="vae", revision=source.revision, dtype=dtype
    )


def transformer_config(config: TrainConfig, class_name: str, instead: str) -> dict[str, Any]:
    """Configuration of the base model's transformer, which has to be a `class_name`; see `require_class`."""
    source = base_source(config)
    found = component_config(source.model, "transformer", source.setting, source.revision)
    require_class(found, class_name, source.model, instead)
    return found


def require_class(found: Mapping[str, Any], class_name: str, model: str, instead: str) -> None:
    """A component of a base model has to be of a family's class.

    Args:
        found: the component's configuration.
        class_name: the family's class.
        model: local folder or hub id.
        instead: a checkpoint of the family.

    Raises:
        ModelError: it is not.
    """
    if found.get("_class_name") != class_name:
        raise ModelError(
            f"{MODEL} = {model!r} holds a {found.get('_class_name')}, not a {class_name}. Fix: set model_family to the "
            f"family of that checkpoint, or use {instead}"
        )


def check_vae(config: TrainConfig, kind: VaeKind, *, channels: Any, needed_by: str) -> None:
    """The VAE has to make what the transformer was trained on.

    Args:
        kind: the VAE that the transformer was trained with.
        channels: latent channels that the transformer takes.
        needed_by: the family, as people call it.

    Raises:
        ModelError: it is of another class, makes other channels or, where it is not the base model's own, normalises
            latents differently.
    """
    base, source = base_source(config), vae_source(config)
    vae = component_config(source.model, "vae", source.setting, source.revision)
    named = f"{source.setting} = {source.model!r}"
    fix = "Fix: download the checkpoint again"
    if source != base:
        fix = "Fix: leave the setting out to use the base model's own VAE"
    if vae.get("_class_name") != kind.class_name:
        raise ModelError(
            f"{named} holds a {vae.get('_class_name')}; {needed_by} needs the {kind.title} ({kind.class_name}). {fix}"
        )
    if vae.get(kind.channels) != channels:
        raise ModelError(
            f"{named} makes {vae.get(kind.channels)} latent channels, the transformer of {base.model!r} takes "
            f"{channels}. {fix}"
        )
    if source == base:
        return
    own = component_config(base.model, "vae", base.setting, base.revision)
    for key in kind.normalisation:
        if vae.get(key) != own.get(key):
            values = "" if isinstance(vae.get(key), list) else f" {vae.get(key)} instead of {own.get(key)}"
            raise ModelError(
                f"{named} normalises latents differently from the base model's VAE ({key}{values}), so the transformer "
                f"would see wrong inputs. {fix}"
            )


def check_text_width(source: Source, subfolder: str, width: int | None) -> None:
    """A text encoder has to be as wide as the transformer takes it.

    Raises:
        ModelError: naming both widths.
    """
    config = component_config(source.model, subfolder, source.setting, source.revision)
    found = config.get("text_config", config).get("hidden_size", config.get("hidden_size"))
    if found is not None and found != width:
        raise ModelError(
            f"{source.setting} = {source.model!r}: {subfolder} is {found} wide, and the transformer takes texts of "
            f"{width}. Fix: download the checkpoint again"
        )


def require_folders(source: Source, names: Sequence[str]) -> None:
    """Refuse a local folder in which a component is missing, before anything is loaded of it.

    Raises:
        ModelError: naming the missing sub-folders.
    """
    folder = Path(source.model)
    missing = [name for name in names if folder.is_dir() and not any((folder / name).glob("*"))]
    if missing:
        raise ModelError(
            f"{source.setting} = {source.model!r}: the folder has no {', '.join(f'{name}/' for name in missing)}. "
            "Fix: download the checkpoint again, or name a complete folder in diffusers layout"
        )


def check_tokenizer(tokenizer: Any, encoder: Any, source: Source) -> None:
    """Refuse a tokenizer without its vocabulary: transformers makes one of a few words, and all captions become equal.

    Args:
        tokenizer: as loaded.
        encoder: the text encoder that takes its tokens.

    Raises:
        ModelError: it knows less than half of the encoder's tokens.
    """
    if 2 * len(tokenizer) < encoder.config.get_text_config().vocab_size:
        raise ModelError(
            f"{source.setting} = {source.model!r}: the tokenizer's files are missing or damaged ({len(tokenizer)} "
            "tokens are known). Fix: name a folder that holds tokenizer.json, or download it again"
        )


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
    setting: str = MODEL,
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
