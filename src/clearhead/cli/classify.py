"""`clearhead classify`: the class of a text, by a model that was trained for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Examples:

[bold]clearhead classify "You have won a prize, call now" --model runs/spam/model[/]

[bold]clearhead classify --file letter.txt --model runs/spam/model --json[/]
"""

Text = Annotated[str | None, typer.Argument(help="The text; - reads standard input.")]
Model = Annotated[Path, typer.Option("--model", "-m", help="A classifier's folder, as `clearhead train` makes it.")]
File = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object with the probability of each class.")]


def classify(text: Text = None, *, model: Model, file: File = None, as_json: Json = False) -> None:
    """Name the class of a text.

    The model is one that a recipe with kind = "classes" made. Prints the likeliest class and how likely each is. The
    text is taken as it stands, as in training; only one line end at the end of a file or of standard input is left out.
    """
    from clearhead.cli.console import read_text
    from clearhead.training.classifier import load_classifier

    words = read_text(text, file, "text")
    if text in (None, "-"):
        words = words.removesuffix("\n").removesuffix("\r")  # which ends a file, and is no part of what is asked
    found = load_classifier(model).probabilities(words)
    if as_json:
        print(json.dumps(found))
        return
    print(next(iter(found)))
    for label, probability in found.items():
        print(f"  {100 * probability:5.1f}%  {label}")
