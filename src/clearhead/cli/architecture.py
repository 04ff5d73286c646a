"""`clearhead architecture`: a flow chart of any decoder-only transformer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.options import Lang, PageLayout, Theme, flatten
from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.anatomy.architecture.description import Architecture

EPILOG = """
Examples:

[bold]clearhead architecture Llama-3-8B/config.json[/]              what it consists of, and how it differs from GPT-2

[bold]clearhead architecture model.gguf -o chart.svg[/]             as a flow chart, from the header alone

[bold]clearhead architecture gpt2/ --compare llama/[/]              two models side by side

[bold]clearhead architecture qwen/ --lang zh -o qwen.png[/]         in Chinese
"""

_ENDINGS = (".svg", ".png", ".mmd", ".json")


@dataclass(frozen=True)
class ChartOptions:
    """How the chart looks."""

    lang: Lang = ""
    theme: Theme = "auto"
    layout: PageLayout = "page"


@flatten
def architecture(
    options: ChartOptions,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A config.json, a .safetensors or .gguf file, or a folder with one of them."
        ),
    ],
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="OTHER", help="Show another model side by side with it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write a chart: a .svg, .png, .mmd (Mermaid) or .json file."),
    ] = None,
    svg: Annotated[bool, typer.Option("--svg", help="Print the chart as SVG.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print the chart for Mermaid.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every fact and tensor as JSON.")] = False,
) -> None:
    """Draw the architecture of any decoder-only transformer, and say how it differs from GPT-2.

    Llama, Qwen, Gemma, Mistral, Phi, GPT-NeoX, OPT, Falcon, GPT-OSS and others: which tensors there are, their shapes,
    how they are connected, and how many parameters each part has. Only a config.json or a file's header is read.
    """
    from clearhead.cli.console import notice, write_file

    ending = _ending(out, svg=svg, mermaid=mermaid, as_json=as_json)
    models = [_read(name) for name in (source, compare) if name is not None]
    if not ending:
        _print(models, options.lang)
        return
    drawn = _draw(models, ending, options)
    if out is None:
        typer.echo(drawn, nl=False)
    else:
        write_file(out, drawn)
        notice(f"wrote {out}.")


def _read(name: str) -> Architecture:
    """Return the architecture of a file, a folder, `bundled`, or a released size."""
    from clearhead.anatomy.architecture.families import architecture_from_config
    from clearhead.config import HUB_NAMES, RELEASED
    from clearhead.weights.architecture import read_architecture
    from clearhead.weights.location import bundled, is_on_disk

    if is_on_disk(name):
        return read_architecture(name)
    if name == "bundled":
        return read_architecture(bundled())
    size = HUB_NAMES.get(name.removeprefix("openai-community/"), name)
    if size in RELEASED:
        return architecture_from_config(RELEASED[size].to_huggingface(), f"GPT-2 {size}")
    return read_architecture(name)


def _ending(out: Path | None, **flags: bool) -> str:
    """Return the ending of the file format that is wanted; "" for text."""
    wanted = [{"svg": ".svg", "mermaid": ".mmd", "as_json": ".json"}[name] for name, given in flags.items() if given]
    if len(wanted) > 1:
        raise InputError("--svg, --mermaid and --json exclude each other; give one of them.")
    if out is None:
        return wanted[0] if wanted else ""
    ending = out.suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(f"{out} does not end in {', '.join(_ENDINGS)}; the ending says what to write.")
    if wanted and wanted[0] != ending:
        raise InputError(f"{out} ends in {ending}, but {wanted[0]} was asked for; change one of them.")
    return ending


def _draw(models: list[Architecture], ending: str, options: ChartOptions) -> str | bytes:
    from clearhead.anatomy.architecture.chart import architecture_diagram
    from clearhead.anatomy.architecture.text import architecture_json
    from clearhead.anatomy.diagram.mermaid import diagram_mermaid
    from clearhead.anatomy.diagram.svg import diagram_svg
    from clearhead.drawing.png import png
    from clearhead.drawing.svg import side_by_side

    if ending == ".json":
        values: Any = [architecture_json(model) for model in models]
        return json.dumps(values if len(models) > 1 else values[0], indent=1) + "\n"
    figures = [architecture_diagram(model, options.lang) for model in models]
    if ending == ".mmd":
        if len(figures) > 1:
            raise InputError("Mermaid draws one chart at a time; leave out --compare, or write a .svg.")
        return diagram_mermaid(figures[0])
    theme = "light" if ending == ".png" and options.theme == "auto" else options.theme  # pixels cannot follow a screen
    layout = options.layout if len(figures) == 1 else "column"
    drawn = [diagram_svg(figure, theme, layout) for figure in figures]
    picture = drawn[0] if len(drawn) == 1 else side_by_side(drawn, options.lang)
    return png(picture) if ending == ".png" else picture


def _print(models: list[Architecture], lang: str) -> None:
    from clearhead.anatomy.architecture.differences import differences
    from clearhead.anatomy.architecture.text import components, facts
    from clearhead.anatomy.architecture.words import FACTS
    from clearhead.cli.console import output

    words, console = FACTS[lang], output()
    if len(models) == 1:
        model = models[0]
        rows: list[tuple[str, ...]] = [
            (name, f"{n:,}", f"{one:,}", f"{total:,}") for name, n, one, total in components(model, lang)
        ]
        rows.append((words["total"], "", "", f"{model.total:,}"))
        _table((words["component"], words["number"], words["one"], words["all"]), rows, numbers_from=1)
    else:
        columns = [facts(model, lang) for model in models]
        labels = list(dict.fromkeys(label for column in columns for label in column))
        rows = [(label, *(column.get(label, "") for column in columns)) for label in labels]
        _table(("", *(model.name for model in models)), rows)
    for model in models:
        if len(models) > 1 and model.family == "gpt2":
            continue
        title = words["difference"] if len(models) == 1 else f"{model.name}: {words['difference']}"
        console.print(f"\n{title}")
        for sentence in (*differences(model, lang), *model.notes):
            console.print(f"- {sentence}")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]], numbers_from: int = 99) -> None:
    from rich import box
    from rich.table import Table

    from clearhead.cli.console import output

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, title in enumerate(header):
        table.add_column(title, justify="right" if i >= numbers_from else "left")
    for row in rows:
        table.add_row(*row)
    output().print(table)
