"""The files of a TensorFlow checkpoint: index, table, damage, writing."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.checkpoint_files import DATA, FIXTURES, SHAPE, expected, random_tensors
from clearhead import weights
from clearhead.errors import WeightsError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.protobuf import encode_field, encode_varint
from clearhead.weights.formats import sstable
from clearhead.weights.formats.sstable import build_table, crc32c, mask, read_table, unmask
from clearhead.weights.formats.tensorflow import TensorFlowFile, index_bytes, write_tensorflow
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


HEADER = encode_field(1, 1) + encode_field(3, encode_field(1, 1))


GOOD = (
    encode_field(1, 1)
    + encode_field(2, encode_field(2, encode_field(1, 3)))
    + encode_field(5, 12)
    + b"\x35"
    + mask(0).to_bytes(4, "little")
)


class TestIndex:
    """What stands in an index, each oddity built on purpose, its checksums right."""

    def opened(self, path: Path, entries: dict[bytes, bytes], header: bytes = HEADER) -> TensorFlowFile:
        (path / "a.index").write_bytes(build_table(sorted([(b"", header), *entries.items()])))
        (path / "a.data-00000-of-00001").write_bytes(bytes(12))
        return TensorFlowFile(path / "a.index")

    def test_a_good_one(self, tmp_path: Path) -> None:
        text = encode_field(1, 7) + encode_field(2, b"") + encode_field(5, 30)
        assert self.opened(tmp_path, {b"w": GOOD, b"_CHECKPOINTABLE_OBJECT_GRAPH": text}).tensors == {
            "w": TensorInfo((3,), "float32")
        }
        unknown = encode_field(99, 5) + encode_field(98, b"abc") + encode_varint(97 << 3 | 1) + bytes(8)
        assert "w" in self.opened(tmp_path, {b"w": GOOD + unknown}).tensors
        assert "w" in self.opened(tmp_path, {b"w": encode_field(1, 101) + GOOD[2:]}).tensors  # a reference to float32

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (encode_field(1, 8) + GOOD[2:], "dtype 8"),
            (b"", "dtype 0"),
            (GOOD + encode_field(7, b""), "slices"),
            (GOOD + encode_field(3, 1), "data file 1 of 1"),
            (GOOD + encode_field(3, 2**64 - 1), "data file"),
            (GOOD + encode_field(5, 16), "12 bytes, and it records 16"),
            (GOOD + encode_field(5, 2**63), "records 9,223"),
            (GOOD + encode_field(4, 2**63), "at byte 9,223"),
            (GOOD + encode_field(4, 4), "cut short: it has 12 bytes, and 4 of the 16"),
            (GOOD + encode_field(4, 2**61), "cut short"),
            (GOOD + encode_field(2, encode_field(2, encode_field(1, 2**62))), "is impossible"),
            (GOOD + encode_field(2, encode_field(2, encode_field(1, 2**64 - 1))), "is impossible"),
            (GOOD + encode_field(2, encode_field(2, b"") * 40), "is impossible"),
            (GOOD + encode_field(2, encode_field(3, 1)), "does not know the shape"),
            (GOOD + encode_field(2, 5), "the shape of 'w' is a number"),
            (GOOD + encode_field(4, b"abc"), "field 4 of 'w' is not a number"),
            (GOOD + b"\x3a\x7f", "a field is cut off in 'w'"),
            (GOOD + b"\x35\x00", "a field is cut off in 'w'"),
            (GOOD + b"\x80", "a number is cut off in 'w'"),
            (GOOD + b"\xff" * 20, "a number is cut off in 'w'"),
            (GOOD + b"\x3b", "unknown kind in 'w'"),
        ],
    )
    def test_entries_that_cannot_be(self, tmp_path: Path, value: bytes, words: str) -> None:
        with pytest.raises(WeightsError) as caught:
            self.opened(tmp_path, {b"w": value})
        assert words in str(caught.value)

    def test_headers_that_cannot_be(self, tmp_path: Path) -> None:
        for header, words in (
            (HEADER + encode_field(2, 1), "big-endian"),
            (encode_field(2, 0), "0 data files"),
            (encode_field(1, 2**31), "2,147,483,648 data files"),
            (encode_field(1, b""), "not a number"),
        ):
            with pytest.raises(WeightsError, match=words):
                self.opened(tmp_path, {b"w": GOOD}, header)
        (tmp_path / "a.index").write_bytes(build_table([(b"w", GOOD)]))
        with pytest.raises(WeightsError, match="no header"):
            TensorFlowFile(tmp_path / "a.index")
        with pytest.raises(WeightsError, match="not text"):
            self.opened(tmp_path, {b"\xff\xfe": GOOD})

    def test_every_number_format(self, tmp_path: Path) -> None:
        infos = {name: TensorInfo((2, 3), name) for name in NUMPY_TYPES} | {"none": TensorInfo((0, 2), "float32")}
        arrays = {n: (np.arange(i.size) % 2).reshape(i.shape).astype(NUMPY_TYPES[i.dtype]) for n, i in infos.items()}
        arrays["scalar"] = np.array(3.5, np.float32)
        infos["scalar"] = TensorInfo((), "float32")
        write_tensorflow(tmp_path / "a", infos, arrays.__getitem__)
        file = TensorFlowFile(tmp_path / "a.index")
        assert file.tensors == infos
        for name, array in arrays.items():
            if name != "bfloat16":
                np.testing.assert_array_equal(file.read(name), array)  # bool's 6 bytes leave what follows unaligned
        assert file.read("bfloat16").dtype == np.float32


class TestTable:
    def test_checksums(self) -> None:
        assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, section B.4, gives more
        assert crc32c(bytes(32)) == 0x8A9136AA
        array = np.arange(50_000, dtype=np.float32)  # more than is taken at a time
        assert crc32c(array) == crc32c(array.tobytes()[7:], crc32c(array.tobytes()[:7]))
        assert unmask(mask(0x12345678)) == 0x12345678

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(st.binary(max_size=12), st.binary(max_size=300), max_size=60))
    def test_what_is_built_is_read(self, tmp_path: Path, entries: dict[bytes, bytes]) -> None:
        (tmp_path / "t").write_bytes(build_table(sorted(entries.items())))
        assert read_table(tmp_path / "t") == entries

    @pytest.mark.parametrize("name", ["tf_plain/model.ckpt", "tf_trained/model-1000"])
    def test_the_bytes_are_tensorflows(self, name: str, tmp_path: Path) -> None:
        file = TensorFlowFile(FIXTURES / f"{name}.index")
        assert index_bytes(file.entries) == file.path.read_bytes()
        write_tensorflow(tmp_path / "a", file.tensors, file.read)
        assert (tmp_path / "a.index").read_bytes() == file.path.read_bytes()
        data = file.path.with_suffix(".data-00000-of-00001")
        assert (tmp_path / "a.data-00000-of-00001").read_bytes() == data.read_bytes()

    def block(self, contents: bytes, kind: int = 0) -> bytes:
        with_kind = contents + bytes([kind])
        return with_kind + mask(crc32c(with_kind)).to_bytes(4, "little")

    def table(self, *blocks: bytes, kind: int = 0, twice: bool = False) -> bytes:
        """A table of data blocks given without trailers; with `twice`, its index names the first one again."""
        end = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
        body, handles = b"", []
        for block in blocks:
            handles.append(encode_varint(len(body)) + encode_varint(len(block)))
            body += self.block(block, kind)
        if twice:
            handles.append(handles[0])
        index = b"".join(b"\x00\x01" + encode_varint(len(h)) + bytes([97 + i]) + h for i, h in enumerate(handles)) + end
        at = encode_varint(len(body)) + encode_varint(len(index))
        body += self.block(index)
        return body + (b"\x00\x00" + at).ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")

    def test_oddities(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        end = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
        path = tmp_path / "t"

        def refuse(data: bytes, word: str) -> None:
            path.write_bytes(data)
            with pytest.raises(WeightsError, match=word):
                read_table(path)

        good = b"\x00\x01\x01av" + b"\x01\x01\x01bw" + end
        path.write_bytes(self.table(good, b"\x00\x01\x00b" + end))
        assert read_table(path) == {b"a": b"v", b"ab": b"w", b"b": b""}  # two blocks
        refuse(self.table(good, kind=1), "Snappy")
        refuse(self.table(good, kind=9), "unknown way")
        refuse(self.table(good, twice=True), "overlap")
        refuse(self.table(good, b"\x00\x01\x00a" + end), "order")
        refuse(self.table(b"\x05\x01\x01av" + end), "does not fit into its block")
        refuse(self.table(b"\x00\x01\xff\xff\xff\xff\x0fav" + end), "does not fit into its block")
        refuse(self.table(b"\x00\xff" + end[:0] + end), "damaged")
        refuse(self.table(b"\x00\x00"), "too short")
        refuse(self.table(b"\xff\xff\xff\xff"), "too short")
        refuse(self.table(b"\x00\xff\x7f\x00" + b"k" * 16383 + end), "a name in it has 16,383 bytes")
        refuse(self.table(good)[:-1], "cut short")
        refuse(self.table(good)[1:], "damaged")
        monkeypatch.setattr(sstable, "_MAX_ENTRIES", 1)
        refuse(self.table(good), "more than 1 tensors")


INDEX_BYTES = (FIXTURES / "tf_plain" / "model.ckpt.index").read_bytes()


DATA_BYTES = (FIXTURES / "tf_plain" / DATA).read_bytes()


DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "grow", "insert", "delete"]),
    st.integers(0, 2**20),
    st.integers(1, 255),
)


def damaged(data: bytes, how: str, at: int, by: int) -> bytes:
    at %= len(data)
    if how == "flip":
        return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    if how == "grow":
        return data + bytes([by]) * (at % 100)
    return data[:at] + (bytes([by]) if how == "insert" else b"") + data[at + (how == "delete") :]


def right_or_refused(folder: Path, values: dict[str, np.ndarray]) -> None:
    """Opens a checkpoint: right values, or one sentence; and little memory either way."""
    tracemalloc.start()
    try:
        file = TensorFlowFile(folder / "model.ckpt.index")
        found = {name: file.read(name) for name in file.tensors}
    except WeightsError as error:
        assert "\n" not in str(error)
    else:
        assert found.keys() == values.keys()
        for name, array in values.items():
            np.testing.assert_array_equal(found[name], array)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4_000_000


class TestFuzz:
    @FUZZ
    @given(st.sampled_from(["index", "data"]), st.lists(DAMAGE, min_size=1, max_size=3))
    def test_damage_is_seen(self, tmp_path: Path, which: str, damages: list[tuple[str, int, int]]) -> None:
        files = {"index": INDEX_BYTES, "data": DATA_BYTES}
        for damage in damages:
            files[which] = damaged(files[which], *damage) or b"x"
        (tmp_path / "model.ckpt.index").write_bytes(files["index"])
        (tmp_path / DATA).write_bytes(files["data"])
        right_or_refused(tmp_path, expected("tf_plain"))

    @FUZZ
    @given(st.lists(DAMAGE, min_size=1, max_size=4))
    def test_damage_under_good_checksums(self, tmp_path: Path, damages: list[tuple[str, int, int]]) -> None:
        """The blocks themselves are changed and sealed again, so that what reads them is reached."""
        body = sstable._build_block(list(read_table(FIXTURES / "tf_plain" / "model.ckpt.index").items()))
        assert INDEX_BYTES.startswith(body)
        for damage in damages:
            body = damaged(body, *damage) or b"x"
        sealed = TestTable().table(body)
        (tmp_path / "model.ckpt.index").write_bytes(sealed)
        (tmp_path / DATA).write_bytes(DATA_BYTES)
        try:
            file = TensorFlowFile(tmp_path / "model.ckpt.index", check=False)
            for name in file.tensors:
                assert file.read(name).nbytes <= len(DATA_BYTES)
        except WeightsError as error:
            assert "\n" not in str(error)

    @FUZZ
    @given(st.binary(max_size=200), st.booleans())
    def test_anything_in_an_entry(self, tmp_path: Path, value: bytes, header: bool) -> None:
        entries = [(b"", value if header else HEADER), (b"w", GOOD if header else value)]
        (tmp_path / "a.index").write_bytes(build_table(entries))
        (tmp_path / "a.data-00000-of-00001").write_bytes(bytes(12))
        try:
            TensorFlowFile(tmp_path / "a.index")
        except WeightsError as error:
            assert "\n" not in str(error)


class TestWrite:
    def test_the_folder_is_tensorflows_own(self, folder: Path, tmp_path: Path) -> None:
        weights.save_openai(tmp_path / "out", SHAPE, weights.open(folder).lazy())
        for name in (DATA, "model.ckpt.index"):
            assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
        assert json.loads((tmp_path / "out" / "hparams.json").read_text()) == json.loads(
            (folder / "hparams.json").read_text()
        )
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {DATA, "model.ckpt.index", "hparams.json", "checkpoint"}

    @pytest.mark.parametrize("prefix", ["model.ckpt", ""])
    def test_tensorflow_opens_it(self, tmp_path: Path, prefix: str) -> None:
        tf = pytest.importorskip("tensorflow")
        weights.save_openai(tmp_path, SHAPE, weights.open(FIXTURES / "tf_plain").lazy())
        where = str(tmp_path / prefix) if prefix else tf.train.latest_checkpoint(str(tmp_path))
        due = expected("tf_plain")
        assert dict(tf.train.list_variables(where)) == {name: list(array.shape) for name, array in due.items()}
        for name, array in due.items():
            np.testing.assert_array_equal(tf.train.load_variable(where, name), array)
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:  # as OpenAI's own code restores it
            variables = {name: tf.compat.v1.get_variable(name, array.shape) for name, array in due.items()}
            tf.compat.v1.train.Saver().restore(session, tf.train.latest_checkpoint(str(tmp_path)))
            np.testing.assert_array_equal(session.run(variables["model/wte"]), due["model/wte"])

    def test_a_model_without_bias_is_written_with_zeros(self, tmp_path: Path) -> None:
        config = SHAPE.replace(qkv_bias=False)
        weights.save_openai(tmp_path, config, random_tensors(config))
        assert not weights.open(tmp_path).read("model/h1/attn/c_attn/b").any()

    def test_a_tokenizer_goes_with_it(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer.train(["once upon a time there was a café"] * 3, 275)
        weights.save_openai(tmp_path, SHAPE, random_tensors(SHAPE), tokenizer=tokenizer)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {DATA, "model.ckpt.index", "hparams.json", "checkpoint", "encoder.json", "vocab.bpe"}
        assert (tmp_path / "encoder.json").read_bytes().isascii()
        text = "a time at the café"
        assert Tokenizer.from_folder(tmp_path).encode(text) == tokenizer.encode(text)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"tie_weights": False}, "cannot hold an output head"),
            ({"activation": "gelu_erf"}, "activation 'gelu_erf'"),
            ({"norm_eps": 1e-6}, "norm_eps 1e-06"),
            ({"ff_dim": 40}, "ff_dim 40"),
        ],
    )
    def test_what_the_form_cannot_hold_is_refused(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        config = SHAPE.replace(**changes)
        with pytest.raises(WeightsError, match=words):
            weights.save_openai(tmp_path / "out", config, random_tensors(config))
        assert not (tmp_path / "out").exists()

    def test_it_is_saved_over_the_model_it_was_loaded_from(self, folder: Path) -> None:
        (folder / "model.ckpt.data-00000-of-00002").write_bytes(b"of an older model")
        source = weights.open(folder)
        loaded = source.load()
        weights.save_openai(folder, source.config, {name: array + 1 for name, array in source.lazy().items()})
        np.testing.assert_array_equal(weights.open(folder).load()["final_norm.bias"], loaded["final_norm.bias"] + 1)
        assert [path.name for path in folder.glob("model.ckpt.data*")] == [DATA]

    def test_an_interrupted_save_leaves_the_old_model(self, folder: Path) -> None:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        def failing(read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
            def fail(name: str) -> np.ndarray:
                if name == "final_norm.bias":
                    raise KeyboardInterrupt
                return read(name)

            return fail

        class Failing(dict[str, np.ndarray]):
            def shape_of(self, name: str) -> tuple[int, ...]:
                return super().__getitem__(name).shape

            def __getitem__(self, name: str) -> np.ndarray:
                return failing(super().__getitem__)(name)

        with pytest.raises(KeyboardInterrupt):
            weights.save_openai(folder, SHAPE, Failing(random_tensors(SHAPE)))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_place_that_cannot_be_written(self, folder: Path) -> None:
        with pytest.raises(WeightsError, match="could not be written"):
            weights.save_openai(folder / "checkpoint" / "x", SHAPE, random_tensors(SHAPE))


def test_a_model_goes_into_openais_form_and_back(tmp_path: Path) -> None:
    """Through `Source.save`, by way of a Hugging Face folder; the settings of `hparams.json` come back too."""
    first = weights.open(FIXTURES / "tf_plain")
    there = first.save(tmp_path / "hub").path
    back = weights.open(weights.open(there).save(tmp_path / "openai", to="openai").path)
    assert (back.layout, back.config) == ("openai", first.config)
    expected = first.load()
    assert all(np.array_equal(values, expected[name]) for name, values in back.load().items())
