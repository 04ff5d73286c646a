"""`clearhead tokenize`: a text as the tokens that a model sees, and back."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

EPILOG = """
Examples:

[bold]clearhead tokenize "Hello, world"[/]             each token with its id

[bold]clearhead tokenize --file story.txt --ids[/]     the ids alone, for a program

[bold]clearhead tokenize --decode "15496 11 995"[/]    from ids back to text

[bold]echo "Hello" | clearhead tokenize --json[/]      from a pipe, as JSON
"""


def tokenize(
    text: Annotated[
        str | None,
        typer.Argument(help="The text (with --decode, the ids). From --file or a pipe where it is left out, or '-'."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Whose tokens: a model's folder, a tokenizer.json, or a name on the hub. "
            "The bundled model's where it is left out.",
        ),
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print only the ids, on one line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    decode: Annotated[
        bool, typer.Option("--decode", "-d", help="The other way: read ids and print their text, byte for byte.")
    ] = False,
    special: Annotated[
        bool,
        typer.Option(
            "--special", help="Where the text spells out <|endoftext|>, take it for that token, not for 13 characters."
        ),
    ] = False,
) -> None:
    """Show the tokens of a text.

    A model does not read letters but tokens: words and parts of words from a fixed list, each with a number. A
    space belongs to the word after it. A character outside the list is spelled out in bytes, over several tokens.
    """
    from clearhead.cli.console import read_text
    from clearhead.cli.source import open_tokenizer

    if sum((ids, as_json, decode)) > 1:
        raise typer.BadParameter("give only one of --ids, --json and --decode.")
    given = read_text(text, file, "text")
    tokenizer = open_tokenizer(model)
    if decode:
        _write_exactly(tokenizer.decode_bytes(_parse_ids(given)))
        return
    found = tokenizer.encode(given, special=special)
    if ids:
        print(*found)
    elif as_json:
        print(json.dumps(_as_json(tokenizer, given, found), ensure_ascii=False))
    else:
        _print_rows(tokenizer, given, found)


def _parse_ids(text: str) -> list[int]:
    """Whole numbers between spaces, commas or brackets, so that a printed list can be pasted."""
    words = re.split(r"[\s,;\[\]()]+", text.strip())
    for word in words:
        if word and not (word.isascii() and word.isdecimal()):
            raise InputError(f"{word!r} is no token id; give whole numbers with spaces or commas between them.")
    return [int(word) for word in words if word]


def _write_exactly(data: bytes) -> None:
    """The bytes as they are, so that a file goes through unchanged; a terminal gets its line ended."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    if sys.stdout.isatty() and not data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def piece(data: bytes) -> str:
    """One token's bytes to look at: quoted text, or `<F0 9F>` for what is no whole character."""
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"


def _print_rows(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    width = len(str(tokenizer.vocab_size - 1))
    shown: dict[int, str] = {}
    lines = []
    for token in ids:
        if token not in shown:
            shown[token] = piece(tokenizer.token_bytes(token))
        lines.append(f"{token:>{width}}  {shown[token]}\n")
    sys.stdout.writelines(lines)
    print(_summary(len(ids), len(text), len(text.encode("utf-8"))))


def _summary(tokens: int, characters: int, size: int) -> str:
    parts = [_plural(tokens, "token"), _plural(characters, "character"), _plural(size, "byte")]
    return ", ".join(parts) + (f": {size / tokens:.1f} bytes a token" if tokens else "")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _as_json(tokenizer: Tokenizer, text: str, ids: list[int]) -> dict[str, Any]:
    return {
        "tokens": len(ids),
        "characters": len(text),
        "bytes": len(text.encode("utf-8")),
        "ids": ids,
        "pieces": [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids],
    }
