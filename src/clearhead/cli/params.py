"""`clearhead params`: where a GPT-2's parameters are and what it costs, every number with its formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import output, write_json
from clearhead.cli.language import translate
from clearhead.cli.options import Book, Config, flatten
from clearhead.cli.workload import WorkloadOptions

if TYPE_CHECKING:
    from clearhead.cli.tables import TextTable

EPILOG = """
Examples:

[bold]clearhead params 1558M[/]                the largest of the released sizes

[bold]clearhead params 124M --book[/]          the book's: 163,009,536 parameters

[bold]clearhead params my-model/[/]            counted in its weights as well

[bold]clearhead params 124M 355M bundled[/]    side by side

[bold]clearhead params 355M --dtype bfloat16 --batch 8[/]    the costs of a batch

[bold]clearhead params gpt2 --markdown[/]      tables for a README or a notebook
"""


@flatten
def params(
    workload: WorkloadOptions,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="A size (124M, 355M, 774M, 1558M), a config file, a model's folder, its name on the hub, or "
            "'bundled'. Several are compared. 124M if left out.",
        ),
    ] = None,
    config: Config = None,
    book: Book = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the trees of parts and costs.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Show where the parameters are, and what the model costs.

    Each part is listed with the formula of its size. Counts inside the block are for one block, shares for all blocks
    together. If there are weights, they are counted too and must agree.

    Then the memory to run and to train it, the floating-point operations per token (a multiply-add is two) and the
    bytes moved to generate one.
    """
    from clearhead.cli.params_report import ModelReport, compare_side_by_side

    if as_json and markdown:
        raise typer.BadParameter("give --json or --markdown, not both.")
    reports = [ModelReport(model, config, book, workload) for model in models or ["124M"]]
    if as_json:
        found = [report.as_json() for report in reports]
        write_json(found[0] if len(found) == 1 else found, indent=2)
        return
    remarks = [report.checked for report in reports if report.checked]
    if len(reports) == 1:
        heading, tables = reports[0].heading(), reports[0].tables(wide=markdown)
    else:
        heading, tables = [], compare_side_by_side(reports)
        remarks = [f"{report.title}: {report.checked}" for report in reports if report.checked]
    (_print_markdown if markdown else _print)(heading, tables, remarks)


def _print(heading: list[str], tables: list[TextTable], remarks: list[str]) -> None:
    console = output()
    for i, line in enumerate(heading):
        console.print(line, style="" if i else "bold", soft_wrap=True)
    for i, table in enumerate(tables):
        if heading or i:
            console.print()
        if table.title:
            console.print(table.title, style="bold")
        if table.note:
            console.print(table.note)
            console.print()
        console.print(table.for_terminal())
    for remark in remarks:
        console.print()
        console.print(remark, style="green")


def _print_markdown(heading: list[str], tables: list[TextTable], remarks: list[str]) -> None:
    lines = [translate(line) for line in heading]
    top = [f"**{lines[0]}** ({'; '.join(lines[1:])})"] if lines else []
    typer.echo("\n\n".join([*top, *(table.for_markdown() for table in tables), *map(translate, remarks)]))
