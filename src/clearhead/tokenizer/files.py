"""The files in a model's folder of which a tokenizer is made. Their names only: this loads nothing else."""

from __future__ import annotations

from pathlib import Path

DEFINITION = "tokenizer.json"
"""The whole tokenizer in one file."""

BPE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""A vocabulary and the merges that make it: under Hugging Face's names, and under OpenAI's."""

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""What may stand beside them; alone they make no tokenizer."""

VOCABULARIES = (DEFINITION, *BPE_PAIRS[0], *BPE_PAIRS[1])
"""The files of which any one says that a tokenizer was meant to be there."""

ALL = (*VOCABULARIES, *SETTINGS)
"""Every file that belongs to a tokenizer, for whoever copies or fetches a model."""


def are_in(folder: Path) -> bool:
    """Whether a folder holds a tokenizer, or a part of one."""
    return any((folder / name).is_file() for name in VOCABULARIES)
