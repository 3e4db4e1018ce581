"""All settings of a run, typed and checked."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, PrivateAttr, ValidationError

from tunerkit.config.dataset_document import DatasetConfig
from tunerkit.config.fields import setting
from tunerkit.config.groups.adapter import AdapterSettings
from tunerkit.config.groups.checkpoints import CheckpointSettings, TrackingSettings
from tunerkit.config.groups.data import DataSettings, ResolutionType
from tunerkit.config.groups.memory import MemorySettings
from tunerkit.config.groups.model import ModelSettings
from tunerkit.config.groups.optimizer import OptimizerSettings
from tunerkit.config.groups.training import TrainingSettings
from tunerkit.config.groups.validation import ValidationSettings
from tunerkit.config.inactive import inactive_notes
from tunerkit.config.names import ALIASES
from tunerkit.config.paths import Folders, portable
from tunerkit.config.problems import located, problems_of
from tunerkit.config.reading import DATASETS, Understood, canonical_key, understand
from tunerkit.config.rules import advice, problems_between
from tunerkit.errors import ConfigError, Note, Problem, TunerkitError
from tunerkit.files import write_json

DOCUMENT_KEY = "data_backend_config"
"""Where the datasets stand in the saved file: the list itself, or the path of the document."""


class TrainConfig(
    MemorySettings,
    TrackingSettings,
    ValidationSettings,
    DataSettings,
    CheckpointSettings,
    OptimizerSettings,
    TrainingSettings,
    AdapterSettings,
    ModelSettings,
):
    """What a run is to do.

    Settings may be given as in a settings document: under other names, as text, `data_backend_config` as a path or a
    list. Relative paths count from the current folder and are absolute afterwards.

    Raises:
        ConfigError: every problem of the settings, at once.
    """

    datasets: list[DatasetConfig] = setting(list, "Folders of clips, and caches of text embeddings.", group="data")

    _notes: list[Note] = PrivateAttr(default_factory=list)
    _searched: dict[Path, tuple[Path, ...]] = PrivateAttr(default_factory=dict)

    def __init__(self, /, **settings: Any) -> None:
        self._fill(understand([settings], Folders.of(), type(self)))

    @classmethod
    def from_documents(
        cls, documents: Sequence[Mapping[str, Any]], folders: Folders, problems: Sequence[Problem] = ()
    ) -> Self:
        """The settings of several documents, a later one counts more.

        Args:
            documents: settings as written, least important first.
            folders: where relative paths are looked for.
            problems: what was wrong with the documents already; raised together with the rest.

        Raises:
            ConfigError: every problem, at once.
        """
        understood = understand(documents, folders, cls)
        understood.problems[:0] = problems
        return cls._built(understood)

    def changed(self, /, **settings: Any) -> Self:
        """A checked copy with other settings (`datasets.<id>.<setting>` reaches into a dataset).

        Raises:
            ConfigError: every problem of the result, at once.
        """
        keys = {ALIASES.get(key, key) for key in (canonical_key(name).partition(".")[0] for name in settings)}
        understood = understand(
            [self._values(), settings], Folders.of(), type(self), foreign_schedule="lr_warmup_steps" in keys
        )
        understood.searched = {**self._searched, **understood.searched}
        still_true = [note for note in self._notes if note.key.partition("[")[0] not in keys]
        understood.notes = [*still_true, *understood.notes]
        return type(self)._built(understood)

    def with_notes(self, notes: Sequence[Note]) -> Self:
        """The same settings, with more notes."""
        result = copy.deepcopy(self)
        result._notes = _unique([*self._notes, *notes])
        return result

    @property
    def notes(self) -> list[Note]:
        """What was understood differently from how it was written, or has no effect; no part of the saved file."""
        return list(self._notes)

    # Meaning ---------------------------------------------------------------------------------------------------

    @property
    def media_datasets(self) -> list[DatasetConfig]:
        """The enabled datasets of clips and images."""
        return [dataset for dataset in self.datasets if dataset.is_media]

    @property
    def eval_datasets(self) -> list[DatasetConfig]:
        """The enabled datasets that are only evaluated on."""
        return [dataset for dataset in self.datasets if dataset.has_clips and not dataset.is_media]

    @property
    def trains_sound(self) -> bool:
        """Whether a dataset that is trained on takes the sound of its clips along."""
        return any(dataset.takes_sound for dataset in self.media_datasets)

    @property
    def vae_works_in_parts(self) -> bool:
        """Whether the VAE runs a few frames at a time."""
        return self.vae_enable_patch_conv or self.vae_enable_temporal_roll

    @property
    def output_path(self) -> Path:
        """The absolute output folder.

        Raises:
            ConfigError: if `output_dir` is not set.
        """
        if self.output_dir is None:
            raise ConfigError([missing_setting("output_dir", "name the folder that the run writes to")])
        return self.output_dir

    @property
    def cache_path(self) -> Path:
        """The folder of all caches that have no folder of their own."""
        return self.cache_dir or self.output_path / "cache"

    @property
    def text_cache_dir(self) -> Path:
        """The folder of the cached text embeddings."""
        entries = [d for d in self.datasets if d.dataset_type == "text_embeds" and not d.disabled and d.cache_dir]
        chosen = next((entry for entry in entries if entry.default), entries[0] if entries else None)
        return chosen.cache_dir if chosen and chosen.cache_dir else self.cache_path / "text"

    def vae_cache_dir(self, dataset: DatasetConfig) -> Path:
        """The folder of a dataset's cached latents."""
        return dataset.cache_dir_vae or self.cache_path / "vae" / dataset.id

    def resolution_of(self, dataset: DatasetConfig) -> tuple[float | None, ResolutionType]:
        """Size and its meaning for a dataset: its own, else the run's; (None, "model") when neither names one."""
        resolution = dataset.resolution if dataset.resolution is not None else self.resolution
        kind = dataset.resolution_type or self.resolution_type or ("model" if resolution is None else "pixel_area")
        return (None if kind == "model" else resolution), kind

    @property
    def validation_sizes(self) -> list[tuple[int, int]]:
        """The (width, height) pairs of `validation_resolution`, in pixels; empty when it is not set."""
        sizes = (self.validation_resolution or "").split(",")
        return [(int(w), int(h)) for w, _, h in (size.partition("x") for size in sizes if size)]

    def searched(self, path: Path) -> tuple[Path, ...]:
        """Every place where a data folder that does not exist was looked for."""
        return self._searched.get(path, (path,))

    # Saving ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, dataset_document: str | os.PathLike[str] | None = None) -> Path:
        """Write all settings as JSON; reading the file gives an equal configuration.

        Args:
            path: the settings document.
            dataset_document: if given, the datasets are written there, and the settings document names it by its path
                from its own folder; and so are all other paths below that folder, which can be moved then. Otherwise
                the datasets stand in the settings document.

        Raises:
            OSError: if a file cannot be written; an existing one then stays as it was.
        """
        target = Path(os.path.abspath(os.path.expanduser(path)))
        document = self.model_dump(mode="json")
        datasets = document.pop(DATASETS)
        if dataset_document is None:
            document[DOCUMENT_KEY] = datasets
        else:
            second = Path(os.path.abspath(os.path.expanduser(dataset_document)))
            datasets, document = portable(datasets, target.parent), portable(document, target.parent)
            document[DOCUMENT_KEY] = Path(os.path.relpath(second, target.parent)).as_posix()
            write_json(second, datasets)
        return write_json(target, document)

    # Inner works -----------------------------------------------------------------------------------------------

    @classmethod
    def _built(cls, understood: Understood) -> Self:
        config = cls.__new__(cls)
        config._fill(understood)
        return config

    def _fill(self, understood: Understood) -> None:
        """Check the values and take them; raise every problem at once."""
        problems = list(understood.problems)
        checked: TrainConfig = self
        try:
            BaseModel.__init__(self, **understood.values)
        except ValidationError as error:
            problems += problems_of(error, type(self))
            checked = self._without_errors(understood.values, error)
        known = {problem.key for problem in problems}
        problems += [problem for problem in problems_between(checked) if problem.key not in known]
        if problems:
            raise ConfigError(problems)
        self._notes = _unique([*understood.notes, *inactive_notes(self), *advice(self)])
        self._searched = dict(understood.searched)

    def _without_errors(self, values: dict[str, Any], error: ValidationError) -> TrainConfig:
        """The settings that are right by themselves, so that the rules between them can be checked as well."""
        values = copy.deepcopy(values)
        probe = type(self).__new__(type(self))
        for _ in range(4):  # leaving one thing out can bring up another: a dataset without its id, for one
            for details in error.errors(include_url=False):
                _leave_out(values, located(details["loc"], type(self))[0])
            try:
                BaseModel.__init__(probe, **values)
            except ValidationError as again:
                error = again
            else:
                return probe
        BaseModel.__init__(probe)
        return probe

    def _values(self) -> dict[str, Any]:
        return self.model_dump()

    def __eq__(self, other: object) -> bool:
        """Equal settings; notes do not count."""
        return type(self) is type(other) and self.__dict__ == other.__dict__


def missing_setting(key: str, fix: str) -> Problem:
    """The problem of a setting that a run cannot do without."""
    return Problem(key, None, "is not set", fix)


def _leave_out(values: Any, location: tuple[int | str, ...]) -> None:
    """Remove what a location points to; a dataset stays in the list, so that the numbers of the others hold."""
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(part, int):
            if not isinstance(values, list) or part >= len(values):
                return
            if last or not isinstance(values[part], dict):
                values[part] = {"id": f"#{part}", "disabled": True}
                return
            values = values[part]
            continue
        if not isinstance(values, dict):
            return
        if last:
            values.pop(part, None)
            if part == "id":
                values["id"] = f"#{location[position - 1]}"
            return
        values = values.get(part)


def _unique(notes: Sequence[Note]) -> list[Note]:
    return list(dict.fromkeys(notes))


def require_settings(value: object) -> None:
    """Refuse anything but settings where settings are asked for, a path above all.

    Raises:
        TunerkitError: saying how to get settings.
    """
    if not isinstance(value, TrainConfig):
        raise TunerkitError(
            f"{value!r} is no settings object. Fix: give what tk.load_config(...) returns, for example "
            "tk.load_config('config/config.json')"
        )
