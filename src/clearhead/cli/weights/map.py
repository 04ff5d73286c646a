"""`clearhead weights map`: which stored tensor becomes which tensor of the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import rich_text, write_json
from clearhead.cli.language import translate
from clearhead.cli.model_argument import open_weights, short_name
from clearhead.cli.options import Config, WeightsSource
from clearhead.errors import WeightsError

if TYPE_CHECKING:
    from rich.table import Table

    from clearhead.weights.grouping import NamePattern
    from clearhead.weights.plan_chart import ChartRow, PlanChart

EPILOG = """
Examples:

[bold]clearhead weights map gpt2[/]                     the flow chart as a table

[bold]clearhead weights map gpt2 --svg gpt2.svg[/]      drawn, for a page or a lecture

[bold]clearhead weights map gpt2 --mermaid[/]           as text that documentation sites draw
"""


def map_weights(
    source: WeightsSource,
    config: Config = None,
    to: Annotated[
        str, typer.Option("--to", metavar="LAYOUT", help="The layout of the result; Clearhead's own if left out.")
    ] = "canonical",
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flow chart.")] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the chart into this SVG file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every name.")] = False,
) -> None:
    """Show which tensor becomes which.

    For each stored tensor: its shape, the operations on it, and the tensor that it becomes. Unused tensors are listed
    with the reason. Identical blocks are shown once. No numbers are read.
    """
    from clearhead.weights.layouts import LAYOUTS
    from clearhead.weights.plan_chart import make_chart

    if mermaid + as_json + (svg is not None) > 1:
        raise typer.BadParameter("give only one of --mermaid, --svg and --json.")
    if to not in LAYOUTS:
        raise WeightsError(f"there is no layout {to!r}; the layouts are {', '.join(LAYOUTS)}.")
    opened = open_weights(source, names_only=True, config=config)
    chart = make_chart(opened.plan(to))
    if as_json:
        write_json({"model": opened.name, **chart.as_json()}, indent=2)
    elif mermaid:
        print(chart.as_mermaid(), end="")
    elif svg is not None:
        from clearhead.cli.console import notice, write_file
        from clearhead.weights.plan_chart_svg import chart_svg

        write_file(svg, chart_svg(chart, short_name(opened)))
        notice(f"wrote {svg}.")
    else:
        _print_chart(short_name(opened), chart)


def _print_chart(name: str, chart: PlanChart) -> None:
    from clearhead.cli.console import output
    from clearhead.weights.layouts import LAYOUTS

    console = output()
    before, after = (translate(LAYOUTS[layout].title) for layout in (chart.origin, chart.to))
    console.print(f"{name}: {before} → {after}", style="bold", soft_wrap=True)
    console.print(chart.counts, soft_wrap=True)
    console.print()
    console.print(_table(chart))
    if ignored := chart.part("ignored"):
        console.print("\nStored but not used:")
        for group in ignored:
            tensor = group.sources[0]
            console.print(f"  {tensor.pattern.label} {_shape(tensor.shape)}", soft_wrap=True)
            console.print(f"    {group.reason}", style="dim", soft_wrap=True)


def _table(chart: PlanChart) -> Table:
    """Return the chart as a table. The common beginning of the names in the blocks is shown once, above them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold underline")
    for heading in ("stored", "shape", "by", "becomes", "shape"):
        width = 9 if heading == "by" else None
        table.add_column(translate(heading), overflow="fold", no_wrap=heading == "shape", max_width=width)
    for part in ("before", "blocks", "after"):
        groups = chart.part(part)
        stored, made = ("", "")
        if part == "blocks":
            stored = _beginning([s.pattern for group in groups for s in group.sources])
            made = _beginning([group.target.pattern for group in groups if group.target])
            table.add_row()
            table.add_row(Text(stored), "", rich_text(chart.frame.removeprefix("× ")), Text(made), "", style="bold")
        for group in groups:
            table.add_row(*map(Text, _cells(group, stored, made)))
        if part == "blocks":
            table.add_row()
    return table


def _cells(group: ChartRow, stored: str, made: str) -> tuple[str, ...]:
    assert group.target is not None
    names = [source.pattern.label.removeprefix(stored) for source in group.sources]
    shapes = [_shape(source.shape) for source in group.sources]
    target = group.target.pattern.label.removeprefix(made)
    sources = "\n".join(names) or translate("(nothing)")
    return sources, "\n".join(shapes), " ".join(group.steps), target, _shape(group.target.shape)


def _beginning(spans: list[NamePattern]) -> str:
    """Return what the names of the blocks begin with, up to the layer and its separator; "" if they do not agree."""
    from clearhead.weights.grouping import layer_words

    found = set()
    for span in spans:
        before, layer, after = span.template.partition("{i}")
        found.add(before + layer_words(span.layers) + after[:1] if layer and span.layers else "")
    return found.pop() if len(found) == 1 else ""


def _shape(shape: tuple[int, ...]) -> str:
    """Return a shape in short: 768×2304."""
    return "×".join(map(str, shape)) or translate("one number")
