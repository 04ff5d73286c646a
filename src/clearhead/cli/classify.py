"""`clearhead classify`: the classes of one text or of many, by a model that was trained for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.console import read_prompt, read_text, write_json
from clearhead.cli.language import translate
from clearhead.cli.options import Json
from clearhead.cli.table_output import file_states, write_table
from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.evaluation.surprisal import InputText, Row
    from clearhead.training.classifier import Classifier

EPILOG = """
Examples:

[bold]clearhead classify "You have won a prize, call now" --model runs/spam/model[/]

[bold]clearhead classify --file letter.txt --model runs/spam/model --json[/]

[bold]clearhead classify --file messages.csv --text message -m runs/spam/model -o classes.csv[/]

[bold]clearhead classify --file reviews.txt --lines -m runs/reviews/model[/]

[bold]clearhead classify "You won" -m review_classifier.pth --labels "not spam,spam" --pad-to 120[/]
"""

Text = Annotated[str | None, typer.Argument(help="The text; - reads standard input.")]
Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--file",
        "-f",
        help="Read the text from this file, or the texts of a table; can be given again.",
        metavar="FILE",
    ),
]
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
        help="Pad the text to N tokens with the end of text and read the class from the last one, as in the book.",
    ),
]


@dataclass(frozen=True)
class ManyTexts:
    """How many texts are found in files, and where their classes go."""

    lines: Annotated[bool, typer.Option("--lines", help="Each line of a text file is a text of its own.")] = False
    column: Annotated[str, typer.Option("--text", help="The column of a table with the text.", metavar="COLUMN")] = (
        "text"
    )
    id: Annotated[str | None, typer.Option(help="The column that names each text.", metavar="COLUMN")] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a table: .parquet, .csv or .jsonl.", metavar="FILE"),
    ] = None


def classify(
    text: Text = None,
    *,
    model: Model,
    file: Files = None,
    labels: Labels = None,
    pad_to: PadTo = None,
    many: ManyTexts,
    as_json: Json = False,
) -> None:
    """Classify a text, or many.

    The model comes from a recipe with kind = "classes", is a GPT2ForSequenceClassification of transformers, or a state
    dict of the book's chapter 6, whose classifier was trained on texts that are filled to one length. Prints the most
    likely class and the probability of each. If a text can have several classes (problem_type is
    "multi_label_classification"), or there is one class only, each has its own probability, and those of 50% or more
    are named; a regression prints its value. One line end at the end of a file or of standard input is dropped.

    Each row of a .csv, .tsv, .json or .jsonl file, with --lines each line, and each of several files is a text of its
    own.
    They are classified in batches: one line for each is printed, with --json one object, or --output writes a table,
    and the same command resumes an interrupted job.
    """
    from clearhead.training.classifier import load_classifier

    if many.output is not None and as_json:
        raise typer.BadParameter("--json prints and --output writes; give one of them.")
    files = file or []
    texts = _texts(text, files, many)
    words = "" if texts is not None else read_prompt(text, files[0] if files else None, "text")
    classifier = load_classifier(model, split_labels(labels))
    classifier.pad_to = pad_to or 0
    if texts is None:
        _print_one(classifier, words, as_json)
    elif many.output is None:
        _print_many(classifier, texts, as_json)
    else:
        _write_many(classifier, model, texts, files, many)


def split_labels(labels: str | None) -> list[str] | None:
    """Return the classes' names of `--labels`."""
    return None if labels is None else [name.strip() for name in labels.split(",")]


def _texts(text: str | None, files: list[Path], many: ManyTexts) -> list[InputText] | None:
    """Return the texts to classify; None if there is one, which is read as other verbs read theirs."""
    from clearhead.data.labelled import BARE_COLUMNS
    from clearhead.evaluation.text_inputs import Columns, is_table, read_texts, texts_of_lines

    if not (many.lines or many.output is not None or len(files) > 1 or any(map(is_table, files))):
        return None
    if text not in (None, "-") or (files and text is not None):
        raise InputError("a text was given as an argument, and --lines, --output and tables need --file; give one.")
    if not files and not many.lines:
        raise InputError("--output writes the classes of the texts in files; give --file FILE, or --lines and a pipe.")
    if files:
        columns = Columns(many.column, many.id)
        texts = list(read_texts(files, columns, lines=many.lines, bare_columns=BARE_COLUMNS))
    else:
        texts = list(texts_of_lines(read_text(None, None, "text"), "stdin", "standard input"))
    if not texts:
        raise InputError("there is no text in the input; give files with some.")
    return texts


def _print_one(classifier: Classifier, text: str, as_json: bool) -> None:
    found = classifier.probabilities(text)
    if as_json:
        write_json(found)
    elif classifier.output == "value":
        for label, value in found.items():
            print(f"  {value:.4f}  {label}")
    else:
        print(", ".join(classifier.likely(found)) or translate("none"))
        for label, probability in found.items():
            print(f"  {100 * probability:5.1f}%  {label}")


def _print_many(classifier: Classifier, texts: list[InputText], as_json: bool) -> None:
    from clearhead.training.classify_texts import classify_texts

    width = max(len(text.id) for text in texts)
    for (row,) in classify_texts(classifier, texts):
        if as_json:
            write_json(row)
            continue
        id, label, *numbers = row.values()
        if classifier.output == "value":
            values = "  ".join(f"{value:.4f}" for value in numbers)
            print(f"{id:<{width}}  {values}", flush=True)
        else:
            print(f"{id:<{width}}  {100 * max(numbers):5.1f}%  {label or translate('none')}", flush=True)


def _write_many(
    classifier: Classifier, model: Path, texts: list[InputText], files: list[Path], many: ManyTexts
) -> None:
    from clearhead import weights
    from clearhead.evaluation.provenance import weights_digest
    from clearhead.training.classify_texts import classify_texts
    from clearhead.version import __version__

    assert many.output is not None

    def rows_of(remaining: Iterable[InputText]) -> Iterator[list[Row]]:
        return classify_texts(classifier, remaining)

    metadata: dict[str, Any] = {
        "model": str(model),
        "weights_sha256": weights_digest(weights.open(model)),
        "labels": classifier.labels,
        "pad_to": classifier.pad_to,
        "clearhead": __version__,
    }
    of_pipe = [] if files else [text.text for text in texts]  # a pipe has no time that identifies it
    job = {"files": file_states(files), "pipe": of_pipe, **asdict(many), "output": None}
    write_table(rows_of, iter(texts), many.output, job, metadata, doing="classifying")
