"""Greedy continuations of the official models that others have published."""

from __future__ import annotations

from dataclasses import dataclass

_TURING = (
    " the most powerful machines on the planet.\n\nThe computer is a machine that can perform complex calculations, "
    "and it can perform these calculations in a way that is very similar to the human brain.\n"
)


@dataclass(frozen=True, slots=True)
class PublishedContinuation:
    """A greedy continuation that somebody has published.

    Attributes:
        by: where it was published.
        prompt: the prompt's text.
        text: the continuation's text.
        prompt_ids: the prompt's tokens, so that no tokenizer is needed.
        ids: the continuation's tokens.
    """

    by: str
    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


def _ids(numbers: str) -> tuple[int, ...]:
    return tuple(map(int, numbers.split()))


PUBLISHED: dict[str, tuple[PublishedContinuation, ...]] = {
    "124M": (
        PublishedContinuation(
            "the README of jaymody/picoGPT",
            "Alan Turing theorized that computers would one day become",
            _TURING,
            _ids("36235 39141 18765 1143 326 9061 561 530 1110 1716"),
            _ids(
                "262 749 3665 8217 319 262 5440 13 198 198 464 3644 318 257 4572 326 460 1620 3716 16765 11 290 340 "
                "460 1620 777 16765 287 257 835 326 318 845 2092 284 262 1692 3632 13 198"
            ),
        ),
        PublishedContinuation(
            "chapter 6 of rasbt/LLMs-from-scratch",
            "Every effort moves you",
            " forward.\n\nThe first step is to understand the importance of your work",
            _ids("6109 3626 6100 345"),
            _ids("2651 13 198 198 464 717 2239 318 284 1833 262 6817 286 534 670"),
        ),
    ),
    "355M": (
        PublishedContinuation(
            "examples/gpt2.py of tinygrad",
            "Hello.",
            " I'm a little late to the party, but",
            _ids("15496 13"),
            _ids("314 1101 257 1310 2739 284 262 2151 11 475"),
        ),
    ),
}
"""By size, with the names of `clearhead.config.RELEASED`."""
