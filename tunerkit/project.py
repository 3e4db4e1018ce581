"""From files to a configuration that a run can start with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit import families
from tunerkit.config.loading import find_config, read_settings
from tunerkit.config.paths import INPUT_FILES, Folders, dataset_path_key, not_found
from tunerkit.config.precisions import TEXT, UNCHANGED
from tunerkit.config.problems import choice_fix
from tunerkit.config.settings import TrainConfig, missing_setting, require_settings
from tunerkit.config.tread_rules import refused_routing
from tunerkit.errors import ConfigError, Note, Problem, TunerkitError

if TYPE_CHECKING:
    from tunerkit.families.base import Family

__all__ = ["TrainConfig", "load_config", "resolve"]


def load_config(path: str | os.PathLike[str], /, *more_paths: str | os.PathLike[str], **overrides: Any) -> TrainConfig:
    """Read the settings of a run.

    Args:
        path: a settings document (JSON), or a folder that holds a `config.json`.
        more_paths: further documents; a later one counts more.
        overrides: settings that count most, as Python values or as text ("true", "1e-4", "64"). A dataset's setting is
            reached with dots, by number or id: `**{"datasets.my-clips.video.num_frames": 49}`.

    Returns:
        Checked settings with absolute paths; `.notes` says what was understood differently from how it was written.

    Raises:
        ConfigError: every problem of all documents, at once.
    """
    for given in (path, *more_paths):
        if not isinstance(given, (str, os.PathLike)):
            raise TunerkitError(
                f"load_config reads files, not a {type(given).__name__}. Fix: give the path of a config.json, or use "
                "TrainConfig(**settings)"
            )
    documents: list[dict[str, Any]] = []
    files: list[Path] = []
    problems: list[Problem] = []
    for given in (path, *more_paths):
        try:
            file = find_config(given)
            files.append(file)
            documents.append(read_settings(file))
        except ConfigError as error:
            problems += error.problems
    return TrainConfig.from_documents([*documents, overrides], Folders.of(files), problems)


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with everything decided that a run needs: what the family decides is filled in.

    Resolving a resolved configuration changes nothing.

    Raises:
        ConfigError: if a required setting is missing, a data folder does not exist, or the family refuses a setting;
            every problem at once.
    """
    require_settings(config)
    problems = [*_missing(config), *_lost_files(config)]
    family = _family(config, problems)
    if family is None:
        raise ConfigError(problems)
    notes: list[Note] = []
    filled = _filled(config, family, problems, notes)
    try:
        resolved = config.changed(**filled)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    family_problems, family_notes = family.check(resolved)
    problems += [*_first_frame(resolved, family), *refused_routing(resolved, family), *family_problems]
    if problems:
        raise ConfigError(problems)
    return resolved.with_notes([*config.notes, *notes, *family_notes, *_silent(resolved, family)])


def _missing(config: TrainConfig) -> Iterator[Problem]:
    if config.output_dir is None:
        yield missing_setting("output_dir", "name the folder that the run writes to")
    if not config.media_datasets:
        fix = 'name a dataset document with at least one dataset of clips: [{"id": ..., "instance_data_dir": ...}]'
        if any(dataset.disabled for dataset in config.datasets):
            fix = "enable at least one dataset of clips (disabled = false)"
        if config.eval_datasets:
            message = "has clips to evaluate only, and none to train on"
            yield Problem("data_backend_config", None, message, "leave out dataset_type = eval of one of them")
        else:
            yield missing_setting("data_backend_config", fix)
    if not config.max_train_steps and not config.num_train_epochs:
        yield missing_setting("max_train_steps", "say how long to train: max_train_steps, or num_train_epochs")


def _lost_files(config: TrainConfig) -> Iterator[Problem]:
    """Inputs that are not where the settings say."""
    for index, dataset in enumerate(config.datasets):
        if not (dataset.has_clips or dataset.has_masks) or dataset.type == "huggingface":
            continue
        key, folder = dataset_path_key(index, "instance_data_dir"), dataset.instance_data_dir
        if folder is None:
            yield missing_setting(key, "name the folder of the clips")
        elif not folder.exists():
            yield not_found(key, folder, config.searched(folder))
        elif not folder.is_dir():
            yield Problem(key, str(folder), "is a file, not a folder", "name the folder that holds the clips")
    for key in INPUT_FILES:
        file: Path | None = getattr(config, key)
        if file is not None and not file.is_file():
            yield not_found(key, file, [file])
    checkpoint = config.resume_from_checkpoint
    if checkpoint not in (None, "latest") and not Path(str(checkpoint)).exists():
        yield Problem(
            "resume_from_checkpoint", checkpoint, "there is no such checkpoint", "write latest, or an existing folder"
        )


def _family(config: TrainConfig, problems: list[Problem]) -> Family | None:
    """The family of the run; what is wrong with its name or flavour is added to `problems`."""
    known = families.names()
    name = config.model_family
    if name is None:
        problems.append(missing_setting("model_family", f"write one of {', '.join(known)}"))
        return None
    try:
        family = families.get(name)
    except ConfigError:
        fix = choice_fix(name, known, "Families")
        problems.append(Problem("model_family", name, "is not a known family", fix))
        return None
    refused = _refused_repository(str(config.pretrained_model_name_or_path), family)
    if refused:
        reason, _, fix = refused.partition(". Fix: ")
        key = "pretrained_model_name_or_path"
        problems.append(Problem(key, config.pretrained_model_name_or_path, f"cannot be trained: {reason}", fix))
    flavour = config.model_flavour
    if flavour is None:
        return family
    known = family.flavour(flavour)
    if known is None:
        fix = choice_fix(flavour, [name for name, one in family.flavours.items() if not one.refused], "Flavours")
        problems.append(Problem("model_flavour", flavour, f"is not a flavour of {family.name}", fix))
    elif family.flavours[known].refused:
        reason, _, fix = family.flavours[known].refused.partition(". Fix: ")
        problems.append(Problem("model_flavour", flavour, f"cannot be trained: {reason}", fix))
    return family


def _refused_repository(model: str, family: Family) -> str:
    """Why a published checkpoint cannot be trained; empty where it can, or is not known."""
    sharing = [one for one in family.flavours.values() if one.repo.lower() == model.lower()]
    return sharing[0].refused if sharing and all(one.refused for one in sharing) else ""


def _filled(config: TrainConfig, family: Family, problems: list[Problem], notes: list[Note]) -> dict[str, Any]:
    """The settings that were left open, with their values."""
    filled: dict[str, Any] = {}
    if config.model_family != family.name:
        filled["model_family"] = family.name
    given = config.model_flavour
    flavour = family.default_flavour if given is None else family.flavour(given) or given
    if flavour != given:
        filled["model_flavour"] = flavour
    model = config.pretrained_model_name_or_path
    if model is None and flavour in family.flavours:
        model = filled["pretrained_model_name_or_path"] = family.flavours[flavour].repo
    if config.pretrained_vae_model_name_or_path is None and model is not None:
        filled["pretrained_vae_model_name_or_path"] = model
    if config.framerate is None:
        framerate = _framerate(config, problems, notes)
        if framerate is not None:
            filled["framerate"] = framerate
    for key, value in family.defaults_for(flavour).items():
        if key not in filled and getattr(config, key) is None:
            filled[key] = value
    datasets = _filled_datasets(config)
    if datasets is not None:
        filled["datasets"] = datasets
    return filled


def _first_frame(config: TrainConfig, family: Family) -> Iterator[Problem]:
    method = config.first_frame_conditioning_method
    if method not in family.first_frame_methods:
        yield Problem(
            "first_frame_conditioning_method",
            method,
            f"is unknown to {family.title}",
            f"use {' or '.join(family.first_frame_methods)}, or leave it out",
        )


def _silent(config: TrainConfig, family: Family) -> Iterator[Note]:
    """Settings of text encoders that the model does not have, and of sound, where it makes none."""
    for key in TEXT[family.text_encoders :]:
        if getattr(config, key) != UNCHANGED:
            yield Note(key, f"{family.title} has no such text encoder; not used")
    if family.sound is not None:
        return
    for index, dataset in enumerate(config.datasets):
        if dataset.has_clips and dataset.takes_sound:
            key = "audio" if dataset.audio is not None else "s2v_datasets"
            yield Note(dataset_path_key(index, key), f"{family.title} makes no sound; the clips are trained without it")


def _framerate(config: TrainConfig, problems: list[Problem], notes: list[Note]) -> float | None:
    """The framerate that the datasets ask for, where the run sets none."""
    asked = {
        dataset_path_key(index, "video.frame_rate"): dataset.video.frame_rate
        for index, dataset in enumerate(config.datasets)
        if dataset.has_clips and dataset.video.frame_rate is not None
    }
    rates = sorted({rate for rate in asked.values() if rate is not None})
    if len(rates) > 1:
        both = ", ".join(f"{rate:g}" for rate in rates)
        problems.append(
            Problem(
                next(iter(asked)),
                both,
                "the datasets ask for several frame rates, and a run has one",
                f"set framerate for the run, for example {rates[0]:g}; all clips are resampled to it",
            )
        )
    elif rates:
        notes.append(Note("framerate", f"{rates[0]:g}, as {next(iter(asked))} asks"))
    return rates[0] if rates else None


def _filled_datasets(config: TrainConfig) -> list[dict[str, Any]] | None:
    """The datasets with the resolution that counts for them; None when nothing was left open."""
    entries: list[dict[str, Any]] = []
    changed = False
    for dataset in config.datasets:
        entry = dataset.model_dump()
        if dataset.has_clips:
            resolution, kind = config.resolution_of(dataset)
            if entry["resolution_type"] is None or (entry["resolution"] is None and resolution is not None):
                entry["resolution_type"], entry["resolution"] = kind, resolution or entry["resolution"]
                changed = True
        entries.append(entry)
    return entries if changed else None
