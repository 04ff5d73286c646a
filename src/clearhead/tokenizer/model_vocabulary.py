"""Check that a tokenizer and a model belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


def check_model_vocabulary(config: GPTConfig, tokenizer: Tokenizer | None) -> str:
    """Check that the model has a row for each token of the tokenizer's vocabulary.

    Special and added tokens may lie beyond the rows, for example a padding token added without enlarging the model;
    such a model runs any text without them.

    Returns:
        a note that names those tokens; empty if there are none.

    Raises:
        WeightsError: if other tokens lie beyond the rows.
    """
    if tokenizer is None or tokenizer.vocab_size <= config.vocab_size:
        return ""
    extra = {**tokenizer.special_tokens, **tokenizer.added_tokens}
    beyond = sorted((id, token) for token, id in extra.items() if id >= config.vocab_size)
    if len(beyond) < tokenizer.vocab_size - config.vocab_size:
        raise WeightsError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1:,}, but the model has {config.vocab_size:,} rows "
            "for tokens; the two belong to different models."
        )
    names = ", ".join(repr(token) for _, token in beyond[:4]) + (", …" if len(beyond) > 4 else "")
    return (
        f"the model has {config.vocab_size:,} rows for tokens and none for {names}, added to the tokenizer; a text "
        "that needs such a row is refused."
    )
