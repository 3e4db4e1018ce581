"""Writes captions beside their clips, as the caption strategy of the dataset reads them, with undo."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tunerkit.data.captions import EMPTY, MISSING, CaptionError, read_text
from tunerkit.data.samples import ClipRow
from tunerkit.errors import DatasetError
from tunerkit.files import write_atomically

_Change = Callable[[ClipRow, str], tuple[str, int]]
"""(row, content of its caption file) -> (new content, places changed)."""

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig


class CaptionText(NamedTuple):
    """The content of a caption file.

    Attributes:
        file: the text file; it need not exist.
        text: without the line ends at its end; empty where there is no file. Line ends are `\\n`.
        version: tells this content of the file from any other; empty where there is no file.
    """

    file: Path
    text: str
    version: str


@dataclass(frozen=True)
class CaptionChange:
    """What a search or a prefix would do to one caption file; nothing is written yet.

    Attributes:
        row: a clip that the file belongs to.
        before: its content now.
        text: its content afterwards.
        places: how many places change.
    """

    row: ClipRow
    before: CaptionText
    text: str
    places: int


class Undone(NamedTuple):
    """What an undo came to: the files put back, and those left alone because somebody else has changed them since."""

    restored: tuple[Path, ...]
    kept: tuple[Path, ...]


class CaptionConflictError(DatasetError):
    """A caption file is not as it was read: somebody else has changed it since, and it was not overwritten.

    Attributes:
        found: what is in the file now.
    """

    def __init__(self, found: CaptionText) -> None:
        self.found = found
        super().__init__(
            f"{found.file} has been changed since it was read, and was not overwritten. Fix: read it again, then "
            "write it once more"
        )


class _Written(NamedTuple):
    """One file of one edit: its bytes before (None = there was none) and its version after."""

    before: bytes | None
    after: str


class CaptionFiles:
    """The caption files of the datasets of a config: read, written atomically, and put back edit by edit.

    A clip's captions can be written where its dataset reads them from text files; see `why_fixed` for the others.

    Args:
        config: settings with their datasets.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._datasets = {dataset.id: dataset for dataset in config.datasets}
        self._edits: list[dict[Path, _Written]] = []
        self._lock = threading.RLock()

    @property
    def edits(self) -> int:
        """How many edits can be undone."""
        return len(self._edits)

    @property
    def changed(self) -> bool:
        """Whether captions were written that have not been put back."""
        return bool(self._edits)

    def why_fixed(self, row: ClipRow) -> str:
        """Why the captions of a clip cannot be written, with the setting at fault; empty where they can."""
        dataset = self._datasets.get(row.dataset)
        if dataset is None:
            return f"dataset '{row.dataset}' is not in the settings"
        if dataset.caption_strategy == "instanceprompt" or dataset.only_instance_prompt:
            setting = "only_instance_prompt" if dataset.only_instance_prompt else "caption_strategy = instanceprompt"
            return f"every caption is the instance_prompt of dataset '{row.dataset}' ({setting}); change it there"
        if dataset.caption_strategy == "filename":
            return (
                f"the captions of dataset '{row.dataset}' are the names of its files (caption_strategy = filename); "
                "rename the file, or set caption_strategy to textfile"
            )
        if repository := _mirrored(dataset, row.file):
            return f"the captions are copied from the lists of {repository}; change them there"
        try:
            self.read(row)
        except CaptionError as error:
            return str(error)
        return ""

    def read(self, row: ClipRow) -> CaptionText:
        """The caption file of a clip; an empty text where it is missing.

        Raises:
            CaptionError: it cannot be read, or is no UTF-8 text.
        """
        file = row.file.with_suffix(".txt")
        try:
            text = read_text(file).rstrip("\n")
        except CaptionError as error:
            if error.cause not in (MISSING, EMPTY):
                raise
            text = ""
        return CaptionText(file, text, _version(_content(file)))

    def captions(self, row: ClipRow, text: str) -> tuple[str, ...]:
        """The captions that a text stands for, without the instance prompt; none where it is blank."""
        joined = self._datasets[row.dataset].disable_multiline_split
        lines = [text] if joined else text.split("\n")
        return tuple(stripped for line in lines if (stripped := line.strip()))

    def write(self, row: ClipRow, text: str, version: str | None = None) -> CaptionText:
        """Write the caption file of a clip; the line ends and byte order mark of the file are kept.

        Args:
            text: its new content; lines are captions of their own unless `disable_multiline_split`.
            version: that of the content this was made from; None = write whatever is in the file now.

        Raises:
            CaptionConflictError: the file holds something else than that version.
            DatasetError: the captions of the dataset cannot be written, or the file cannot.
        """
        return self._write([(row, text, version)])[0]

    def apply(self, changes: Iterable[CaptionChange]) -> tuple[CaptionText, ...]:
        """Write several files as one edit, which one `undo` puts back.

        Raises:
            CaptionConflictError: a file is not as it was when the change was worked out; nothing is written.
            DatasetError: as `write`; files written before the one that cannot be stay written, and can be undone.
        """
        return tuple(self._write([(change.row, change.text, change.before.version) for change in changes]))

    def replacements(
        self, rows: Iterable[ClipRow], search: str, replacement: str, *, match_case: bool = True
    ) -> list[CaptionChange]:
        """What replacing a text by another would change; clips whose captions cannot be written are passed over."""
        if not search:
            return []
        pattern = re.compile(re.escape(search), 0 if match_case else re.IGNORECASE)
        return self._changes(rows, lambda _, text: pattern.subn(lambda _: replacement, text))

    def prefixes(self, rows: Iterable[ClipRow], prefix: str) -> list[CaptionChange]:
        """What putting words in front of every caption would change; captions that begin with them stay as they are."""
        words = prefix.strip()
        if not words:
            return []

        def prefixed(row: ClipRow, text: str) -> tuple[str, int]:
            lines = [text] if self._datasets[row.dataset].disable_multiline_split else text.split("\n")
            due = [bool(line.strip()) and not line.lstrip().startswith(words) for line in lines]
            new = [f"{words} {line.lstrip()}" if wanted else line for line, wanted in zip(lines, due, strict=True)]
            return "\n".join(new), sum(due)

        return self._changes(rows, prefixed)

    def undo(self) -> Undone:
        """Put back the files of the last edit that has not been undone; nothing happens where there is none.

        Raises:
            DatasetError: a file cannot be written.
        """
        with self._lock:
            edit = self._edits.pop() if self._edits else {}
            restored, kept = [], []
            for file, written in edit.items():
                if _version(_content(file)) != written.after:
                    kept.append(file)
                    continue
                _put(file, written.before)
                restored.append(file)
            return Undone(tuple(restored), tuple(kept))

    def _changes(self, rows: Iterable[ClipRow], change: _Change) -> list[CaptionChange]:
        found: dict[Path, CaptionChange] = {}
        for row in rows:
            if row.file.with_suffix(".txt") in found or self.why_fixed(row):
                continue
            before = self.read(row)
            text, places = change(row, before.text)
            if text != before.text:
                found[before.file] = CaptionChange(row, before, text, places)
        return list(found.values())

    def _write(self, wanted: list[tuple[ClipRow, str, str | None]]) -> list[CaptionText]:
        with self._lock:
            for row, _, version in wanted:
                if why := self.why_fixed(row):
                    raise DatasetError(f"the caption of {row.file.name} cannot be written: {why}")
                found = self.read(row)
                if version is not None and version != found.version:
                    raise CaptionConflictError(found)
            edit: dict[Path, _Written] = {}
            try:
                for row, text, _ in wanted:
                    file = row.file.with_suffix(".txt")
                    before = _content(file)
                    after = _encoded(text, before)
                    if after != (before or b""):
                        _put(file, after)
                        edit[file] = _Written(before, _version(after))
            finally:
                if edit:
                    self._edits.append(edit)
            return [self.read(row) for row, _, _ in wanted]


def _mirrored(dataset: DatasetConfig, file: Path) -> Path | None:
    """The repository on this machine that a file is a copy from; the next look writes its captions again."""
    if dataset.type != "huggingface" or not dataset.dataset_name:
        return None
    repository = Path(os.path.abspath(Path(dataset.dataset_name).expanduser()))
    return repository if repository.is_dir() and not file.is_relative_to(repository) else None


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _version(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()


def _encoded(text: str, before: bytes | None) -> bytes:
    """A text as UTF-8, with the byte order mark, line ends and last line end of the file that it replaces."""
    # Half of a surrogate pair and NUL cannot stand in a text file.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").rstrip("\n")
    if lines and (not before or before.endswith((b"\n", b"\r"))):
        lines += "\n"
    if before and b"\r\n" in before:
        lines = lines.replace("\n", "\r\n")
    mark = codecs.BOM_UTF8 if before and before.startswith(codecs.BOM_UTF8) else b""
    return mark + lines.encode("utf-8", "replace")


def _put(file: Path, content: bytes | None) -> None:
    """Make a file hold `content`; None = remove it."""
    try:
        if content is None:
            file.unlink(missing_ok=True)
        else:
            write_atomically(file, content)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise DatasetError(
            f"the caption file {file} cannot be written: {why}. Fix: free disk space, or get write permission there"
        ) from None
