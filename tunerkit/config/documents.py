"""Dataset documents on their own."""

from __future__ import annotations

import os

from tunerkit.config.dataset_document import DatasetConfig
from tunerkit.config.paths import Folders
from tunerkit.config.settings import DOCUMENT_KEY, TrainConfig


def load_dataset_document(path: str | os.PathLike[str]) -> list[DatasetConfig]:
    """The datasets of a document, checked, with absolute paths.

    Relative paths count from the current folder, then from the document's folder, then from its parent.

    Raises:
        ConfigError: every problem of the document, at once.
    """
    found = Folders.of().find(path)
    folders = Folders.of([found] if found else [])
    return TrainConfig.from_documents([{DOCUMENT_KEY: path}], folders).datasets
