"""The results of a sweep as a table for a notebook, and as one page that needs nothing beside it."""

from __future__ import annotations

import html
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from tunerkit.batch.plan import short
from tunerkit.batch.previews import video_uri
from tunerkit.batch.results import SweepResult, SweepRow, curve
from tunerkit.cli_output import duration

PREVIEW_BYTES = 250_000
"""Of each video in the page."""
LEAST_BYTES = 8_000
"""A video below that can hardly be recognised: rather than that, fewer runs have one."""
PLAYER_WIDTH = 200
CURVE_SIZE = (140, 44)
CURVE_POINTS = 120
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Column:
    """A column: its head, what it is sorted by, and what stands in it."""

    head: str
    key: Callable[[SweepRow], Any]
    cell: Callable[[SweepRow], str]


def page(result: SweepResult, start: Path) -> str:
    """The whole page.

    Args:
        result: what to show.
        start: the folder that the page will lie in; files are linked from there.
    """
    template = Template((_HERE / "report.html").read_text(encoding="utf-8"))
    name = result.notebook.name if result.notebook else result.output_dir.name

    def player(row: SweepRow) -> str:
        return _player(row, PREVIEW_BYTES, keep=True) + _link(result, row.video, "full file", start)

    def files(row: SweepRow) -> str:
        links = (_link(result, row.notebook, "notebook", start), _link(result, row.log, "log", start))
        return " ".join(link for link in links if link)

    columns = [*_columns(result), _Column("Video", lambda row: row.video is not None, player)]
    columns.append(_Column("Files", lambda row: row.number, files))
    return template.substitute(
        title=html.escape(f"Sweep of {name}"),
        summary=html.escape(summary(result)),
        when=time.strftime("%Y-%m-%d %H:%M"),
        table=_table(result, columns),
    )


def table(result: SweepResult, room: int) -> str:
    """The table alone, with videos as far as there is room for them; needs no style or script.

    Args:
        result: what to show.
        room: bytes for all videos together.
    """
    filmed = [row for row in _ranked(result) if row.video is not None]
    shown = filmed[: room // LEAST_BYTES]
    columns = _columns(result)
    if shown:
        each = room * 3 // 4 // len(shown)  # written as text, a video takes a third more
        columns.append(_Column("Video", lambda _: 0, lambda row: _player(row, each) if row in shown else ""))
    return f"<p>{html.escape(summary(result))}</p>{_table(result, columns)}"


def summary(result: SweepResult) -> str:
    """How many runs there are in each state, and the best one."""
    counts = Counter(row.state for row in result)
    words = [f"{len(result)} {'run' if len(result) == 1 else 'runs'}: "]
    words[0] += ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"
    best = result.best
    if best is not None:
        measured = best.evaluation is not None
        value = best.evaluation if measured else best.loss
        words.append(f"Lowest {'evaluation' if measured else 'training'} loss {value:.4g} with {best.title}")
    return ". ".join(words)


def _columns(result: SweepResult) -> list[_Column]:
    best, scale = result.best, _scale(result)

    def number(row: SweepRow) -> str:
        return f"{row.number} ★" if best is row else str(row.number)

    def setting(name: str) -> _Column:
        return _Column(name, lambda row: row.settings.get(name), lambda row: _text(row.settings.get(name)))

    def state(row: SweepRow) -> str:
        error = f"<br><small>{html.escape(row.error)}</small>" if row.error else ""
        return f"<span class='state {row.state}'>{row.state}</span>{error}"

    def evaluation(row: SweepRow) -> str:
        return "" if row.evaluation is None else f"{row.evaluation:.4g}<br><small>step {row.evaluation_step}</small>"

    def steps(row: SweepRow) -> str:
        if row.step is None:
            return ""
        return f"{row.step} / {row.total_steps}" if row.total_steps else str(row.step)

    def memory(row: SweepRow) -> str:
        return "" if row.peak_memory is None else f"{row.peak_memory / 2**30:.2f} GiB"

    return [
        _Column("Run", lambda row: row.number, number),
        *(setting(name) for name in result.names),
        _Column("State", lambda row: row.state, state),
        _Column("Final loss", lambda row: row.loss, lambda row: "" if row.loss is None else f"{row.loss:.4g}"),
        _Column("Best evaluation loss", lambda row: row.evaluation, evaluation),
        _Column("Steps", lambda row: row.step, steps),
        _Column("Peak memory", lambda row: row.peak_memory, memory),
        _Column("Time", lambda row: row.seconds, lambda row: "" if row.seconds is None else duration(row.seconds)),
        _Column("Training loss", lambda row: row.loss, lambda row: _curve(row, scale)),
    ]


def _table(result: SweepResult, columns: Sequence[_Column]) -> str:
    head = "".join(
        f"<th scope='col' style='text-align:left;padding:4px 10px'>{html.escape(column.head)}</th>"
        for column in columns
    )
    body = "".join(f"<tr{_marks(result, row)}>{_cells(row, columns)}</tr>" for row in result)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _marks(result: SweepResult, row: SweepRow) -> str:
    return " class='best'" if result.best is row else ""


def _cells(row: SweepRow, columns: Sequence[_Column]) -> str:
    return "".join(
        f"<td style='text-align:left;vertical-align:top;padding:4px 10px' "
        f"data-key='{html.escape(_text(column.key(row)), quote=True)}'>"
        f"{column.cell(row)}</td>"
        for column in columns
    )


def _text(value: Any) -> str:
    return "" if value is None else html.escape(short(value))


def _ranked(result: SweepResult) -> list[SweepRow]:
    """The best first."""

    def rank(row: SweepRow) -> tuple[bool, float]:
        value = row.loss if row.evaluation is None else row.evaluation
        return value is None, value or 0.0

    return sorted(result, key=rank)


def _player(row: SweepRow, max_bytes: int, *, keep: bool = False) -> str:
    if row.video is None:
        return ""
    address = video_uri(row.video, max_bytes, row.notebook.parent if keep else None)
    if address is None:
        return ""
    label = html.escape(f"video of {row.title}", quote=True)
    # The address stands on the tag itself: notebooks that are not trusted drop <source>.
    return (
        f"<video src='{address}' width='{PLAYER_WIDTH}' aria-label='{label}' "
        "controls loop muted playsinline preload='metadata'></video><br>"
    )


def _link(result: SweepResult, path: Path | None, words: str, start: Path) -> str:
    if path is None or not path.is_file():
        return ""
    return f"<a href='{quote(result.relative(path, start))}'>{words}</a>"


def _scale(result: SweepResult) -> tuple[float, float, int]:
    """Least and greatest loss, and the last step, of all runs: their curves can be compared."""
    curves = [curve(row) for row in result]
    losses = [loss for points in curves for _, loss in points]
    last = max((points[-1][0] for points in curves if points), default=1)
    return (min(losses), max(losses), last) if losses else (0.0, 1.0, 1)


def _curve(row: SweepRow, scale: tuple[float, float, int]) -> str:
    points = curve(row)
    if len(points) < 2:
        return ""
    low, high, last = scale
    width, height = CURVE_SIZE
    every = max(1, len(points) // CURVE_POINTS)
    span = high - low or 1.0
    path = " ".join(
        f"{width * step / last:.1f},{2 + (height - 4) * (high - loss) / span:.1f}" for step, loss in points[::every]
    )
    label = f"training loss from {points[0][1]:.4g} to {points[-1][1]:.4g}"
    return (
        f"<svg width='{width}' height='{height}' role='img' aria-label='{label}'>"
        f"<polyline points='{path}' fill='none' stroke='currentColor' stroke-width='1.2'/></svg>"
    )
