"""`clearhead score`: the surprisal of tokens, words or regions of many texts, as a table."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.language import language, translate
from clearhead.cli.model_argument import load_model
from clearhead.cli.options import Config, Model, Ray, choices, flatten
from clearhead.cli.table_output import file_states, write_table
from clearhead.errors import InputError
from clearhead.utils.arguments import Dtype

if TYPE_CHECKING:
    from clearhead.cli.table_output import RowsOf
    from clearhead.evaluation.surprisal import Row, SurprisalOptions, SurprisalTable
    from clearhead.gpt import GPT

EPILOG = """
Examples:

[bold]clearhead score story.txt[/]                                          one row a token, as JSON lines

[bold]clearhead score items.csv --id item --text sentence --by word -o words.csv[/]

[bold]clearhead score *.txt --model gpt2 --top 5 -o scores.parquet[/]

[bold]clearhead score essay.txt --html essay.html[/]                        a page tinted by surprisal
"""


class By(StrEnum):
    """What a row of the table is."""

    TOKEN = "token"
    WORD = "word"
    REGION = "region"


class Correction(StrEnum):
    """How the corrected surprisal of a word is computed."""

    PAPER = "paper"
    MINICONS = "minicons"


Files = Annotated[list[Path], typer.Argument(help="Text files, or tables (.csv, .tsv, .json, .jsonl).")]
Output = Annotated[
    str, typer.Option("--output", "-o", help="A file (.parquet, .csv, .jsonl); - prints JSON lines.", metavar="FILE")
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", help="Write a web page of the texts, tinted by surprisal, instead of a table.", metavar="FILE"
    ),
]
_ALTERNATIVES = 5  # likely tokens that the page lists, if --top does not say


@dataclass(frozen=True)
class InputOptions:
    """How the files are read."""

    lines: Annotated[bool, typer.Option("--lines", help="Each line of a text file is a text of its own.")] = False
    text: Annotated[str, typer.Option(help="The column of a table with the text.", metavar="COLUMN")] = "text"
    id: Annotated[str | None, typer.Option(help="The column that names each text.", metavar="COLUMN")] = None
    context: Annotated[
        str | None, typer.Option(help="The column with text before it, which is not scored.", metavar="COLUMN")
    ] = None


@dataclass(frozen=True)
class RowOptions:
    """What a row is, and what it contains."""

    by: Annotated[By, typer.Option(help="One row for each token, word or region.")] = By.TOKEN
    words: Annotated[str, typer.Option(help="How words are found: whitespace or jieba.")] = "whitespace"
    regions: Annotated[
        Path | None,
        typer.Option(help="A table of regions: text_id, start, end (in characters) and region.", metavar="FILE"),
    ] = None
    top: Annotated[int, typer.Option(min=0, help="List this many of the most likely tokens.")] = 0
    stride: Annotated[
        int | None, typer.Option(help="Tokens that each window after the first scores. Half the context by default.")
    ] = None
    bos: Annotated[
        bool, typer.Option("--bos/--no-bos", help="Put the tokenizer's end-of-text token before each text.")
    ] = True
    correction: Annotated[
        Correction, typer.Option(help="How a word's surprisal is corrected for the space before it.")
    ] = Correction.PAPER


@dataclass(frozen=True)
class ModelOptions:
    """The model and how it runs."""

    model: Model = None
    config: Config = None
    dtype: Annotated[
        str, typer.Option(help="The weights in memory: float32, bfloat16, float16, int8 or int4.", **choices(Dtype))
    ] = "float32"
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; as many as cores by default.")] = None
    ray: Ray = None


@flatten
def score(
    files: Files,
    *,
    output: Output = "-",
    html: Html = None,
    source: InputOptions,
    row: RowOptions,
    run: ModelOptions,
) -> None:
    """Compute the surprisal of every token, word or region of texts.

    Surprisal is in bits and in nats; a row also has the entropy of the prediction and the rank of the token. Words are
    found in the text, not from tokens. The corrected surprisal of a word counts the space after it in place of the one
    before it (Pimentel and Meister 2024; Oh and Schuler 2024). A text file is one text. An interrupted job resumes if
    the same command is given again. What decides the numbers is stored with them: in the Parquet file, or in
    <output>.metadata.json; with - it goes to standard error.
    """
    from clearhead.evaluation.surprisal import SurprisalTable
    from clearhead.evaluation.text_inputs import Columns, read_texts

    if html is not None:
        if output != "-" or row.by is not By.TOKEN:
            raise typer.BadParameter("--html shows tokens and writes no table; leave -o and --by out.")
        row = dataclasses.replace(row, top=row.top or _ALTERNATIVES)
    options = _table_options(row)
    columns = Columns(source.text, source.id, source.context)
    # Fail early: what is missing or malformed is found before the model is loaded.
    if row.regions is not None:
        _check_ids(row.regions, options.regions, (text.id for text in read_texts(files, columns, lines=source.lines)))
    else:
        next(read_texts(files, columns, lines=source.lines), None)
    gpt = load_model(run.model, dtype=run.dtype, threads=run.threads, config=run.config)
    table = SurprisalTable(gpt, options)
    texts = read_texts(files, columns, lines=source.lines)
    rows_of = table.rows if run.ray is None else _on_ray(run, options)
    if html is not None:
        _write_page(html, rows_of(texts), _metadata(gpt, table, run))
    elif output == "-":
        _print(rows_of(texts), _metadata(gpt, table, run))
    else:
        job = {
            "files": file_states(files),
            "source": dataclasses.asdict(source),
            "rows": {**dataclasses.asdict(row), "regions": [] if row.regions is None else file_states([row.regions])},
        }
        write_table(rows_of, texts, Path(output), job, _metadata(gpt, table, run), doing="scoring")


def _table_options(row: RowOptions) -> SurprisalOptions:
    from clearhead.evaluation.surprisal import SurprisalOptions
    from clearhead.evaluation.text_inputs import read_regions

    if (row.by is By.REGION) != (row.regions is not None):
        raise typer.BadParameter("--by region and --regions FILE belong together.")
    return SurprisalOptions(
        by=row.by.value,
        words=row.words,
        regions={} if row.regions is None else read_regions(row.regions),
        top=row.top,
        stride=row.stride,
        bos=row.bos,
        correction=row.correction.value,
    )


def _check_ids(file: Path, regions: Iterable[str], ids: Iterable[str]) -> None:
    known = dict.fromkeys(ids)
    unknown = next((id for id in regions if id not in known), None)
    if unknown is not None:
        raise InputError(
            f"{file} has a region of text {unknown!r}, which is not among the texts; the first of them are "
            f"{', '.join(map(repr, list(known)[:3])) or 'none'}. --id COLUMN gives texts of a table their names."
        )


def _on_ray(run: ModelOptions, options: SurprisalOptions) -> RowsOf:
    """Return a scorer that computes rows on a Ray cluster, with one thread in each worker."""
    from clearhead.data.ray_workers import RayCluster
    from clearhead.evaluation.distributed_scoring import TextScorer, rows_on_ray

    model = str(Path(run.model).absolute()) if run.model is not None and Path(run.model).exists() else run.model
    scorer = TextScorer(model, {"dtype": run.dtype, "threads": 1, "config": run.config}, options)
    return lambda texts: rows_on_ray(scorer, texts, RayCluster(run.ray or "local"))


def _write_page(file: Path, rows_of_texts: Iterable[list[Row]], metadata: dict[str, Any]) -> None:
    from clearhead.cli.console import write_file
    from clearhead.evaluation.score_page import score_page
    from clearhead.utils.progress import Progress

    with Progress("scoring", None) as progress:

        def counted() -> Iterator[list[Row]]:
            for done, rows in enumerate(rows_of_texts, start=1):
                progress.advance(1, f"{done:,} texts")
                yield rows

        title = translate(f"Surprisal by {metadata['model']}")
        page = score_page(counted(), metadata, title, language())
    write_file(file, page.encode("utf-8"))


def _print(rows_of_texts: Iterable[list[Row]], metadata: dict[str, Any]) -> None:
    for rows in rows_of_texts:
        for row in rows:
            print(json.dumps(row))
    print(f"clearhead: {json.dumps(metadata)}", file=sys.stderr)


def _metadata(gpt: GPT, table: SurprisalTable, run: ModelOptions) -> dict[str, Any]:
    from clearhead.evaluation.provenance import describe_model

    return {**describe_model(run.model, run.config, run.dtype), **table.metadata()}
