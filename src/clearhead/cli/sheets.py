"""Tables that a verb shows: on a terminal of 80 columns, or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(slots=True)
class Row:
    """One line of a table.

    Attributes:
        cells: its texts, one a column; the first names the line.
        depth: how far the name is moved in.
    """

    cells: Sequence[str]
    depth: int = 0


@dataclass(slots=True)
class Sheet:
    """One table.

    Attributes:
        header: the columns' names.
        left: how many columns, from the left, hold words; the others hold numbers and are set to the right.
        rows: the lines; at depth 0 they are the table's own headings where `headings` is set.
        footer: a last line, set apart; none where empty.
        title: a line above the table; none where empty.
        note: a paragraph below the title; none where empty.
        headings: whether the lines at depth 0 stand out.
    """

    header: Sequence[str]
    left: int = 1
    rows: list[Row] = field(default_factory=list)
    footer: Sequence[str] = ()
    title: str = ""
    note: str = ""
    headings: bool = False

    def add(self, *cells: str, depth: int = 0) -> None:
        """Adds a line."""
        self.rows.append(Row(cells, depth))

    def table(self) -> Table:
        """The table for a terminal; words in the second column break where the line ends, nothing else does."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=bool(self.footer)
        )
        for i, name in enumerate(self.header):
            justify = "left" if i < self.left else "right"
            footer = self.footer[i] if self.footer else ""
            wraps = 0 < i < self.left
            table.add_column(name, footer=footer, justify=justify, no_wrap=not wraps)  # type: ignore[arg-type]
        for row in self.rows:
            style = "bold" if self.headings and row.depth == 0 else "dim" if row.depth > 2 else ""
            cells = ["  " * row.depth + row.cells[0], *row.cells[1:]]
            table.add_row(*(Text(cell) for cell in cells), style=style)
        return table

    def markdown(self) -> str:
        """The table in Markdown, with its title as a line of bold text."""
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += [self.note, ""] if self.note else []
        lines.append(_line(name.replace("\n", " ") for name in self.header))
        lines.append("|" + "|".join("---" if i < self.left else "---:" for i in range(len(self.header))) + "|")
        for row in self.rows:
            name = f"**{row.cells[0]}**" if self.headings and row.depth == 0 else row.cells[0]
            lines.append(_line(["&nbsp;&nbsp;" * row.depth + name, *row.cells[1:]]))
        if self.footer:
            lines.append(_line(self.footer))
        return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
