"""Where tokens and words are in a text, and which tokens belong to which word.

All positions are indices of characters of the text, and words are found in the text, never from its tokens.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A part of a text: text[start:end].

    Attributes:
        start, end: indices of characters.
        name: what a file of regions calls it.
    """

    start: int
    end: int
    name: str = ""


def token_ends(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return how many characters of a text its first, first two, ... tokens complete.

    A character that several tokens share belongs to the one that completes it. Token i is therefore
    text[ends[i - 1] : ends[i]], and all of them joined are the text.

    Args:
        text: the text.
        ids: its tokens, as `tokenizer.encode` gives them.
        tokenizer: the tokenizer.
    """
    sizes = tokenizer.byte_lengths()
    data = text.encode("utf-8")
    if sizes is not None:
        ends_in_bytes = np.cumsum(sizes[np.asarray(ids, np.int64)])
        # A tokenizer that puts a space before the text has one byte more.
        added = int(ends_in_bytes[-1]) - len(data) if len(ids) else 0
        if added == 0 or (added == 1 and tokenizer.decode_bytes(ids) == b" " + data):
            begins = np.array([byte & 0xC0 != 0x80 for byte in data] + [True])  # where a character begins
            complete = np.cumsum(begins) - 1  # the characters that end at or before each byte offset
            return [int(complete[max(0, end - added)]) for end in ends_in_bytes]
    recorded = tokenizer.character_ends(text)
    if recorded is None or len(recorded) != len(ids):
        raise InputError("this tokenizer does not say which characters its tokens stand for, so words cannot be found.")
    return [int(end) for end in np.maximum.accumulate([*recorded[:-1], len(text)])] if recorded else []


def find_words(text: str, rule: str = "whitespace") -> list[TextSpan]:
    """Find the words of a text.

    Args:
        text: the text.
        rule: "whitespace", runs of characters that are not white space; or "jieba", the words of the Chinese
            segmenter of that name (and, in other scripts, its runs of letters).

    Raises:
        InputError: if there is no such rule, or the package `jieba` is missing.
    """
    if rule == "whitespace":
        return [TextSpan(*match.span()) for match in _WORD.finditer(text)]
    if rule != "jieba":
        raise InputError(f"there is no rule for words named {rule!r}; give whitespace or jieba.")
    try:
        import jieba
    except ImportError:
        raise InputError('jieba is not installed; `pip install "clearhead[eval]"` installs it.') from None
    import logging

    jieba.setLogLevel(logging.WARNING)
    return [TextSpan(start, end) for word, start, end in jieba.tokenize(text) if not word.isspace()]


def check_spans(spans: Sequence[TextSpan], text: str, name: str) -> list[TextSpan]:
    """Return spans in the order of the text.

    Args:
        spans: regions of a text.
        text: the text.
        name: the text's name, for messages.

    Raises:
        InputError: if a span is empty, reaches beyond the text, overlaps another or cuts a character in two.
    """
    ordered = sorted(spans, key=lambda span: span.start)
    for span in ordered:
        if not 0 <= span.start < span.end <= len(text):
            raise InputError(
                f"a region of text {name} is {span.start} to {span.end}; give a start below the end, within the "
                f"{len(text):,} characters of the text."
            )
    for one, other in itertools.pairwise(ordered):
        if other.start < one.end:
            raise InputError(
                f"the regions {one.start} to {one.end} and {other.start} to {other.end} of text {name} overlap; "
                "a character can belong to one region only."
            )
    for span in ordered:
        for at in (span.start, span.end):
            if _cuts_character(text, at):
                raise InputError(
                    f"the region {span.start} to {span.end} of text {name} cuts {text[at - 1 : at + 1]!r} in two at "
                    f"{at}, which is one character to a reader; include all of it or none."
                )
    return ordered


_JOINER = "\u200d"


def _cuts_character(text: str, at: int) -> bool:
    """Return whether a place is before a combining mark or a variation selector, or beside a joiner of emoji."""
    if not 0 < at < len(text):
        return False
    return _JOINER in text[at - 1 : at + 1] or unicodedata.category(text[at]) in ("Mn", "Me")


def assign_tokens(text: str, ends: Sequence[int], spans: Sequence[TextSpan]) -> list[int]:
    """Return the index of the span that each token belongs to; -1 for none.

    A token belongs to the span with its first visible character. White space belongs to what follows it, and at the end
    of the text to what precedes it; so does a token that is only a part of a character.

    Args:
        text: the text.
        ends: as `token_ends` returns them.
        spans: in the order of the text, without overlap.
    """
    owner: npt.NDArray[np.int64] = np.full(len(text) + 1, -1)
    for index, span in enumerate(spans):
        owner[span.start : span.end] = index
    found: list[int | None] = []
    start = 0
    for end in ends:
        visible = next((at for at in range(start, end) if not text[at].isspace()), None)
        found.append(None if visible is None else int(owner[visible]))
        start = end
    following: int | None = None
    for at in range(len(found) - 1, -1, -1):
        if found[at] is None:
            found[at] = following
        following = found[at]
    preceding = -1
    assigned = []
    for own in found:
        preceding = preceding if own is None else own
        assigned.append(preceding)
    return assigned


def starts_with_space(tokenizer: Tokenizer, only_blanks: bool = False) -> npt.NDArray[np.bool_] | None:
    """Return which tokens begin with white space, bool [vocab_size]; None if the vocabulary does not mark it so.

    Args:
        tokenizer: the tokenizer.
        only_blanks: count only the space character as white space.
    """
    found = np.zeros(tokenizer.vocab_size, np.bool_)
    special = set(tokenizer.special_tokens.values())
    has_bytes = tokenizer.byte_lengths() is not None
    for token, name in tokenizer.names():
        if token in special:
            continue
        if has_bytes:
            first = tokenizer.token_bytes(token)[:4].decode("utf-8", "ignore")[:1]
            found[token] = first == " " if only_blanks else first.isspace()
        else:
            found[token] = name.startswith("▁")  # SentencePiece's mark
    return found if found.any() else None
