"""`clearhead chat`: a conversation with a model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.cli.console import notice
from clearhead.cli.generate import LoadOptions
from clearhead.cli.options import flatten
from clearhead.errors import InputError
from clearhead.inference.declaration import with_default
from clearhead.inference.options import GenerationOptions, PromptOptions, SamplingParams
from clearhead.utils.text import decode_text

if TYPE_CHECKING:
    from clearhead.chat import ChatSession

EPILOG = """
Examples:

[bold]clearhead chat --model microsoft/DialoGPT-medium[/]

[bold]clearhead chat --model runs/instructions/model --system "Answer briefly."[/]

[bold]printf 'Hello!\\nHow are you?\\n' | clearhead chat --model my-dialogpt --turns --seed 1[/]
"""

PLAIN = (
    "this model has no chat template, so it reads the conversation as plain text and may not have learned to answer; "
    "--turns is for models like DialoGPT."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions(SamplingParams):
    """How an answer is generated."""

    temperature: float = with_default(PromptOptions, "temperature", 0.8)
    top_p: float = with_default(PromptOptions, "top_p", 0.95)
    max_new_tokens: int = with_default(GenerationOptions, "max_new_tokens", 128)
    stop: str | Sequence[str] | None = with_default(GenerationOptions, "stop", ())


@flatten
def chat(
    options: AnswerOptions,
    loading: LoadOptions,
    system: Annotated[str | None, typer.Option("--system", help="A system message before the first turn.")] = None,
    turns: Annotated[
        bool,
        typer.Option(
            "--turns", help="End each turn with the end-of-text token, as DialoGPT does, whatever the model's template."
        ),
    ] = False,
) -> None:
    """Talk with a model, one line per turn.

    The conversation is written by the model's chat template or, if there is none, as plain text. When the context is
    full, the model no longer sees the oldest turns. Ctrl-C ends an answer, Ctrl-D the conversation. Turns are also read
    from a pipe.
    """
    from clearhead.chat import ChatSession

    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input is closed, so nobody can talk; run it in a terminal, or give it a pipe.")
    gpt = loading.load()
    session = ChatSession(
        gpt, system=system, turns=turns, **{one.name: getattr(options, one.name) for one in fields(options)}
    )
    if not session.format.has_template:
        notice(PLAIN)
    full = False
    for line in filter(str.strip, _lines()):
        _answer(session, line)
        if session.forgotten and not full:
            full = True
            tokens = f"{gpt.config.context_length:,}"
            notice(f"the context of {tokens} tokens is full, so the model no longer sees the oldest turns.")


def _answer(session: ChatSession, line: str) -> None:
    """Print the answer while it is generated; Ctrl-C in a terminal stops the answer, not the conversation."""
    pieces = session.answer(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        if not sys.stdin.isatty():
            raise
    print(flush=True)
    for text in session.notices:
        notice(text)


def _lines() -> Iterator[str]:
    """Yield what the user types, or the lines of standard input."""
    if not sys.stdin.isatty():
        for line in sys.stdin.buffer:
            yield decode_text(line, "standard input").rstrip("\r\n")
        return
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - arrow keys and a history for input()
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
