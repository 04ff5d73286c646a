"""`clearhead corpus build`: turn texts into token shards to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clearhead.cli.options import Ray, flatten

EPILOG = """
Examples:

[bold]clearhead corpus build texts/ -o corpus[/]                                all texts in a folder, as GPT-2's tokens

[bold]clearhead corpus build pages.jsonl -o corpus --field content[/]           a field of JSON lines

[bold]clearhead corpus build play.txt -o corpus -t characters -v tail:0.1[/]    one token for each character

[bold]clearhead corpus build hf:roneneldan/TinyStories -o corpus[/]             a data set on the hub
"""


@dataclass(frozen=True)
class HeldOutOptions:
    """Which part of the texts is held out for validation."""

    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            "-v",
            help="What to hold out: a share of the documents, drawn at random (0.01 if left out), the last share of "
            "the tokens (tail:0.1), or none.",
        ),
    ] = None
    valid: Annotated[
        list[str] | None, typer.Option("--valid", metavar="SOURCE", help="Hold out these sources instead.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the draw of held-out documents.", min=0)] = 1

    def __post_init__(self) -> None:
        if self.valid and self.validation is not None:
            raise typer.BadParameter("give only one of --validation and --valid.")


@dataclass(frozen=True)
class BuildOptions:
    """How the texts are read and written."""

    field: Annotated[str, typer.Option(help="The field of a JSON line, or the column of a table, to take.")] = "text"
    name: Annotated[str, typer.Option(help="The name of the text in file names and metrics.")] = "text"
    processes: Annotated[
        int | None, typer.Option(help="Processes that encode in parallel; one for each core if left out.", min=1)
    ] = None
    ray: Ray = None
    shard_tokens: Annotated[int, typer.Option(help="The most tokens in one file.", min=1 << 10, max=1 << 31)] = 1 << 27

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").replace("-", "").isalnum():
            raise typer.BadParameter(f"{self.name!r} cannot be part of a file name; use letters, digits, '-' and '_'.")


def _refuse_missing(sources: list[str]) -> list[str]:
    """Refuse files that do not exist before options that are missing."""
    from clearhead.data.sources.find import find_sources

    find_sources([name for name in sources if not (name.startswith("hf:") or Path(name).expanduser().exists())])
    return sources


@flatten
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            callback=_refuse_missing,
            help="Text files (a line <|endoftext|> between documents), JSON lines, Parquet files, folders of them, or "
            "data sets on the hub (hf:NAME, hf:NAME:CONFIG, hf:NAME:CONFIG:SPLIT). They are read in this order; the "
            "files of a folder, sorted by path.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Write the corpus to this folder.")],
    held_out: HeldOutOptions,
    options: BuildOptions,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            "-t",
            help="gpt2, or another name on the hub; bytes; characters (all that occur in the texts); a tokenizer.json, "
            "or a folder with a tokenizer's files.",
        ),
    ] = "gpt2",
) -> None:
    """Build a corpus: the tokens of texts, in files that training maps into memory.

    If it is interrupted, the same command continues. The result depends neither on interruptions nor on the number of
    processes. Memory use stays small, however large the texts are.
    """
    from clearhead.cli.console import notice
    from clearhead.cli.corpus.summary import print_summary
    from clearhead.data.corpus_builder import build_corpus
    from clearhead.data.corpus_plan import CorpusPlan, TextPlan, ValidationSplit
    from clearhead.data.ray_workers import RayCluster
    from clearhead.data.sources.find import find_sources
    from clearhead.data.vocabulary import Vocabulary

    text = TextPlan(
        options.name,
        tuple(find_sources(sources, field=options.field, out=out)),
        tuple(find_sources(held_out.valid or [], field=options.field, out=out)),
        ValidationSplit.from_text("none" if held_out.valid else held_out.validation or "0.01"),
    )
    plan = CorpusPlan((text,), Vocabulary.from_name(tokenizer), held_out.seed, options.shard_tokens)
    where = options.processes if options.ray is None else RayCluster(options.ray)
    corpus = build_corpus(plan, out, processes=where)
    print_summary(corpus)
    if not corpus.valid and held_out.validation != "none":
        notice("no document was drawn for validation; give a larger --validation, or tail:0.1 to hold out the end.")
