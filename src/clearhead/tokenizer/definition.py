"""The definition of a tokenizer: the contents of Hugging Face's `tokenizer.json`, as a dictionary.

Every kind of tokenizer file is read into a definition, and a definition is what is saved. Here are the definitions
that Clearhead makes itself, and the questions that others ask about one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

END_OF_TEXT = "<|endoftext|>"
"""The token that GPT-2 was trained to see between two documents."""

Definition = dict[str, Any]
"""The contents of a `tokenizer.json`."""


ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The roles of special tokens, by the names that `transformers` gives them."""

CHAT_TEMPLATE_KEY = "chat_template"
"""The setting that holds a model's chat template."""


def added_token(
    content: str,
    *,
    special: bool = False,
    normalized: bool | None = None,
    single_word: bool = False,
    lstrip: bool = False,
    rstrip: bool = False,
) -> dict[str, Any]:
    """Return the description of a token that was added to a vocabulary; the flags are those of `tokenizers`.

    `normalized` says whether it is looked for in the normalized text; by default only if it is not special.
    """
    normalized = not special if normalized is None else normalized
    flags = (single_word, lstrip, rstrip, normalized, special)
    return {"content": content, **dict(zip(ADDED_TOKEN_FLAGS, flags, strict=True))}


def special_token(content: str, id: int) -> dict[str, Any]:
    """Return an entry of `added_tokens` for a special token that is matched exactly as it is written."""
    return {"id": id, **added_token(content, special=True)}


def vocabulary_of(definition: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the id of each token of a definition's model, without the added tokens."""
    vocab = definition["model"].get("vocab")
    if isinstance(vocab, list):  # Unigram: pairs of a token and its score, in the order of the ids
        return {pair[0]: id for id, pair in enumerate(vocab) if isinstance(pair, list) and pair}
    return vocab if isinstance(vocab, dict) else {}


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Definition:
    """Return the definition of a GPT-2 tokenizer with this vocabulary; `<|endoftext|>` is special if it is in it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token(END_OF_TEXT, vocab[END_OF_TEXT])] if END_OF_TEXT in vocab else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": dict(byte_level),
        "decoder": dict(byte_level),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


# Splits a text into its characters: `[\s\S]`, because `.` leaves out line ends in every regex library.
_EACH_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def character_level(characters: Iterable[str], end_of_text: bool) -> Definition:
    """Return the definition of a tokenizer whose tokens are single characters; the end of text is the last token."""
    vocab = {character: id for id, character in enumerate(characters)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token(END_OF_TEXT, len(vocab))] if end_of_text else [],
        "normalizer": None,
        "pre_tokenizer": _EACH_CHARACTER,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # The library requires a token for unknown characters. It is not in the vocabulary, so they are refused.
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


def has_byte_level_decoder(definition: Mapping[str, Any]) -> bool:
    """Return whether a text is the concatenated bytes of its tokens."""
    return (definition.get("decoder") or {}).get("type") == "ByteLevel"


def is_byte_level_bpe(definition: Mapping[str, Any]) -> bool:
    """Return whether text is split, merged and joined as in GPT-2, up to the vocabulary and the leading space."""
    model, pre_tokenizer = definition["model"], definition.get("pre_tokenizer") or {}
    return (
        model.get("type") == "BPE"
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
        and definition.get("normalizer") is None
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and has_byte_level_decoder(definition)
    )


def adds_prefix_space(definition: Mapping[str, Any]) -> bool:
    """Return whether a byte-level tokenizer puts a space before a text that does not begin with one."""
    return bool(definition["pre_tokenizer"].get("add_prefix_space", True))


def has_only_plain_special_tokens(definition: Mapping[str, Any]) -> bool:
    """Return whether each added token is special, is matched exactly, and has the id that `tokenizers` gives it."""
    vocab = definition["model"]["vocab"]
    next_id = len(vocab)
    for token in definition["added_tokens"]:
        if not token.get("special") or any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            return False
        expected = vocab.get(token["content"], next_id)
        next_id += expected == next_id
        if not token["content"] or token["id"] != expected:
            return False
    return True


def is_character_level(definition: Mapping[str, Any]) -> bool:
    """Return whether the definition is one that `character_level` makes."""
    model = definition["model"]
    return (
        model.get("type") == "WordLevel"
        and definition.get("pre_tokenizer") == _EACH_CHARACTER
        and definition.get("normalizer") is None
        and (definition.get("decoder") or {}).get("type") == "Fuse"
        and model.get("unk_token") not in model["vocab"]
        and all(len(token) == 1 for token in model["vocab"])
        and has_only_plain_special_tokens(definition)
    )
