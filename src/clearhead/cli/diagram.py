"""`clearhead diagram`: draw the architecture of a GPT-2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import notice, write_file
from clearhead.cli.options import Book, Config, Lang, PageLayout, ShapeSource, Theme, flatten
from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.anatomy.diagram.diagram import Diagram

EPILOG = """
Examples:

[bold]clearhead diagram -o gpt2.svg[/]                      the 124M, for a page or paper

[bold]clearhead diagram 1558M -o xl.png --layout slide[/]   as pixels, wide

[bold]clearhead diagram --tokens 4 --lang zh -o 124M.svg[/] with numbers, in Chinese

[bold]clearhead diagram my-model/ -o model.mmd[/]           for Mermaid
"""

_SUFFIXES = (".svg", ".png", ".mmd")


@dataclass(frozen=True)
class DrawingOptions:
    """How the diagram looks."""

    lang: Lang = ""
    theme: Theme = "auto"
    layout: PageLayout = "page"
    batch: Annotated[int | None, typer.Option("--batch", help="Show this number in the shapes instead of B.")] = None
    tokens: Annotated[int | None, typer.Option("--tokens", help="Show this number in the shapes instead of T.")] = None
    scale: Annotated[float, typer.Option("--scale", help="Pixels of a PNG for each unit of the drawing.")] = 2.0

    def __post_init__(self) -> None:
        for name, number in (("--batch", self.batch), ("--tokens", self.tokens)):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}; it must be at least 1.")


@flatten
def diagram(
    options: DrawingOptions,
    model: ShapeSource = "124M",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The file to write: .svg, .png, or .mmd for Mermaid. SVG on standard output if left out.",
        ),
    ] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flow chart.")] = False,
    config: Config = None,
    book: Book = False,
) -> None:
    """Draw the architecture of a GPT-2.

    The whole model from token ids to logits, with the attention and the feed-forward layer opened beside it: the shape
    of the data on every arrow, the number of parameters in every box.
    """
    from clearhead.anatomy.diagram.diagram import make_diagram
    from clearhead.cli.model_argument import resolve_model

    suffix = _suffix(out, mermaid)
    source = resolve_model(model, config)
    shape = source.config.replace(qkv_bias=False, tie_weights=False) if book else source.config
    figure = make_diagram(shape, source.name, options.lang, options.batch or 0, options.tokens or 0, book)
    drawn = _draw(figure, suffix, options)
    if out is None:
        typer.echo(drawn, nl=False)
    else:
        write_file(out, drawn)
        notice(f"wrote {out}.")


def _draw(figure: Diagram, suffix: str, options: DrawingOptions) -> str | bytes:
    from clearhead.anatomy.diagram.mermaid import diagram_mermaid
    from clearhead.anatomy.diagram.svg import diagram_svg
    from clearhead.drawing.png import png

    if suffix == ".mmd":
        return diagram_mermaid(figure)
    if suffix == ".svg":
        return diagram_svg(figure, options.theme, options.layout)
    # Pixels cannot follow the reader's screen, so `auto` means light here.
    return png(
        diagram_svg(figure, "light" if options.theme == "auto" else options.theme, options.layout), options.scale
    )


def _suffix(out: Path | None, mermaid: bool) -> str:
    if out is None:
        return ".mmd" if mermaid else ".svg"
    suffix = out.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{out} does not end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}; the ending selects the file format."
        )
    if mermaid and suffix != ".mmd":
        raise InputError(f"--mermaid was given with {out}; a Mermaid chart is written to a .mmd file.")
    return suffix
