"""The command `clearhead`: its verbs, and what becomes of an error."""

from __future__ import annotations

import inspect
import io
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from clearhead.cli.architecture import architecture
from clearhead.cli.bench import bench
from clearhead.cli.classify import classify
from clearhead.cli.corpus import HELP as CORPUS_HELP
from clearhead.cli.corpus import VERBS as CORPUS_VERBS
from clearhead.cli.diagram import diagram
from clearhead.cli.evaluate import evaluate
from clearhead.cli.generate import generate
from clearhead.cli.new import new
from clearhead.cli.params import params
from clearhead.cli.runs import runs
from clearhead.cli.tokenize import tokenize
from clearhead.cli.tour import tour
from clearhead.cli.train import train
from clearhead.cli.walk import walk
from clearhead.cli.weights import HELP as WEIGHTS_HELP
from clearhead.cli.weights import VERBS as WEIGHTS_VERBS
from clearhead.errors import ClearheadError
from clearhead.version import __version__

UNABLE = 1
"""Exit status where the machine could not do it: a full disk, no memory, nobody to read the output."""
USAGE = 2
"""Exit status where the user can put it right: a bad option, a missing file, weights that do not fit."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell gives it: 128 and the number of SIGINT."""

EPILOG = """
Examples:

[bold]clearhead generate "Once upon a time"[/]   write on from a prompt

[bold]clearhead tokenize "Hello, world"[/]       see the tokens that a model sees

[bold]clearhead params 124M[/]                   where GPT-2's parameters are

Each command explains its options: [bold]clearhead generate --help[/]
"""

app = typer.Typer(
    name="clearhead",
    help="A GPT-2 that you can read, trust and run fast.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _paragraphs(docstring: str | None) -> str:
    """A docstring with each paragraph on one line, for the terminal to break where it ends."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return escape("\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs))


# In the order in which `--help` lists them.
for verb in (
    generate,
    tokenize,
    params,
    diagram,
    architecture,
    walk,
    tour,
    new,
    train,
    runs,
    evaluate,
    classify,
    bench,
):
    app.command(help=_paragraphs(verb.__doc__), epilog=sys.modules[verb.__module__].EPILOG)(verb)

corpus = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
for name, (look, epilog) in CORPUS_VERBS.items():
    corpus.command(name, help=_paragraphs(look.__doc__), epilog=epilog)(look)
app.add_typer(corpus, name="corpus", help=CORPUS_HELP)

weights = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
for name, (look, epilog) in WEIGHTS_VERBS.items():
    weights.command(name, help=_paragraphs(look.__doc__), epilog=epilog)(look)
app.add_typer(weights, name="weights", help=WEIGHTS_HELP)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clearhead {__version__}")
        raise typer.Exit


@app.callback()
def clearhead(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """A GPT-2 that you can read, trust and run fast."""


def main() -> None:
    """Runs the command line of this process and exits: 0, 2 for what the user can put right, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no × gets a ? and not a crash
    try:
        try:
            app(prog_name="clearhead")
        finally:
            sys.stdout.flush()
    except ClearheadError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has seen enough. What is still buffered must not be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNABLE)
    except OSError as error:
        _fail(f"{error.filename + ': ' if error.filename else ''}{error.strerror or error}.", UNABLE)
    except MemoryError:
        _fail("there is not enough memory for this; take a smaller model.", UNABLE)


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"clearhead: {sentence}", file=sys.stderr)
    sys.exit(status)
