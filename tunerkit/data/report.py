"""The table of decisions about a dataset, for people, files and notebooks."""

from __future__ import annotations

import csv
import html
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tunerkit.data.frames import number
from tunerkit.data.samples import ClipRow, Sample
from tunerkit.errors import DatasetError

HEADINGS = ("dataset", "file", "found", "used", "decision", "reason")
NAMED_FILES = 3
"""Files named per cause of drops in the summary; the table names all."""


class DatasetReport:
    """One row per file of the datasets.

    Attributes:
        rows: in the order of the datasets and then of the relative paths.
    """

    def __init__(self, rows: Iterable[ClipRow]) -> None:
        self.rows = tuple(rows)
        folders = {name: [row.file.parent for row in self.rows if row.dataset == name] for name in self.datasets}
        self._roots = {name: Path(os.path.commonpath(paths)) for name, paths in folders.items()}

    @property
    def datasets(self) -> tuple[str, ...]:
        """Ids of the datasets, in their order."""
        return tuple(dict.fromkeys(row.dataset for row in self.rows))

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of all used files, in the order of the rows."""
        return tuple(row.sample for row in self.rows if row.sample is not None)

    @property
    def dropped(self) -> tuple[ClipRow, ...]:
        """The rows of the files that are not used."""
        return tuple(row for row in self.rows if row.decision == "dropped")

    def require_samples(self) -> tuple[Sample, ...]:
        """The samples, at least one of every dataset.

        Raises:
            DatasetError: a dataset has no usable file; the message holds its table and how to change that.
        """
        for name in self.datasets:
            rows = [row for row in self.rows if row.dataset == name]
            if not any(row.sample for row in rows):
                fixes = "; ".join(f"{cause}: {fix}" for cause, _, fix in _grouped_drops(rows))
                table = DatasetReport(rows).to_text()
                raise DatasetError(f"dataset '{name}' has no usable file.\n{table}\nFix: {fixes}.")
        if not self.rows:
            raise DatasetError("there is no dataset to train on. Fix: add one to data_backend_config.")
        return self.samples

    def summary(self) -> str:
        """One paragraph: files used, their buckets, seconds and captions, and why others are dropped."""
        samples = self.samples
        seconds = sum(sample.seconds for sample in samples)
        captions = sum(len(sample.captions) for sample in samples)
        files = f"{len(self.rows)} file{'' if len(self.rows) == 1 else 's'}"
        parts = [f"{files}: {len(samples)} used, {len(self.dropped)} dropped."]
        if samples:
            buckets = Counter(sample.bucket for sample in samples)
            listed = ", ".join(f"{bucket} ({count})" for bucket, count in sorted(buckets.items()))
            parts.append(f"Buckets: {listed}. {seconds:.1f} s of video, {captions} captions.")
        for cause, rows, fix in _grouped_drops(self.rows):
            names = [row.file.name for row in rows]
            more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
            parts.append(f"{len(names)} dropped ({cause}): {', '.join(names[:NAMED_FILES])}{more}; {fix}.")
        return _one_line(" ".join(parts))

    def to_text(self) -> str:
        """The table with aligned columns, one line per file, and the fix below each dropped one."""
        lines = [HEADINGS, *(self._cells(row) for row in self.rows)]
        # The last column is long and stays unaligned.
        widths = [max(_columns(line[column]) for line in lines) for column in range(len(HEADINGS) - 1)]
        indent = " " * (sum(widths) + 2 * len(widths))
        text = []
        for line, row in zip(lines, (None, *self.rows), strict=True):
            cells = [cell + " " * (width - _columns(cell)) for cell, width in zip(line, widths, strict=False)]
            text.append("  ".join([*cells, line[-1]]).rstrip())
            if row is not None and row.fix:
                text.append(f"{indent}fix: {_one_line(row.fix)}")
        return "\n".join(text)

    def to_html(self) -> str:
        """The summary and the table as HTML; every text from files and settings is escaped."""
        head = "".join(f"<th style='text-align:left'>{heading}</th>" for heading in HEADINGS)
        body = "".join(self._html_row(row) for row in self.rows)
        return f"<p>{html.escape(self.summary())}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_csv(self, path: str | Path) -> Path:
        """Write every fact and decision, one line per file; returns the path."""
        target = Path(path)
        with target.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, fieldnames=CSV_COLUMNS)
            writer.writeheader()
            writer.writerows(_facts(row) for row in self.rows)
        return target

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
        return f"DatasetReport({len(self.samples)} used, {len(self.dropped)} dropped)"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ClipRow]:
        return iter(self.rows)

    def _cells(self, row: ClipRow) -> tuple[str, ...]:
        file = os.path.relpath(row.file, self._roots[row.dataset])
        cells = (row.dataset, file, _found(row), _used(row), row.decision, row.reason)
        return tuple(_one_line(cell) for cell in cells)

    def _html_row(self, row: ClipRow) -> str:
        *cells, reason = self._cells(row)
        if row.fix:
            reason += f" Fix: {_one_line(row.fix)}"
        data = "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in (*cells, reason))
        return f"<tr>{data}</tr>"


CSV_COLUMNS: tuple[str, ...] = (
    "dataset", "file", "kind", "decision", "cause", "reason", "fix",
    "width", "height", "fps", "frames", "duration", "has_audio", "codec", "rotation", "digest",
    "bucket", "used_frames", "first_frame", "last_frame", "used_fps", "used_seconds",
    "size", "resized", "crop", "repeats", "is_i2v", "captions", "caption",
)  # fmt: skip


def _facts(row: ClipRow) -> dict[str, object]:
    facts: dict[str, object] = {
        "dataset": row.dataset, "file": str(row.file), "kind": row.kind, "decision": row.decision,
        "cause": row.cause, "reason": row.reason, "fix": row.fix,
    }  # fmt: skip
    if row.source:
        for key in (
            "width",
            "height",
            "fps",
            "frames",
            "duration",
            "has_audio",
            "codec",
            "rotation",
            "digest",
        ):
            facts[key] = getattr(row.source, key)
    sample = row.sample
    if sample:
        facts |= {
            "bucket": sample.bucket,
            "used_frames": len(sample.frame_indices),
            "first_frame": sample.frame_indices[0],
            "last_frame": sample.frame_indices[-1],
            "used_fps": sample.fps,
            "used_seconds": round(sample.seconds, 3),
            "size": "{}x{}".format(*sample.size),
            "resized": "{}x{}".format(*sample.resized),
            "crop": "{},{}".format(*sample.crop),
            "repeats": sample.repeats,
            "is_i2v": sample.is_i2v,
            "captions": len(sample.captions),
            "caption": sample.captions[0],
        }
    return facts


def _grouped_drops(rows: Sequence[ClipRow]) -> list[tuple[str, list[ClipRow], str]]:
    """(cause, its rows, what to do) of the dropped rows, the most frequent cause first."""
    groups: dict[str, list[ClipRow]] = {}
    for row in rows:
        if row.decision == "dropped":
            groups.setdefault(row.cause or "other", []).append(row)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [(cause, group, _common_fix(group)) for cause, group in ordered]


def _common_fix(group: Sequence[ClipRow]) -> str:
    """The fix of all rows where it is the same; where numbers differ, the first as an example."""
    fixes = list(dict.fromkeys(row.fix for row in group))
    return fixes[0] if len(fixes) == 1 else f"for example, {fixes[0]}; each file's row has its own fix"


def _found(row: ClipRow) -> str:
    source = row.source
    if source is None:
        return "-"
    if row.kind == "image":
        return f"{source.width}x{source.height}"
    sound = ", sound" if source.has_audio else ""
    return f"{source.width}x{source.height}, {number(source.fps)} fps, {source.frames} frames{sound}"


def _used(row: ClipRow) -> str:
    return row.sample.bucket if row.sample else "-"


def _one_line(text: str) -> str:
    """Text for a table: no line ends, control characters or undecodable bytes of a file name."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.encode("utf-8", "replace").decode().split())


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal: East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _in_notebook() -> bool:
    """Whether output goes to a notebook; looks only at an IPython that is already loaded."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")
