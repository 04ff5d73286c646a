"""The summary of a corpus that `build` and `inspect` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearhead.data.corpus import Corpus
    from clearhead.data.shards import TokenSplit


def print_summary(corpus: Corpus) -> None:
    """Print the documents, tokens and bytes of each part, and the tokenizer."""
    from rich.table import Table
    from rich.text import Text

    from clearhead.cli.console import output, rich_text
    from clearhead.cli.language import translate

    console, tokenizer = output(), corpus.tokenizer
    console.print(str(corpus.folder), style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold underline")
    for heading in ("text", "part", "documents", "tokens", "bytes", "bytes/token", "shards"):
        table.add_column(translate(heading), justify="left" if heading in ("text", "part") else "right")
    for text in corpus.train:
        for split, part in (("train", corpus.train[text]), ("valid", corpus.valid.get(text))):
            if part:
                table.add_row(Text(text), rich_text(split), *_numbers(part))
    console.print(table)
    end = "no end-of-text token" if tokenizer.end_of_text is None else f"end of text {tokenizer.end_of_text}"
    kind = corpus.manifest["plan"]["vocabulary"]["kind"]
    kinds = {"given": "tokens", "bytes": "tokens (bytes)", "characters": "tokens (characters)", "merges": "tokens"}
    width = corpus.manifest["dtype"][-1]
    console.print(f"{tokenizer.vocab_size:,} {kinds[kind]}, {end}; {width} bytes for each id", soft_wrap=True)


def _numbers(part: TokenSplit) -> list[str]:
    return [
        f"{part.documents:,}",
        f"{part.tokens:,}",
        f"{part.text_bytes:,}",
        f"{part.text_bytes / max(part.tokens, 1):.2f}",
        f"{len(part.shards):,}",
    ]
