"""Small tables, as HTML and as text."""

from __future__ import annotations

import html
from collections.abc import Sequence

Row = Sequence[str]


def table_html(rows: Sequence[Row], head: Row = ()) -> str:
    """Rows as an HTML table; every text is escaped."""
    top = f"<thead><tr>{_cells(head, 'th')}</tr></thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</tbody></table>"


def table_text(rows: Sequence[Row], head: Row = ()) -> str:
    """Rows with aligned columns; the last one is not padded."""
    lines = [head, *rows] if head else list(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)] if lines else []
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def _cells(row: Row, tag: str = "td") -> str:
    return "".join(f"<{tag} style='text-align:left'>{html.escape(cell)}</{tag}>" for cell in row)
