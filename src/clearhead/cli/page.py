"""`clearhead page`: a model and a playground for it in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clearhead.cli.options import Config, Lang, Model

EPILOG = """
Examples:

[bold]clearhead page -o story.html[/]                        the bundled model

[bold]clearhead page -o mine.html --model my-model/[/]       a model of your own

[bold]clearhead page -o story.html --lang zh[/]              begin in Chinese
"""


def page(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The HTML file to write.")],
    model: Model = None,
    config: Config = None,
    lang: Lang = "",
) -> None:
    """Write one HTML file that contains a model and runs it in any browser, without a network.

    A text that the model continues, the distribution of every token with sliders for the sampling options, branches,
    attention, the logit lens and ablation. The weights are stored as int8, so the file is about 1.4 times as many
    bytes as the model has parameters.
    """
    from clearhead import weights
    from clearhead.cli.console import notice, write_file
    from clearhead.web.export import page_html

    source = weights.open(model or "bundled", config=config)
    name = "Clearhead's bundled model" if model in (None, "bundled") else Path(str(model)).name or str(model)
    write_file(out, page_html(name, source.config, source.load(), source.tokenizer(), lang))
    notice(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser.")
