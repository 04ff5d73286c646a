"""`clearhead diagram`: the framework of a GPT-2 as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clearhead.errors import InputError

EPILOG = """
Examples:

[bold]clearhead diagram -o gpt2.svg[/]                      the 124M, for a page or paper

[bold]clearhead diagram 1558M -o xl.png --layout slide[/]   as pixels, wide

[bold]clearhead diagram --tokens 4 --lang zh -o 124M.svg[/] with numbers, in Chinese

[bold]clearhead diagram my-model/ -o model.mmd[/]           for Mermaid
"""

_FORMS = (".svg", ".png", ".mmd")


def diagram(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A size (124M, 355M, 774M, 1558M), a config file, a model's folder, its name on the hub, or "
            "'bundled'.",
        ),
    ] = "124M",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where to draw it: a .svg, a .png, or a .mmd for Mermaid. SVG on standard output if left out.",
        ),
    ] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flow chart.")] = False,
    lang: Annotated[str, typer.Option("--lang", help="Language of the words: en or zh.")] = "en",
    theme: Annotated[
        str, typer.Option("--theme", help="Colours: light, dark, or auto for those of the reader's screen.")
    ] = "auto",
    layout: Annotated[
        str,
        typer.Option("--layout", help="page (two columns), slide (three), or column (one, for a narrow screen)."),
    ] = "page",
    batch: Annotated[int | None, typer.Option("--batch", help="A number in the shapes, in place of B.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="A number in the shapes, in place of T.")] = None,
    book: Annotated[
        bool,
        typer.Option(
            "--book",
            help="Draw the variant of the book's chapter 4: no bias on query, key and value, and a head of its own.",
        ),
    ] = False,
    scale: Annotated[float, typer.Option("--scale", help="Pixels of a PNG for each of the drawing's own.")] = 2.0,
) -> None:
    """Draw the framework of a GPT-2.

    The whole model from token ids to logits, with the attention and the feed-forward layer opened beside it: the shape
    of what passes on every arrow, the number of parameters in every box.
    """
    from clearhead.anatomy.diagram.diagram import make_diagram
    from clearhead.anatomy.diagram.mermaid import diagram_mermaid
    from clearhead.anatomy.diagram.svg import diagram_svg
    from clearhead.cli.console import notice, write_file
    from clearhead.cli.source import find_source
    from clearhead.drawing.png import png

    form = _form(out, mermaid)
    for name, number in (("--batch", batch), ("--tokens", tokens)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1.")
    source = find_source(model)
    config = source.config.replace(qkv_bias=False, tie_weights=False) if book else source.config
    figure = make_diagram(config, source.name, lang, batch or 0, tokens or 0, book)
    if form == ".mmd":
        drawn: str | bytes = diagram_mermaid(figure)
    elif form == ".svg":
        drawn = diagram_svg(figure, theme, layout)
    else:
        # Pixels do not know the screen on which they will be seen; they are light unless dark is asked for.
        drawn = png(diagram_svg(figure, "light" if theme == "auto" else theme, layout), scale)
    if out is None:
        typer.echo(drawn, nl=False)
    else:
        write_file(out, drawn)
        notice(f"wrote {out}.")


def _form(out: Path | None, mermaid: bool) -> str:
    if out is None:
        return ".mmd" if mermaid else ".svg"
    form = out.suffix.lower()
    if form not in _FORMS:
        raise InputError(
            f"{out} does not end in {', '.join(_FORMS[:-1])} or {_FORMS[-1]}; the ending says what to draw."
        )
    if mermaid and form != ".mmd":
        raise InputError(f"--mermaid was given with {out}; a Mermaid chart is written to a .mmd file.")
    return form
