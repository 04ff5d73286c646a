"""The command `clearhead`: its verbs, and how errors end it."""

from __future__ import annotations

import errno
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from clearhead.cli.console import print_error
from clearhead.cli.exit_codes import FAILED, USAGE
from clearhead.cli.language import choose, localize_typer, translation
from clearhead.cli.options import flatten
from clearhead.cli.verb_command import VerbCommand, VerbGroup
from clearhead.errors import ClearheadError
from clearhead.utils.packages import missing_package
from clearhead.utils.system import is_out_of_memory
from clearhead.version import __version__

EPILOG = """
Examples:

[bold]clearhead generate "Once upon a time"[/]   continue a prompt

[bold]clearhead tokenize "Hello, world"[/]       show the tokens that a model reads

[bold]clearhead params 124M[/]                   show where GPT-2's parameters are

Each command explains its options: [bold]clearhead generate --help[/]
"""

VERBS = {
    "generate": "generate",
    "chat": "chat",
    "tokenize": "tokenize",
    "params": "params",
    "diagram": "diagram",
    "architecture": "architecture",
    "walk": "walk",
    "page": "page",
    "tour": "tour",
    "new": "new",
    "train": "train",
    "runs": "runs",
    "evaluate": "evaluate",
    "score": "score",
    "compress": "compress",
    "decompress": "compress",
    "classify": "classify",
    "serve": "serve",
    "bench": "bench",
}
"""Each verb, in the order in which `--help` lists them, and the module that has it: `clearhead.cli.` and this name."""
GROUPS = ("corpus", "lens", "weights")
"""Modules with verbs below a word."""


def run() -> None:
    """Run the command and turn every expected error into one sentence and an exit status."""
    _prepare_streams()
    choose(sys.argv[1:], os.environ)
    try:
        try:
            make_app(_named_verb(sys.argv[1:]))(prog_name="clearhead")
        finally:
            sys.stdout.flush()
    except ClearheadError as error:
        _fail(str(error), USAGE)
    except ModuleNotFoundError as error:
        if isinstance(missing := missing_package(error, "this command"), ClearheadError):
            _fail(str(missing), USAGE)
        raise
    except BrokenPipeError:
        _discard_output()
        sys.exit(FAILED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG) and error.filename is None:
            _discard_output()
        _fail(f"{str(error.filename) + ': ' if error.filename else ''}{error.strerror or error}.", FAILED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail("there is not enough memory for this; use a smaller model.", FAILED)


def _prepare_streams() -> None:
    """Make sure that the standard streams exist, can print every character, and get no warnings of others."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stdout is None:
        _fail("standard output is closed; send it to a file or to /dev/null.", FAILED)
    # Numba warns with a traceback of variables that have no number; nothing here depends on them.
    warnings.filterwarnings("ignore", r"Environment variable 'NUMBA_", RuntimeWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no × shows a ? instead of a crash


def _discard_output() -> None:
    """Send what is still buffered nowhere: its reader is gone, or the disk is full, and writing it again would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _named_verb(arguments: Sequence[str]) -> str | None:
    """Return the verb of a command line; None if that takes all verbs to say, as for help and completion."""
    rest = list(arguments)
    while rest and rest[0].startswith("--lang"):
        rest = rest[1:] if "=" in rest[0] else rest[2:]
    known = bool(rest) and rest[0] in (*VERBS, *GROUPS) and "_CLEARHEAD_COMPLETE" not in os.environ
    return rest[0] if known else None


def load_verb(name: str) -> tuple[Callable[..., None], str]:
    """Import a verb; return its function and the text below its help."""
    module = import_module(f"clearhead.cli.{VERBS[name]}")
    return getattr(module, name), module.EPILOG


def make_app(only: str | None = None) -> typer.Typer:
    """Return the command with all its verbs, or with one of them only, which takes less time.

    Args:
        only: a verb, or a group of verbs.
    """
    localize_typer()
    app = typer.Typer(
        name="clearhead",
        cls=VerbGroup,
        help=translation("A GPT-2 that you can read, trust and run fast."),
        epilog=_epilog(EPILOG),
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(flatten(_clearhead))
    _add_verbs(app, {name: load_verb(name) for name in VERBS if only in (None, name)})
    for name in GROUPS:
        if only in (None, name):
            group = import_module(f"clearhead.cli.{name}")
            below = typer.Typer(cls=VerbGroup, no_args_is_help=True, rich_markup_mode="rich")
            below.callback()(flatten(_group))
            _add_verbs(below, group.VERBS)
            app.add_typer(below, name=name, help=translation(group.HELP))
    return app


def _add_verbs(app: typer.Typer, verbs: Mapping[str, tuple[Callable[..., None], str]]) -> None:
    for name, (verb, epilog) in verbs.items():
        app.command(name, cls=VerbCommand, help=_paragraphs(verb.__doc__), epilog=_epilog(epilog))(flatten(verb))


def _paragraphs(docstring: str | None) -> str:
    """Join the lines of each paragraph, so that the terminal decides where lines end."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return escape("\n\n".join(translation(paragraph.replace("\n", " ")) for paragraph in paragraphs))


def _epilog(examples: str) -> str:
    """Translate the comments on examples, and the lines between examples."""
    lines = []
    for line in examples.splitlines():
        command, bracket, remark = line.partition("[/]")
        if not bracket:
            lines.append(translation(line))
        elif (words := remark.strip()) and not command[0].isalpha():
            lines.append(command + bracket + remark.replace(words, translation(words)))
        else:
            lines.append(translation(line))
    return "\n".join(lines)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clearhead {__version__}")
        raise typer.Exit


def _clearhead(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """A GPT-2 that you can read, trust and run fast."""


def _group() -> None:
    """Take `--lang` before a verb of a group, or with the help of the group."""


def _fail(sentence: str, status: int) -> NoReturn:
    print_error(sentence)
    sys.exit(status)
