"""The gallery as a page that needs no kernel, file or address: posters over the steps, players of first and last."""

from __future__ import annotations

import html
from pathlib import Path

from tunerkit_widgets.gallery_board import Board, Column, Row, probe, spread
from tunerkit_widgets.guard import QUIET_COLOUR
from tunerkit_widgets.previews import data_uri, poster, preview
from tunerkit_widgets.tables import table_text
from tunerkit_widgets.texts import text
from tunerkit_widgets.videos import LEAST_BYTES, PLAYER_WIDTH, SOUND_FACTOR

POSTER_WIDTH = 120
"""Pixels."""
POSTER_BYTES = 4_000
"""About what a poster takes."""
MOST_POSTERS = 8
"""Per row: more would not fit side by side on a page."""
POSTER_SHARE = 0.25
"""Of the room, for all posters together."""
BASE64 = 4 / 3
"""Characters per byte in an address that holds the data."""
ROW_CHARACTERS = 2_000
"""Of tags and words around the data of a row."""


def board_html(board: Board, most: int) -> str:
    """The board as HTML of at most `most` characters where that is possible; what was left out is said.

    Rows are left out only where not even the least video of each would fit; posters before that.
    """
    if not board.rows:
        return f"<p>{html.escape(text('gallery.none'))}</p>"
    heard = any((found := probe(row.newest)) is not None and found.sound for row in board.rows)
    least = 2 * LEAST_BYTES * (SOUND_FACTOR if heard else 1) * BASE64 + ROW_CHARACTERS
    rows = board.rows[: max(1, int(most // least))]
    room = int((most - ROW_CHARACTERS * len(rows)) / BASE64)
    posters = min(MOST_POSTERS, int(POSTER_SHARE * room / POSTER_BYTES / len(rows)))
    pages = [_row_html(row, posters, room // len(rows)) for row in rows]
    return "".join(pages) + _left_out(board, len(rows), posters)


def board_text(board: Board) -> str:
    """One line per row, with the steps that were rendered."""
    if not board.rows:
        return text("gallery.none")
    lines = [(row.prompt or row.nickname, row.details(), _steps(list(row.videos))) for row in board.rows]
    return table_text(lines)


def _row_html(row: Row, posters: int, room: int) -> str:
    """A row whose data take about `room` bytes."""
    chosen = spread(list(row.videos), posters) if posters > 1 else []
    strip = [(column, data) for column in chosen if (data := _poster(row.videos[column]))]
    each = (room - sum(len(data) for _, data in strip)) // 2
    ends = spread(list(row.videos), 2)
    players = "".join(_player(row, column, each) for column in ends)
    pictures = "".join(
        f"<figure style='display:inline-block;margin:0 6px 0 0'><img src='{data_uri(data, 'image/jpeg')}' "
        f"width='{POSTER_WIDTH}' alt='{html.escape(column.title, quote=True)}'>"
        f"<figcaption><small>{html.escape(column.title)}</small></figcaption></figure>"
        for column, data in strip
    )
    title = html.escape(row.prompt or row.nickname)
    return (
        f"<div style='margin-bottom:18px'><b>{title}</b><br>"
        f"<small style='color:{QUIET_COLOUR}'>{html.escape(_about(row))}</small>"
        f"<div style='margin:6px 0'>{players}</div><div>{pictures}</div></div>"
    )


def _player(row: Row, column: Column, most: int) -> str:
    path = row.videos[column]
    try:
        movie = data_uri(preview(path, most), "video/mp4")
    except (OSError, ValueError, IndexError):
        return f"<small>{html.escape(text('gallery.gone', name=path.name))}</small>"
    label = html.escape(f"{column.title}: {row.prompt or row.nickname}", quote=True)
    # The address stands on the tag itself: notebooks that are not trusted drop <source>.
    return (
        "<figure style='display:inline-block;margin:0 8px 0 0;vertical-align:top'>"
        f"<video src='{movie}' width='{PLAYER_WIDTH}' aria-label='{label}' controls loop playsinline "
        f"preload='metadata'></video><figcaption>{html.escape(column.title)}</figcaption></figure>"
    )


def _about(row: Row) -> str:
    parts = [row.details()]
    if row.different:
        parts.append(text("gallery.different", names=", ".join(row.different)))
    if row.image_name:
        parts.append(text("gallery.starts_from", name=row.image_name))
    return " · ".join(parts)


def _left_out(board: Board, rows: int, posters: int) -> str:
    """What the page does not show, in words."""
    notes = []
    if rows < len(board.rows):
        notes.append(text("gallery.more_rows", count=len(board.rows) - rows))
    shown = set(spread(board.columns, max(2, posters)))
    missing = [column for column in board.columns if column not in shown]
    if missing:
        notes.append(text("gallery.more_steps", steps=_steps(missing)))
    return f"<p><small>{html.escape(' '.join(notes))}</small></p>" if notes else ""


def _steps(columns: list[Column]) -> str:
    return ", ".join(column.title for column in columns)


def _poster(path: Path) -> bytes | None:
    try:
        return poster(path, POSTER_WIDTH)
    except (OSError, ValueError, StopIteration, IndexError):
        return None
