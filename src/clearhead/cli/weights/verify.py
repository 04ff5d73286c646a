"""`clearhead weights verify`: the proof that a model is what it should be, check by check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import notice, output, read_text, rich_text, write_json
from clearhead.cli.exit_codes import USAGE
from clearhead.cli.language import translate
from clearhead.cli.options import Config, WeightsSource

if TYPE_CHECKING:
    from clearhead.verification.checks import Check, Verification

EPILOG = """
Examples:

[bold]clearhead weights verify gpt2[/]                       is it OpenAI's model?

[bold]clearhead weights verify model/ --text page.txt[/]     a text of its kind

[bold]clearhead weights verify model.gguf --json[/]          for a program
"""

_SHOWN = 6  # details of one check

_SIGNS = {"passed": "✓", "failed": "✗", "warning": "!", "not applicable": "–"}
_STYLES = {"passed": "green", "failed": "bold red", "warning": "yellow", "not applicable": "dim"}


def verify_weights(
    source: WeightsSource,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every detail.")] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help="The text for the model to read, instead of a page of plain English."
        ),
    ] = None,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Run the model, or only look at its weights.")] = True,
    device: Annotated[str, typer.Option(help="Run on this device: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Prove that a model's weights are complete and correctly arranged.

    Checks sizes and checksums; that every tensor is there; that there is no NaN; that no matrix is transposed and q, k
    and v are not exchanged, which shapes alone cannot show; whether these are, bit for bit, the weights that OpenAI
    published; and the loss on a text.

    The exit status is 0 if no check failed, and 2 if one did.
    """
    if text is not None and not run:
        raise typer.BadParameter("--text needs a run of the model; leave out --no-run.")
    found = _verify(source, config, text, run, device)
    if as_json:
        write_json(found.as_json(), indent=2)
    else:
        _print(found)
    if not found.ok:
        raise typer.Exit(USAGE)


def _verify(source: str, config: str | None, text: Path | None, run: bool, device: str) -> Verification:
    if not run:
        from clearhead.verification import verify_weights as check_weights

        return check_weights(source, config=config)
    from clearhead.verification.model_checks import verify

    sample = None if text is None else read_text(None, text, "text")
    return verify(source, config=config, device=device, text=sample)


def _print(found: Verification) -> None:
    from rich.text import Text

    if found.source is not None:
        for note in found.source.notes:
            notice(note)
    console = output()
    console.print(Text(found.model, "bold"), soft_wrap=True)
    for check in found.checks:
        console.print(_line(check))
    failed = [check.name for check in found.checks if check.verdict == "failed"]
    warned = [check.name for check in found.checks if check.verdict == "warning"]
    if failed:
        console.print(rich_text(f"Failed: {', '.join(map(translate, failed))}.", "bold red"))
    else:
        warnings = f"; look at: {', '.join(map(translate, warned))}." if warned else "."
        console.print(rich_text(f"Nothing failed{warnings}", "green"))


def _line(check: Check) -> object:
    """Return a check as a table row: its sign, its name, its text and its details."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = check.details[:_SHOWN]
    more = len(check.details) - len(shown)
    lines = [rich_text(check.text, "dim" if check.verdict == "not applicable" else "")]
    lines += [Text(f"· {translate(detail)}", "dim") for detail in shown]
    lines += [rich_text(f"· and {more} more (--json lists them)", "dim")] if more else []
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1)
    table.add_column(width=12)
    table.add_column(overflow="fold")
    style = _STYLES[check.verdict]
    table.add_row(Text(_SIGNS[check.verdict], style), rich_text(check.name, style), Group(*lines))
    return table
