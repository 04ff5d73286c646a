"""`clearhead corpus inspect`: what a corpus contains, and whether its files are intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.console import output, say, verbatim_output, write_json
from clearhead.cli.language import translate
from clearhead.errors import TrainingError
from clearhead.utils.text import printable

if TYPE_CHECKING:
    from clearhead.data.corpus import Corpus
    from clearhead.data.shards import TokenSplit

EPILOG = """
Examples:

[bold]clearhead corpus inspect corpus[/]                   what it contains, and whether every file is intact

[bold]clearhead corpus inspect corpus --documents 3[/]     the first documents, as a model sees them

[bold]clearhead corpus inspect corpus --json[/]            for a program
"""


def inspect(
    folder: Annotated[Path, typer.Argument(help="The corpus.")],
    documents: Annotated[int, typer.Option(help="Print this many documents of each part, cut at 300 characters.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Do not read the files to verify their checksums.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
) -> None:
    """Show what a corpus contains, and check that its files are intact."""
    from clearhead.cli.corpus.summary import print_summary
    from clearhead.data.corpus import Corpus
    from clearhead.utils.progress import Progress

    corpus = Corpus(folder)
    if not quick:
        with Progress("checking the corpus", corpus.size()) as progress:
            corpus.check(progress.advance)
    if as_json:
        write_json(corpus.manifest, indent=1)
        return
    print_summary(corpus)
    if not quick:
        say(f"all {2 * len(corpus.shards):,} files have the checksums that were recorded when they were built")
    for split, parts in (("train", corpus.train), ("valid", corpus.valid)):
        for text, part in parts.items():
            _print_documents(corpus, part, f"{text}, {translate(split)}", documents)


def _print_documents(corpus: Corpus, part: TokenSplit, title: str, count: int) -> None:
    if count < 0:
        raise TrainingError(f"--documents is {count}; give 0 or more.")
    if not count:
        return
    console = output()
    for number, document in enumerate(_first_documents(corpus, part, count), 1):
        console.print(f"\n{title}, document {number}", style="bold", soft_wrap=True)
        text = document if len(document) <= 300 else f"{document[:300]} …"
        verbatim_output().print(printable(text), soft_wrap=True)


def _first_documents(corpus: Corpus, part: TokenSplit, count: int) -> list[str]:
    """Return the beginnings of the first documents of a part, long enough for 300 characters each."""
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
