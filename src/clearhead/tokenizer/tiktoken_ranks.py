"""When `tiktoken` can stand in for byte-pair encoding, and the table that it then needs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from clearhead.tokenizer.byte_letters import LETTER_OF_BYTE, bytes_of_tokens, consists_of_byte_letters
from clearhead.tokenizer.definition import adds_prefix_space, has_only_plain_special_tokens, is_byte_level_bpe

# SHA-256 of GPT-2's 50,000 merges, one per line. They satisfy `parts_stay_separate`, which takes time to find out.
_GPT2_MERGES = "ac33235097fe06d4a8fff0feac994644809e6eb6ab70669e1e9fd40ae032428e"


def mergeable_ranks(definition: Mapping[str, Any]) -> dict[bytes, int] | None:
    """Return the vocabulary as `tiktoken` needs it (bytes -> id), or None if it could give other ids.

    `tiktoken` merges any two neighbours whose joined bytes are a token, the lowest id first; BPE merges
    the pairs that were learned, the earliest first. They agree on every text if
      - all 256 bytes are tokens,
      - the ids of merged tokens grow in the order of the merges (those of the 256 bytes may be any), and
      - each token's own bytes, encoded with the merges before it only, give exactly its two parts
        (`parts_stay_separate`).
    Proof: take two neighbours whose joined bytes are a token t. As both are still whole, nothing was
    merged across their borders, so the bytes between went through the same steps as t's own bytes
    do alone. Those steps pass through one state of two parts, and by the last condition that is the
    pair from which t was learned.
    """
    if not is_byte_level_bpe(definition) or adds_prefix_space(definition):
        return None
    if not has_only_plain_special_tokens(definition):
        return None
    vocab, merges = definition["model"]["vocab"], definition["model"]["merges"]
    if any(letter not in vocab for letter in LETTER_OF_BYTE.values()):
        return None
    tokens = [left + right for left, right in merges]
    if not consists_of_byte_letters("".join(tokens)):
        return None  # BPE never merges characters that are no byte's letter; tiktoken would
    ids = [vocab[token] for token in tokens]
    if any(later <= earlier for earlier, later in itertools.pairwise(ids)):
        return None
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    if hashlib.sha256(lines.encode("utf-8")).hexdigest() != _GPT2_MERGES and not parts_stay_separate(merges):
        return None
    ranks = {bytes([byte]): vocab[letter] for byte, letter in LETTER_OF_BYTE.items()}
    return ranks | dict(zip(bytes_of_tokens(tokens), ids, strict=True))


def parts_stay_separate(merges: Sequence[tuple[str, str]]) -> bool:
    """Return whether each token's bytes, encoded with the merges before it, end as its two parts.

    They do not if an earlier merge takes one token from each side of the border between the parts. On the left
    side, the token at the border is, one after the other, the last byte, ..., the right part of the left
    part, the left part itself; and the same on the right. A merge across the border needs both to exist at its rank.
    If it is the very merge that would consume its left neighbour (as in "aaa"), the left one goes first.
    """
    rank_of = {pair: rank for rank, pair in enumerate(merges)}
    made: dict[str, tuple[int, str, str]] = {}  # token -> (rank of its merge, its left part, its right part)
    for rank, (left, right) in enumerate(merges):
        if any(len(part) > 1 and part not in made for part in (left, right)):
            return False
        inner_left, left_until = left, rank
        while True:
            inner_right, right_until = right, rank
            while True:
                across = rank_of.get((inner_left, inner_right))
                if across is not None and across < left_until and across <= right_until:
                    return False
                if inner_right not in made:
                    break
                right_until, inner_right, _ = made[inner_right]
            if inner_left not in made:
                break
            left_until, _, inner_left = made[inner_left]
        made[left + right] = (rank, left, right)
    return True
