"""Read TensorFlow checkpoints; refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from checkpoints.checkpoint_files import DATA, FIXTURES, SHAPE, expected, random_tensors
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.formats.tensorflow import TensorFlowFile, write_tensorflow
from clearhead.weights.tensors import TensorInfo


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
