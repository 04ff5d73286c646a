"""The parts of `--help` that typer would make too long for a screen: the kinds of values, and the examples."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

_METAVARS = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}
_INDENT = 3
_GAP = 2


def metavar(kind: Any) -> str | None:
    """Return what stands for the value of an option of this type; None leaves it to typer, as for choices.

    A switch has no value, so nothing stands for it.
    """
    while (origin := typing.get_origin(kind)) is not None:
        if origin not in (list, tuple, typing.Union, types.UnionType):
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return _METAVARS.get(kind)


def print_help(epilog: str | None, print_rest: Callable[[], None]) -> None:
    """Print a help page, with the lines and examples at its end.

    Args:
        epilog: lines; an example is `[bold]command[/]`, and may have a remark after it.
        print_rest: prints what comes before.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    print_rest()
    console = Console(highlight=False, emoji=False)
    lines = [line for line in (epilog or "").splitlines() if line.strip()]
    examples = [line.partition("[/]") for line in lines if line.startswith("[bold]")]
    column = _column([(command + end, remark.strip()) for command, end, remark in examples], console.width - _INDENT)
    for line in lines:
        command, end, remark = line.partition("[/]")
        if not line.startswith("[bold]"):
            console.print(Padding(Text.from_markup(line), (0, 1)))
            continue
        shown, remark = Text.from_markup(command + end), remark.strip()
        fits = shown.cell_len <= column and column + Text(remark).cell_len <= console.width - _INDENT
        if remark and fits:
            shown.append(" " * (column - shown.cell_len) + remark)
        console.print(Text(" " * _INDENT) + shown, soft_wrap=True)  # a command can be copied as a whole
        if remark and not fits:
            console.print(Padding(Text(remark, overflow="fold"), (0, 0, 0, _INDENT + 4)))


def _column(examples: list[tuple[str, str]], width: int) -> int:
    """Return where the remarks begin: behind the longest command that leaves room for its remark."""
    from rich.text import Text

    ends = [
        end
        for command, remark in examples
        if remark and (end := Text.from_markup(command).cell_len + _GAP) + Text(remark).cell_len <= width
    ]
    return max(ends, default=0)
