"""`clearhead params`: where a GPT-2's parameters are, every number with its formula."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from clearhead.anatomy import Account, Part
    from clearhead.cli.source import Source

EPILOG = """
Examples:

[bold]clearhead params 1558M[/]             the largest of the four released sizes

[bold]clearhead params 124M --book[/]       the book's variant, 163,009,536 parameters

[bold]clearhead params my-model/[/]         from its config, and counted in its weights

[bold]clearhead params gpt2 --markdown[/]   tables for a README or a notebook
"""


def params(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A size (124M, 355M, 774M, 1558M), a config file, a model's folder, or its name on the hub.",
        ),
    ] = "124M",
    book: Annotated[
        bool,
        typer.Option(
            "--book",
            help="Count the variant of the book's chapter 4: no bias on query, key and value, and a head of its own.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with the tree of parts.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Show where the parameters are.

    Each part of the model stands with the formula of its size. Counts inside the block are for one block, shares
    for all blocks together. Where there are weights, they are counted too and must agree.
    """
    from clearhead.anatomy import count_parameters
    from clearhead.cli.source import find_source

    if as_json and markdown:
        raise typer.BadParameter("give --json or --markdown, not both.")
    source = find_source(model)
    config = source.config.replace(qkv_bias=False, tie_weights=False) if book else source.config
    account = count_parameters(config)
    checked = "" if book else source.check(account)
    title = f"{source.name}, as in the book" if book else source.name
    if as_json:
        typer.echo(json.dumps(_as_json(source, account, checked), indent=2, ensure_ascii=False))
    elif markdown:
        typer.echo(_as_markdown(title, account, checked))
    else:
        _print(title, account, checked)


# --------------------------------------------------------------------------------------------------------------
# What is shown
# --------------------------------------------------------------------------------------------------------------


def describe(account: Account) -> str:
    """The shape in one line."""
    config = account.config
    blocks = "1 block" if config.n_layers == 1 else f"{config.n_layers} blocks"
    heads = "1 head" if config.n_heads == 1 else f"{config.n_heads} heads"
    return (
        f"{blocks} with {heads} of width {config.head_dim:,}; "
        f"{'a' if config.qkv_bias else 'no'} bias on query, key and value"
    )


def legend(account: Account) -> str:
    """What the letters of the formulas stand for."""
    config = account.config
    letters = [
        f"V = {config.vocab_size:,} ids",
        f"T = {config.context_length:,} positions",
        f"C = {config.emb_dim:,} per token",
    ]
    if config.ff_dim != 4 * config.emb_dim:
        letters.append(f"F = {config.ff_dim:,} in feed_forward")
    return ", ".join(letters)


def formula(part: Part) -> str:
    """A part's formula as it stands in a row: symbols and numbers, and of a sum of the rows below the numbers."""
    if part.count == 0:
        return part.symbols
    is_sum = part.parts and part.name != "blocks"
    return part.numbers if is_sum else f"{part.symbols} = {part.numbers}"


def binary(size: int) -> str:
    """A number of bytes with a binary unit: 474.70 MiB."""
    value, unit = float(size), "bytes"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{size:,} bytes" if unit == "bytes" else f"{value:,.2f} {unit}"


def _totals(account: Account) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the second table: the model with its head tied, and with a head of its own."""
    from clearhead.anatomy import bytes_of, count_parameters

    variants = [count_parameters(account.config.replace(tie_weights=tied)) for tied in (True, False)]
    header = [
        f"{what}{' (this model)' if variant.config == account.config else ''}"
        for what, variant in zip(("head tied", "head of its own"), variants, strict=True)
    ]
    rows = [
        ["parameters", *(f"{v.total:,}" for v in variants)],
        ["tensors", *(f"{v.tensor_count:,}" for v in variants)],
        ["bytes in float32", *(f"{bytes_of(v.total):,}" for v in variants)],
        ["", *(binary(bytes_of(v.total)) for v in variants)],
        ["bfloat16, float16", *(binary(bytes_of(v.total, "float16")) for v in variants)],
        ["int8, without scales", *(binary(bytes_of(v.total, "int8")) for v in variants)],
    ]
    return ["", *header], rows


# --------------------------------------------------------------------------------------------------------------
# The three forms
# --------------------------------------------------------------------------------------------------------------


def _print(title: str, account: Account, checked: str) -> None:
    from clearhead.cli.console import output

    console = output()
    console.print(f"{title}: {account.total:,} parameters", style="bold", soft_wrap=True)
    console.print(describe(account), soft_wrap=True)
    console.print(legend(account), soft_wrap=True)
    console.print()
    console.print(_parts_table(account))
    console.print()
    console.print(_totals_table(account))
    if checked:
        console.print()
        console.print(checked, style="green")


def _parts_table(account: Account) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    table.add_column("part", footer="the model", no_wrap=True)
    table.add_column("formula")
    table.add_column("parameters", footer=f"{account.total:,}", justify="right", no_wrap=True)
    table.add_column("share", footer="100.0%", justify="right", no_wrap=True)
    for depth, part in account.rows():
        if depth:
            style = "bold" if depth == 1 else "dim" if depth > 3 else ""
            share = f"{account.share(part):.1%}" if part.count else "tied"
            cells = ("  " * (depth - 1) + part.name, formula(part), f"{part.count:,}", share)
            table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _totals_table(account: Account) -> Table:
    from rich import box
    from rich.table import Table

    header, rows = _totals(account)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _as_markdown(title: str, account: Account, checked: str) -> str:
    lines = [f"**{title}: {account.total:,} parameters** ({describe(account)}; {legend(account)})", ""]
    lines += ["| part | formula | in numbers | parameters | share |", "|---|---|---|---:|---:|"]
    for depth, part in account.rows():
        name = "&nbsp;&nbsp;" * (depth - 1) + f"`{part.name}`"
        share = f"{account.share(part):.1%}" if part.count else "tied"
        lines.append(f"| {name} | {part.symbols} | {part.numbers} | {part.count:,} | {share} |")
    header, rows = _totals(account)
    lines += ["", "| " + " | ".join(header) + " |", "|---|---:|---:|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    if checked:
        lines += ["", checked]
    return "\n".join(lines)


def _as_json(source: Source, account: Account, checked: str) -> dict[str, Any]:
    from clearhead.anatomy import BITS, bytes_of

    return {
        "model": source.name,
        "config": dataclasses.asdict(account.config),
        "parameters": account.total,
        "parameters_tied": account.tied,
        "parameters_untied": account.untied,
        "tensors": account.tensor_count,
        "bytes": {dtype: bytes_of(account.total, dtype) for dtype in BITS},
        "counted_in_the_weights": checked or None,
        "parts": _tree(account, account.whole),
    }


def _tree(account: Account, part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "path": part.path,
        "symbols": part.symbols,
        "numbers": part.numbers,
        "parameters": part.count,
        "times": part.times,
        "share": account.share(part),
        "parts": [_tree(account, inner) for inner in part.parts],
    }
