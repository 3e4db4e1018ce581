"""The settings behind a form: what was loaded, what was edited, and what is wrong with it. No widgets here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tunerkit as tk
from tunerkit_widgets.form_layout import DATA_FOLDER
from tunerkit_widgets.texts import text

DATASET_DOCUMENT = "multidatabackend.json"


class Checked(NamedTuple):
    """Settings as they are saved (None where they cannot be), as resolved (likewise), and the problems."""

    chosen: tk.TrainConfig | None
    resolved: tk.TrainConfig | None
    problems: Sequence[Any]


class FormState:
    """A configuration and changes to it.

    Args:
        base: the settings before any change, not necessarily complete.
        changes: settings to change, by name; `data_folder` is the folder of the first dataset of clips.
    """

    def __init__(self, base: tk.TrainConfig, changes: Mapping[str, Any]) -> None:
        self.base = base
        self.changes = dict(changes)

    def value(self, name: str) -> Any:
        """The value of a setting so far, unchecked."""
        if name in self.changes:
            return self.changes[name]
        if name == DATA_FOLDER:
            index = self._first_dataset()
            return None if index is None else self.base.datasets[index].instance_data_dir
        return getattr(self.base, name)

    def chosen(self) -> tk.TrainConfig:
        """The settings with all changes, as they are saved.

        Raises:
            ConfigError: every problem at once.
        """
        return self.base.changed(**self._changes())

    def resolved(self) -> tk.TrainConfig:
        """The same with everything filled in that the family decides: what a run starts with.

        Raises:
            ConfigError: every problem at once.
        """
        return tk.resolve(self.chosen())

    def check(self) -> Checked:
        """What the settings amount to, or what is wrong with them."""
        chosen = None
        try:
            chosen = self.chosen()
            return Checked(chosen, tk.resolve(chosen), ())
        except tk.ConfigError as error:
            return Checked(chosen, None, error.problems)

    def save(self, path: Path, known: bytes | None = None) -> Path:
        """Write both documents: the settings to `path`, the datasets beside it.

        The first time that an existing document is replaced, it is kept as `<name>.bak`. Settings that were not there
        before leave the datasets of other settings in the folder alone: theirs get a name of their own.

        Args:
            path: where to.
            known: what the file held when it was loaded or saved last; only such a file is replaced.

        Raises:
            ConfigError: if the settings are not valid.
            TunerkitError: if the file holds something else.
            OSError: if a file cannot be written.
        """
        self.resolved()
        if path.is_file() and (known is None or path.read_bytes() != known):
            raise tk.TunerkitError(text("form.not_known", path=path))
        datasets = path.parent / DATASET_DOCUMENT
        if datasets == path:
            raise tk.TunerkitError(text("form.for_datasets", path=path))
        if known is None and datasets.is_file():
            datasets = path.with_name(f"{path.stem}-{DATASET_DOCUMENT}")
        path.parent.mkdir(parents=True, exist_ok=True)
        for document in (path, datasets):
            backup = document.with_name(f"{document.name}.bak")
            if document.is_file() and not backup.exists():
                shutil.copy2(document, backup)
        return self.chosen().save(path, dataset_document=datasets)

    def _changes(self) -> dict[str, Any]:
        changes = dict(self.changes)
        if DATA_FOLDER in changes:
            folder, index = changes.pop(DATA_FOLDER), self._first_dataset()
            if index is None:
                changes["datasets"] = [*self.base.datasets, clips_dataset(folder)]
            else:
                changes[f"datasets.{index}.instance_data_dir"] = folder
        return changes

    def _first_dataset(self) -> int | None:
        """Number of the first enabled dataset of clips."""
        return next((index for index, dataset in enumerate(self.base.datasets) if dataset.is_media), None)


def clips_dataset(folder: Any, **settings: Any) -> dict[str, Any]:
    """An entry of the dataset document for a folder of clips with a caption file beside each."""
    return {
        "id": "clips",
        "type": "local",
        "dataset_type": "video",
        "instance_data_dir": None if folder is None else str(folder),
        "caption_strategy": "textfile",
        **settings,
    }
