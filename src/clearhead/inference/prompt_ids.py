"""Turn prompts into token ids, with one error for every model without a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.options import Prompt, token_ids
from clearhead.inference.runner import check_token_ids
from clearhead.tokenizer.files import NO_TOKENIZER

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


def prompt_ids(
    prompt: Prompt, config: GPTConfig, need_tokenizer: Callable[[str], Tokenizer], special: bool = False
) -> tuple[int, ...]:
    """Return the token ids of a prompt.

    Args:
        prompt: text, or token ids.
        config: the model's shape.
        need_tokenizer: returns the tokenizer, or raises an error that names what needs it.
        special: whether special tokens in a text are read as such.

    Raises:
        InputError: if an id is not in the model's vocabulary.
        TokenizerError: if a text cannot be encoded.
    """
    if not isinstance(prompt, str):
        ids = token_ids("the prompt", prompt)
        check_token_ids(ids, config.vocab_size, "the prompt")
        return ids
    tokenizer = need_tokenizer("text")
    ids = tuple(tokenizer.encode(prompt, special=special))
    if (highest := max(ids, default=0)) >= config.vocab_size:
        raise InputError(
            f"the text has the token {tokenizer.token_name(highest)!r} ({highest:,}), for which the model, with "
            f"{config.vocab_size:,} rows, has none; leave it out."
        )
    return ids


def no_tokenizer(what: str, notes: Sequence[str]) -> InputError:
    """Return the error for a model without a tokenizer.

    Args:
        what: what needs a tokenizer.
        notes: the notes from loading the model; one of them may give the reason.
    """
    found = next((note for note in notes if note.startswith(NO_TOKENIZER)), "")
    remedy = found.removeprefix(NO_TOKENIZER) or (
        "; give token ids to generate, or put the tokenizer's files (tokenizer.json) next to the weights."
    )
    return InputError(f"this model has no tokenizer, which {what} needs{remedy}")
