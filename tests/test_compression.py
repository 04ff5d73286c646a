"""`compress` and `decompress`: every file comes back bit for bit, and anything else is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.errors import ClearheadError, InputError
from clearhead.evaluation.compression import MAGIC, TextCompressor, read_container
from clearhead.evaluation.range_coder import RangeDecoder, RangeEncoder
from clearhead.verification.reference_text import TEXT


@pytest.fixture(scope="module")
def compressor() -> TextCompressor:
    """The bundled model's, with one thread."""
    return TextCompressor(clearhead.load(dtype="float32", threads=1), "weights", "float32")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.data())
def test_the_coder_returns_every_symbol(frequencies: list[int], data: st.DataObject) -> None:
    starts = [0, *np.cumsum(frequencies).tolist()]
    symbols = data.draw(st.lists(st.integers(0, len(frequencies) - 1), max_size=50))
    encoder = RangeEncoder()
    for symbol in symbols:
        encoder.encode(starts[symbol], frequencies[symbol], starts[-1])
    coded = encoder.finish()
    decoder = RangeDecoder(coded)
    found = []
    for _ in symbols:
        symbol = int(np.searchsorted(starts, decoder.target(starts[-1]), side="right")) - 1
        decoder.consume(starts[symbol], frequencies[symbol], starts[-1])
        found.append(symbol)
    assert found == symbols
    bits = sum(np.log2(starts[-1] / frequencies[symbol]) for symbol in symbols)
    assert 8 * len(coded) <= bits + 16


@settings(deadline=None, max_examples=25)
@given(st.binary(max_size=120) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_every_file_comes_back(compressor: TextCompressor, data: bytes) -> None:
    assert compressor.decompress(compressor.compress(data)) == data


def test_a_text_longer_than_the_context(compressor: TextCompressor) -> None:
    data = TEXT[:2600].encode() + b"\xff\xfe caf\xe9 " + TEXT[2600:3000].encode()
    container = compressor.compress(data)
    assert len(read_container(container)[2]) < len(data) / 3
    other_threads = TextCompressor(clearhead.load(dtype="float32", threads=2), "weights", "float32")
    assert other_threads.compress(data) == container
    assert other_threads.decompress(container) == data


def test_a_wrong_model_and_damage_are_refused(compressor: TextCompressor) -> None:
    container = compressor.compress(b"The dog ran to the ball.")
    with pytest.raises(InputError, match="compressed with another model"):
        TextCompressor(compressor.gpt, "other", "float32").decompress(container)
    with pytest.raises(InputError, match="the dtype float32"):
        TextCompressor(compressor.gpt, "weights", "bfloat16").decompress(container)
    header, _, payload = read_container(container)
    assert header["tokens"] == 7 and header["bytes"] == 24 and len(payload) < 10
    for at in range(0, len(container), 7):
        broken = bytearray(container)
        broken[at] ^= 4
        with pytest.raises(InputError, match=r"damaged|not made by"):
            compressor.decompress(bytes(broken))
    for n in (0, 5, len(MAGIC), len(MAGIC) + 9, len(container) - 20):
        with pytest.raises(InputError, match=r"damaged|not made by"):
            compressor.decompress(container[:n])


@pytest.mark.parametrize("change", [{"tokens": ""}, {"tokens": 10**12}, {"bytes": None}, {"dtype": []}, "", []])
def test_a_header_of_another_form_is_damage(compressor: TextCompressor, change: Any) -> None:
    """Also under its right checksum."""
    container = compressor.compress(b"The dog")
    header, data_sum, payload = read_container(container)
    text = json.dumps({**header, **change} if isinstance(change, dict) else change).encode()
    forged = MAGIC + struct.pack("<III", len(text), zlib.crc32(text), data_sum) + text + payload
    with pytest.raises(InputError, match="the compressed file is damaged; nothing was written"):
        compressor.decompress(forged)


def test_another_arithmetic_is_refused(compressor: TextCompressor, monkeypatch: pytest.MonkeyPatch) -> None:
    container = compressor.compress(b"dog")
    monkeypatch.setattr(compressor, "_arithmetic", lambda: "another")
    with pytest.raises(InputError, match="a processor whose rounding differs"):
        compressor.decompress(container)


def test_pytorch_is_refused() -> None:
    pytest.importorskip("torch")
    with pytest.raises(InputError, match="needs the compiled engine"):
        TextCompressor(clearhead.load(backend="torch"), "weights", "float32")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(make_app(), list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_bytes(b"Once upon a time there was a dog.\r\n")
    assert "bits per byte" in run("compress", file)
    with pytest.raises(ClearheadError, match="exists already"):
        run("decompress", tmp_path / "story.txt.clearhead")
    run("decompress", tmp_path / "story.txt.clearhead", "-o", tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == file.read_bytes()
    with pytest.raises(ClearheadError, match="not made by"):
        run("decompress", file, "-o", tmp_path / "x")
