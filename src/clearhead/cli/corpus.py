"""`clearhead corpus`: texts as token shards to train on, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.errors import TrainingError

if TYPE_CHECKING:
    from clearhead.data.corpus import Corpus
    from clearhead.data.shards import TokenSplit

HELP = "Turn texts into token shards to train on, and look at such a corpus."

BUILD_EPILOG = """
Examples:

[bold]clearhead corpus build texts/ -o corpus[/]                                all texts in a folder, in GPT-2's tokens

[bold]clearhead corpus build pages.jsonl -o corpus --field content[/]           a field of JSON lines

[bold]clearhead corpus build play.txt -o corpus -t characters -v tail:0.1[/]    letter by letter

[bold]clearhead corpus build hf:roneneldan/TinyStories -o corpus[/]             a data set on the hub
"""

INSPECT_EPILOG = """
Examples:

[bold]clearhead corpus inspect corpus[/]                   what it holds, and whether every file is as it was built

[bold]clearhead corpus inspect corpus --documents 3[/]     the first documents, as a model sees them

[bold]clearhead corpus inspect corpus --json[/]            for a program
"""


def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Text files (a line <|endoftext|> between documents), JSON lines, Parquet files, folders of them, or "
            "data sets on the hub (hf:NAME, hf:NAME:CONFIG, hf:NAME:CONFIG:SPLIT). They are read in this order; files "
            "of a folder, sorted by path."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the corpus goes.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            "-t",
            help="gpt2, or another name on the hub; bytes; characters (all that the texts have); a tokenizer.json, or "
            "a folder with a tokenizer's files.",
        ),
    ] = "gpt2",
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            "-v",
            help="What is held out: a share of the documents, drawn at random (0.01, which is meant where this is left "
            "out), the last share of the tokens (tail:0.1), or none.",
        ),
    ] = None,
    valid: Annotated[
        list[str] | None, typer.Option("--valid", metavar="SOURCE", help="Hold out these sources instead.")
    ] = None,
    field: Annotated[str, typer.Option(help="The field of a JSON line, or the column of a table, to take.")] = "text",
    name: Annotated[str, typer.Option(help="What the text is called, in file names and metrics.")] = "text",
    seed: Annotated[int, typer.Option(help="Of the draw of held-out documents.", min=0)] = 1,
    processes: Annotated[
        int | None, typer.Option(help="How many encode at once; one for each core where it is left out.", min=1)
    ] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens in a file, at most.", min=1 << 10, max=1 << 31)] = 1 << 27,
) -> None:
    """Build a corpus: the tokens of texts, in files that training maps into memory.

    It may be stopped at any time, and the same command goes on from there. What is built depends neither on that nor on
    the number of processes. Memory stays small, however large the texts are.
    """
    from clearhead.data.corpus_builder import build_corpus
    from clearhead.data.corpus_plan import CorpusPlan, TextPlan, ValidationSplit
    from clearhead.data.sources.find import find_sources
    from clearhead.data.vocabulary import Vocabulary

    if valid and validation is not None:
        raise typer.BadParameter("give only one of --validation and --valid.")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise typer.BadParameter(f"{name!r} cannot be the name of a file; use letters, digits, '-' and '_' only.")
    text = TextPlan(
        name,
        tuple(find_sources(sources, field=field, out=out)),
        tuple(find_sources(valid or [], field=field, out=out)),
        ValidationSplit.from_text("none" if valid else "0.01" if validation is None else validation),
    )
    plan = CorpusPlan((text,), Vocabulary.from_name(tokenizer), seed, shard_tokens)
    corpus = build_corpus(plan, out, processes=processes)
    _print(corpus)
    if not corpus.valid and validation != "none":
        from clearhead.cli.console import notice

        notice("no document was drawn to be held out; give a larger --validation, or tail:0.1 to cut the text.")


def inspect(
    folder: Annotated[Path, typer.Argument(help="The corpus.")],
    documents: Annotated[int, typer.Option(help="Print so many documents of each part, cut at 300 letters.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Do not read the files to compare their checksums.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest, one JSON object.")] = False,
) -> None:
    """Show what a corpus holds, and check that its files are as they were built."""
    from clearhead.data.corpus import Corpus
    from clearhead.utils.progress import Progress

    corpus = Corpus(folder)
    if not quick:
        with Progress("checking the corpus", corpus.size()) as progress:
            corpus.check(progress.advance)
    if as_json:
        print(json.dumps(corpus.manifest, ensure_ascii=False, indent=1))
        return
    _print(corpus)
    if not quick:
        print(f"all {2 * len(corpus.shards):,} files have the checksums that they were built with")
    for split, parts in (("train", corpus.train), ("valid", corpus.valid)):
        for text, part in parts.items():
            _print_documents(corpus, part, f"{text}, {split}", documents)


VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "build": (build, BUILD_EPILOG),
    "inspect": (inspect, INSPECT_EPILOG),
}
"""The verbs below `clearhead corpus`, each with what stands under its help."""


def _print(corpus: Corpus) -> None:
    from rich.table import Table
    from rich.text import Text

    from clearhead.cli.console import output

    console, tokenizer = output(), corpus.tokenizer
    console.print(str(corpus.folder), style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold underline")
    for heading in ("text", "part", "documents", "tokens", "bytes", "bytes/token", "shards"):
        table.add_column(heading, justify="left" if heading in ("text", "part") else "right")
    for text in corpus.train:
        for split, part in (("train", corpus.train[text]), ("valid", corpus.valid.get(text))):
            if part:
                table.add_row(Text(text), split, *_numbers(part))
    console.print(table)
    end = "no token for the end of a text" if tokenizer.end_of_text is None else f"end of text {tokenizer.end_of_text}"
    kind = corpus.manifest["plan"]["vocabulary"]["kind"]
    words = {"given": "tokens", "bytes": "tokens (bytes)", "characters": "tokens (characters)", "merges": "tokens"}
    width = corpus.manifest["dtype"][-1]
    console.print(f"{tokenizer.vocab_size:,} {words[kind]}, {end}; {width} bytes for each id", soft_wrap=True)


def _numbers(part: TokenSplit) -> list[str]:
    return [
        f"{part.documents:,}",
        f"{part.tokens:,}",
        f"{part.text_bytes:,}",
        f"{part.text_bytes / part.tokens:.2f}",
        f"{len(part.shards):,}",
    ]


def _print_documents(corpus: Corpus, part: TokenSplit, title: str, count: int) -> None:
    if count < 0:
        raise TrainingError(f"--documents is {count}; 0 or more was expected.")
    if not count:
        return
    from clearhead.cli.console import output

    console = output()
    for number, document in enumerate(_first_documents(corpus, part, count), 1):
        console.print(f"\n{title}, document {number}", style="bold", soft_wrap=True)
        console.print(document if len(document) <= 300 else f"{document[:300]} …", soft_wrap=True)


def _first_documents(corpus: Corpus, part: TokenSplit, count: int) -> list[str]:
    """The beginnings of the first documents of a part: as many tokens as surely give 300 characters."""
    ids: Any = corpus.tokens(part)
    starts: list[int] = []
    for first in range(0, part.tokens, 1 << 20):
        starts += corpus.starts(part).between(first, first + (1 << 20)).tolist()
        if len(starts) > count:
            break
    if not starts or starts[0]:
        starts = [0, *starts]  # the end of a document whose beginning is in the other part
    ends = [*starts[1:], part.tokens]
    found = []
    for start, end in zip(starts[:count], ends, strict=False):
        tokens = ids[start : min(end, start + 1500)].tolist()
        if tokens[0] == corpus.tokenizer.end_of_text:
            tokens = tokens[1:]
        found.append(corpus.tokenizer.decode(tokens))
    return found
