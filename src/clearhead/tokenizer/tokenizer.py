"""Text to token ids and back, exactly.

GPT-2 does not read letters, it reads *tokens*: pieces of text from a fixed list, each with a number.
Its list was made by byte-pair encoding (Sennrich et al. 2016, over bytes as in section 2.2 of the
GPT-2 paper). The 256 bytes are the first tokens, so that any text can be written; then the pair of
tokens that stands side by side most often in a corpus becomes a new token, again and again. To
encode, text is first cut into words, numbers, punctuation and white space, and in each piece the pairs
are merged in the order in which they were learned.

One form stands behind everything here: the contents of Hugging Face's `tokenizer.json`, called the
*definition*. Other files are turned into it and out of it. Where the definition is GPT-2's own kind,
and only where `tiktoken` is certain to give the same ids, `tiktoken` encodes; `tokenizers` does the rest.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from clearhead.errors import TokenizerError
from clearhead.tokenizer import files as tokenizer_files

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

END_OF_TEXT = "<|endoftext|>"
"""The token that GPT-2 was trained to see between two documents."""


# --- bytes as letters ----------------------------------------------------------------------------


def _byte_alphabet() -> dict[int, int]:
    """The letter (its code point) with which a vocabulary file writes each byte: byte -> code point.

    A byte whose Latin-1 letter can be seen is written as that letter. The other 68 (space, controls)
    take the letters from U+0100 on, in order: a space is written Ġ. So it is done in OpenAI's encoder.py.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: byte for byte in visible} | {byte: 0x100 + n for n, byte in enumerate(hidden)}


_LETTER_OF_BYTE = {byte: chr(letter) for byte, letter in _byte_alphabet().items()}
_BYTE_OF_LETTER = {letter: byte for byte, letter in _byte_alphabet().items()}
_ONLY_BYTE_LETTERS = re.compile("[" + re.escape("".join(_LETTER_OF_BYTE.values())) + "]*")


def _bytes_of(tokens: Sequence[str]) -> list[bytes]:
    """The bytes that each token of a vocabulary file stands for.

    A token with a letter outside the alphabet (one that somebody added by hand) stands for itself.
    """
    together = "".join(tokens)
    if not _ONLY_BYTE_LETTERS.fullmatch(together):
        return [_bytes_of([t])[0] if _ONLY_BYTE_LETTERS.fullmatch(t) else t.encode("utf-8") for t in tokens]
    data = together.translate(_BYTE_OF_LETTER).encode("latin-1")
    ends = list(itertools.accumulate(map(len, tokens)))
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# --- two libraries that encode -------------------------------------------------------------------

# GPT-2's rule for cutting text into pieces, from OpenAI's encoder.py:
#   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# written so that a long run of one kind is not walked back over (`++`), which changes no cut.
_CUTTING_RULE = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# `\s+(?!\S)` does walk back, and overflows in tiktoken's regex engine near a million white-space
# characters in a row. White space is Unicode's White_Space property; Python's own \s has four more.
_WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_WHITE = re.compile(rf"(?<![{_WHITE}])[{_WHITE}]{{100000,}}(?=[^{_WHITE}])")


def _without_long_runs(text: str) -> Iterator[str]:
    """Cuts a text inside its very long runs of white space, at places where GPT-2's rule cuts too.

    Before a visible character the rule takes a run of white space except its last character, which it
    then reads together with what follows; the cut is there.
    """
    start = 0
    if len(text) > 100_000:
        for run in _LONG_WHITE.finditer(text):
            yield text[start : run.end() - 1]
            start = run.end() - 1
    yield text[start:]


class _Backend(Protocol):
    """Encodes text that is known to be valid Unicode."""

    vocabulary: dict[str, int]
    special_tokens: dict[str, int]

    def encode(self, text: str, special: bool) -> list[int]: ...

    def array(self, text: str) -> npt.NDArray[np.uint32]: ...

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]: ...


class _Direct:
    """What the encoders below share: special tokens are found here, the longest first, as `tokenizers` does it."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.special_tokens: dict[str, int] = {t["content"]: t["id"] for t in definition["added_tokens"]}
        self.vocabulary: dict[str, int] = definition["model"]["vocab"] | self.special_tokens
        by_length = sorted(self.special_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, by_length)) + ")") if by_length else None

    def ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special."""
        return list(self.array(text).tolist())

    def array(self, text: str) -> npt.NDArray[np.uint32]:
        """The same as an array."""
        import numpy as np

        return np.array(self.ordinary(text), np.uint32)

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        # Splitting at a group in brackets gives text, special token, text, special token, ..., text.
        parts = self._special.split(text) if special and self._special else [text]
        for n, part in enumerate(parts):
            if n % 2:
                ids.append(self.special_tokens[part])
            else:
                ids += self.ordinary(part)
        return ids

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]:
        return [self.encode(text, special) for text in texts]


class _Tiktoken(_Direct):
    """Encodes with `tiktoken`."""

    def __init__(self, definition: Mapping[str, Any], ranks: dict[bytes, int]) -> None:
        import tiktoken

        super().__init__(definition)
        self._encoding = tiktoken.Encoding("clearhead", pat_str=_CUTTING_RULE, mergeable_ranks=ranks, special_tokens={})

    def ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _without_long_runs(text):
            ids += self._encoding.encode_ordinary(piece)
        return ids

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]:
        threads = threads or os.cpu_count() or 1
        if threads == 1 or len(texts) < 2:
            return [self.encode(text, special) for text in texts]
        # tiktoken lets other threads run while it encodes. Texts go to them in handfuls: most are short.
        size = -(-len(texts) // (4 * threads))
        handfuls = [texts[n : n + size] for n in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda handful: [self.encode(text, special) for text in handful], handfuls)
            return [ids for handful in done for ids in handful]


class _Bytes(_Direct):
    """Encodes with a table of the 256 bytes, for a vocabulary that merges nothing."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        import numpy as np

        super().__init__(definition)
        vocab = definition["model"]["vocab"]
        self._table = np.array([vocab[_LETTER_OF_BYTE[byte]] for byte in range(256)], np.uint32)

    def array(self, text: str) -> npt.NDArray[np.uint32]:
        import numpy as np

        return self._table[np.frombuffer(text.encode("utf-8"), np.uint8)]


class _Characters(_Direct):
    """Encodes with a table of code points, for a vocabulary whose tokens are characters."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        import numpy as np

        super().__init__(definition)
        vocab = definition["model"]["vocab"]
        self._table = np.full(max(map(ord, vocab), default=0) + 1, -1, np.int32)
        for character, id in vocab.items():
            self._table[ord(character)] = id

    def array(self, text: str) -> npt.NDArray[np.uint32]:
        import numpy as np

        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        if len(points) and points.max() >= len(self._table):
            self._refuse(int(points[points >= len(self._table)][0]))
        ids = self._table[points]
        if len(points) and ids.min() < 0:
            self._refuse(int(points[ids < 0][0]))
        return ids.astype(np.uint32)

    def _refuse(self, point: int) -> None:
        raise TokenizerError(
            f"the vocabulary has no token for the character {chr(point)!r} (U+{point:04X}), so the text cannot be "
            "encoded; remove the character or use a vocabulary that has it."
        )


class _Tokenizers:
    """Encodes with `tokenizers`, which knows every kind of `tokenizer.json`."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self._json = json.dumps(definition)
        self.plain = self._open(special=False)
        self._with_special: Any = None
        added = self.plain.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {token.content: id for id, token in added.items() if token.special}
        self.vocabulary: dict[str, int] = self.plain.get_vocab(with_added_tokens=True)

    def _open(self, special: bool) -> Any:
        import tokenizers

        try:
            opened = tokenizers.Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises bare exceptions
            raise TokenizerError(
                f"the tokenizer's definition cannot be opened ({error}); "
                "a tokenizer.json as the tokenizers library writes it was expected."
            ) from None
        opened.encode_special_tokens = not special  # true: special tokens in a text are encoded as text
        return opened

    def _which(self, special: bool) -> Any:
        # The switch belongs to the whole object, so two are kept rather than one switched under other threads.
        if not special:
            return self.plain
        if self._with_special is None:
            self._with_special = self._open(special=True)
        return self._with_special

    def encode(self, text: str, special: bool) -> list[int]:
        return list(self._which(special).encode(text, add_special_tokens=False).ids)

    def array(self, text: str) -> npt.NDArray[np.uint32]:
        import numpy as np

        return np.array(self.encode(text, special=False), np.uint32)

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]:
        # The library has threads of its own, whose number it takes from RAYON_NUM_THREADS.
        if threads == 1:
            return [self.encode(text, special) for text in texts]
        encodings = self._which(special).encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]


# --- where tiktoken may stand in -----------------------------------------------------------------


# SHA-256 of GPT-2's 50,000 merges, one a line: `_parts_stay_apart` holds for them and need not be found out anew.
_GPT2_MERGES = "ac33235097fe06d4a8fff0feac994644809e6eb6ab70669e1e9fd40ae032428e"


def _has_byte_level_decoder(definition: Mapping[str, Any]) -> bool:
    return (definition.get("decoder") or {}).get("type") == "ByteLevel"


def _is_gpt2_kind(definition: Mapping[str, Any]) -> bool:
    """Whether text is cut, merged and joined as GPT-2 does it, so that only vocabulary and leading space may differ."""
    model, before = definition["model"], definition.get("pre_tokenizer") or {}
    return (
        model.get("type") == "BPE"
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
        and definition.get("normalizer") is None
        and before.get("type") == "ByteLevel"
        and before.get("use_regex", True)
        and _has_byte_level_decoder(definition)
    )


def _are_added_plainly(definition: Mapping[str, Any]) -> bool:
    """Whether each added token is special, is matched as it stands, and has the id that `tokenizers` gives it."""
    vocab = definition["model"]["vocab"]
    following = len(vocab)
    for token in definition["added_tokens"]:
        if not token.get("special") or any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            return False
        expected = vocab.get(token["content"], following)
        following += expected == following
        if not token["content"] or token["id"] != expected:
            return False
    return True


def _mergeable_ranks(definition: Mapping[str, Any]) -> dict[bytes, int] | None:
    """The vocabulary as `tiktoken` wants it (bytes -> id), or None where it might give other ids.

    `tiktoken` merges any two neighbours whose joined bytes are a token, the lowest id first; BPE merges
    the pairs that were learned, the earliest first. They agree on every text where
      - all 256 bytes are tokens,
      - the ids of merged tokens grow in the order of the merges (those of the 256 bytes may be any), and
      - each token's own bytes, encoded with the merges before it only, give exactly its two parts
        (`_parts_stay_apart`).
    Why: take two neighbours whose joined bytes are a token t. As both are still whole, nothing was
    merged across their borders, so the bytes between went through the same steps as t's own bytes
    do alone. Those steps pass through one state of two parts, and by the last condition that is the
    pair from which t was learned.
    """
    if not _is_gpt2_kind(definition) or definition["pre_tokenizer"].get("add_prefix_space", True):
        return None
    if not _are_added_plainly(definition):
        return None
    vocab, merges = definition["model"]["vocab"], definition["model"]["merges"]
    if any(letter not in vocab for letter in _LETTER_OF_BYTE.values()):
        return None
    tokens = [left + right for left, right in merges]
    if not _ONLY_BYTE_LETTERS.fullmatch("".join(tokens)):
        return None  # merges of letters that stand for no byte, which never happen in BPE and would in tiktoken
    ids = [vocab[token] for token in tokens]
    if any(later <= earlier for earlier, later in itertools.pairwise(ids)):
        return None
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    if hashlib.sha256(lines.encode("utf-8")).hexdigest() != _GPT2_MERGES and not _parts_stay_apart(merges):
        return None
    ranks = {bytes([byte]): vocab[letter] for byte, letter in _LETTER_OF_BYTE.items()}
    return ranks | dict(zip(_bytes_of(tokens), ids, strict=True))


def _parts_stay_apart(merges: Sequence[tuple[str, str]]) -> bool:
    """Whether each token's bytes, encoded with the merges before it, end as its two parts side by side.

    They would not if some earlier merge took one token from each side of the border. On the left
    side the token at the border is, as time goes on, the last byte, ..., the right part of the left
    part, the left part itself; likewise on the right. A merge across needs both alive at its place
    in the order. Where it is the very merge that would take its left neighbour away (as in "aaa"),
    the left one goes first.
    """
    place_of = {pair: place for place, pair in enumerate(merges)}
    made: dict[str, tuple[int, str, str]] = {}  # token -> (place of its merge, its left part, its right part)
    for place, (left, right) in enumerate(merges):
        if any(len(part) > 1 and part not in made for part in (left, right)):
            return False
        inner_left, left_until = left, place
        while True:
            inner_right, right_until = right, place
            while True:
                across = place_of.get((inner_left, inner_right))
                if across is not None and across < left_until and across <= right_until:
                    return False
                if inner_right not in made:
                    break
                right_until, inner_right, _ = made[inner_right]
            if inner_left not in made:
                break
            left_until, _, inner_left = made[inner_left]
        made[left + right] = (place, left, right)
    return True


def _backend(definition: Mapping[str, Any]) -> _Backend:
    """The fastest encoder that is certain to give the ids of `tokenizers`."""
    if _is_of_characters(definition):
        return _Characters(definition)
    ranks = _mergeable_ranks(definition)
    if ranks is None:
        return _Tokenizers(definition)
    return _Tiktoken(definition, ranks) if definition["model"]["merges"] else _Bytes(definition)


# --- files ---------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(
            f"{path} could not be read ({error.strerror}); give the path of a tokenizer's file."
        ) from None
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path} is not UTF-8 text (byte {error.start}); the file is damaged or is no tokenizer's file; "
            "fetch it again."
        ) from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path} is not whole JSON ({error}); it was perhaps cut short, fetch it again.") from None
    if not isinstance(values, dict):
        raise TokenizerError(f"{path} holds a JSON {type(values).__name__}; an object was expected there.")
    return values


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of a `merges.txt` or `vocab.bpe`, in order."""
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise TokenizerError(
                f"line {number} of {path} is {line!r}; two tokens with one space between were expected, "
                "the file was perhaps cut short, fetch it again."
            )
        merges.append((parts[0], parts[1]))
    return merges


def _check_vocabulary(vocab: Any, where: str) -> None:
    """Refuses what is no mapping of tokens to ids that are all different."""
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError(f"{where} has no tokens; a JSON object from tokens to ids was expected.")
    for token, id in vocab.items():
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            raise TokenizerError(f"{where} gives token {token!r} the id {id!r}; a whole number from 0 on was expected.")
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        for token, id in vocab.items():
            if id in seen:
                raise TokenizerError(
                    f"{where} gives the id {id} to two tokens, {seen[id]!r} and {token!r}; each needs its own."
                )
            seen[id] = token


def _pairs(merges: Any, where: str) -> list[tuple[str, str]]:
    """The merges of a `tokenizer.json` as pairs; there they are written "a b" or ["a", "b"]."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{where} has no list of merges; byte-pair encoding needs one.")
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(p and isinstance(p, str) for p in parts):
            raise TokenizerError(f"{where} has the merge {merge!r}; two tokens were expected.")
        pairs.append((parts[0], parts[1]))
    return pairs


def _check_merges(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], where: str) -> None:
    """Refuses merges of tokens, or into tokens, that the vocabulary does not have."""
    for number, (left, right) in enumerate(merges, 1):
        if left in vocab and right in vocab and left + right in vocab:
            continue
        lost = next(token for token in (left, right, left + right) if token not in vocab)
        raise TokenizerError(
            f"{where} do not fit each other: merge {number} joins {left!r} and {right!r}, "
            f"but {lost!r} is not in the vocabulary; take both from the same model."
        )


def _check_all_are_made(vocab: Iterable[str], merges: Sequence[tuple[str, str]], where: str) -> None:
    """Refuses a vocabulary with tokens that no merge makes: most likely the file of merges was cut short.

    Single letters need no merge, and neither do names in <> or [] brackets, the marks of special tokens.
    """
    made = {left + right for left, right in merges}
    lost = [t for t in vocab if t not in made and len(t) > 1 and t[0] + t[-1] not in ("<>", "[]")]
    if lost:
        raise TokenizerError(
            f"{where} do not fit each other: no merge makes {len(lost)} of the tokens ({lost[0]!r} is one); "
            "the file of merges was perhaps cut short or belongs to another model."
        )


def _special_token(content: str, id: int) -> dict[str, Any]:
    """An entry for a definition's `added_tokens`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **flags}


def _gpt2_definition(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """The contents of the `tokenizer.json` of a GPT-2 with this vocabulary."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(END_OF_TEXT, vocab[END_OF_TEXT])] if END_OF_TEXT in vocab else [],
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


# Cuts a text into its characters. `[\s\S]` and not `.`, which leaves out line ends in every library of expressions.
_EACH_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def _character_definition(characters: Iterable[str], end_of_text: bool) -> dict[str, Any]:
    """The contents of a `tokenizer.json` whose tokens are single characters, and the end of text last."""
    vocab = {character: id for id, character in enumerate(characters)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(END_OF_TEXT, len(vocab))] if end_of_text else [],
        "normalizer": None,
        "pre_tokenizer": _EACH_CHARACTER,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # The library asks for a token for unknown characters; none is in the vocabulary, so that they are refused.
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


def _is_of_characters(definition: Mapping[str, Any]) -> bool:
    model = definition["model"]
    return (
        model.get("type") == "WordLevel"
        and definition.get("pre_tokenizer") == _EACH_CHARACTER
        and definition.get("normalizer") is None
        and (definition.get("decoder") or {}).get("type") == "Fuse"
        and model.get("unk_token") not in model["vocab"]
        and all(len(token) == 1 for token in model["vocab"])
        and _are_added_plainly(definition)
    )


def _definition_from_json(path: Path) -> dict[str, Any]:
    definition = _read_object(path)
    for part in ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder"):
        expected = list if part == "added_tokens" else dict
        if not isinstance(definition.get(part), expected) and (part == "model" or definition.get(part) is not None):
            raise TokenizerError(
                f"{path} has no proper {part!r}; a tokenizer.json as the tokenizers library writes it was expected."
            )
    definition["added_tokens"] = definition.get("added_tokens") or []
    for token in definition["added_tokens"]:
        if not isinstance(token, dict) or not {"id", "content"} <= token.keys():
            raise TokenizerError(
                f"{path} has the added token {token!r}; an object with 'id' and 'content' was expected."
            )
    model = definition["model"]
    if model.get("type") == "BPE":
        _check_vocabulary(model.get("vocab"), str(path))
        model["merges"] = _pairs(model.get("merges"), str(path))
        _check_merges(model["vocab"], model["merges"], f"the vocabulary and the merges in {path}")
        model["dropout"] = None  # a help in training that would give other ids at each call
    # A text is encoded whole; cutting it to the context and filling up a batch are the caller's.
    definition["truncation"] = definition["padding"] = None
    return definition


def _definition_from_bpe_files(vocab_path: Path, merges_path: Path) -> dict[str, Any]:
    vocab, merges = _read_object(vocab_path), _read_merges(merges_path)
    _check_vocabulary(vocab, str(vocab_path))
    where = f"{vocab_path} and {merges_path.name}"
    _check_merges(vocab, merges, where)
    _check_all_are_made(vocab, merges, where)
    return _gpt2_definition(vocab, merges)


def _definition_from_folder(folder: Path) -> dict[str, Any]:
    """From `tokenizer.json` where there is one, as it alone holds every setting; else from a pair of BPE files."""
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is no folder; give a folder with a tokenizer's files.")
    if (folder / "tokenizer.json").is_file():
        return _definition_from_json(folder / "tokenizer.json")
    for pair in tokenizer_files.BPE_PAIRS:
        present = [name for name in pair if (folder / name).is_file()]
        if len(present) == 2:
            return _definition_from_bpe_files(folder / pair[0], folder / pair[1])
    for pair in tokenizer_files.BPE_PAIRS:
        present = [name for name in pair if (folder / name).is_file()]
        if present:
            absent = pair[1 - pair.index(present[0])]
            raise TokenizerError(f"{folder} has {present[0]} but not {absent}, which belongs to it; put it there too.")
    raise TokenizerError(
        f"{folder} has no tokenizer; tokenizer.json, vocab.json with merges.txt, "
        "or encoder.json with vocab.bpe were expected."
    )


class _Settings:
    """What the files beside a vocabulary say about it: special tokens, the end of text, a leading space."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer_config = self._read(folder / "tokenizer_config.json")
        self._special_tokens_map = self._read(folder / "special_tokens_map.json")
        self._configs = [self._read(folder / name) for name in ("generation_config.json", "config.json")]

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        return _read_object(path) if path.is_file() else {}

    def apply(self, definition: dict[str, Any]) -> None:
        """Completes a definition as `transformers` does when it opens the folder."""
        before = definition.get("pre_tokenizer") or {}
        prefix = self._tokenizer_config.get("add_prefix_space")
        if before.get("type") == "ByteLevel" and isinstance(prefix, bool):
            before["add_prefix_space"] = prefix
        known = {token["content"] for token in definition["added_tokens"]}
        added = self._tokenizer_config.get("added_tokens_decoder") or {}
        for id, token in sorted(added.items(), key=lambda item: int(item[0])):
            if token["content"] not in known:
                entry = _special_token(token["content"], int(id))
                definition["added_tokens"].append(entry | {flag: token[flag] for flag in entry if flag in token})
                known.add(token["content"])
        # The end of text is a special token, even where it is only listed in the vocabulary.
        vocab, name = definition["model"].get("vocab"), self._end_of_text_name() or END_OF_TEXT
        if name not in known and isinstance(vocab, dict) and name in vocab:
            definition["added_tokens"].append(_special_token(name, vocab[name]))

    def _end_of_text_name(self) -> str | None:
        for settings in (self._tokenizer_config, self._special_tokens_map):
            token = settings.get("eos_token")
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                return content
        return None

    def end_of_text(self, vocabulary: Mapping[str, int]) -> int | None:
        """The id of the end of text: by name, else GPT-2's own token, else by number.

        The number comes last: a `config.json` often says 50256 whatever the vocabulary.
        """
        name = self._end_of_text_name()
        if name is not None:
            if name not in vocabulary:
                raise TokenizerError(
                    f"the tokenizer's settings name {name!r} as the end of text, but the vocabulary has no such token; "
                    "correct eos_token in tokenizer_config.json or special_tokens_map.json."
                )
            return vocabulary[name]
        if END_OF_TEXT in vocabulary:
            return vocabulary[END_OF_TEXT]
        ids = set(vocabulary.values())
        for settings in self._configs:
            id = settings.get("eos_token_id")
            id = id[0] if isinstance(id, list) and id else id
            if isinstance(id, int) and id in ids:
                return id
        return None


def _write_beside_and_rename(folder: Path, files: Mapping[str, str]) -> None:
    """Writes all files under other names first, then renames them: each is old or new, never half."""
    beside = {name: folder / f".{name}.{os.getpid()}.part" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            beside[name].write_text(text, encoding="utf-8", newline="\n")
        for name in files:
            beside[name].replace(folder / name)
    except OSError as error:
        raise TokenizerError(
            f"the tokenizer could not be saved in {folder} ({error.strerror}); choose another folder."
        ) from None
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


# --- training ------------------------------------------------------------------------------------


def _valid(text: str) -> str:
    """The text itself; refused where it holds half of a surrogate pair, which is no Unicode character."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text (counted from 0) is U+{ord(text[error.start]):04X}, half of a "
                "surrogate pair and no character; remove it, or read the text again with errors='replace'."
            ) from None
    return text


def _learn_merges(texts: Iterable[str], vocab_size: int, show_progress: bool) -> dict[str, Any]:
    """The definition of a new GPT-2 vocabulary: 256 bytes, what the texts teach, and the end of text last."""
    import tokenizers

    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=list(_LETTER_OF_BYTE.values()),
        special_tokens=[],
        show_progress=show_progress,
    )
    # The marks between documents are no text: merges learned from them would be wasted.
    documents = (part for text in texts for part in _valid(text).split(END_OF_TEXT))
    learner.train_from_iterator(documents, trainer=trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=operator.itemgetter(1)))
    if len(vocab) < vocab_size - 1:
        raise TokenizerError(
            f"the text gives a vocabulary of {len(vocab) + 1} tokens and no more, but {vocab_size} were asked for; "
            f"give more text, or ask for {len(vocab) + 1} at most."
        )
    vocab[END_OF_TEXT] = len(vocab)
    return _gpt2_definition(vocab, _pairs(model["merges"], "the trained model"))


# --- the tokenizer -------------------------------------------------------------------------------


class Tokenizer:
    """Turns text into token ids and ids into text.

    Made by `from_folder`, `from_bpe_files`, `from_json`, `train`, `of_bytes` or `of_characters`. It does not change,
    so threads may share it.

    Attributes:
        vocab_size: one more than the highest id: the rows that a model's embedding needs.
        end_of_text: the id of the token that ends a text, or None where the vocabulary has none.
        special_tokens: the tokens that no text gives unless `special=True`, and their ids.
    """

    vocab_size: int
    end_of_text: int | None
    special_tokens: dict[str, int]

    def __init__(self, definition: dict[str, Any], end_of_text: int | None = None) -> None:
        """Called by the ways to make a tokenizer, with a definition that they have checked."""
        self._definition = definition
        self._backend: _Backend = _backend(definition)
        vocabulary = self._backend.vocabulary
        self.special_tokens = dict(self._backend.special_tokens)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.end_of_text = vocabulary.get(END_OF_TEXT) if end_of_text is None else end_of_text
        self._names: list[str | None] = [None] * self.vocab_size
        for name, id in vocabulary.items():
            self._names[id] = name
        self._pieces: list[bytes | None] | None = None
        if isinstance(self._backend, _Characters):
            self._pieces = [None if name is None else name.encode("utf-8") for name in self._names]
        elif _has_byte_level_decoder(definition):
            self._pieces = self._pieces_of(vocabulary)
        self._known_bytes = self._bytes_in(vocabulary)
        self._sha256: tuple[int | None, str] | None = None  # made when it is asked for, with the end of text then

    def _pieces_of(self, vocabulary: Mapping[str, int]) -> list[bytes | None]:
        """The bytes of each id, for a vocabulary with which a text is its tokens' bytes joined; None for unused ids."""
        pieces: list[bytes | None] = [None] * self.vocab_size
        for id, piece in zip(vocabulary.values(), _bytes_of(list(vocabulary)), strict=True):
            pieces[id] = piece
        for token in self._definition["added_tokens"]:  # these are text as they stand
            pieces[vocabulary[token["content"]]] = token["content"].encode("utf-8")
        return pieces

    def _bytes_in(self, vocabulary: Mapping[str, int]) -> bytes | None:
        """The bytes that can be encoded, where some cannot and would be passed over in silence; else None."""
        model = self._definition["model"]
        if not _is_gpt2_kind(self._definition) or model.get("unk_token") in vocabulary:
            return None
        known = bytes(byte for byte, letter in _LETTER_OF_BYTE.items() if letter in vocabulary)
        return known if len(known) < 256 else None

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """A tokenizer from the files in a model's folder.

        `tokenizer.json` is taken where it is there; else `vocab.json` with `merges.txt`; else OpenAI's
        `encoder.json` with `vocab.bpe`. The end of text is what `tokenizer_config.json` or
        `special_tokens_map.json` names; else `<|endoftext|>`; else the `eos_token_id` of
        `generation_config.json` or `config.json`.

        Raises:
            TokenizerError: where there are no such files, or they are broken or do not fit each other.
        """
        folder = Path(folder)
        definition = _definition_from_folder(folder)
        settings = _Settings(folder)
        try:
            settings.apply(definition)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TokenizerError(
                f"the added_tokens_decoder in {folder / 'tokenizer_config.json'} cannot be read; "
                "an object from ids to tokens with a 'content' was expected."
            ) from None
        opened = cls(definition)
        opened.end_of_text = settings.end_of_text(opened._backend.vocabulary)
        return opened

    @classmethod
    def from_bpe_files(cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str]) -> Tokenizer:
        """A GPT-2 tokenizer from `vocab.json` and `merges.txt`, which OpenAI calls `encoder.json` and `vocab.bpe`.

        Raises:
            TokenizerError: where a file is missing or broken, or the two do not fit each other.
        """
        return cls(_definition_from_bpe_files(Path(vocab), Path(merges)))

    @classmethod
    def from_bpe(
        cls,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        *,
        where: str,
        special: Iterable[str] = (),
        end_of_text: int | None = None,
    ) -> Tokenizer:
        """A GPT-2 tokenizer from a vocabulary and merges that are in memory.

        Args:
            vocab: the id of each token, in GPT-2's letters for bytes.
            merges: the pairs of tokens that are joined, in order.
            where: what to call the two in messages.
            special: tokens of the vocabulary that no text gives, beside `<|endoftext|>`; as they stand, not in letters.
            end_of_text: the id of the token that ends a text; that of `<|endoftext|>` where it is not given.

        Raises:
            TokenizerError: where a token stands there twice, or the two do not fit each other.
        """
        special = set(special)
        _check_vocabulary(vocab, where)
        _check_merges(vocab, merges, where)
        _check_all_are_made([token for token in vocab if token not in special], merges, where)
        definition = _gpt2_definition(vocab, merges)
        known = {token["content"] for token in definition["added_tokens"]}
        definition["added_tokens"] += [_special_token(t, id) for t, id in vocab.items() if t in special - known]
        definition["added_tokens"].sort(key=operator.itemgetter("id"))
        return cls(definition, end_of_text)

    @property
    def bpe(self) -> tuple[dict[str, int], list[tuple[str, str]]] | None:
        """The vocabulary, in the order of the ids, and the merges; None where it is no byte-level BPE as GPT-2's."""
        if not _is_gpt2_kind(self._definition) or self._definition["pre_tokenizer"].get("add_prefix_space", True):
            return None
        vocab = dict(sorted(self._backend.vocabulary.items(), key=operator.itemgetter(1)))
        return vocab, [(left, right) for left, right in self._definition["model"]["merges"]]

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """A tokenizer of any kind from a `tokenizer.json`.

        Of its settings, those that fill up or cut off a text, and those that put special tokens
        around it, are left to the caller.

        Raises:
            TokenizerError: where the file is missing or broken.
        """
        return cls(_definition_from_json(Path(path)))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, show_progress: bool = False) -> Tokenizer:
        """A new byte-level BPE of GPT-2's kind, learned from texts; the same texts give the same tokenizer.

        Ids are laid out as in GPT-2: 0 to 255 are the bytes, then the merges as they were learned, and the
        last is `<|endoftext|>`. Where this stands in a text it separates documents and is not learned.

        Args:
            texts: one string or many; each is read once.
            vocab_size: 257 (bytes and the end of text) or more.
            show_progress: whether to draw a bar on standard error.

        Raises:
            TokenizerError: where the vocabulary is too small, or larger than the texts can fill.
        """
        if vocab_size < 257:
            raise TokenizerError(
                f"a vocabulary of {vocab_size} was asked for; 257 is the least: 256 bytes and {END_OF_TEXT}."
            )
        return cls(_learn_merges([texts] if isinstance(texts, str) else texts, vocab_size, show_progress))

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """The smallest vocabulary that can write any text: id n is the byte n of its UTF-8, and 256 the end of text."""
        vocab = {letter: byte for byte, letter in sorted(_LETTER_OF_BYTE.items())}
        return cls(_gpt2_definition(vocab | {END_OF_TEXT: 256}, []))

    @classmethod
    def of_characters(cls, characters: Iterable[str], *, end_of_text: bool = False) -> Tokenizer:
        """A vocabulary of single characters, whose ids are in the order of the code points.

        Args:
            characters: those that texts may have; each counts once. Any other is refused in encoding.
            end_of_text: whether `<|endoftext|>` is the last token.

        Raises:
            TokenizerError: where there are none, or one of them is no single character.
        """
        found = sorted(set(characters))
        for character in found or [""]:
            if len(character) != 1:
                raise TokenizerError(f"{character!r} is no character; give the characters of the texts, one by one.")
            _valid(character)
        return cls(_character_definition(found, end_of_text))

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, end_of_text={self.end_of_text})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._definition, self.end_of_text)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text, with nothing put before or after.

        Args:
            text: any string of Unicode characters.
            special: whether a special token that is spelled out in the text, such as `<|endoftext|>`,
                becomes that token (True) or is encoded as the characters that it is (False). Text
                that a stranger wrote should be encoded with False.

        Raises:
            TokenizerError: where the text holds half of a surrogate pair, or a byte that the vocabulary lacks.
        """
        self._refuse_unknown_bytes(_valid(text))
        return self._backend.encode(text, special)

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """The ids of a text as an array, uint32 [tokens]; special tokens that it spells out are encoded as text.

        Raises:
            TokenizerError: as `encode`.
        """
        self._refuse_unknown_bytes(_valid(text))
        return self._backend.array(text)

    def byte_pairs(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None:
        """The ids of the 256 bytes, int32 [256], and the merges in the order in which they were learned, int32 [n, 3].

        A merge is the ids of its two parts and of what they become, and the last grows from merge to merge. None for
        a vocabulary that is not of GPT-2's kind, or merges nothing.
        """
        import numpy as np

        if not isinstance(self._backend, _Tiktoken):
            return None
        vocab, merges = self._definition["model"]["vocab"], self._definition["model"]["merges"]
        ids = [(vocab[left], vocab[right], vocab[left + right]) for left, right in merges]
        return np.array([vocab[_LETTER_OF_BYTE[byte]] for byte in range(256)], np.int32), np.array(ids, np.int32)

    def sha256(self) -> str:
        """A checksum, in hex, that two tokenizers share where every text gets the same ids from both."""
        if self._sha256 is None or self._sha256[0] != self.end_of_text:
            values = json.dumps([self._definition, self.end_of_text], sort_keys=True)
            self._sha256 = self.end_of_text, hashlib.sha256(values.encode()).hexdigest()
        return self._sha256[1]

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """How many bytes of text each id stands for, int64 [vocab_size]; 0 for special tokens.

        None for a vocabulary with which a text is not its tokens' bytes joined.
        """
        import numpy as np

        if self._pieces is None:
            return None
        lengths = np.array([len(piece or b"") for piece in self._pieces], np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    @property
    def may_cut(self) -> Literal["anywhere", "before white space", "nowhere"]:
        """Where a text may be cut so that the ids of the two parts, joined, are the ids of the whole.

        "before white space" is the place between a visible character and a white one: no piece of GPT-2's cutting
        rule goes over it, and none looks back.
        """
        if isinstance(self._backend, _Bytes | _Characters):
            return "anywhere"
        return "before white space" if isinstance(self._backend, _Tiktoken) else "nowhere"

    def encode_batch(
        self, texts: Iterable[str], *, special: bool = False, threads: int | None = None
    ) -> list[list[int]]:
        """The ids of each text, as `encode` gives them, with several threads (by default one for each core)."""
        texts = list(texts)
        for number, text in enumerate(texts):
            try:
                self._refuse_unknown_bytes(_valid(text))
            except TokenizerError as error:
                raise TokenizerError(f"in text {number} of the batch (counted from 0), {error}") from None
        return self._backend.encode_batch(texts, special, threads)

    def _refuse_unknown_bytes(self, text: str) -> None:
        if self._known_bytes is not None and text.encode("utf-8").translate(None, delete=self._known_bytes):
            character = next(c for c in text if c.encode("utf-8").translate(None, delete=self._known_bytes))
            raise TokenizerError(
                f"the vocabulary has no token for a byte of {character!r}, so the text cannot be encoded; "
                "remove the character or use a vocabulary with all 256 bytes."
            )

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for: UTF-8, except where ids end or break off inside a character.

        Raises:
            TokenizerError: where an id is not in the vocabulary.
        """
        ids = list(ids)
        if self._pieces is None:
            return self._decode_by_library(ids).encode("utf-8")
        try:
            if min(ids, default=0) >= 0:
                return b"".join([self._pieces[id] for id in ids])  # type: ignore[misc]
        except (IndexError, TypeError):
            pass  # an id beyond the end, or one of those in between that no token has
        for id in ids:
            self._name_of(id)
        raise TypeError("token ids must be whole numbers")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, as Python's `errors="replace"` does it.

        Raises:
            TokenizerError: where an id is not in the vocabulary.
        """
        if self._pieces is None:
            return self._decode_by_library(list(ids))
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token. It may be part of a character, so that the bytes alone are no text.

        Raises:
            TokenizerError: where the id is not in the vocabulary.
        """
        name = self._name_of(id)
        if self._pieces is None:
            return _byte_fallback(name) or self._decode_by_library([id]).encode("utf-8")
        piece = self._pieces[id]
        assert piece is not None  # as it has a name
        return piece

    def stream(self) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        return StreamDecoder(self) if self._pieces is not None else _WindowDecoder(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer into a folder, so that `from_folder` and `transformers` open it with the same ids.

        The files are `tokenizer.json` and `tokenizer_config.json`, and for a vocabulary of GPT-2's kind also
        `vocab.json` and `merges.txt`. Other files in the folder stay as they are.

        Raises:
            TokenizerError: where the folder cannot be written.
        """
        files = {"tokenizer.json": json.dumps(self._definition, ensure_ascii=False) + "\n"}
        model = self._definition["model"]
        if _is_gpt2_kind(self._definition):
            vocab = dict(sorted(self._backend.vocabulary.items(), key=operator.itemgetter(1)))
            lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
            files["vocab.json"] = json.dumps(vocab, ensure_ascii=False) + "\n"
            files["merges.txt"] = "\n".join(lines) + "\n"
        files["tokenizer_config.json"] = json.dumps(self._tokenizer_config(), ensure_ascii=False, indent=2) + "\n"
        _write_beside_and_rename(Path(folder), files)

    def _tokenizer_config(self) -> dict[str, Any]:
        """The settings with which `transformers` opens the saved files and finds the same ids."""
        end = None if self.end_of_text is None else self._names[self.end_of_text]
        # Their GPT-2 class adds <|endoftext|> where no end of text is given; the general class adds nothing.
        gpt2 = end is not None and _is_gpt2_kind(self._definition)
        config: dict[str, Any] = {
            "tokenizer_class": "GPT2Tokenizer" if gpt2 else "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,  # true would take out spaces before punctuation
        }
        before = self._definition.get("pre_tokenizer") or {}
        if before.get("type") == "ByteLevel":
            config["add_prefix_space"] = before.get("add_prefix_space", True)
        if end is not None:
            config |= {"bos_token": end, "eos_token": end, "unk_token": end} if gpt2 else {"eos_token": end}
        return config

    def _decode_by_library(self, ids: list[int]) -> str:
        for id in ids:
            self._name_of(id)
        assert isinstance(self._backend, _Tokenizers)
        return str(self._backend.plain.decode([operator.index(id) for id in ids], skip_special_tokens=False))

    def _name_of(self, id: int) -> str:
        """The name of a token in the vocabulary."""
        name = self._names[id] if 0 <= id < self.vocab_size else None
        if name is None:
            raise TokenizerError(
                f"there is no token with the id {id}; the vocabulary has ids from 0 to {self.vocab_size - 1}"
                + (", and that one is not used." if 0 <= id < self.vocab_size else ".")
            )
        return name


def _byte_fallback(name: str) -> bytes | None:
    """The byte of a token such as `<0xE4>`, with which some vocabularies spell what they have no token for."""
    match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name)
    return bytes.fromhex(match[1]) if match else None


# --- one id at a time ----------------------------------------------------------------------------


class StreamDecoder:
    """Decodes ids as they come and shows only whole characters.

    What `push` returned, joined, and what `finish` returns at the end are together `decode(ids)`.
    U+FFFD appears only for bytes that no further token can complete. After `finish` it can be used anew.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Keeps back the bytes of a character that is begun and not yet complete.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that this id completes; often empty, where a character is spread over several tokens.

        Raises:
            TokenizerError: where the id is not in the vocabulary.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was begun and never completed, else nothing."""
        return self._decoder.decode(b"", final=True)


class _WindowDecoder(StreamDecoder):
    """For vocabularies whose decoder looks at neighbours: at the first token of a text, at runs of bytes.

    New ids are decoded together with those last shown, and the text of those is taken off the front.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._shown: list[int] = []
        self._waiting: list[int] = []

    def push(self, id: int) -> str:
        name = self._tokenizer._name_of(id)
        self._waiting.append(id)
        # A run of bytes is decoded as a whole, and all of it is invalid if any of it is.
        if _byte_fallback(name) is not None:
            return ""
        new = self._new_text()
        if not new or new.endswith("\ufffd"):
            return ""
        self._shown, self._waiting = self._waiting, []
        return new

    def finish(self) -> str:
        new = self._new_text()
        self._shown, self._waiting = [], []
        return new

    def _new_text(self) -> str:
        if not self._waiting:
            return ""
        before = self._tokenizer.decode(self._shown) if self._shown else ""
        return self._tokenizer.decode(self._shown + self._waiting)[len(before) :]
