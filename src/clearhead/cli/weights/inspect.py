"""`clearhead weights inspect`: what a weights file contains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import rich_text, write_json
from clearhead.cli.model_argument import open_weights, short_name
from clearhead.cli.options import Config, WeightsSource

if TYPE_CHECKING:
    from rich.console import Console

    from clearhead.weights.grouping import NamePattern
    from clearhead.weights.inspection import Inspection

EPILOG = """
Examples:

[bold]clearhead weights inspect my-model/[/]        what is in it, and anything unusual

[bold]clearhead weights inspect gpt2 --json[/]      every tensor with its range, mean and standard deviation
"""


def inspect_weights(
    source: WeightsSource,
    config: Config = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with the statistics of every tensor.")
    ] = False,
) -> None:
    """Show what a weights file contains.

    Every number is read once. Tensors that contain NaN or infinity, or only zeros or one constant, are listed, and it
    is said if the model has never been trained.
    """
    from clearhead.weights.inspection import inspect_source

    found = inspect_source(open_weights(source, config=config))
    if as_json:
        write_json(found.as_json(), indent=2)
    else:
        _print_inspection(found)


def _print_inspection(found: Inspection) -> None:
    from clearhead.cli.console import output
    from clearhead.weights.layouts import LAYOUTS

    console, config = output(), found.source.config
    console.print(short_name(found.source), style="bold", soft_wrap=True)
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
    for what, value in facts.items():
        if value:
            _print_fact(console, what, value)
    console.print()
    _print_findings(console, found)


def _print_fact(console: Console, what: str, value: str) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=8, style="dim")
    table.add_column(overflow="fold")
    table.add_row(rich_text(what), rich_text(value))
    console.print(table)


def _print_findings(console: Console, found: Inspection) -> None:
    from clearhead.weights.inspection import ANOMALIES

    odd = found.anomalies()
    if found.misfit:
        console.print(found.misfit, style="red", soft_wrap=True)
    if found.untrained:
        console.print(
            "Untrained: every norm's weights are one and every bias is zero, as in a new model.", style="yellow"
        )
    for kind, spans in odd.items():
        console.print(f"{ANOMALIES[kind]} {_tensors(spans)}:", style="red" if kind in ("nan", "infinite") else "yellow")
        for span in spans:
            console.print(f"  {span.label}{_detail(found, kind, span)}", soft_wrap=True)
    if not odd and not found.misfit:
        console.print(
            "Every tensor belongs to the model; no NaN, no infinity, "
            f"{'and nothing else is unusual.' if found.untrained else 'no tensor of one constant.'}",
            style="green",
        )


def _tensors(spans: list[NamePattern]) -> str:
    number = sum(len(span.names) for span in spans)
    return f"{number:,} tensor{'' if number == 1 else 's'}"


def _detail(found: Inspection, kind: str, span: NamePattern) -> str:
    """Return how many numbers of a tensor are NaN or infinite, or which constant it contains."""
    own = [tensor for tensor in found.tensors if tensor.name in span.names]
    if kind == "constant":
        return f" (all {own[0].minimum:g})" if len({tensor.minimum for tensor in own}) == 1 else ""
    count = sum(tensor.nan if kind == "nan" else tensor.infinite for tensor in own)
    return f" ({count:,} numbers)" if count > 1 else " (1 number)" if count else ""
