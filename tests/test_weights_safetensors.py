"""The safetensors format, against the library of its authors; and files that are damaged in every way."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_torch

from clearhead.errors import WeightsError
from clearhead.weights.formats.safetensors import SafetensorsFile, write_safetensors
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, encode, narrow_to_bfloat16, widen_bfloat16

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TYPES = [
    np.float64,
    np.float32,
    np.float16,
    np.int64,
    np.uint64,
    np.int32,
    np.uint32,
    np.int16,
    np.int8,
    np.uint8,
    bool,
]
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def valid_file() -> bytes:
    return safetensors.numpy.save(
        {
            "wte.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
            "h.0.ln_1.bias": np.arange(5, dtype=np.float16),
            "scalar": np.array(7, np.int64),
            "empty": np.zeros((0, 3), np.float32),
        },
        metadata={"format": "pt"},
    )


VALID = valid_file()
HEADER = int.from_bytes(VALID[:8], "little")


def build(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@FUZZ
@given(st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(TYPES), SHAPES), max_size=5), st.integers(0, 99))
def test_what_the_library_writes_is_read(tmp_path: Path, shapes: dict[str, Any], seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes.pop("__metadata__", None)
    arrays = {
        name: np.asarray(random.integers(0, 2, shape), dtype=dtype).copy() for name, (dtype, shape) in shapes.items()
    }
    file = SafetensorsFile(written(tmp_path / "a", safetensors.numpy.save(arrays)))
    assert file.tensors == {n: TensorInfo(a.shape, a.dtype.name) for n, a in arrays.items()}
    for name, array in arrays.items():
        found = file.read(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@FUZZ
@given(
    st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(sorted(NUMPY_TYPES)), SHAPES), max_size=5),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)
def test_what_is_written_the_library_reads(tmp_path: Path, shapes: dict[str, Any], metadata: dict[str, str]) -> None:
    shapes.pop("__metadata__", None)
    infos = {name: TensorInfo(tuple(shape), dtype) for name, (dtype, shape) in shapes.items()}
    arrays = {n: (np.arange(i.size) % 2).astype(NUMPY_TYPES[i.dtype]).reshape(i.shape) for n, i in infos.items()}
    write_safetensors(tmp_path / "a", infos, arrays.items(), metadata)
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert set(file.keys()) == set(arrays)
        assert (file.metadata() or {}) == metadata
        for name, array in arrays.items():
            tensor = file.get_tensor(name)
            assert str(tensor.dtype) == f"torch.{infos[name].dtype}"
            assert tuple(tensor.shape) == infos[name].shape
            bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(bits.numpy(), array)


def check_like_the_library(path: Path, data: bytes) -> None:
    """Reads what the library reads and refuses what it refuses, in a sentence and without much memory."""
    written(path, data)
    try:
        expected: dict[str, np.ndarray] | None = safetensors.numpy.load(data)
    except Exception:  # the library has one error for a bad file, and NumPy's own ones for what comes after
        expected = None
    tracemalloc.start()
    try:
        file = SafetensorsFile(path)
        found = {name: file.read(name) for name in file.tensors}
    except WeightsError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        # A type that NumPy lacks is refused here by name, and so is a web page that happens to be well formed.
        assert expected is None or "number format" in str(error)
    else:
        assert expected is not None
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name].astype(array.dtype), array)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5_000_000, "a small file must not make a large allocation"


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_changed_anywhere(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for place, value in changes:
        data[place] = value
    check_like_the_library(tmp_path / "a", bytes(data))


@FUZZ
@given(st.lists(st.tuples(st.integers(8, 8 + HEADER - 1), st.sampled_from(b'0123456789,:[]{}"-eE. FBI')), max_size=3))
def test_characters_of_the_header_changed(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for place, value in changes:
        data[place] = value
    check_like_the_library(tmp_path / "a", bytes(data))


@FUZZ
@given(st.integers(0, len(VALID)))
def test_a_file_cut_anywhere(tmp_path: Path, length: int) -> None:
    check_like_the_library(tmp_path / "a", VALID[:length])


@FUZZ
@given(st.integers(0, len(VALID)), st.binary(min_size=1, max_size=20))
def test_bytes_put_in_anywhere(tmp_path: Path, place: int, more: bytes) -> None:
    check_like_the_library(tmp_path / "a", VALID[:place] + more + VALID[place:])


NUMBERS = st.one_of(st.integers(-3, 20), st.sampled_from([2**31, 2**62, 2**63, 2**64, 2**200, 1.0, None, True, "4"]))
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F8_E4M3", "F4", "X", 3, None]),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), st.none(), st.just([1] * 70)),
        "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), st.sampled_from([[0, 0], [0, 4], [0, 16], [4, 8]])),
        "more": st.none(),
    },
)


@FUZZ
@given(
    st.one_of(
        st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), st.one_of(ENTRIES, st.none()), max_size=3),
        st.recursive(st.none() | st.text(max_size=3) | st.floats(), st.lists, max_leaves=4),
    ),
    st.sampled_from([0, 4, 8, 16]),
)
@example({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "F32", "shape": [2**62, 2, 2], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "F32", "shape": [1], "data_offsets": [2**64 - 4, 2**64]}}, 0)
def test_headers_that_are_json_but_wrong(tmp_path: Path, header: Any, n_bytes: int) -> None:
    path = written(tmp_path / "a", build(header, bytes(n_bytes)))
    try:
        file = SafetensorsFile(path)
    except WeightsError:
        return
    for name, info in file.tensors.items():
        assert not file.read(name).any()
        assert info.nbytes <= n_bytes
    assert sum(info.nbytes for info in file.tensors.values()) == n_bytes


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (VALID[:-10], "10 bytes are missing at its end, from 'h.0.ln_1.bias' on"),
        (VALID[:20], f"{8 + HEADER - 20:,} too few"),
        (VALID + b"1234", "4 bytes follow its last tensor"),
        (b"\xff" * 50, "header of 18,446,744,073,709,551,615 bytes"),
        (build(b"[" * 100_000), "JSON"),
        (build(b'{"a":' * 100_000), "JSON"),
        (build(b'{"a": ' + b"9" * 10_000 + b"}"), "JSON"),
        (build(b'{"a": NaN}'), "NaN"),
        (build(b'{"a": {}, "a": {}}'), "twice"),
        (build({"__metadata__": {"a": 1}}), "__metadata__"),
        (build({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)), "'F8_E4M3'"),
        (build({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)), "takes 16 bytes"),
        (build({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)), "begins at byte 4 where 0"),
        (
            build(
                {n: {"dtype": "F32", "shape": [2], "data_offsets": [o, o + 8]} for n, o in (("a", 0), ("b", 4))},
                bytes(12),
            ),
            "begins at byte 4 where 8",
        ),
        (b"PK\x03\x04" + bytes(100), "pytorch"),
        (b"GGUF" + bytes(100), "gguf"),
    ],
)
def test_the_sentence_says_what_is_wrong(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        SafetensorsFile(written(tmp_path / "a", data))
    assert words in str(caught.value)


def test_data_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header["b"] = {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}
    file = SafetensorsFile(written(tmp_path / "a", build(header, b"\x05" + np.array([1.5, -2], np.float32).tobytes())))
    assert file.read("b").flags.aligned
    np.testing.assert_array_equal(file.read("b"), np.array([1.5, -2], np.float32))


def test_a_writer_that_is_given_something_else_than_promised(tmp_path: Path) -> None:
    infos = {"a": TensorInfo((2,), "float32")}
    for data in ([], [("b", np.zeros(2, np.float32))], [("a", np.zeros(3, np.float32))], [("a", np.zeros(2))]):
        with pytest.raises(ValueError):
            write_safetensors(tmp_path / "a", infos, data, {})


@FUZZ
@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
@example([3.3895314e38, 3.4028235e38, 1e-45, -0.0, float("nan"), float("inf"), 1.00390625, 1.01171875])
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).bfloat16()
    np.testing.assert_array_equal(widen_bfloat16(narrow_to_bfloat16(array)), expected.float().numpy())
    bits = expected.view(torch.uint16).numpy()
    np.testing.assert_array_equal(widen_bfloat16(bits), expected.float().numpy())


def test_a_nan_of_any_bits_stays_one() -> None:
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32)
    assert np.isnan(widen_bfloat16(narrow_to_bfloat16(bits.view(np.float32)))).all()


def test_bfloat16_from_the_library(tmp_path: Path) -> None:
    tensor = torch.randn(5, 7).bfloat16()
    file = SafetensorsFile(written(tmp_path / "a", save_torch({"a": tensor})))
    assert file.tensors["a"] == TensorInfo((5, 7), "bfloat16")
    np.testing.assert_array_equal(file.read("a"), tensor.float().numpy())
    np.testing.assert_array_equal(encode(file.read("a"), "bfloat16", "a"), tensor.view(torch.uint16).numpy())
