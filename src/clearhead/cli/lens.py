"""`clearhead lens report`: what the heads and depths of a model do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import output, say, verbatim_output, write_file, write_json
from clearhead.cli.language import language
from clearhead.cli.model_argument import load_model
from clearhead.cli.options import Config, Device, Json, Lang, flatten
from clearhead.cli.tables import TextTable
from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.lens.report import LensReport

HELP = "Study what happens inside a model."

EPILOG = """
Examples:

[bold]clearhead lens report[/]                            the bundled model

[bold]clearhead lens report gpt2 --html report.html[/]    a page with every head
"""

_SAMPLE = "One day, Lily was very happy because"


@dataclass(frozen=True)
class ReportOptions:
    """How a report is written."""

    text: Annotated[str, typer.Option(help="The sample text for the predictions by depth.")] = _SAMPLE
    html: Annotated[Path | None, typer.Option(help="Write a page with every head to this file.")] = None
    as_json: Json = False
    lang: Lang = ""

    def __post_init__(self) -> None:
        if self.html is not None and self.as_json:
            raise typer.BadParameter("give --html or --json, not both.")
        if self.html is not None and not self.html.name:
            raise InputError("--html is empty; give the name of a file to write.")


@flatten
def report(
    options: ReportOptions,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model's folder, or its name on the hub; else the bundled one."),
    ] = None,
    config: Config = None,
    device: Device = "cpu",
) -> None:
    """Report what a model's heads and depths do.

    It shows which heads attend to the previous token, to earlier copies of a token or to what followed them (induction
    heads), and which heads copy; what removing a head costs on repeated tokens; and what each depth would predict.
    """
    from clearhead.lens.report import model_report
    from clearhead.lens.report_page import report_page

    gpt = load_model(model, backend="torch", device=device, config=config)
    ids = None if gpt.tokenizer is None else gpt.tokenizer.encode(options.text)[: gpt.config.context_length]
    found = model_report(gpt.model, gpt.tokenizer, ids or None)
    name = model or "Clearhead"
    if options.as_json:
        write_json({"name": name, **found.to_json()})
    elif options.html is not None:
        write_file(options.html, report_page(found, name, options.lang))
        say(f"{options.html} ({options.html.stat().st_size / 1e6:.1f} MB): open it in a browser.")
    else:
        _print(found)


def _print(found: LensReport) -> None:
    console = output()
    table = TextTable(("kind", "strongest head", "score"), left=2)
    for one in found.strongest:
        table.add(one.kind, f"layer {one.layer} head {one.head}", f"{one.score:.2f}")
    console.print(table.for_terminal())
    say(f"Loss on random tokens {found.first_loss:.2f} nats, on their repetition {found.second_loss:.2f}.")
    (layer, head), value = found.removal.top(1)[0]
    say(f"Of all heads, {layer} {head} matters most there: without it the loss changes by {value:+.2f}.")
    if found.predictions is not None:
        console.print()
        verbatim_output().print(found.predictions.to_text(language()), soft_wrap=True)


VERBS: dict[str, tuple[Callable[..., None], str]] = {"report": (report, EPILOG)}
"""Each verb with the text below its help."""
