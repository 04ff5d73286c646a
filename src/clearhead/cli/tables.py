"""Tables for a terminal of 80 columns or for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clearhead.cli.language import translate

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(slots=True)
class TableRow:
    """One line of a table.

    Attributes:
        cells: its texts, one for each column; the first names the line.
        depth: how far the name is indented.
    """

    cells: Sequence[str]
    depth: int = 0


@dataclass(slots=True)
class TextTable:
    """One table.

    Attributes:
        header: the columns' names.
        left: how many columns, from the left, contain words; the others contain numbers and are right-aligned.
        rows: the lines.
        footer: a last line, set apart; none if empty.
        title: a line above the table; none if empty.
        note: a paragraph below the title; none if empty.
        headings: whether the lines at depth 0 are headings, in bold.
    """

    header: Sequence[str]
    left: int = 1
    rows: list[TableRow] = field(default_factory=list)
    footer: Sequence[str] = ()
    title: str = ""
    note: str = ""
    headings: bool = False

    def add(self, *cells: str, depth: int = 0) -> None:
        """Add a line."""
        self.rows.append(TableRow(cells, depth))

    def for_terminal(self) -> Table:
        """Return the table for a terminal. Only columns of words other than the first wrap."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=bool(self.footer)
        )
        for i, name in enumerate(self.header):
            justify = "left" if i < self.left else "right"
            footer = translate(self.footer[i]) if self.footer else ""
            wraps = 0 < i < self.left
            table.add_column(translate(name), footer=footer, justify=justify, no_wrap=not wraps)  # type: ignore[arg-type]
        for row in self.rows:
            style = "bold" if self.headings and row.depth == 0 else "dim" if row.depth > 2 else ""
            cells = [translate(cell) for cell in row.cells]
            table.add_row(Text("  " * row.depth + cells[0]), *map(Text, cells[1:]), style=style)
        return table

    def for_markdown(self) -> str:
        """Return the table in Markdown, with its title as a line of bold text."""
        lines = [f"**{translate(self.title)}**", ""] if self.title else []
        lines += [translate(self.note), ""] if self.note else []
        lines.append(_line(translate(name).replace("\n", " ") for name in self.header))
        lines.append("|" + "|".join("---" if i < self.left else "---:" for i in range(len(self.header))) + "|")
        for row in self.rows:
            first, *others = [translate(cell) for cell in row.cells]
            name = f"**{first}**" if self.headings and row.depth == 0 else first
            lines.append(_line(["&nbsp;&nbsp;" * row.depth + name, *others]))
        if self.footer:
            lines.append(_line(map(translate, self.footer)))
        return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
