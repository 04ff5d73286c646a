"""The command `clearhead`: its verbs, and how errors end it."""

from __future__ import annotations

import errno
import inspect
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from clearhead.cli import corpus, lens, weights
from clearhead.cli.architecture import architecture
from clearhead.cli.bench import bench
from clearhead.cli.chat import chat
from clearhead.cli.classify import classify
from clearhead.cli.compress import compress, decompress
from clearhead.cli.console import print_error
from clearhead.cli.diagram import diagram
from clearhead.cli.evaluate import evaluate
from clearhead.cli.exit_codes import FAILED, USAGE
from clearhead.cli.generate import generate
from clearhead.cli.language import choose, localize_typer, translation
from clearhead.cli.new import new
from clearhead.cli.options import flatten
from clearhead.cli.page import page
from clearhead.cli.params import params
from clearhead.cli.runs import runs
from clearhead.cli.score import score
from clearhead.cli.serve import serve
from clearhead.cli.tokenize import tokenize
from clearhead.cli.tour import tour
from clearhead.cli.train import train
from clearhead.cli.verb_command import VerbCommand, VerbGroup
from clearhead.cli.walk import walk
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

# In the order in which `--help` lists them.
VERBS = (
    generate,
    chat,
    tokenize,
    params,
    diagram,
    architecture,
    walk,
    page,
    tour,
    new,
    train,
    runs,
    evaluate,
    score,
    compress,
    decompress,
    classify,
    serve,
    bench,
)


def run() -> None:
    """Run the command and turn every expected error into one sentence and an exit status."""
    _prepare_streams()
    choose(sys.argv[1:], os.environ)
    try:
        try:
            make_app()(prog_name="clearhead")
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
    """Make sure that the standard streams exist and can print every character."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stdout is None:
        _fail("standard output is closed; send it to a file or to /dev/null.", FAILED)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no × shows a ? instead of a crash


def _discard_output() -> None:
    """Send what is still buffered nowhere: its reader is gone, or the disk is full, and writing it again would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_app() -> typer.Typer:
    """Return the command with all its verbs."""
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
    _add_verbs(app, {verb.__name__: (verb, sys.modules[verb.__module__].EPILOG) for verb in VERBS})
    for group in (corpus, lens, weights):
        below = typer.Typer(cls=VerbGroup, no_args_is_help=True, rich_markup_mode="rich")
        below.callback()(flatten(_group))
        _add_verbs(below, group.VERBS)
        app.add_typer(below, name=group.__name__.rpartition(".")[2], help=translation(group.HELP))
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
