"""Input and output that all verbs share: standard streams, text input, files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from clearhead.cli.language import language, translate
from clearhead.errors import InputError
from clearhead.utils import atomic
from clearhead.utils.arguments import Language
from clearhead.utils.progress import stderr_console
from clearhead.utils.text import decode_text, printable

if TYPE_CHECKING:
    from rich.text import Text


class OutputConsole(Console):
    """A console that prints in the chosen language."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects, with texts in the user's language if the tables have them."""
        super().print(*(translate(one) if isinstance(one, str) else one for one in objects), **options)


def output() -> Console:
    """Return a console on standard output that prints the words of a verb."""
    return OutputConsole(highlight=False, markup=False, emoji=False)


def verbatim_output() -> Console:
    """Return a console on standard output that prints text as it is given."""
    return Console(highlight=False, markup=False, emoji=False)


def rich_text(text: str, style: str = "") -> Text:
    """Return a text for a table or a list, in the chosen language."""
    from rich.text import Text

    return Text(translate(text), style)


def headings(columns: Mapping[str, int], last: str) -> str:
    """Return a line of headings in the chosen language.

    Args:
        columns: the names of columns of numbers, aligned to the right, with their widths in a terminal.
        last: the name of the last column, which is of text.
    """
    from rich.cells import cell_len

    shown = {translate(name): width for name, width in columns.items()}
    cells = [" " * (width - cell_len(name)) + name for name, width in shown.items()]
    return f"{' '.join(cells)}  {translate(last)}"


def say(sentence: str) -> None:
    """Print a sentence of a verb in the chosen language."""
    print(translate(sentence), flush=True)


def print_error(sentence: str) -> None:
    """Print what ends a command on standard error, in the chosen language."""
    print(f"clearhead: {printable(translate(sentence))}", file=sys.stderr, flush=True)


def notice(text: str, verbatim: bool = False) -> None:
    """Print one line on standard error, such as that a prompt was cut, in the user's language or `verbatim`."""
    line = text if verbatim else translate(text)
    stderr_console().print(f"clearhead: {printable(line)}", style="dim", soft_wrap=True)


def read_text(argument: str | None, file: Path | None, noun: str) -> str:
    """Return the text that a verb works on: its argument, a file, or standard input (piped, or requested by `-`).

    Args:
        argument: the text itself, or `-`.
        file: a file to read instead.
        noun: what the text is, for messages: "prompt".

    Raises:
        InputError: if there is none, more than one, or the input is not UTF-8.
    """
    if argument not in (None, "-") and file is not None:
        raise InputError(f"the {noun} was given twice, as an argument and as --file {file}; give one of them.")
    if file is not None and str(file) != "-":
        return decode_text(_read(file), str(file))
    if argument not in (None, "-"):
        return argument or ""
    if argument is None and file is None and sys.stdin is not None and sys.stdin.isatty():
        raise InputError(f"there is no {noun}; give it as an argument, with --file, or through a pipe.")
    if sys.stdin is None or sys.stdin.closed:
        raise InputError(f"there is no {noun}, and standard input is closed; give it as an argument or with --file.")
    return decode_text(sys.stdin.buffer.read(), "standard input")


def read_prompt(argument: str | None, file: Path | None, noun: str = "prompt") -> str:
    """Return a text as `read_text` does, without the line end at the end of a file or of piped input."""
    text = read_text(argument, file, noun)
    if argument in (None, "-"):
        text = text.removesuffix("\n").removesuffix("\r")  # it would make the model begin a new line
    return text


def curves_language(file: Path) -> Language:
    """Return the language of the words in a picture of curves; say so if a PNG has to be in English."""
    from clearhead.drawing.png import picture_language

    found = picture_language(file, language())
    if found != language():
        notice(f"no font on this machine has Chinese characters, so {file} is in English.")
    return found


def write_file(file: Path, contents: str | bytes) -> None:
    """Write a file through `utils.atomic`; text is written as UTF-8.

    Raises:
        InputError: if it cannot be written.
    """
    try:
        if file.is_dir():
            raise InputError(f"{file} is a folder; give the name of a file to write.")
        atomic.write_bytes(file, contents.encode() if isinstance(contents, str) else contents)
    except OSError as error:
        raise InputError(
            f"{file} could not be written ({error.strerror}); give a file in an existing, writable folder."
        ) from None


def write_json(value: object, indent: int | None = None) -> None:
    """Print a value as JSON. Only ASCII is printed, so that no encoding of a terminal can lose a character."""
    print(json.dumps(value, indent=indent))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} could not be read ({error.strerror}); give the path of a text file.") from None
