"""Read `spiece.model`, a SentencePiece model, such as rinna's Japanese GPT-2s have.

The file is a protocol buffer, `ModelProto` in sentencepiece_model.proto of google/sentencepiece: pieces (field 1), the
trainer's settings (field 2) and the normalizer's (field 3). It becomes a definition for the `tokenizers` library.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearhead.errors import TokenizerError
from clearhead.tokenizer.definition import Definition, special_token
from clearhead.tokenizer.other_files import read_file
from clearhead.tokenizer.validation import check_definition
from clearhead.utils.protobuf import ProtobufError, fields
from clearhead.utils.text import shown

_UNIGRAM, _BPE = 1, 2  # model_type, field 3 of the trainer's settings
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # types of pieces
_CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES = 2, 3, 4  # fields of the normalizer's settings
_SPACE = "▁"


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: int


@dataclass
class _Model:
    pieces: list[_Piece] = field(default_factory=list)
    trainer: dict[int, int | bytes] = field(default_factory=dict)
    normalizer: dict[int, int | bytes] = field(default_factory=dict)

    def first(self, kind: int) -> int | None:
        """Return the id of the first piece of a kind."""
        return next((id for id, piece in enumerate(self.pieces) if piece.kind == kind), None)

    @property
    def has_bytes(self) -> bool:
        """Whether unknown characters are encoded as their bytes."""
        return self.first(_BYTE) is not None


def read_sentence_piece(path: Path) -> Definition:
    """Read a SentencePiece model with a unigram (Kudo 2018) or a BPE vocabulary.

    Raises:
        TokenizerError: if the file is broken, or has another kind of vocabulary.
    """
    try:
        model = _parse(read_file(path))
    except (ProtobufError, ValueError, struct.error) as error:
        raise TokenizerError(
            f"{path} is not a SentencePiece model, or is damaged ({shown(error)}); download it again."
        ) from None
    kind = model.trainer.get(3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE):
        raise TokenizerError(
            f"{path} is a SentencePiece model of another kind than unigram and BPE; open it with transformers, and "
            "save it with save_pretrained as tokenizer.json."
        )
    try:
        parts = _unigram(model) if kind == _UNIGRAM else _bpe(model)
    except ProtobufError as error:
        raise TokenizerError(f"{path} is damaged ({error}); download it again.") from None
    definition: Definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(model)),
        "post_processor": None,
        **parts,
    }
    check_definition(definition, str(path))
    return definition


def _parse(data: bytes) -> _Model:
    model = _Model()
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            model.pieces.append(_piece(dict(fields(value))))
        elif number == 2 and isinstance(value, bytes):
            model.trainer = dict(fields(value))
        elif number == 3 and isinstance(value, bytes):
            model.normalizer = dict(fields(value))
    if not model.pieces:
        raise ProtobufError("it has no pieces")
    return model


def _piece(values: dict[int, int | bytes]) -> _Piece:
    text, score, kind = values.get(1, b""), values.get(2, bytes(4)), values.get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ProtobufError("a piece has fields of wrong types")
    number = float(struct.unpack("<f", score)[0])
    if not math.isfinite(number):
        raise ProtobufError("the score of a piece is NaN or infinite")
    return _Piece(text.decode("utf-8"), number, kind)


def _added_tokens(model: _Model) -> Iterator[dict[str, Any]]:
    """Yield the special pieces (unknown, control), and those that are matched before the text is split."""
    for id, piece in enumerate(model.pieces):
        if piece.text and piece.kind in (_UNKNOWN, _CONTROL):
            yield special_token(piece.text, id)
        elif piece.text and piece.kind == _USER_DEFINED:
            yield special_token(piece.text, id) | {"special": False, "normalized": model.trainer.get(3) == _BPE}


def _charsmap(model: _Model) -> dict[str, Any] | None:
    found = model.normalizer.get(_CHARSMAP)
    if not isinstance(found, bytes) or not found:
        return None
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(found).decode("ascii")}


def _unigram(model: _Model) -> dict[str, Any]:
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    return {
        "normalizer": _charsmap(model),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "decoder": _byte_decoder() if model.has_bytes else metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": model.first(_UNKNOWN),
            "vocab": [[piece.text, piece.score] for piece in model.pieces],
            "byte_fallback": model.has_bytes,
        },
    }


def _bpe(model: _Model) -> dict[str, Any]:
    prefix = model.normalizer.get(_ADD_DUMMY_PREFIX, 1) != 0
    steps: list[dict[str, Any]] = [] if (charsmap := _charsmap(model)) is None else [charsmap]
    if model.normalizer.get(_REMOVE_EXTRA_WHITESPACES, 1) != 0:
        steps += [_replace({"Regex": "^ +| +$"}, ""), _replace({"Regex": " {2,}"}, " ")]
    steps.append(_replace({"String": " "}, _SPACE))
    if prefix:
        steps += _prefix_steps(model)
    unknown = model.first(_UNKNOWN)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": _byte_decoder(strip=prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else model.pieces[unknown].text,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.has_bytes,
            "vocab": {piece.text: id for id, piece in enumerate(model.pieces)},
            "merges": _merges(model),
        },
    }


def _prefix_steps(model: _Model) -> list[dict[str, Any]]:
    """Return the steps that put a space in front of a text.

    The library matches added tokens in the normalized text and normalizes them too, so they must not get a space.
    """
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}]
    found = [re.escape(piece.text) for piece in model.pieces if piece.text and piece.kind == _USER_DEFINED]
    if found:
        steps.append(_replace({"Regex": f"^{_SPACE}(?=(?:{'|'.join(found)})$)"}, ""))
    return steps


def _merges(model: _Model) -> list[list[str]]:
    """Return SentencePiece's merges in order of priority: every split of a piece into two, by the piece's score."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == _NORMAL}
    ids = {piece.text: id for id, piece in enumerate(model.pieces)}
    pairs = [
        (-score, ids[text[:cut]], ids[text[cut:]])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [[model.pieces[left].text, model.pieces[right].text] for _, left, right in sorted(pairs)]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _byte_decoder(strip: bool = True) -> dict[str, Any]:
    """Return a decoder that joins bytes into characters and removes the space before the first word."""
    steps = [_replace({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strip else []
    return {"type": "Sequence", "decoders": steps}
