"""What `clearhead generate` prints for people: the text while it is generated, and the words around the demo."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.cli.console import notice, say, verbatim_output
from clearhead.cli.language import tr

if TYPE_CHECKING:
    from clearhead.gpt import GPT
    from clearhead.inference.requests import Event, Request
    from clearhead.tokenizer import Tokenizer

_SUGGESTIONS = """
Try next:
  {clearhead} generate "The dragon opened one eye and" --temperature 1
  {clearhead} tokenize "The dragon opened one eye"
  {clearhead} params
"""


def write_samples(gpt: GPT, prompt: str, request: Request, *, show_prompt: bool) -> None:
    """Print the samples one below another. The first unfinished one appears while it is generated."""
    from clearhead.inference.generation import stream

    samples: list[list[Event]] = [[] for _ in range(request.n)]
    notices: dict[str, None] = {}  # each once, in order
    current = 0
    console = verbatim_output()

    def begin() -> None:
        if request.n > 1:
            console.rule(tr("{number} of {total}", number=current + 1, total=request.n), align="left", style="dim")
        if show_prompt:
            console.print(prompt, end="", style="dim", soft_wrap=True)

    try:
        for _, sample, event in stream(gpt.runner, gpt.tokenizer, [request]):
            if not any(samples):
                begin()  # not before: the first pass may have to say that it compiles
            samples[sample].append(event)
            notices |= dict.fromkeys(event.notices)
            if sample == current:
                print(event.text, end="", flush=True)
            while current < request.n and samples[current] and samples[current][-1].finish_reason is not None:
                print(flush=True)
                _list_logprobs(gpt.tokenizer, samples[current])
                current += 1
                if current < request.n:
                    begin()
                    print(*(made.text for made in samples[current]), sep="", end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    for text in notices:
        notice(text)


def _list_logprobs(tokenizer: Tokenizer | None, events: Sequence[Event]) -> None:
    """Print a line for each token if log-probabilities were requested: the token, then the most likely ones."""
    found = [event.logprob for event in events if event.logprob is not None]
    if not found or tokenizer is None:
        return
    print()
    for token in found:
        likeliest = ", ".join(f"{_piece(tokenizer, id)} {logprob:.2f}" for id, logprob in token.top)
        line = f"{token.logprob:8.3f}  {_piece(tokenizer, token.id)}"
        print(f"{line:<30}  {likeliest}".rstrip())


def _piece(tokenizer: Tokenizer, token: int) -> str:
    from clearhead.cli.tokenize import piece

    return piece(tokenizer.token_bytes(token))


def introduce(gpt: GPT) -> None:
    """Print what kind of model writes the demo's story."""
    from clearhead.anatomy import count_parameters

    config = gpt.config
    total = count_parameters(config).total
    say(
        f"A GPT-2 with {total:,} parameters ({config.n_layers} blocks, {config.n_heads} heads, "
        f"{config.emb_dim} numbers per token) writes:"
    )
    print()


def suggest() -> None:
    """Print the commands to try after the demo."""
    print(tr(_SUGGESTIONS, clearhead=_own_name()), end="")


def _own_name() -> str:
    """Return how to run this program again: its name if a shell finds it, else the path that was used now."""
    found = shutil.which("clearhead")
    here = Path(sys.argv[0])
    if here.name == "__main__.py":
        return "python -m clearhead"
    return "clearhead" if found is not None and here.exists() and here.samefile(found) else sys.argv[0]
