"""Matches clips with the files that belong to them in other datasets: masks, sound.

A file belongs to the clip of the same relative path, extension aside, and where no file has that path to the only
clip of the same name.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from tunerkit.data.discover import AnyFound
from tunerkit.data.hub import local_folder, possible_folders
from tunerkit.data.samples import ClipRow
from tunerkit.errors import DatasetError

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig

LISTED = 5
"""Names in a message about files that belong to no clip."""

Discover = Callable[[Path, str], tuple[tuple[AnyFound, ...], tuple[Path, ...]]]
"""Finds the files of a folder for a dataset id, and the sub-folders that could not be listed."""

logger = logging.getLogger("tunerkit")


@dataclass(frozen=True)
class Words:
    """How messages speak of a kind of partner.

    Attributes:
        noun: `mask`.
        example: file names that would do, with `{stem}` for the clip's name without extension.
        advice: what else to do about a missing one.
    """

    noun: str
    example: str
    advice: str


@dataclass(frozen=True)
class Missing:
    """Why a clip has no partner that can be used."""

    reason: str
    fix: str
    cause: str

    def drop(self, row: ClipRow) -> ClipRow:
        """The row, dropped for this reason."""
        return row._replace(decision="dropped", reason=self.reason, fix=self.fix, cause=self.cause, samples=())


@dataclass(frozen=True)
class PartnerFolder(Generic[AnyFound]):
    """The files of a dataset of partners."""

    dataset: str
    folder: Path
    files: tuple[AnyFound, ...]


@dataclass(frozen=True)
class Matches(Generic[AnyFound]):
    """The partners of the clips of one dataset.

    Attributes:
        folders: the partners' folders, for messages.
        partners: number of a row -> every file that belongs to it.
        shared: number of a row -> how many clips of its name, in other folders, a file found by name might mean.
        used: files that belong to at least one clip.
        words: how messages speak of them.
    """

    folders: str
    partners: dict[int, tuple[AnyFound, ...]]
    shared: dict[int, int]
    used: frozenset[Path]
    words: Words

    @classmethod
    def of(cls, clips: dict[int, str], folders: Sequence[PartnerFolder[AnyFound]], words: Words) -> Matches[AnyFound]:
        """Match clips, given by their `clip_key`, with the files of some folders."""
        by_path: dict[str, list[AnyFound]] = defaultdict(list)
        by_name: dict[str, list[AnyFound]] = defaultdict(list)
        paths = set(clips.values())
        for folder in folders:
            for found in folder.files:
                key = _relative_key(found.file, folder.folder)
                by_path[key].append(found)
                if key not in paths:  # else it is the partner of that clip, whatever others are called
                    by_name[_name_of(key)].append(found)
        namesakes: dict[str, set[str]] = defaultdict(set)
        for key in paths - by_path.keys():
            namesakes[_name_of(key)].add(key)
        partners = {n: tuple(by_path.get(key) or by_name.get(_name_of(key), ())) for n, key in clips.items()}
        shared = {n: len(namesakes[_name_of(key)]) for n, key in clips.items() if key not in by_path}
        used = frozenset(found.file for several in partners.values() for found in several)
        return cls(", ".join(str(folder.folder) for folder in folders), partners, shared, used, words)

    def choose(self, number: int, row: ClipRow) -> AnyFound | Missing:
        """The partner of a row, or why it has none."""
        noun, advice = self.words.noun, self.words.advice
        match self.partners[number]:
            case ():
                example = self.words.example.format(stem=row.file.stem)
                return Missing(
                    f"no {noun} for {row.file.name}", f"put {example} into {self.folders}; {advice}", f"no {noun}"
                )
            case (found,) if self.shared.get(number, 1) > 1:
                return Missing(
                    f"{noun} {found.file.name} could belong to {self.shared[number]} clips of that name",
                    f"put {noun}s into the same sub-folders of {self.folders} as the clips; {advice}",
                    f"unclear {noun}",
                )
            case (found,):
                return found
            case several:
                return Missing(
                    f"{len(several)} {noun}s for {row.file.name}: {', '.join(str(found.file) for found in several)}",
                    f"keep one of them in {self.folders}; {advice}",
                    f"several {noun}s",
                )


def discover_partners(
    datasets: Iterable[DatasetConfig], config: TrainConfig, discover: Discover[AnyFound], what: str
) -> dict[str, PartnerFolder[AnyFound]]:
    """The files of some datasets, by their ids; `what` is what messages call them (`masks`).

    Raises:
        DatasetError: a folder cannot be used; all that are wrong at once.
    """
    folders: dict[str, PartnerFolder[AnyFound]] = {}
    wrong: list[str] = []
    for dataset in datasets:
        try:
            folder = _folder(dataset, config, what)
            files, unreadable = discover(folder, dataset.id)
        except DatasetError as error:
            wrong.append(str(error))
            continue
        if unreadable:
            names = ", ".join(map(str, unreadable))
            logger.warning("dataset '%s': no permission to look for %s in %s", dataset.id, what, names)
        folders[dataset.id] = PartnerFolder(dataset.id, folder, files)
    if wrong:
        raise DatasetError("\n".join(wrong))
    return folders


def clip_key(file: Path, dataset: DatasetConfig, config: TrainConfig) -> str:
    """A clip's path below the folder of its dataset, without extension."""
    folders = possible_folders(dataset, config)
    return _relative_key(file, next((folder for folder in folders if file.is_relative_to(folder)), file.parent))


def report_unused(folder: PartnerFolder[AnyFound], used: Set[Path], what: str) -> None:
    """Log the files that belong to no clip; `what` as in `discover_partners`."""
    unused = [found.file.relative_to(folder.folder).as_posix() for found in folder.files if found.file not in used]
    if unused:
        more = f" and {len(unused) - LISTED} more" if len(unused) > LISTED else ""
        logger.warning(
            "dataset '%s': %d of %d %s in %s belong to no clip: %s%s",
            folder.dataset,
            len(unused),
            len(folder.files),
            what,
            folder.folder,
            ", ".join(unused[:LISTED]),
            more,
        )


def _folder(dataset: DatasetConfig, config: TrainConfig, what: str) -> Path:
    if dataset.type == "huggingface":
        return local_folder(dataset, config)
    if dataset.instance_data_dir is None:
        raise DatasetError(
            f"dataset '{dataset.id}': instance_data_dir is not set. Fix: set instance_data_dir to the folder that "
            f"holds the {what}."
        )
    return Path(dataset.instance_data_dir)


def _relative_key(file: Path, folder: Path) -> str:
    # Some systems write an accented letter as two characters, others as one.
    return unicodedata.normalize("NFC", file.relative_to(folder).with_suffix("").as_posix())


def _name_of(key: str) -> str:
    return key.rpartition("/")[2]
