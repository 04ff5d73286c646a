"""`clearhead evaluate --examples`: the loss of responses, or a classifier's accuracy and confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.classify import Labels, PadTo, split_labels
from clearhead.cli.console import headings, notice, output, write_json
from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.gpt import GPT
    from clearhead.training.example_scores import LabelledScore


@dataclass(frozen=True)
class ExampleChoice:
    """Whether the files have examples, and how they are read."""

    examples: Annotated[
        bool,
        typer.Option(
            "--examples",
            help="The files have examples (JSON lines, a JSON array, CSV, TSV): prompts with responses, or, for a "
            "classifier, texts with labels.",
        ),
    ] = False
    template: Annotated[
        str | None,
        typer.Option(
            help="With --examples: the text before a response, as in the recipe, in which \\n is a line end; the "
            "model's own by default.",
            metavar="TEMPLATE",
        ),
    ] = None
    labels: Labels = None
    pad_to: PadTo = None


def evaluate_examples(files: Sequence[Path], loader: partial[GPT], choice: ExampleChoice, as_json: bool) -> None:
    """Print the scores of a model on each file, as JSON with what identifies the model."""
    from clearhead import weights
    from clearhead.evaluation.provenance import describe_model
    from clearhead.training.classifier import is_classifier

    model = loader.args[0]
    described = describe_model(model, loader.keywords["config"], "float32") if as_json else {}
    if model is not None and is_classifier(weights.open(model, config=loader.keywords["config"])):
        if choice.template is not None or loader.keywords["device"] != "cpu":
            raise typer.BadParameter("--template and --device are not for classifiers; leave them out.")
        _evaluate_labelled(files, Path(model), choice, described)
    elif choice.labels is not None or choice.pad_to is not None:
        raise typer.BadParameter("--labels and --pad-to are for classifiers; leave them out.")
    else:
        _evaluate_responses(files, loader, choice.template, described)


def _evaluate_responses(
    files: Sequence[Path], loader: partial[GPT], text: str | None, described: Mapping[str, str]
) -> None:
    from clearhead.data.templates import PromptTemplate
    from clearhead.training.example_scores import score_responses, template_of
    from clearhead.utils.progress import Progress

    gpt = loader(backend="torch")
    if gpt.tokenizer is None:
        raise InputError("this model has no tokenizer; put its files (tokenizer.json) next to the weights.")
    if text is None:
        template = template_of(gpt.tokenizer)
    else:  # a shell passes on what is an escape in a recipe
        template = PromptTemplate.from_recipe(text.replace("\\n", "\n").replace("\\t", "\t"))
    header = headings({"loss": 9, "perplexity": 11, "tokens": 10, "examples": 9}, "file")
    for number, file in enumerate(files):
        with Progress(f"evaluating {file.name}", None) as progress:
            found = score_responses(gpt, file, template, progress.advance)
        score = found.cross_entropy
        if found.left_out == 1:
            notice(f"1 example of {file} is longer than the context and left out.")
        elif found.left_out:
            notice(f"{found.left_out:,} examples of {file} are longer than the context and left out.")
        if described:
            numbers = {"loss": score.loss, "perplexity": score.perplexity, "tokens": score.tokens}
            counts = {"examples": found.examples, "left_out": found.left_out}
            write_json({"file": str(file), **described, **numbers, **counts})
        else:
            if number == 0:
                print(header)
            print(
                f"{score.loss:9.4f} {score.perplexity:11.3f} {score.tokens:10,} {found.examples:9,}  {file}",
                flush=True,
            )


def _evaluate_labelled(files: Sequence[Path], model: Path, choice: ExampleChoice, described: Mapping[str, str]) -> None:
    from clearhead.training.classifier import load_classifier
    from clearhead.training.example_scores import score_labelled
    from clearhead.utils.progress import Progress

    classifier = load_classifier(model, split_labels(choice.labels))
    classifier.pad_to = choice.pad_to or 0
    for file in files:
        with Progress(f"evaluating {file.name}", None) as progress:
            found = score_labelled(classifier, file, progress.advance)
        if described:
            numbers = {"accuracy": found.accuracy, "loss": found.loss, "examples": found.examples}
            confusion = {"labels": found.labels, "confusion": found.confusion.tolist()}
            write_json({"file": str(file), **described, **numbers, **confusion})
        else:
            print(headings({"accuracy": 9, "loss": 9, "examples": 9}, "file"))
            print(f"{found.accuracy:9.4f} {found.loss:9.4f} {found.examples:9,}  {file}\n", flush=True)
            _print_confusion(found)


def _print_confusion(found: LabelledScore) -> None:
    """Print a row for each true class, with a column for each predicted one and the share that is right."""
    from clearhead.cli.tables import TextTable

    table = TextTable(["true \\ predicted", *found.labels, "right"])
    for label, row, right in zip(found.labels, found.confusion, found.confusion.diagonal(), strict=True):
        share = f"{100 * right / row.sum():.1f}%" if row.sum() else "-"
        table.add(label, *(f"{count:,}" for count in row), share)
    console = output()
    console.print(table.for_terminal())
    console.print()
