"""Count the words of tokenized text: runs of characters that are not white space, as `str.split` finds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clearhead.data.documents import TokenIds
from clearhead.tokenizer import Tokenizer

_CHUNK = 1 << 22  # tokens counted at a time


def count_words(ids: TokenIds, tokenizer: Tokenizer) -> int:
    """Return the number of words in a text.

    Rare white-space characters that the vocabulary splits over several tokens are not recognized. Special tokens
    separate words and are not words.

    Args:
        ids: the text, integers [tokens].
        tokenizer: the tokenizer that made it.
    """
    inside, begins, ends = _word_tables(tokenizer)
    total, after_space = 0, True  # the start of a text counts as white space
    for first in range(0, len(ids), _CHUNK):
        chunk = np.asarray(ids[first : first + _CHUNK], np.int64)
        before = np.concatenate([[after_space], ends[chunk[:-1]]])
        total += int(inside[chunk].sum()) + int((before & begins[chunk]).sum())
        after_space = bool(ends[chunk[-1]])
    return total


def _word_tables(tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return what each token adds to a count of words.

    Returns:
        the words that begin after white space inside the token, int64 [vocab_size]; whether it begins with a character
        of a word; and whether it ends with white space or is special, bool [vocab_size].
    """
    size = tokenizer.vocab_size
    inside, begins, ends = np.zeros(size, np.int64), np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    special = set(tokenizer.special_tokens.values())
    for token, _ in tokenizer.names():
        if token in special:
            ends[token] = True
            continue
        text = tokenizer.token_bytes(token).decode("utf-8", "replace")
        if not text:
            continue
        begins[token] = not text[0].isspace()
        inside[token] = len(text.split()) - begins[token]
        ends[token] = text[-1].isspace()
    return inside, begins, ends
