"""Lossless compression of files by a model: arithmetic coding with the model's probability of every token.

A file costs the bits of its surprisal. Decoding has to compute the same probabilities again, bit for bit, one token
at a time; the compiled engine gives the same bits for a whole text as for single tokens, which makes it possible. The
container names the weights, the tokenizer and the dtype, and holds a digest of what the engine computes for a fixed
sequence: a file that was made with another model, or on a processor with other rounding, is refused before anything is
written. A checksum of the contents is compared at the end.

Bytes that are not UTF-8 are encoded with the tokens of single bytes, which every byte-level vocabulary has.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError, TokenizerError
from clearhead.evaluation.range_coder import RangeDecoder, RangeEncoder
from clearhead.gpt import GPT
from clearhead.utils.json_files import Count, MalformedJSONError, parse_json

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

MAGIC = b"CLEARHEAD-TEXT\x01"
_SUMS = "<III"  # the length of the header, its CRC-32, and that of the file's contents
_TOTAL = 1 << 24  # the sum of the integer frequencies of one token


class ModelIdentity(TypedDict):
    """What must be the same when a file is decompressed."""

    weights_sha256: str
    tokenizer_sha256: str
    dtype: str
    arithmetic: str


class ContainerHeader(ModelIdentity):
    """The header of a container: the identity, and the length of the file in bytes and in tokens."""

    bytes: Count
    tokens: Count


class TextCompressor:
    """Compress and decompress files with one model.

    Args:
        gpt: a model on the compiled engine, with a byte-level tokenizer.
        weights_sha256: of the model, as `provenance.weights_digest` computes it.
        dtype: of its weights in memory.

    Raises:
        InputError: if the model runs on PyTorch, or its tokenizer cannot write every byte.
    """

    def __init__(self, gpt: GPT, weights_sha256: str, dtype: str) -> None:
        from clearhead.engine.runner import EngineRunner

        if not isinstance(gpt.runner, EngineRunner):
            raise InputError("compression needs the compiled engine, which repeats its results bit for bit.")
        if gpt.tokenizer is None or gpt.tokenizer.bpe is None:
            raise InputError("compression needs a byte-level tokenizer like GPT-2's, which can write every file.")
        self.gpt = gpt
        self.tokenizer: Tokenizer = gpt.tokenizer
        self._byte_tokens = _byte_tokens(self.tokenizer)
        self._weights_sha256, self._dtype = weights_sha256, dtype

    def compress(self, data: bytes, advance: Callable[[int], None] = lambda tokens: None) -> bytes:
        """Return a container of a file's bytes.

        Args:
            data: any bytes.
            advance: is called with the number of tokens after each window.
        """
        ids = self._encode(data)
        header = json.dumps({**self._identity(), "bytes": len(data), "tokens": len(ids)}).encode()
        encoder = RangeEncoder()
        for context, window in self._windows(ids):
            logits = self.gpt.runner.logits([*context, *window[:-1]])[len(context) - 1 :]
            for row, token in zip(logits, window, strict=True):
                starts = _cumulative(row)
                encoder.encode(int(starts[token]), int(starts[token + 1] - starts[token]), int(starts[-1]))
            advance(len(window))
        sums = struct.pack(_SUMS, len(header), zlib.crc32(header), zlib.crc32(data))
        return MAGIC + sums + header + encoder.finish()

    def decompress(self, container: bytes, advance: Callable[[int], None] = lambda tokens: None) -> bytes:
        """Return the bytes of a container.

        Args:
            container: what `compress` returned.
            advance: is called with 1 after each token.

        Raises:
            InputError: if it is not a container, was made with something else, or is damaged.
        """
        header, checksum, payload = read_container(container)
        self._check(header)
        decoder = RangeDecoder(payload)
        ids: list[int] = []
        while len(ids) < header["tokens"]:
            context, count = self._next_window(ids, header["tokens"])
            slot = self.gpt.runner.open()
            try:
                new = context
                for _ in range(count):
                    starts = _cumulative(self.gpt.runner.extend([(slot, new)])[0])
                    total = int(starts[-1])
                    token = int(np.searchsorted(starts, decoder.target(total), side="right")) - 1
                    decoder.consume(int(starts[token]), int(starts[token + 1] - starts[token]), total)
                    ids.append(token)
                    new = [token]
                    advance(1)
            finally:
                self.gpt.runner.close(slot)
        try:
            data = self.tokenizer.decode_bytes(ids)
        except TokenizerError:  # an id that no text has
            raise _damaged() from None
        if len(data) != header["bytes"] or zlib.crc32(data) != checksum:
            raise _damaged()
        return data

    def _encode(self, data: bytes) -> list[int]:
        """Return tokens whose bytes are the data."""
        ids: list[int] = []
        while data:
            try:
                return ids + self.tokenizer.encode(data.decode("utf-8"))
            except UnicodeDecodeError as error:
                ids += self.tokenizer.encode(data[: error.start].decode("utf-8"))
                ids += [self._byte_tokens[byte] for byte in data[error.start : error.end]]
                data = data[error.end :]
        return ids

    def _windows(self, ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield each window's context, and the tokens that it encodes."""
        done = 0
        while done < len(ids):
            context, count = self._next_window(ids[:done], len(ids))
            yield context, ids[done : done + count]
            done += count

    def _next_window(self, before: list[int], total: int) -> tuple[list[int], int]:
        """Return the context of the window after some tokens, and how many tokens it encodes.

        A window starts with the end-of-text token and the newest half of a context.
        """
        length = self.gpt.config.context_length
        kept = before[-(length // 2) :] if before else []
        start = self.tokenizer.end_of_text or 0
        context = [start, *kept][:length]
        return context, min(length + 1 - len(context), total - len(before))

    def _identity(self) -> ModelIdentity:
        return {
            "weights_sha256": self._weights_sha256,
            "tokenizer_sha256": self.tokenizer.sha256(),
            "dtype": self._dtype,
            "arithmetic": self._arithmetic(),
        }

    def _arithmetic(self) -> str:
        """Return a digest of the frequencies that this machine computes for a fixed sequence."""
        ids = [(7 * n * n + 3 * n) % self.tokenizer.vocab_size for n in range(min(64, self.gpt.config.context_length))]
        digest = hashlib.sha256()
        for row in self.gpt.runner.logits(ids):
            digest.update(_cumulative(row).tobytes())
        return digest.hexdigest()[:16]

    def _check(self, header: ContainerHeader) -> None:
        wrong = next((name for name, own in self._identity().items() if own != header.get(name)), None)
        what = {
            "weights_sha256": "another model; give its folder with --model",
            "tokenizer_sha256": "another tokenizer; give the model's own folder with --model",
            "dtype": f"the dtype {header['dtype']}; give it with --dtype",
            "arithmetic": "a processor whose rounding differs, or another version; use the one that it was made with",
        }
        if wrong is not None:
            raise InputError(f"this file was compressed with {what[wrong]}. Nothing was written.")


def read_container(container: bytes) -> tuple[ContainerHeader, int, bytes]:
    """Return the header, the checksum and the payload of a container.

    Raises:
        InputError: if it is not one.
    """
    start = len(MAGIC) + struct.calcsize(_SUMS)
    if not container.startswith(MAGIC) or len(container) < start:
        raise InputError("this file was not made by `clearhead compress`; give one that was.")
    length, header_sum, data_sum = struct.unpack_from(_SUMS, container, len(MAGIC))
    text = container[start : start + length]
    if zlib.crc32(text) != header_sum:
        raise _damaged()
    try:
        header = parse_json(text, ContainerHeader)
    except MalformedJSONError:
        raise _damaged() from None
    if header["tokens"] > header["bytes"]:  # a token has a byte at least
        raise _damaged()
    return header, data_sum, container[start + length :]


def _cumulative(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the starts of the tokens' integer intervals, int64 [V + 1], from logits [V]; each has at least 1."""
    scaled = logits.astype(np.float64)  # a copy: the same memory layout, and so the same rounding, for every row
    weights = np.exp(scaled - scaled.max())
    weights *= (_TOTAL - len(weights)) / weights.sum()
    starts = np.zeros(len(weights) + 1, np.int64)
    np.cumsum(weights.astype(np.int64) + 1, out=starts[1:])
    return starts


def _byte_tokens(tokenizer: Tokenizer) -> list[int]:
    single = {tokenizer.token_bytes(token): token for token, _ in tokenizer.names()}
    missing = [byte for byte in range(256) if bytes([byte]) not in single]
    if missing:
        raise InputError("the vocabulary lacks tokens for some bytes, so it cannot write every file.")
    return [single[bytes([byte])] for byte in range(256)]


def _damaged() -> InputError:
    return InputError("the compressed file is damaged; nothing was written.")
