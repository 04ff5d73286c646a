"""`clearhead evaluate`: the loss of a model on held-out texts, and standard benchmarks from local files."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.console import curves_language, headings, notice, write_json
from clearhead.cli.evaluate_examples import ExampleChoice, evaluate_examples
from clearhead.cli.language import translate
from clearhead.cli.model_argument import load_model
from clearhead.cli.options import Config, Device, Json, Model, choices, flatten
from clearhead.errors import InputError
from clearhead.utils.arguments import Dtype

if TYPE_CHECKING:
    from clearhead.evaluation.published_scores import Agreement
    from clearhead.evaluation.results import TaskResult
    from clearhead.gpt import GPT

EPILOG = """
Examples:

[bold]clearhead evaluate held_out.txt[/]

[bold]clearhead evaluate runs/mine/corpus -m runs/mine/model[/]                          its held-out texts

[bold]clearhead evaluate test.jsonl --examples --model runs/spam/model[/]                a classifier's accuracy

[bold]clearhead evaluate lambada_test.jsonl --task lambada --model gpt2 --published[/]

[bold]clearhead evaluate blimp.zip --task blimp --markdown[/]

[bold]clearhead evaluate blimp.zip --task blimp --revisions runs/babylm --curves blimp.svg[/]

[bold]clearhead evaluate hub --task wikitext2 --model gpt2[/]                       the task's data set on the hub
"""

Files = Annotated[
    list[str],
    typer.Argument(
        help="Text files; a line <|endoftext|> separates documents. Or folders of corpora, for their held-out texts. "
        "Or the files of a task: hub loads its data set from the hub, hub:NAME another one with the same columns."
    ),
]


@dataclass(frozen=True)
class TaskChoice:
    """Which task runs, and how."""

    task: Annotated[
        str | None,
        typer.Option(
            help="perplexity (sliding windows), lambada, hellaswag, hellaswag-completion, wikitext2, blimp, cbt-cn, "
            "cbt-ne, ptb, wikitext103, 1bw, enwik8, text8, or points (single published values).",
            metavar="TASK",
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N items of a task.")] = None
    stride: Annotated[
        int | None, typer.Option(help="Tokens that each window after the first scores, in tasks with one text.")
    ] = None
    bos: Annotated[bool, typer.Option("--bos", help="Put the end-of-text token before every context.")] = False
    dtype: Annotated[
        str,
        typer.Option(
            help="For tasks, the weights in memory: float32, bfloat16, float16, int8 or int4.", **choices(Dtype)
        ),
    ] = "float32"
    revisions: Annotated[
        Path | None,
        typer.Option(help="Run the task at every milestone in words of this training run.", metavar="RUN"),
    ] = None
    curves: Annotated[
        Path | None, typer.Option(help="With --revisions: draw the metrics over the words, as .svg or .png.")
    ] = None


@dataclass(frozen=True)
class ResultChoice:
    """How results are printed."""

    as_json: Json = False
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the results of tasks as a Markdown table.")] = (
        False
    )
    published: Annotated[
        bool, typer.Option("--published", help="Show what others measured with this model, and whether it agrees.")
    ] = False


@flatten
def evaluate(
    files: Files,
    model: Model = None,
    config: Config = None,
    device: Device = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine; one for each core if left out.")
    ] = None,
    *,
    choice: TaskChoice,
    of_examples: ExampleChoice,
    show: ResultChoice,
) -> None:
    """Measure a model on texts that it was not trained on.

    Perplexity is the number of equally likely tokens that would be as hard to guess; it depends on the vocabulary. Bits
    per byte does not, so models with different tokenizers can be compared by it. The text is cut into windows of the
    context length, and each token is predicted from those before it in its window.

    With --examples, the files are those of fine-tuning: the loss is that of the responses, and a classifier's accuracy
    and confusion matrix are printed. With --task, a benchmark runs on its own files: the results follow
    lm-evaluation-harness and have standard errors.
    """
    if choice.curves is not None and choice.revisions is None:
        raise typer.BadParameter("--curves draws the results of --revisions RUN; give both.")
    if of_examples != ExampleChoice() and (choice.task is not None or not of_examples.examples):
        raise typer.BadParameter("--template, --labels and --pad-to need --examples, which excludes --task.")
    if choice.task is not None and choice.revisions is not None:
        if model is not None or show.published:
            raise typer.BadParameter("--revisions RUN names the models; leave --model and --published out.")
        with ExitStack() as stack:
            loader = partial(load_model, device=device, threads=threads)
            _run_revisions(_task_files(files, choice.task, stack), loader, choice, show)
        return
    loader = partial(load_model, model, device=device, config=config, threads=threads)
    if choice.task is not None:
        with ExitStack() as stack:
            _run_tasks(_task_files(files, choice.task, stack), loader, choice, show)
        return
    if show.markdown or show.published or choice != TaskChoice():
        raise typer.BadParameter(
            "--limit, --stride, --bos, --dtype, --revisions, --markdown and --published need --task."
        )
    paths = [Path(file) for file in files]
    if missing := next((path for path in paths if not path.exists()), None):
        raise InputError(f"{missing} could not be read ({os.strerror(errno.ENOENT)}); check the path.")
    if of_examples.examples:
        if threads is not None:
            raise typer.BadParameter("--threads is for the engine, and --examples runs on PyTorch; leave it out.")
        evaluate_examples(paths, loader, of_examples, show.as_json)
    else:
        _evaluate_perplexity(paths, loader, show.as_json)


def _task_files(files: Sequence[str], task: str, stack: ExitStack) -> list[Path]:
    """Return a task's files; those from the hub exist until the stack is closed."""
    from clearhead.evaluation.tasks import task_file

    return [stack.enter_context(task_file(task, file)) for file in files]


def _run_revisions(files: Sequence[Path], loader: partial[GPT], choice: TaskChoice, show: ResultChoice) -> None:
    """Run a task on each file at every milestone in words of a run; print a row for each, and draw the curves."""
    from clearhead.evaluation.learning_curves import RevisionResult, learning_curves_svg
    from clearhead.evaluation.provenance import describe_model
    from clearhead.evaluation.task_scoring import TaskOptions
    from clearhead.evaluation.tasks import run_task
    from clearhead.training.revisions import list_revisions

    assert choice.revisions is not None and choice.task is not None
    options = TaskOptions(limit=choice.limit, stride=choice.stride, bos=choice.bos)
    found = []
    for revision in list_revisions(choice.revisions):
        gpt = loader(str(revision.checkpoint), dtype=choice.dtype)
        for file, result in zip(files, run_task(gpt, choice.task, files, options), strict=True):
            found.append(RevisionResult(revision.name, revision.words or 0.0, file.name, result))
            if show.as_json:
                described = describe_model(str(revision.checkpoint), None, choice.dtype)
                write_json({"revision": revision.name, **_as_json(file, described, result, [])})
            else:
                numbers = "  ".join(f"{metric.name} {metric.value:.4f}" for metric in result.metrics)
                print(f"{revision.name:<10}  {file.name}  {numbers}", flush=True)
    if choice.curves is not None:
        from clearhead.drawing.png import save_picture

        save_picture(learning_curves_svg(found, curves_language(choice.curves)), choice.curves)
        notice(f"the curves are in {choice.curves}.")


def _evaluate_perplexity(files: Sequence[Path], loader: partial[GPT], as_json: bool) -> None:
    from clearhead.evaluation.cross_entropy import measure_cross_entropy
    from clearhead.evaluation.held_out import held_out_texts
    from clearhead.evaluation.provenance import describe_model
    from clearhead.utils.progress import Progress

    gpt = loader()
    if gpt.tokenizer is None:
        raise InputError("this model has no tokenizer; put its files (tokenizer.json) next to the weights.")
    described = describe_model(loader.args[0], loader.keywords["config"], "float32") if as_json else {}
    header = None if as_json else headings({"bits/byte": 9, "perplexity": 11, "tokens": 10, "bytes": 11}, "file")
    for file in files:
        for text in held_out_texts(file, gpt.tokenizer):
            name = str(file) if text.name is None else f"{file} {text.name}"
            with Progress(f"evaluating {text.name or file.name}", len(text.ids)) as progress:
                found = measure_cross_entropy(gpt.runner, text.ids, text.text_bytes, advance=progress.advance)
            if as_json:
                write_json(
                    {
                        "file": str(file),
                        **({} if text.name is None else {"text": text.name}),
                        **described,
                        "bits_per_byte": found.bits_per_byte,
                        "perplexity": found.perplexity,
                        "tokens": found.tokens,
                        "bytes": text.text_bytes,
                    }
                )
            else:
                if header is not None:
                    print(header)
                    header = None
                numbers = f"{found.bits_per_byte:9.4f} {found.perplexity:11.3f} {found.tokens:10,}"
                print(f"{numbers} {text.text_bytes:11,}  {name}", flush=True)


def _run_tasks(files: Sequence[Path], loader: partial[GPT], choice: TaskChoice, show: ResultChoice) -> None:
    from clearhead.evaluation.provenance import describe_model
    from clearhead.evaluation.published_scores import compare_published
    from clearhead.evaluation.task_scoring import TaskOptions
    from clearhead.evaluation.tasks import run_task

    assert choice.task is not None
    gpt = loader(dtype=choice.dtype)
    size = _published_size(gpt) if show.published else None
    options = TaskOptions(limit=choice.limit, stride=choice.stride, bos=choice.bos)
    described = describe_model(loader.args[0], loader.keywords["config"], choice.dtype) if show.as_json else {}
    for file, result in zip(files, run_task(gpt, choice.task, files, options), strict=True):
        agreements = [] if size is None else compare_published(size, result)
        if show.as_json:
            write_json(_as_json(file, described, result, agreements))
        else:
            (_print_markdown if show.markdown else _print_table)(result, agreements)
            if not show.markdown:
                notice(f"{file.name}: {json.dumps(dict(result.settings))}", verbatim=True)


def _published_size(gpt: GPT) -> str:
    from clearhead.config import RELEASED
    from clearhead.weights.hub.official import same_shape

    size = next((size for size, shape in RELEASED.items() if same_shape(shape, gpt.config)), None)
    if size is None:
        raise InputError("--published compares with OpenAI's models, and this model has another shape; leave it out.")
    return size


def _as_json(
    file: Path, described: Mapping[str, str], result: TaskResult, agreements: Sequence[Agreement]
) -> dict[str, Any]:
    found: dict[str, Any] = {"file": str(file), **described, **result.as_json()}
    if agreements:
        found["published"] = [
            {
                "metric": one.metric,
                "value": one.published.value,
                "source": one.published.source,
                "agrees": one.agrees,
            }
            for one in agreements
        ]
    return found


def _rows(result: TaskResult, agreements: Sequence[Agreement]) -> list[list[str]]:
    rows = []
    for name, metrics in {result.task: result.metrics, **result.groups}.items():
        for metric in metrics:
            error = "" if metric.standard_error is None else f"{metric.standard_error:.4f}"
            known = [one for one in agreements if one.metric == metric.name and name == result.task]
            rows.append([name, metric.name, f"{metric.value:.4f}", error, "; ".join(map(_agreement, known))])
    return rows


def _agreement(one: Agreement) -> str:
    word = "not comparable" if one.agrees is None else "agrees" if one.agrees else "differs"
    return f"{one.published.value:g} ({translate(one.published.source)}), {translate(word)}"


_HEADER = ["task", "metric", "value", "± stderr", "published"]


def _print_table(result: TaskResult, agreements: Sequence[Agreement]) -> None:
    from rich.cells import cell_len

    rows = [list(map(translate, _HEADER)), *_rows(result, agreements)]
    shown = 5 if agreements else 4
    widths = [max(cell_len(row[column]) for row in rows) for column in range(shown)]
    for row in rows:
        spaces = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=False)]
        cells = [
            space + text if column in (2, 3) else text + space
            for column, (text, space) in enumerate(zip(row, spaces, strict=False))
        ]
        print("  ".join(cells).rstrip())


def _print_markdown(result: TaskResult, agreements: Sequence[Agreement]) -> None:
    print("| " + " | ".join(map(translate, _HEADER)) + " |")
    print("|---|---|---:|---:|---|")
    for row in _rows(result, agreements):
        print("| " + " | ".join(row) + " |")
