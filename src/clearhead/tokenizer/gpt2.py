"""GPT-2's own vocabulary, which the package ships.

Only the merges are stored (OpenAI's `vocab.bpe`, compressed by tools/pack_gpt2_vocabulary.py). The vocabulary follows
from them: the 256 bytes, first the visible ones; the result of each merge, in order; `<|endoftext|>`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from clearhead.config import HUB_NAMES, RELEASED
from clearhead.tokenizer.byte_letters import LETTER_OF_BYTE
from clearhead.tokenizer.definition import END_OF_TEXT, Definition, byte_level_bpe

MERGES_FILE = Path(__file__).parent / "data" / "gpt2_merges.bpe.gz"
"""OpenAI's `vocab.bpe`, compressed; its licence is next to it."""

VOCAB_SIZES = (50257, 50304)
"""The rows for tokens in models with this vocabulary: one for each token, or padded to a multiple of 64 (nanoGPT)."""


def is_gpt2_name(name: str) -> bool:
    """Return whether a name is that of a published model with this vocabulary, such as `gpt2-medium` or `124M`."""
    owner, _, model = name.rpartition("/")
    if owner:
        return (owner == "openai-community" and model in HUB_NAMES) or name == "distilbert/distilgpt2"
    return name in HUB_NAMES or name in RELEASED or name == "distilgpt2"


def gpt2_definition() -> Definition:
    """Return the definition of GPT-2's tokenizer."""
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
    merges: list[tuple[str, str]] = []
    for line in lines[1:-1]:  # without the version and the end of the last line
        left, _, right = line.partition(" ")
        merges.append((left, right))
    tokens = [*LETTER_OF_BYTE.values(), *(left + right for left, right in merges), END_OF_TEXT]
    return byte_level_bpe({token: id for id, token in enumerate(tokens)}, merges)
