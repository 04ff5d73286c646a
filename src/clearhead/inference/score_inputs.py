"""What `GPT.score` is given: one text or many, alone or with continuations, as text or as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clearhead.errors import InputError
from clearhead.inference.options import Prompt
from clearhead.inference.scoring import TextToScore
from clearhead.utils.text import type_of

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


def is_single(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Return whether this is one prompt: text, or a sequence of ids.

    Raises:
        InputError: if it is neither that nor a sequence of prompts.
    """
    if not isinstance(prompt, Sequence) and not hasattr(prompt, "__array__"):
        raise InputError(f"the prompt is {type_of(prompt)}; give text, token ids, or a list of prompts.")
    return isinstance(prompt, (str, bytes)) or (len(prompt) > 0 and not hasattr(prompt[0], "__len__"))


def pair_texts(
    text: Prompt | Sequence[Prompt], continuation: Prompt | Sequence[Prompt] | None
) -> list[tuple[Prompt, Prompt | None]]:
    """Pair every text with its continuation; a single text with each of several.

    Raises:
        InputError: if there are several texts, and another number of continuations.
    """
    texts: list[Any] = [text] if is_single(text) else list(text)
    continuations: list[Any] = [continuation] if continuation is None or is_single(continuation) else [*continuation]
    if is_single(text):
        texts *= len(continuations)
    elif continuation is None:
        continuations *= len(texts)
    if len(texts) != len(continuations):
        raise InputError(
            f"{len(texts)} contexts were given for {len(continuations)} continuations; give one context, or as many "
            "as continuations."
        )
    return list(zip(texts, continuations, strict=True))


def to_score(
    text: Prompt,
    continuation: Prompt | None,
    bos: int | None,
    encode: Callable[[Prompt], Sequence[int]],
    tokenizer: Tokenizer | None,
) -> TextToScore:
    """Return the tokens of a text, or of a continuation after it.

    Args:
        text: what is scored, or the context.
        continuation: what is scored after it; None for the text itself.
        bos: the token before the text.
        encode: returns the ids of a text, or given ids as they are.
        tokenizer: the model's.
    """
    before = [] if bos is None else [bos]
    if continuation is None:
        ids = encode(text)
        return TextToScore(ids, before, bos, _byte_count(text, ids, tokenizer))
    if isinstance(text, str) and isinstance(continuation, str):
        visible = text.rstrip()
        text, continuation = visible, text[len(visible) :] + continuation
        context, whole = encode(text), encode(text + continuation)
        same = next((n for n, pair in enumerate(zip(context, whole, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(context), len(whole)) if same is None else same
        ids = whole[shared:]
        return TextToScore(ids, [*before, *context[:shared]], bos, _byte_count(continuation, ids, tokenizer))
    ids = encode(continuation)
    return TextToScore(ids, [*before, *encode(text)], bos, _byte_count(continuation, ids, tokenizer))


def _byte_count(text: Prompt, ids: Sequence[int], tokenizer: Tokenizer | None) -> int | None:
    """Return the length of a text in UTF-8, that of the decoded text if ids were given."""
    if isinstance(text, str):
        return len(text.encode("utf-8"))
    return None if tokenizer is None else len(tokenizer.decode(ids).encode("utf-8"))
