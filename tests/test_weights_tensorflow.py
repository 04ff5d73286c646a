"""OpenAI's TensorFlow checkpoints, against what TensorFlow wrote and read; and files that are damaged in every way."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.protobuf import encode_field, encode_varint
from clearhead.weights.formats import sstable
from clearhead.weights.formats.sstable import build_table, crc32c, mask, read_table, unmask
from clearhead.weights.formats.tensorflow import TensorFlowFile, index_bytes, write_tensorflow
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo

FIXTURES = Path(__file__).parent / "fixtures"
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DATA = "model.ckpt.data-00000-of-00001"
SHAPE = GPTConfig(61, 16, 12, 3, 2, qkv_bias=True, tie_weights=True)


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    """What TensorFlow read from a fixture."""
    with np.load(FIXTURES / name / "expected.npz") as file:
        return {key.replace(".", "/"): file[key] for key in file}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the plain checkpoint that TensorFlow wrote."""
    return Path(shutil.copytree(FIXTURES / "tf_plain", tmp_path / "model"))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A copy of the checkpoint with an optimizer in it."""
    return Path(shutil.copytree(FIXTURES / "tf_trained", tmp_path / "run1"))


class TestRead:
    @pytest.mark.parametrize("name", ["tf_plain", "tf_trained", "tf_shards"])
    def test_the_values_are_those_that_tensorflow_reads(self, name: str) -> None:
        source = weights.open(FIXTURES / name)
        assert (source.layout, source.config, source.notes) == ("openai", SHAPE, ())
        due = expected(name)
        assert {n: (i.shape, i.dtype) for n, i in source.tensors.items()} == {
            n: (a.shape, a.dtype.name) for n, a in due.items()
        }
        for tensor, values in due.items():
            np.testing.assert_array_equal(source.read(tensor), values, err_msg=tensor)
        loaded = source.load()
        assert loaded["head.weight"] is loaded["token_embedding.weight"]
        np.testing.assert_array_equal(loaded["token_embedding.weight"], due["model/wte"])
        np.testing.assert_array_equal(loaded["blocks.1.norm_2.weight"], due["model/h1/ln_2/g"])
        np.testing.assert_array_equal(loaded["blocks.1.attention.qkv.weight"], due["model/h1/attn/c_attn/w"][0].T)

    def test_the_logits_are_those_of_transformers(self) -> None:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        from clearhead.model import GPTModel
        from clearhead.model_weights import load_into

        peer = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=16, n_embd=12, n_head=3, n_layer=2)).eval()
        state = {}
        for name, values in expected("tf_plain").items():
            parts = name.removeprefix("model/").replace("h0", "h/0").replace("h1", "h/1").split("/")
            parts[-1] = {"w": "weight", "g": "weight", "b": "bias"}.get(parts[-1], f"{parts[-1]}.weight")
            state[".".join(parts)] = torch.from_numpy(values.squeeze(0) if values.ndim == 3 else values)
        peer.transformer.load_state_dict(state)
        source = weights.open(FIXTURES / "tf_plain")
        model = GPTModel(source.config).eval()
        load_into(model, source)
        ids = torch.arange(32).reshape(2, 16)
        with torch.no_grad():
            torch.testing.assert_close(model(ids), peer(ids).logits, atol=1e-5, rtol=0)

    def test_what_the_optimizer_left_is_ignored_with_a_reason(self) -> None:
        plan = weights.open(FIXTURES / "tf_trained").plan()
        model = {row[0] for row in expected("tf_plain").items()}
        assert plan.ignored.keys() == expected("tf_trained").keys() - model
        assert len(plan.ignored) == 9
        assert all(plan.ignored.values())
        squeezed = {row.target: row.operations for row in plan.rows()}["blocks.0.attention.qkv.weight"]
        assert squeezed == ("take", "squeeze", "transpose")

    @pytest.mark.parametrize("end", ["", "model-1000", "model-1000.index", "model-1000.data-00000-of-00001"])
    def test_every_way_to_name_it(self, trained: Path, end: str) -> None:
        assert weights.open(str(trained / end)).path == trained / "model-1000.index"

    def test_of_several_checkpoints_the_one_that_the_text_file_names(self, trained: Path) -> None:
        for step in (900, 20000):
            for path in sorted(trained.glob("model-1000.*")):
                shutil.copy(path, trained / path.name.replace("1000", str(step)))
        source = weights.open(trained)
        assert source.path.name == "model-1000.index"
        assert "model-900.index" in source.notes[0]
        (trained / "checkpoint").write_text('model_checkpoint_path: "C:\\\\runs\\\\model-900"\n')
        assert weights.open(trained).path.name == "model-900.index"
        (trained / "checkpoint").write_text('model_checkpoint_path: "gone-7"\n')
        assert weights.open(trained).path.name == "model-20000.index"  # the highest step, which is not last by name
        (trained / "checkpoint").unlink()
        assert weights.open(trained).path.name == "model-20000.index"
        assert weights.open(trained / "model-900").notes == ()
        for bomb in ("\n" * 10**6, 'model_checkpoint_path: "\\' * 40_000, "\0" * 10**6):
            (trained / "checkpoint").write_text(bomb)
            assert weights.open(trained).path.name == "model-20000.index"

    def test_a_folder_with_hugging_face_weights_too_is_theirs(self, folder: Path) -> None:
        weights.save_huggingface(folder, SHAPE, weights.open(folder).lazy())
        assert weights.open(folder).layout == "huggingface"
        assert weights.open(folder / "model.ckpt").layout == "openai"

    def test_without_hparams_the_shape_is_read_off_the_tensors(self, tmp_path: Path) -> None:
        config = GPTConfig(50, 8, 128, 2, 3, qkv_bias=True, tie_weights=True)
        weights.save_openai(tmp_path, config, random_tensors(config))
        assert weights.open(tmp_path).notes == ()
        (tmp_path / "hparams.json").unlink()
        source = weights.open(tmp_path)
        assert source.config == config
        assert "2 attention heads are assumed" in source.notes[0]
        source.load()

    def test_names_without_model_in_front(self, tmp_path: Path) -> None:
        source = weights.open(FIXTURES / "tf_plain")
        bare = {name.removeprefix("model/"): info for name, info in source.tensors.items()}
        write_tensorflow(tmp_path / "x", bare, lambda name: source.read(f"model/{name}"))
        shutil.copy(FIXTURES / "tf_plain" / "hparams.json", tmp_path)
        np.testing.assert_array_equal(weights.open(tmp_path).load()["final_norm.bias"], source.read("model/ln_f/b"))

    def test_opening_reads_no_data(self, folder: Path) -> None:
        with (folder / DATA).open("r+b") as file:
            file.write(b"\xff" * 1000)
        source = weights.open(folder)
        assert len(source.plan().rows()) == 4 + 12 * 2 + 1
        with pytest.raises(WeightsError, match="checksum"):
            source.load()

    def test_changing_what_was_loaded_changes_no_file(self, folder: Path) -> None:
        before = (folder / DATA).read_bytes()
        for array in weights.open(folder).load().values():
            array += 1
        assert (folder / DATA).read_bytes() == before

    def test_nothing_heavy_is_imported(self) -> None:
        script = (
            "import sys, clearhead.weights as w; w.open(sys.argv[1]).load(); "
            "print([m for m in ('torch', 'tensorflow', 'google.protobuf', 'huggingface_hub') if m in sys.modules])"
        )
        command = [sys.executable, "-c", script, str(FIXTURES / "tf_plain")]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


class TestRefusals:
    def test_data_cut_short(self, folder: Path) -> None:
        size = (folder / DATA).stat().st_size
        os.truncate(folder / DATA, size - 100)
        text = refused(folder, DATA, "cut short", f"100 of the {size:,} ", "'model/wte'", "continue the download")
        assert f"it has {size - 100:,} bytes" in text
        os.truncate(folder / DATA, 10)
        refused(folder, "cut short", f"{size - 10:,} of the {size:,} ", "'model/h0/attn/c_attn/b'")

    def test_a_wrong_checksum_names_the_tensor(self, folder: Path) -> None:
        entry = weights.open(folder).file.entries["model/h1/ln_2/g"]  # type: ignore[attr-defined]
        with (folder / DATA).open("r+b") as file:
            file.seek(entry.offset + 5)
            file.write(bytes([file.read(1)[0] ^ 1]))
        refused(folder, "'model/h1/ln_2/g' does not have the checksum", "model.ckpt.index")
        file_ = TensorFlowFile(folder / "model.ckpt.index", check=False)
        file_.read("model/h1/ln_2/g")
        done: list[int] = []
        with pytest.raises(WeightsError, match="'model/h1/ln_2/g' does not"):
            file_.verify(done.append)
        assert sum(done) == (folder / DATA).stat().st_size
        TensorFlowFile(FIXTURES / "tf_plain" / "model.ckpt.index").verify()

    def test_the_index_of_another_checkpoint(self, folder: Path) -> None:
        weights.save_openai(folder.parent / "other", SHAPE, random_tensors(SHAPE))
        shutil.copy(folder.parent / "other" / DATA, folder / DATA)
        refused(folder, "the index belongs to another checkpoint")
        with pytest.raises(WeightsError, match="and 27 more of 28 tensors do not"):
            TensorFlowFile(folder / "model.ckpt.index").verify()

    def test_missing_files(self, folder: Path) -> None:
        (folder / DATA).rename(folder / "kept")
        refused(folder, f"lacks {DATA}", "0 of 1 files are there")
        (folder / "kept").rename(folder / DATA)
        (folder / "model.ckpt.index").unlink()
        refused(folder, f"holds {DATA} but not model.ckpt.index")
        refused(folder / DATA, "but not model.ckpt.index")
        refused(folder / "model.ckpt", "does not exist")

    def test_one_shard_missing(self, tmp_path: Path) -> None:
        shutil.copytree(FIXTURES / "tf_shards", tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.ckpt.data-00001-of-00002").unlink()
        refused(tmp_path, "lacks model.ckpt.data-00001-of-00002", "1 of 2 files are there")

    @pytest.mark.parametrize(
        ("contents", "word"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5\n", "git lfs pull"),
            (b"\n<!DOCTYPE html><html><head>", "web page"),
            (b"<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>", "web page"),
            (b"", "download it again"),
            (b"Entry not found", "download it again"),
        ],
    )
    @pytest.mark.parametrize("name", [DATA, "model.ckpt.index"])
    def test_what_is_no_checkpoint(self, folder: Path, name: str, contents: bytes, word: str) -> None:
        (folder / name).write_bytes(contents)
        refused(folder, name, word)

    def test_the_data_under_the_name_of_the_index(self, folder: Path) -> None:
        os.truncate(folder / DATA, 20 * 2**20)
        shutil.copy(folder / DATA, folder / "model.ckpt.index")
        refused(folder, "the data file with the name of the index")

    @pytest.mark.parametrize(
        ("hparams", "words"),
        [
            ({"n_layer": 1}, ("'model/h1/", "does not have")),
            ({"n_layer": 3}, ("'model/h2/ln_1/g' and 11 more tensors", "cannot be filled")),
            ({"n_layer": 4000}, ("4,000 layers", "28 tensors")),
            ({"n_embd": 15}, ("model/wte", "[61, 12]", "[61, 15]")),
            ({"n_head": None}, ("n_heads",)),
        ],
    )
    def test_hparams_that_do_not_fit(self, folder: Path, hparams: dict[str, Any], words: tuple[str, ...]) -> None:
        path = folder / "hparams.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | hparams))
        refused(folder, *words)

    @pytest.mark.parametrize("text", ["no json", "[]", '{"n_vocab": 5}', "[" * 9999, " " * 2**21])
    def test_hparams_that_are_none(self, folder: Path, text: str) -> None:
        (folder / "hparams.json").write_text(text)
        refused(folder, "hparams.json")

    def test_heads_that_cannot_be_told(self, folder: Path) -> None:
        (folder / "hparams.json").unlink()
        refused(folder, "no hparams.json", "width 12")

    def test_a_tensor_too_many_and_too_few(self, folder: Path) -> None:
        source = weights.open(folder)
        infos = dict(source.tensors)

        def save(infos: dict[str, TensorInfo]) -> None:
            write_tensorflow(folder / "model.ckpt", infos, lambda name: np.zeros(infos[name].shape, np.float32))

        save(infos | {"model/adapter/w": TensorInfo((3,), "float32")})
        refused(folder, "'model/adapter/w'", "does not have")
        del infos["model/h0/ln_2/b"]
        save(infos)
        refused(folder, "no 'model/h0/ln_2/b'", "blocks.0.norm_2.bias")

    def test_another_kind_of_model(self, tmp_path: Path) -> None:
        write_tensorflow(
            tmp_path / "bert", {"bert/w": TensorInfo((2,), "float32")}, lambda name: np.zeros(2, np.float32)
        )
        refused(tmp_path, "not of a GPT-2", "bert/w")


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


def random_tensors(config: GPTConfig, seed: int = 5) -> dict[str, np.ndarray]:
    """Random values for every tensor of a model, by canonical name."""
    random = np.random.default_rng(seed)
    c, f = config.emb_dim, config.ff_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (config.vocab_size, c),
        "position_embedding.weight": (config.context_length, c),
        "final_norm.weight": (c,),
        "final_norm.bias": (c,),
    }
    for i in range(config.n_layers):
        for name, shape in {
            "norm_1": (c,),
            "norm_2": (c,),
            "attention.qkv": (3 * c, c),
            "attention.out": (c, c),
            "feed_forward.up": (f, c),
            "feed_forward.down": (c, f),
        }.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            if name != "attention.qkv" or config.qkv_bias:
                shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    if not config.tie_weights:
        shapes["head.weight"] = (config.vocab_size, c)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


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
