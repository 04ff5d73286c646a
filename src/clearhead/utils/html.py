"""Small HTML for notebooks: tables that follow the notebook's own style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

LONGEST_TABLE = 200
"""Rows that a table shows; further rows are only counted."""


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return a table; every text is escaped, and texts are left-aligned.

    Args:
        header: the columns' names.
        rows: the cells; a number is right-aligned.
        caption: a line above the table.
    """
    lines, rest = [], 0
    for index, row in enumerate(rows):
        if index >= LONGEST_TABLE:
            rest += 1
            continue
        cells = "".join(
            f"<td style='text-align:{'right' if isinstance(cell, (int, float)) else 'left'}'>{escape(_text(cell))}</td>"
            for cell in row
        )
        lines.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in header)
    above = f"<div><b>{escape(caption)}</b></div>" if caption else ""
    below = f"<small>and {rest:,} more</small>" if rest else ""
    return f"<div>{above}<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{below}</div>"


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
