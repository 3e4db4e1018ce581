"""The table of decisions about a dataset, for people, files and notebooks."""

from __future__ import annotations

import csv
import html
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tunerkit.data.captions import CAUSES as CAPTION_CAUSES
from tunerkit.data.frames import number
from tunerkit.data.samples import ClipRow, Sample
from tunerkit.data.thumbnails import thumbnail
from tunerkit.errors import DatasetError

HEADINGS = (
    "dataset", "file", "found size", "fps", "frames", "duration", "audio",
    "used frames", "span", "sound", "used size", "crop box", "bucket", "repeats", "caption", "decision", "reason",
)  # fmt: skip
FIX_HEADING = "what would change it"
CAPTION_CHARACTERS = 40
"""Characters of a caption in the table; `to_csv` writes it whole."""
NAMED_FILES = 3
"""Files named per cause of drops in the summary; the table names all."""


class DatasetReport:
    """One row per file of the datasets.

    Attributes:
        rows: in the order of the datasets and then of the relative paths.
    """

    def __init__(self, rows: Iterable[ClipRow]) -> None:
        self.rows = tuple(rows)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Ids of the datasets, in their order."""
        return tuple(dict.fromkeys(row.dataset for row in self.rows))

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of all used files, one per window, in the order of the rows."""
        return tuple(sample for row in self.rows for sample in row.samples)

    @cached_property
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
        used = [row for row in self.rows if row.samples]
        seconds = sum(sample.seconds for sample in samples)
        captions = sum(len(row.samples[0].captions) for row in used)
        files = f"{len(self.rows)} file{'' if len(self.rows) == 1 else 's'}"
        windows = f" ({len(samples)} windows)" if len(samples) > len(used) else ""
        parts = [f"{files}: {len(used)} used{windows}, {len(self.dropped)} dropped."]
        if samples:
            buckets = Counter(sample.bucket for sample in samples)
            listed = ", ".join(f"{bucket} ({count})" for bucket, count in sorted(buckets.items()))
            parts.append(f"Buckets: {listed}. {seconds:.1f} s of video, {captions} captions.")
            heard = [sample.sound for sample in samples if sample.sound is not None]
            if heard:
                silent = sum(sound.silent for sound in heard)
                parts.append(f"{len(heard) - silent} with sound, {silent} silent.")
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

    def to_html(self, rows: int | None = None, thumbnails: bool = False) -> str:
        """The summary and the table as HTML; every text from files and settings is escaped.

        Args:
            rows: show no more than this many, the dropped ones first, and say how many are left out; None = all, in
                their order.
            thumbnails: with a small picture of what is used of each file; it is decoded now.
        """
        shown: Sequence[ClipRow] = self.rows
        if rows is not None and len(shown) > rows:
            shown = sorted(shown, key=lambda row: row.decision != "dropped")[:rows]
        headings = [*HEADINGS, FIX_HEADING]
        head = "".join(f"<th style='text-align:left'>{heading}</th>" for heading in [""] * thumbnails + headings)
        body = "".join(self._html_row(row, thumbnails) for row in shown)
        rest = len(self.rows) - len(shown)
        more = f"<p>and {rest} more file{'' if rest == 1 else 's'}; to_csv writes all.</p>" if rest else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{html.escape(self.summary())}</p>{table}{more}"

    def to_csv(self, path: str | Path) -> Path:
        """Write every fact and decision, one line per file; returns the path."""
        target = Path(path)
        with target.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, fieldnames=CSV_COLUMNS)
            writer.writeheader()
            writer.writerows(_facts(row) for row in self.rows)
        return target

    def show(self, rows: int = 50, thumbnails: bool = True) -> None:
        """Show the table: rendered in a notebook with pictures, printed elsewhere.

        Args:
            rows: files shown in a notebook, the dropped ones first where there are more.
            thumbnails: in a notebook, with a small picture of what is used of each file.
        """
        if _in_notebook():
            from IPython.display import display

            page = self.to_html(rows, thumbnails)
            display({"text/html": page, "text/plain": f"{self.to_text()}\n{self.summary()}"}, raw=True)
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

    @cached_property
    def _roots(self) -> dict[str, str]:
        """The folder that all files of a dataset lie in, by dataset."""
        folders: dict[str, set[str]] = {}
        for row in self.rows:
            folders.setdefault(row.dataset, set()).add(os.path.dirname(row.file))
        return {name: os.path.commonpath(paths) for name, paths in folders.items()}

    def _cells(self, row: ClipRow) -> tuple[str, ...]:
        file = os.path.relpath(row.file, self._roots[row.dataset])
        cells = (row.dataset, file, *_found(row), *_used(row), _caption(row), row.decision, row.reason)
        return tuple(_one_line(cell) for cell in cells)

    def _html_row(self, row: ClipRow, thumbnails: bool) -> str:
        texts = (*self._cells(row), _one_line(row.fix))
        cells = [html.escape(text) for text in texts]
        if thumbnails:
            picture = thumbnail(row)
            cells.insert(0, f"<img src='{picture}' alt='' style='max-width:none'>" if picture else "")
        data = "".join(f"<td style='text-align:left'>{cell}</td>" for cell in cells)
        return f"<tr>{data}</tr>"


CSV_COLUMNS: tuple[str, ...] = (
    "dataset", "file", "kind", "decision", "cause", "reason", "fix",
    "width", "height", "fps", "frames", "duration", "has_audio", "codec", "rotation", "digest",
    "bucket", "used_frames", "windows", "first_frame", "last_frame", "span", "used_fps", "used_seconds",
    "sound", "sound_file",
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
            "windows": len(row.samples),
            "span": _spans(row),
            "first_frame": sample.frame_indices[0],
            "last_frame": sample.frame_indices[-1],
            "used_fps": sample.fps,
            "used_seconds": round(sum(sample.seconds for sample in row.samples), 3),
            "sound": _sounds(row, names=False),
            "sound_file": next((str(s.sound.file) for s in row.samples if s.sound and not s.sound.silent), ""),
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


def _found(row: ClipRow) -> tuple[str, ...]:
    """Cells: size, frames per second, frames, duration, audio."""
    source = row.source
    if source is None:
        return ("-",) * 5
    size = f"{source.width}x{source.height}"
    if row.kind == "image":
        return (size, "-", "1", "-", "-")
    audio = "yes" if source.has_audio else "no"
    return (size, number(source.fps), str(source.frames), f"{source.duration:.2f} s", audio)


def _used(row: ClipRow) -> tuple[str, ...]:
    """Cells: frames, span, sound, size, crop box, bucket, repeats."""
    sample = row.sample
    if sample is None:
        return ("-",) * 7
    windows = len(row.samples)
    frames = str(len(sample.frame_indices)) + (f" x {windows} windows" if windows > 1 else "")
    if sample.alternatives > 1:
        frames += ", one per visit"
    (width, height), (x, y) = sample.size, sample.crop
    box = f"{width}x{height} at {x},{y} of {sample.resized[0]}x{sample.resized[1]}"
    spans, sound = _spans(row) or "-", _sounds(row)
    return (frames, spans, sound, f"{width}x{height}", box, sample.bucket, str(sample.repeats))


def _sounds(row: ClipRow, *, names: bool = True) -> str:
    """`none`, `silent`, `yes`, or (with `names`) the sound file where it is not the clip; all of them where windows
    differ."""
    found: dict[str, None] = {}
    for sample in row.samples:
        sound = sample.sound
        other = sound is not None and names and sound.file != sample.file
        found["none" if sound is None else "silent" if sound.silent else sound.file.name if other else "yes"] = None
    return ", ".join(found)


def _spans(row: ClipRow) -> str:
    """The seconds of the clip that each window takes, on the file's own clock: `0.00-5.06 s`."""
    if row.kind == "image" or row.source is None:
        return ""
    spans = []
    for sample in row.samples:
        # Frames without times are shown at a constant rate.
        start = sample.frame_times[0] if sample.frame_times else sample.frame_indices[0] / (row.source.fps or 1.0)
        spans.append(f"{start:.2f}-{start + sample.seconds:.2f}")
    return ", ".join(spans) + " s" if spans else ""


def _caption(row: ClipRow) -> str:
    """The first caption and how many there are, or why there is none."""
    if row.sample is None:
        missing = [cause for cause in row.cause.split(", ") if cause in CAPTION_CAUSES]
        return missing[0] if missing else "-"
    first, *others = row.sample.captions
    short = first if len(first) <= CAPTION_CHARACTERS else first[: CAPTION_CHARACTERS - 3].rstrip() + "..."
    return f"{short} (+ {len(others)})" if others else short


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
