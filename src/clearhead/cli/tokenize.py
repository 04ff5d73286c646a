"""`clearhead tokenize`: turn a text into the tokens that a model reads, and back."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.console import read_text, say, write_json
from clearhead.cli.options import TextFile
from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

EPILOG = """
Examples:

[bold]clearhead tokenize "Hello, world"[/]             each token with its id

[bold]clearhead tokenize --file story.txt --ids[/]     only the ids, for a program

[bold]clearhead tokenize --decode "15496 11 995"[/]    from ids back to text

[bold]echo "Hello" | clearhead tokenize --json[/]      from a pipe, as JSON
"""


def tokenize(
    text: Annotated[
        str | None,
        typer.Argument(
            help="The text (with --decode, the ids). Read from --file or standard input if left out or '-'."
        ),
    ] = None,
    file: TextFile = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Use the tokenizer of a model's folder, a tokenizer.json, or a name on the hub. "
            "The bundled model's if left out.",
        ),
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print only the ids, on one line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    decode: Annotated[bool, typer.Option("--decode", "-d", help="Turn ids into their text, byte for byte.")] = False,
    special: Annotated[
        bool,
        typer.Option("--special", help="Read <|endoftext|> in the text as that token, not as 13 characters."),
    ] = False,
) -> None:
    """Show the tokens of a text.

    A model does not read letters but tokens: words and parts of words from a fixed list, each with a number. A space
    belongs to the word after it. A character that is not in the list is split into bytes, over several tokens.
    """
    from clearhead.cli.model_argument import open_tokenizer

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
        write_json(_as_json(tokenizer, given, found))
    else:
        _print_rows(tokenizer, given, found)


def _parse_ids(text: str) -> list[int]:
    """Parse whole numbers between spaces, commas or brackets, so that a printed list can be pasted."""
    words = re.split(r"[\s,;\[\]()]+", text.strip())
    for word in words:
        if word and not (word.isascii() and word.isdecimal()):
            raise InputError(f"{word!r} is not a token id; give whole numbers with spaces or commas between them.")
    return [int(word) for word in words if word]


def _write_exactly(data: bytes) -> None:
    """Write bytes unchanged; on a terminal, also end the line."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    if sys.stdout.isatty() and not data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def piece(data: bytes) -> str:
    """Return one token's bytes for people: quoted text, or `<F0 9F>` if they are not whole characters."""
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
    say(_summary(len(ids), len(text), len(text.encode("utf-8"))))


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
