"""The table of what lies in the cache folders, for people and notebooks."""

from __future__ import annotations

import html
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TEXT, LATENTS, MASKS, SOUNDS, LEFTOVERS, UNKNOWN = "text", "latents", "masks", "sound", "leftovers", "unknown"
FEATURES = "features"
MEDIA_MEMORY = "media memory"
HEADINGS = ("kind", "entries", "size", "needed", "stale", "stale size", "missing", "where")
LISTED = 20
"""Stale entries, or failures, listed as text; `CacheReport.stale` and `CacheReport.failures` name all."""


@dataclass(frozen=True)
class CacheRow:
    """The entries of one kind in one folder.

    Attributes:
        kind: text, latents, masks, sound, features (of an image encoder), media memory (what is remembered of the
            source files), leftovers (of killed processes) or unknown (entries of ours whose header cannot be read).
        datasets: ids of the datasets whose folder it is; none for text.
        folder: where they lie.
        needed: files that a run of this configuration reads.
        kept: files that only the configurations given as `keep` need.
        stale: files that none of them needs.
        missing: entries that the configuration needs and that are not there.
        size: bytes of all files.
        stale_size: bytes of the stale ones.
    """

    kind: str
    datasets: tuple[str, ...]
    folder: Path
    needed: int = 0
    kept: int = 0
    stale: int = 0
    missing: int = 0
    size: int = 0
    stale_size: int = 0

    @property
    def entries(self) -> int:
        """Files, whoever needs them."""
        return self.needed + self.kept + self.stale


@dataclass(frozen=True)
class StaleEntry:
    """A file that no given configuration needs; `what` says what it was made of, as far as its header tells."""

    kind: str
    path: Path
    size: int
    what: str


@dataclass(frozen=True)
class CacheReport:
    """The cache folders of a run, by kind and folder.

    Attributes:
        rows: one per kind and folder.
        stale: every file that `prune_cache` would delete.
        dropped: files of the datasets that are not used; what was cached of them counts as stale.
        freed: what `prune_cache` has deleted.
        failures: what `prune_cache` could not delete, and why.
    """

    rows: tuple[CacheRow, ...]
    stale: tuple[StaleEntry, ...]
    dropped: int = 0
    freed: tuple[StaleEntry, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(row.size for row in self.rows)

    @property
    def stale_size(self) -> int:
        """Bytes that `prune_cache` would free."""
        return sum(entry.size for entry in self.stale)

    @property
    def freed_size(self) -> int:
        """Bytes that `prune_cache` has freed."""
        return sum(entry.size for entry in self.freed)

    @property
    def missing(self) -> int:
        """Entries that building the cache would make."""
        return sum(row.missing for row in self.rows)

    def summary(self) -> str:
        """One paragraph: size by kind, what is stale, what is missing, what was freed."""
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        missing: Counter[str] = Counter()
        for row in self.rows:
            counts[row.kind] += row.entries
            sizes[row.kind] += row.size
            missing[row.kind] += row.missing
        kinds = ", ".join(f"{kind} {counts[kind]} ({size_text(sizes[kind])})" for kind in counts)
        parts = [f"{_files(sum(counts.values()))}, {size_text(self.size)}: {kinds}."]
        if self.freed:
            parts.append(f"Freed: {_files(len(self.freed))}, {size_text(self.freed_size)}.")
        if self.failures:
            parts.append(f"Could not be deleted: {'; '.join(_first(self.failures))}.")
        parts.append(
            f"Stale, and freed by pruning: {_files(len(self.stale))}, {size_text(self.stale_size)}."
            if self.stale
            else "Nothing is stale."
        )
        wanted = ", ".join(f"{count} {kind}" for kind, count in missing.items() if count)
        parts.append(f"Missing: {wanted}; build_cache makes them." if wanted else "Nothing is missing.")
        if self.dropped:
            parts.append(
                f"{_files(self.dropped)} of the datasets {'is' if self.dropped == 1 else 'are'} not used "
                "(inspect_dataset says why); what was cached of them counts as stale."
            )
        return " ".join(parts)

    def to_text(self) -> str:
        """The table with aligned columns, and the stale entries below it."""
        lines = [HEADINGS, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
        text = [_aligned(line, widths) for line in lines]
        listed = [f"  {size_text(entry.size):>10}  {entry.kind}: {entry.what}" for entry in self.stale[:LISTED]]
        more = len(self.stale) - len(listed)
        return "\n".join(
            [*text, *(["stale:"] if listed else []), *listed, *([f"  and {more} more (report.stale)"] if more else [])]
        )

    def outcome(self) -> str:
        """What `prune_cache` did, in lines: what was freed, and each file that could not be deleted with the reason."""
        lines = [f"freed: {_files(len(self.freed))}, {size_text(self.freed_size)}"]
        if self.failures:
            lines.append("could not be deleted:")
            lines += [f"  {failure}" for failure in _first(self.failures)]
            lines.append("Fix: delete them as the user they belong to, or give yourself write permission in the folder")
        return "\n".join(lines)

    def to_html(self) -> str:
        """The summary, the table and the stale entries as HTML; every text from files and settings is escaped."""
        head = "".join(f"<th style='text-align:left'>{heading}</th>" for heading in HEADINGS)
        body = "".join(_html_row(_cells(row)) for row in self.rows)
        listed = "".join(_html_row((size_text(e.size), e.kind, e.what)) for e in self.stale[:LISTED])
        more = len(self.stale) - LISTED
        rest = f"<p>and {more} more</p>" if more > 0 else ""
        stale = f"<details><summary>stale</summary><table>{listed}</table>{rest}</details>" if listed else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{html.escape(self.summary())}</p>{table}{stale}"

    def show(self) -> None:
        """Show the table: rendered in a notebook, printed elsewhere."""
        if _in_notebook():
            from IPython.display import display

            display({"text/html": self.to_html(), "text/plain": f"{self.to_text()}\n{self.summary()}"}, raw=True)
        else:
            print(self.to_text())
            print(self.summary())

    def _repr_html_(self) -> str:
        return self.to_html()

    def __repr__(self) -> str:
        return f"CacheReport({self.summary()})"


def size_text(count: int) -> str:
    """Bytes for people: `3.2 MiB`."""
    step = min(4, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**step:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[step]}" if step else f"{count} B"


def _cells(row: CacheRow) -> tuple[str, ...]:
    where = f"{', '.join(row.datasets)}: {row.folder}" if row.datasets else str(row.folder)
    counts = (str(row.needed), str(row.stale), size_text(row.stale_size), str(row.missing))
    return (row.kind, str(row.entries), size_text(row.size), *counts, one_line(where))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers to the right, the kind and the place to the left; the place is long and stays unaligned."""
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *numbers, cells[-1]])


def _html_row(cells: Iterable[str]) -> str:
    data = "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr>{data}</tr>"


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _first(lines: Sequence[str]) -> list[str]:
    """So many lines that a person reads them, and how many there are besides."""
    more = len(lines) - LISTED
    return [*lines[:LISTED], *([f"and {more} more"] if more > 0 else [])]


def one_line(text: str) -> str:
    """Text for a table: no line ends, control characters or undecodable bytes of a file name."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.encode("utf-8", "replace").decode().split())


def _in_notebook() -> bool:
    """Whether output goes to a notebook; looks only at an IPython that is already loaded."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")
