"""`clearhead classify`: the class of a text, by a model that was trained for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clearhead.cli.console import read_prompt, write_json
from clearhead.cli.options import Json, TextFile

EPILOG = """
Examples:

[bold]clearhead classify "You have won a prize, call now" --model runs/spam/model[/]

[bold]clearhead classify --file letter.txt --model runs/spam/model --json[/]

[bold]clearhead classify "You won" -m review_classifier.pth --labels "not spam,spam" --pad-to 120[/]
"""

Text = Annotated[str | None, typer.Argument(help="The text; - reads standard input.")]
Model = Annotated[
    Path,
    typer.Option(
        "--model", "-m", help="A classifier: the folder of a run, or a file of weights of the book's chapter 6."
    ),
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="The classes' names in order, with commas, if no config.json names them.")
]
PadTo = Annotated[
    int | None,
    typer.Option(
        "--pad-to",
        metavar="N",
        min=1,
        help="Fill the text to N tokens with the end of text and read the class from the last one, as the book does.",
    ),
]


def classify(
    text: Text = None,
    *,
    model: Model,
    file: TextFile = None,
    labels: Labels = None,
    pad_to: PadTo = None,
    as_json: Json = False,
) -> None:
    """Classify a text.

    The model comes from a recipe with kind = "classes", is a GPT2ForSequenceClassification of transformers, or a state
    dict of the book's chapter 6, whose classifier was trained on texts that are filled to one length. Prints the most
    likely class and the probability of each. If a text can have several classes (problem_type is
    "multi_label_classification"), or there is one class only, each has its own probability, and those of 50% or more
    are named; a regression prints its value. One line end at the end of a file or of standard input is dropped.
    """
    from clearhead.training.classifier import load_classifier

    words = read_prompt(text, file, "text")
    names = None if labels is None else [name.strip() for name in labels.split(",")]
    classifier = load_classifier(model, names)
    classifier.pad_to = pad_to or 0
    found = classifier.probabilities(words)
    if as_json:
        write_json(found)
    elif classifier.output == "value":
        for label, value in found.items():
            print(f"  {value:.4f}  {label}")
    else:
        likely = [label for label, probability in found.items() if probability >= 0.5]
        print((", ".join(likely) or "none") if classifier.output == "independent" else next(iter(found)))
        for label, probability in found.items():
            print(f"  {100 * probability:5.1f}%  {label}")
