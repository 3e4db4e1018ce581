"""The rows of a dataset as the page shows them, and the table of its buckets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import tunerkit as tk
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import text

NUMBERS = re.compile(r"\d+(?:\.\d+)?")

Row = Any
"""A row of a `tk.DatasetReport`: one file."""


@dataclass
class Bucket:
    """Clips that can share a batch.

    Attributes:
        name: width x height @ frames, and the seconds of sound where there is any.
        clips: files and windows that are visited by themselves.
        visits: in an epoch; of a dataset that is drawn less often than others, on average.
        batches: in an epoch, likewise; None where the settings are not known.
    """

    name: str
    clips: int = 0
    visits: Fraction = Fraction(0)
    batches: Fraction | None = None


@dataclass
class _Share:
    """The part of a bucket that is drawn at one rate."""

    clips: int = 0
    visits: int = 0


def buckets(report: tk.DatasetReport, config: tk.TrainConfig | None) -> list[Bucket]:
    """The buckets of a report by name, with what an epoch takes of each.

    Datasets of equal probability and batch size are drawn from together, as in training.
    """
    pools: dict[tuple[Fraction, int, str], dict[str, _Share]] = {}
    for row in report.rows:
        for sample in row.samples:
            share = pools.setdefault(_pool(row.dataset, config), {}).setdefault(sample.bucket, _Share())
            # Of windows to choose from, each visit draws one.
            if sample.alternatives == 1 or sample is row.samples[0]:
                share.clips += 1
                share.visits += sample.repeats + 1
    rates = _rates(pools, config)
    found: dict[str, Bucket] = {}
    for key, shares in pools.items():
        for name, share in shares.items():
            bucket = found.setdefault(name, Bucket(name))
            batches = -(-share.visits // key[1])
            visits = batches * key[1] if config and config.allow_dataset_oversubscription else share.visits
            bucket.clips += share.clips
            bucket.visits += visits * rates[key]
            if config:
                bucket.batches = (bucket.batches or Fraction(0)) + batches * rates[key]
    return sorted(found.values(), key=lambda bucket: [float(number) for number in NUMBERS.findall(bucket.name)])


def bucket_rows(found: list[Bucket]) -> list[tuple[str, str, str, str]]:
    """(bucket, clips, visits per epoch, batches per epoch), with a line of totals below several."""
    rows = [(b.name, str(b.clips), _number(b.visits), _number(b.batches)) for b in found]
    if len(found) > 1:
        known = [b.batches for b in found if b.batches is not None]
        visits = sum((b.visits for b in found), Fraction(0))
        batches = sum(known, Fraction(0)) if known else None
        rows.append((text("dataset.total"), str(sum(b.clips for b in found)), _number(visits), _number(batches)))
    return rows


def bucket_head() -> tuple[str, str, str, str]:
    """The headings of the table of buckets."""
    return (text("dataset.bucket"), text("dataset.clips"), text("dataset.visits"), text("dataset.batches"))


def static_html(report: tk.DatasetReport, found: list[Bucket], shown: int) -> str:
    """The table of files, `shown` of them with pictures, and that of buckets; needs no widgets and no files."""
    files = f"<div style='overflow-x:auto'>{report.to_html(shown, thumbnails=True)}</div>"
    return files + table_html(bucket_rows(found), bucket_head())


def static_text(report: tk.DatasetReport, found: list[Bucket]) -> str:
    """The same as plain text."""
    return "\n".join([report.to_text(), report.summary(), "", table_text(bucket_rows(found), bucket_head())])


def page_rows(report: tk.DatasetReport, captions: dict[int, list[str]]) -> list[dict[str, Any]]:
    """What the page shows of every file, in the order of the report.

    Args:
        captions: of files that are not used and yet have captions, by number of the row.
    """
    roots = _roots(report)
    return [
        {
            "name": clean(os.path.relpath(row.file, roots[row.dataset])),
            "dataset": row.dataset,
            "used": bool(row.samples),
            "reason": clean(row.reason),
            "fix": clean(row.fix),
            "cause": clean(row.cause),
            "found": _found(row),
            "length": row.source.duration if row.source else 0,
            "captions": list(row.sample.captions) if row.sample else captions.get(number, []),
            "uncaptioned": not row.samples and "caption" in row.cause,
            **_used(row),
        }
        for number, row in enumerate(report.rows)
    ]


def clean(words: str) -> str:
    """Text that any page can show: file names may hold bytes that are no text."""
    return words.encode("utf-8", "replace").decode()


def _used(row: Row) -> dict[str, Any]:
    sample = row.sample
    if sample is None:
        return {"bucket": "", "badges": []}
    return {
        "bucket": sample.bucket,
        "frames": len(sample.frame_indices),
        "windows": len(row.samples),
        "fps": sample.fps,
        "seconds": sample.seconds,
        "size": sample.size,
        "resized": sample.resized,
        "crop": sample.crop,
        "spans": _spans(row),
        "badges": _badges(row),
    }


def _badges(row: Row) -> list[str]:
    """What sets a used file apart, as names of texts."""
    sample = row.sample
    badges = []
    if row.kind == "image":
        badges.append("dataset.badge_still")
    if any(one.mask for one in row.samples):
        badges.append("dataset.badge_mask")
    sounds = [one.sound for one in row.samples if one.sound is not None]
    if sounds:
        badges.append("dataset.badge_silent" if all(sound.silent for sound in sounds) else "dataset.badge_sound")
    if sample.is_i2v:
        badges.append("dataset.badge_i")
    return badges


def _spans(row: Row) -> list[tuple[float, float]]:
    """The seconds of the clip that each window takes."""
    if row.kind == "image" or row.source is None:
        return []
    starts = [
        sample.frame_times[0] if sample.frame_times else sample.frame_indices[0] / (row.source.fps or 1.0)
        for sample in row.samples
    ]
    return [(round(start, 3), round(start + s.seconds, 3)) for start, s in zip(starts, row.samples, strict=True)]


def _found(row: Row) -> str:
    source = row.source
    if source is None:
        return "-"
    values = {"width": source.width, "height": source.height, "frames": source.frames, "fps": f"{source.fps:.4g}"}
    if row.kind == "image":
        return text("dataset.found_still", **values)
    return text("dataset.found", **values, seconds=f"{source.duration:.2f}")


def _roots(report: tk.DatasetReport) -> dict[str, Path]:
    folders: dict[str, set[str]] = {}
    for row in report.rows:
        folders.setdefault(row.dataset, set()).add(os.path.dirname(row.file))
    return {name: Path(os.path.commonpath(paths)) for name, paths in folders.items()}


def _pool(dataset: str, config: tk.TrainConfig | None) -> tuple[Fraction, int, str]:
    """(probability, batch size, dataset where it is drawn by itself)."""
    if config is None:
        return Fraction(1), 1, ""
    found = next((one for one in config.media_datasets if one.id == dataset), None)
    probability = Fraction(str(found.probability)) if found else Fraction(1)
    size = (found.train_batch_size if found else None) or config.train_batch_size
    return probability, size, dataset if config.data_backend_sampling == "uniform" else ""


def _rates(
    pools: dict[tuple[Fraction, int, str], dict[str, _Share]], config: tk.TrainConfig | None
) -> dict[tuple[Fraction, int, str], Fraction]:
    """The part of each pool that an epoch takes, 0 to 1."""
    uniform = config is not None and config.data_backend_sampling == "uniform"
    weights = {
        key: key[0] / (sum(-(-share.visits // key[1]) for share in shares.values()) if uniform else 1)
        for key, shares in pools.items()
    }
    largest = max(weights.values(), default=Fraction(0)) or Fraction(1)
    return {key: weight / largest for key, weight in weights.items()}


def _number(value: Fraction | None) -> str:
    if value is None:
        return "-"
    return str(value) if value.denominator == 1 else f"{float(value):.1f}"
