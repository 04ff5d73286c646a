"""Encode large amounts of text: byte-pair encoding like GPT-2's, compiled, with a cache of words.

Almost every word of a text has occurred before. So the ids of each piece into which GPT-2's rule splits the text are
cached in a hash table, and most of the work is splitting and looking up; only new pieces are merged. The ids are those
of `Tokenizer`.

The rule asks whether a character is a letter, a number or white space, and libraries have different versions of
Unicode. Here only those characters count as known whose class has been the same since Unicode 3.2, and the blocks
of pictographs, which are neither; a text with any other character goes to the tokenizer itself. So does a text with a
very long piece, for which the simple merging loop here is too slow.
"""

from __future__ import annotations

import pickle
import sys
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.tokenizer import Tokenizer
from clearhead.utils.jit import entry, kernel

_OTHER, _LETTER, _NUMBER, _WHITE, _UNKNOWN = range(5)
_TABLE = 0x20000  # code points with an entry in the table of classes; those above are unknown
_PICTOGRAPHS = ((0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FA00))
_WHITE_SPACE = (
    *range(0x09, 0x0E),
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
)

_MAX_PIECE_BYTES = 400  # bytes of a piece
_WORDS = 1 << 18  # rows in the cache of words, of which at most half are filled
# A row is one cache line of the processor: the word's length and first seven bytes, eight more bytes in each of the
# four columns after that, and up to four ids of 28 bits in the next two.
_ROW = 8
_KEYS = 5
_MAX_WORD_BYTES = 7 + 8 * (_KEYS - 1)
_MAX_IDS = 4


class BulkEncoder:
    """Encodes texts as a tokenizer does, several times as fast.

    The first call compiles, which takes some seconds, once on a machine. Threads must not share an encoder.

    Args:
        tokenizer: a byte-level BPE like GPT-2's: its `byte_pairs` are not None.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pairs = tokenizer.byte_pairs()
        assert pairs is not None
        self._tables = (_kinds(), pairs[0], *_pair_table(pairs[1]))
        self._tokenizer: Tokenizer | bytes = tokenizer
        self._clear_cache()

    def _clear_cache(self) -> None:
        self._words = np.zeros((_WORDS, _ROW), np.uint64)
        self._count = np.zeros(1, np.int64)  # of filled rows
        self._scratch = np.zeros(_KEYS, np.uint64), np.zeros(_MAX_PIECE_BYTES, np.int32)
        self._out = np.empty(0, np.uint32)

    def __getstate__(self) -> tuple[Any, ...]:
        """Return the tables and the pickled tokenizer: most copies never need it, and it takes long to make."""
        packed = self._tokenizer if isinstance(self._tokenizer, bytes) else pickle.dumps(self._tokenizer)
        return self._tables, packed

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._tables, self._tokenizer = state
        self._clear_cache()

    def __call__(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of a text, uint32 [tokens]; special tokens that it spells out are encoded as text.

        Raises:
            TokenizerError: as `Tokenizer.encode`.
        """
        try:
            data = np.frombuffer(text.encode("utf-8"), np.uint8)
        except UnicodeEncodeError:
            return self._encode_with_tokenizer(text)
        if len(self._out) < len(data):
            self._out = np.empty(len(data) + len(data) // 4, np.uint32)  # a token has at least a byte
        count = _encode(data, *self._tables, self._words, self._count, *self._scratch, self._out)
        return self._encode_with_tokenizer(text) if count < 0 else self._out[:count].copy()

    def _encode_with_tokenizer(self, text: str) -> npt.NDArray[np.uint32]:
        if isinstance(self._tokenizer, bytes):
            self._tokenizer = pickle.loads(self._tokenizer)
        assert isinstance(self._tokenizer, Tokenizer)
        return self._tokenizer.encode_array(text)


def _kinds() -> npt.NDArray[np.uint8]:
    """Return the class of each code point below `_TABLE`."""
    kinds = np.full(_TABLE, _UNKNOWN, np.uint8)
    old = unicodedata.ucd_3_2_0
    of_category = {"L": _LETTER, "N": _NUMBER}
    for point in range(min(_TABLE, sys.maxunicode)):
        then, now = old.category(chr(point)), unicodedata.category(chr(point))
        kind = of_category.get(now[0], _OTHER)
        if then != "Cn" and of_category.get(then[0], _OTHER) == kind and "Z" not in (then[0], now[0]):
            kinds[point] = kind
    for first, end in _PICTOGRAPHS:
        kinds[first:end] = _OTHER
    kinds[list(_WHITE_SPACE)] = _WHITE
    return kinds


def _pair_table(merges: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    """Return a hash table of the merges, left << 32 | right, and the resulting ids; at least half of it is free."""
    size = 1 << (2 * len(merges)).bit_length()
    keys, values = np.full(size, 2**64 - 1, np.uint64), np.zeros(size, np.int32)
    _fill_pair_table(merges, keys, values)
    return keys, values


@kernel
def _pair_slot(key: np.uint64, size: int) -> int:
    return int((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & (size - 1)


@entry
def _fill_pair_table(merges: Any, keys: Any, values: Any) -> None:
    for n in range(len(merges)):
        key = np.uint64(merges[n, 0]) << np.uint64(32) | np.uint64(merges[n, 1])
        slot = _pair_slot(key, len(keys))
        while keys[slot] != np.uint64(0xFFFFFFFFFFFFFFFF):
            slot = (slot + 1) & (len(keys) - 1)
        keys[slot] = key
        values[slot] = merges[n, 2]


@kernel
def _merged(left: int, right: int, keys: Any, values: Any) -> int:
    """Return the id into which two neighbours merge; -1 if they do not."""
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    slot = _pair_slot(key, len(keys))
    while keys[slot] != np.uint64(0xFFFFFFFFFFFFFFFF):
        if keys[slot] == key:
            return int(values[slot])
        slot = (slot + 1) & (len(keys) - 1)
    return -1


@kernel
def _merge(data: Any, start: int, end: int, byte_ids: Any, keys: Any, values: Any, ids: Any, out: Any, at: int) -> int:
    """Write the ids of a piece to `out` from index `at` on; return how many. `ids` is scratch space.

    The pair that was learned first is merged first, the leftmost of equal ones: ids grow in the order of learning.
    """
    for n in range(end - start):
        ids[n] = byte_ids[data[start + n]]
    count = end - start
    while count > 1:
        best, index = np.int64(1) << 40, -1
        for n in range(count - 1):
            found = _merged(ids[n], ids[n + 1], keys, values)
            if 0 <= found < best:
                best, index = found, n
        if index < 0:
            break
        ids[index] = best
        for n in range(index + 1, count - 1):
            ids[n] = ids[n + 1]
        count -= 1
    for n in range(count):
        out[at + n] = ids[n]
    return count


@kernel
def _kind_at(data: Any, at: int, kinds: Any) -> Any:
    """Return the class of the character that begins at offset `at`, and its length in bytes."""
    byte = data[at]
    if byte < 0x80:
        return kinds[byte], 1
    if byte < 0xE0:
        point, length = (np.int64(byte) & 0x1F) << 6 | (np.int64(data[at + 1]) & 0x3F), 2
    elif byte < 0xF0:
        middle = (np.int64(data[at + 1]) & 0x3F) << 6
        point, length = (np.int64(byte) & 0x0F) << 12 | middle | (np.int64(data[at + 2]) & 0x3F), 3
    else:
        middle = (np.int64(data[at + 1]) & 0x3F) << 12 | (np.int64(data[at + 2]) & 0x3F) << 6
        point, length = (np.int64(byte) & 0x07) << 18 | middle | (np.int64(data[at + 3]) & 0x3F), 4
    return (kinds[point] if point < len(kinds) else np.uint8(_UNKNOWN)), length


@kernel
def _contraction(data: Any, at: int) -> int:
    """Return how many bytes `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` take at `at`; 0 if there is none."""
    if data[at] != 0x27 or at + 1 >= len(data):
        return 0
    first = data[at + 1]
    if first == 0x73 or first == 0x74 or first == 0x6D or first == 0x64:  # s t m d
        return 2
    if at + 2 < len(data):
        second = data[at + 2]
        if (first == 0x72 or first == 0x76) and second == 0x65:  # re ve
            return 3
        if first == 0x6C and second == 0x6C:  # ll
            return 3
    return 0


@kernel
def _piece_end(data: Any, start: int, kinds: Any) -> int:
    """Return where the piece that begins at `start` ends by GPT-2's rule; -1 if it meets an unknown character.

    The rule: `'(?:s|t|re|ve|m|ll|d)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`.
    """
    taken = _contraction(data, start)
    if taken:
        return start + taken
    at = start
    kind, length = _kind_at(data, at, kinds)
    if data[at] == 0x20 and at + 1 < len(data):
        kind, length = _kind_at(data, at + 1, kinds)
        if kind != _WHITE:
            at += 1
        else:
            kind, length = np.uint8(_WHITE), 1
    if kind == _UNKNOWN:
        return -1
    wanted, last = kind, at
    while at < len(data):
        kind, length = _kind_at(data, at, kinds)
        if kind == _UNKNOWN:
            return -1
        if kind != wanted:
            break
        last = at
        at += length
    # A run of white space leaves its last character to what follows, unless it is the only one.
    if wanted == _WHITE and at < len(data) and last > start:
        return last
    return at


@kernel
def _pack(data: Any, start: int, end: int, key: Any) -> np.uint64:
    """Write a word into the columns of a row's key; return its hash."""
    key[0] = np.uint64(end - start)
    shift, column, value = np.uint64(8), 0, key[0]
    for n in range(start, end):
        value |= np.uint64(data[n]) << shift
        shift += np.uint64(8)
        if shift == 64:
            key[column] = value
            shift, column, value = np.uint64(0), column + 1, np.uint64(0)
    if column < _KEYS:
        key[column] = value
    hashed = key[0] * np.uint64(0x9E3779B97F4A7C15)
    for n in range(1, column + 1 if column < _KEYS else _KEYS):
        hashed = (hashed ^ (hashed >> np.uint64(29)) ^ key[n]) * np.uint64(0xBF58476D1CE4E5B9)
    return hashed ^ (hashed >> np.uint64(32))


@kernel
def _find(words: Any, key: Any, columns: int, hashed: np.uint64) -> Any:
    """Return the row of a word, or the free row for it."""
    row = np.int64(hashed & np.uint64(len(words) - 1))
    while words[row, 0] != 0:
        if words[row, 0] == key[0]:
            column = 1
            while column < columns and words[row, column] == key[column]:
                column += 1
            if column == columns:
                return row
        row = (row + 1) & (len(words) - 1)
    return row


@kernel
def _store(words: Any, row: int, key: Any, columns: int, ids: Any, at: int, count: int) -> None:
    for column in range(columns):
        words[row, column] = key[column]
    low, high = np.uint64(count) << np.uint64(56), np.uint64(0)
    for n in range(count):
        value = np.uint64(ids[at + n]) << np.uint64(28 * (n % 2))
        if n < 2:
            low |= value
        else:
            high |= value
    words[row, _KEYS], words[row, _KEYS + 1] = low, high


@entry
def _encode(
    data: Any,
    kinds: Any,
    byte_ids: Any,
    pairs: Any,
    merged: Any,
    words: Any,
    filled: Any,
    key: Any,
    ids: Any,
    out: Any,
) -> int:
    """Write the ids of a text to `out`; return how many, or -1 if the text must go to the tokenizer itself."""
    at, count = 0, 0
    mask = np.uint64((1 << 28) - 1)
    while at < len(data):
        end = _piece_end(data, at, kinds)
        if end < 0 or end - at > _MAX_PIECE_BYTES:
            return -1
        if end - at > _MAX_WORD_BYTES:
            count += _merge(data, at, end, byte_ids, pairs, merged, ids, out, count)
        else:
            hashed = _pack(data, at, end, key)
            columns = (end - at) // 8 + 1
            row = _find(words, key, columns, hashed)
            if words[row, 0] != 0:
                low = words[row, _KEYS]
                number = int(low >> np.uint64(56))
                out[count] = low & mask
                if number > 1:
                    out[count + 1] = (low >> np.uint64(28)) & mask
                    if number > 2:
                        high = words[row, _KEYS + 1]
                        out[count + 2] = high & mask
                        if number > 3:
                            out[count + 3] = high >> np.uint64(28)
                count += number
            else:
                found = _merge(data, at, end, byte_ids, pairs, merged, ids, out, count)
                if found <= _MAX_IDS and filled[0] < len(words) // 2:
                    _store(words, row, key, columns, out, count, found)
                    filled[0] += 1
                count += found
        at = end
    return count
