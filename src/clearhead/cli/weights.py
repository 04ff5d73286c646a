"""`clearhead weights`: the verbs below it, and those two that look: `inspect` and `map`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.weights_convert import EPILOG as CONVERT_EPILOG
from clearhead.cli.weights_convert import convert_weights
from clearhead.cli.weights_fetch import EPILOG as FETCH_EPILOG
from clearhead.cli.weights_fetch import fetch_weights
from clearhead.cli.weights_verify import EPILOG as VERIFY_EPILOG
from clearhead.cli.weights_verify import verify_weights
from clearhead.errors import WeightsError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from clearhead.weights import Source
    from clearhead.weights.grouping import NamePattern
    from clearhead.weights.inspection import Inspection
    from clearhead.weights.plan_chart import ChartRow, PlanChart

HELP = "Look at a model's weights, prove them right, fetch them, and write them in another layout."

INSPECT_EPILOG = """
Examples:

[bold]clearhead weights inspect my-model/[/]        what is in it, and whether something is odd

[bold]clearhead weights inspect gpt2 --json[/]      every tensor with its range, mean and deviation
"""

MAP_EPILOG = """
Examples:

[bold]clearhead weights map gpt2[/]                     the flow chart as a table

[bold]clearhead weights map gpt2 --svg gpt2.svg[/]      drawn, for a page or a lecture

[bold]clearhead weights map gpt2 --mermaid[/]           as text that documentation sites draw
"""

_SOURCE = typer.Argument(metavar="SOURCE", help="A model's folder, a file of weights, or a name on the hub.")
Model = Annotated[str, _SOURCE]


def inspect_weights(
    source: Model,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with the statistics of every tensor.")
    ] = False,
) -> None:
    """Show what a model's file holds.

    Every number is read once. Tensors with NaN or an infinity are named, and those that are zero or one constant
    throughout, and whether the model has been trained at all.
    """
    from clearhead.weights.inspection import inspect_source

    found = inspect_source(_open(source))
    if as_json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        _print_inspection(found)


def map_weights(
    source: Model,
    to: Annotated[
        str, typer.Option("--to", metavar="LAYOUT", help="The names to lead to; Clearhead's own where it is left out.")
    ] = "canonical",
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flow chart.")] = False,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw it into this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every name.")] = False,
) -> None:
    """Show which tensor becomes which.

    Each stored tensor stands with its shape, what is done with it, and the tensor that it becomes; what is not used
    stands with the reason. Blocks that are alike are shown once. No numbers are read.
    """
    from clearhead.weights.layouts import LAYOUTS
    from clearhead.weights.plan_chart import make_chart

    if mermaid + as_json + (svg is not None) > 1:
        raise typer.BadParameter("give only one of --mermaid, --svg and --json.")
    if to not in LAYOUTS:
        raise WeightsError(f"there is no layout {to!r}; the layouts are {', '.join(LAYOUTS)}.")
    opened = _open(source)
    chart = make_chart(opened.plan(to))
    if as_json:
        print(json.dumps({"model": opened.name, **chart.as_json()}, indent=2, ensure_ascii=False))
    elif mermaid:
        print(chart.as_mermaid(), end="")
    elif svg is not None:
        from clearhead.cli.console import notice, write_file
        from clearhead.weights.plan_chart_svg import chart_svg

        write_file(svg, chart_svg(chart, _short(opened)))
        notice(f"wrote {svg}.")
    else:
        _print_chart(_short(opened), chart)


VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "inspect": (inspect_weights, INSPECT_EPILOG),
    "map": (map_weights, MAP_EPILOG),
    "verify": (verify_weights, VERIFY_EPILOG),
    "convert": (convert_weights, CONVERT_EPILOG),
    "fetch": (fetch_weights, FETCH_EPILOG),
}
"""The verbs below `clearhead weights`, each with what stands under its help."""


def _open(model: str) -> Source:
    """A model, opened; what had to be decided is said beside the output."""
    from clearhead import weights
    from clearhead.cli.console import notice

    opened = weights.open(model)
    for note in opened.notes:
        notice(note)
    return opened


def _short(source: Source) -> str:
    """A model's name for a heading: the last part of its path, or its name on the hub."""
    path = Path(source.name).expanduser()
    return path.resolve().name if path.exists() else source.name


# --------------------------------------------------------------------------------------------------------------
# What inspect prints
# --------------------------------------------------------------------------------------------------------------

_ODD = {
    "nan": "NaN in",
    "infinite": "an infinity in",
    "zero": "nothing but zeros in",
    "constant": "one number throughout in",
}


def _print_inspection(found: Inspection) -> None:
    from clearhead.cli.console import output
    from clearhead.weights.layouts import LAYOUTS

    console, config = output(), found.source.config
    console.print(_short(found.source), style="bold", soft_wrap=True)
    dtypes = ", ".join(dtype if len(found.dtypes) == 1 else f"{n} {dtype}" for dtype, n in found.dtypes.items())
    facts = {
        "layout": LAYOUTS[found.source.layout].title,
        "file": str(found.source.path),
        "config": f"{config.n_layers} layers, {config.n_heads} heads, emb_dim {config.emb_dim:,}, "
        f"ff_dim {config.ff_dim:,}, vocab_size {config.vocab_size:,}, context_length {config.context_length:,}, "
        f"{'a' if config.qkv_bias else 'no'} bias on q, k and v",
        "head": found.head,
        "tensors": f"{len(found.tensors):,}, {found.nbytes:,} bytes, {dtypes}",
        "not used": f"{len(found.ignored):,}; `clearhead weights map` says why" if found.ignored else "",
    }
    for what, words in facts.items():
        if words:
            _print_fact(console, what, words)
    console.print()
    _print_findings(console, found)


def _print_fact(console: Console, what: str, words: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=8, style="dim")
    table.add_column(overflow="fold")
    table.add_row(Text(what), Text(words))
    console.print(table)


def _print_findings(console: Console, found: Inspection) -> None:
    odd = found.anomalies()
    if found.misfit:
        console.print(found.misfit, style="red", soft_wrap=True)
    if found.untrained:
        console.print(
            "Untrained: every norm's weights are one and every bias is zero, as a new model has them.", style="yellow"
        )
    for kind, spans in odd.items():
        console.print(f"{_ODD[kind]} {_tensors(spans)}:", style="red" if kind in ("nan", "infinite") else "yellow")
        for span in spans:
            console.print(f"  {span.label}{_detail(found, kind, span)}", soft_wrap=True)
    if not odd and not found.misfit:
        console.print(
            f"Every tensor has its place in the model; no NaN, no infinity, {'' if found.untrained else 'none '}"
            f"{'and nothing else is odd.' if found.untrained else 'that is one number throughout.'}",
            style="green",
        )


def _tensors(spans: list[NamePattern]) -> str:
    number = sum(len(span.names) for span in spans)
    return f"{number:,} tensor{'' if number == 1 else 's'}"


def _detail(found: Inspection, kind: str, span: NamePattern) -> str:
    """How many numbers of a tensor are odd, or which number it holds."""
    own = [tensor for tensor in found.tensors if tensor.name in span.names]
    if kind == "constant":
        return f" (all {own[0].minimum:g})" if len({tensor.minimum for tensor in own}) == 1 else ""
    count = sum(tensor.nan if kind == "nan" else tensor.infinite for tensor in own)
    return f" ({count:,} numbers)" if count > 1 else " (1 number)" if count else ""


# --------------------------------------------------------------------------------------------------------------
# What map prints
# --------------------------------------------------------------------------------------------------------------


def _print_chart(name: str, chart: PlanChart) -> None:
    from clearhead.cli.console import output
    from clearhead.weights.layouts import LAYOUTS

    console = output()
    console.print(f"{name}: {LAYOUTS[chart.origin].title} → {LAYOUTS[chart.to].title}", style="bold", soft_wrap=True)
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
    """The chart as a table; in the blocks, what all names begin with stands once above them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold underline")
    for heading in ("stored", "shape", "by", "becomes", "shape"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "shape", max_width=9 if heading == "by" else None)
    for part in ("before", "blocks", "after"):
        groups = chart.part(part)
        stored, made = ("", "")
        if part == "blocks":
            stored = _beginning([s.pattern for group in groups for s in group.sources])
            made = _beginning([group.target.pattern for group in groups if group.target])
            table.add_row()
            table.add_row(Text(stored), "", Text(chart.frame.removeprefix("× ")), Text(made), "", style="bold")
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
    return "\n".join(names) or "(nothing)", "\n".join(shapes), " ".join(group.steps), target, _shape(group.target.shape)


def _beginning(spans: list[NamePattern]) -> str:
    """What the names of the blocks begin with, up to the layer and the sign after it; empty where they do not agree."""
    from clearhead.weights.grouping import layer_words

    found = set()
    for span in spans:
        before, layer, after = span.template.partition("{i}")
        found.add(before + layer_words(span.layers) + after[:1] if layer and span.layers else "")
    return found.pop() if len(found) == 1 else ""


def _shape(shape: tuple[int, ...]) -> str:
    """A shape as short as it can be: 768×2304."""
    return "×".join(map(str, shape)) or "one number"
