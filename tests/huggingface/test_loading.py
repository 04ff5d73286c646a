"""Load Hugging Face folders; plans and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from transformers import GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.planning import invert_plan
from huggingface.huggingface_models import as_bin, assert_same, canonical, random_model


def unprefixed(name: str) -> str:
    return name.removeprefix("transformer.")


OLD_BUFFERS = {
    "h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril(),
    "h.1.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool).tril(),
    "h.0.attn.masked_bias": torch.tensor(-1e4),
}


class TestLoad:
    def test_a_safetensors_file(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        source = weights.open(folder)
        assert source.layout == "huggingface"
        assert source.config == GPTConfig(61, 16, 24, 3, 2, drop_rate=0.1, qkv_bias=True, tie_weights=True)
        assert source.tensors["transformer.h.0.attn.c_attn.weight"] == weights.TensorInfo((24, 72), "float32")
        loaded = source.load()
        assert_same(loaded, canonical(peer))
        assert loaded["head.weight"] is loaded["token_embedding.weight"]
        assert_same(dict(source.lazy()), canonical(peer))
        assert_same(weights.open(folder / "model.safetensors").load(), canonical(peer))

    def test_shards(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        peer.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        assert_same(weights.open(tmp_path).load(), canonical(peer))

    @pytest.mark.parametrize("names", [str, unprefixed])
    def test_a_pytorch_file(self, peer: GPT2LMHeadModel, folder: Path, names: Callable[[str], str]) -> None:
        as_bin(peer, folder, names)
        assert_same(weights.open(folder).load(), canonical(peer))

    def test_a_pytorch_file_from_before_1_6(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(peer.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        assert_same(weights.open(folder).load(), canonical(peer))

    def test_pytorch_shards(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        state = {name: tensor for name, tensor in peer.state_dict().items() if name != "lm_head.weight"}
        (folder / "model.safetensors").unlink()
        where = {name: f"pytorch_model-{1 + i % 2:05d}-of-00002.bin" for i, name in enumerate(state)}
        for file in set(where.values()):
            torch.save({name: state[name] for name in state if where[name] == file}, folder / file)
        index = {"metadata": {}, "weight_map": where}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        assert_same(weights.open(folder).load(), canonical(peer))

    def test_the_buffers_of_old_files_are_ignored_with_a_reason(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder, unprefixed, **OLD_BUFFERS)
        plan = weights.open(folder).plan()
        assert_same(weights.open(folder).load(), canonical(peer))
        assert OLD_BUFFERS.keys() <= plan.ignored.keys()
        assert plan.ignored.keys() == {*OLD_BUFFERS, "lm_head.weight"}
        assert all(reason for reason in plan.ignored.values())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("layout", ["safetensors", "pytorch"])
    def test_other_number_formats(self, tmp_path: Path, dtype: torch.dtype, layout: str) -> None:
        model = random_model().to(dtype)
        model.save_pretrained(tmp_path)
        if layout == "pytorch":
            as_bin(model, tmp_path)
        source = weights.open(tmp_path)
        assert {info.dtype for info in source.tensors.values()} == {str(dtype).removeprefix("torch.")}
        assert_same(source.load(), canonical(model))
        as_stored = dict(source.plan().run(dtype=None))["blocks.0.attention.qkv.weight"]
        assert as_stored.dtype == {torch.bfloat16: np.float32, torch.float16: np.float16}.get(dtype, np.float64)

    def test_a_head_of_its_own(self, tmp_path: Path) -> None:
        model = random_model(tie_word_embeddings=False)
        model.save_pretrained(tmp_path)
        source = weights.open(tmp_path)
        assert not source.config.tie_weights
        loaded = source.load()
        assert not np.array_equal(loaded["head.weight"], loaded["token_embedding.weight"])
        assert_same(loaded, canonical(model))

    def test_a_copy_of_the_embedding_as_head_counts_as_tied(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder, str, **{"lm_head.weight": peer.lm_head.weight.detach().clone()})
        source = weights.open(folder)
        assert source.config.tie_weights
        assert source.notes == ()
        assert "tied" in source.plan().ignored["lm_head.weight"]

    def test_a_head_that_differs_is_kept_and_said(self, folder: Path) -> None:
        model = random_model(tie_word_embeddings=False)
        as_bin(model, folder)  # beside a config.json that says tied
        source = weights.open(folder)
        assert not source.config.tie_weights
        assert "differs" in source.notes[0]
        assert_same(source.load(), canonical(model))

    def test_a_model_without_its_head(self, tmp_path: Path) -> None:
        model = random_model()
        model.transformer.save_pretrained(tmp_path)
        assert "wte.weight" in weights.open(tmp_path).tensors
        assert_same(weights.open(tmp_path).load(), canonical(model))

    def test_changing_what_was_loaded_changes_no_file(self, folder: Path) -> None:
        before = (folder / "model.safetensors").read_bytes()
        for array in weights.open(folder).load().values():
            array += 1
        assert (folder / "model.safetensors").read_bytes() == before

    def test_reading_needs_no_torch(self, folder: Path) -> None:
        script = (
            "import sys, clearhead.weights as w; s = w.open(sys.argv[1]); s.load(); "
            "w.save_huggingface(sys.argv[2], s.config, s.lazy()); "
            "print([m for m in ('torch', 'huggingface_hub', 'rich', 'transformers') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), str(folder.parent / "out")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "[]"


class TestPlan:
    def test_every_target_and_every_source_has_a_row(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder, unprefixed, **OLD_BUFFERS)
        source = weights.open(folder)
        rows = source.plan().rows()
        targets = [row.target for row in rows if row.target]
        assert targets[:3] == ["token_embedding.weight", "position_embedding.weight", "blocks.0.norm_1.weight"]
        assert targets[13].startswith("blocks.0.") and targets[14].startswith("blocks.1.")
        assert {row.target: row.shape for row in rows if row.target} == {
            name: array.shape for name, array in canonical(peer).items()
        }
        used = [name for row in rows if row.operations != ("tie",) for name in row.sources]
        assert sorted(used) == sorted(source.tensors)  # each once
        operations = {row.target: row.operations for row in rows}
        assert operations["blocks.1.attention.qkv.weight"] == ("take", "transpose")
        assert operations["blocks.1.attention.qkv.bias"] == ("take",)
        assert operations["head.weight"] == ("tie",)

    def test_it_can_be_inverted(self, folder: Path) -> None:
        source = weights.open(folder)
        back = invert_plan(source.plan())
        assert back.targets == {name: info.shape for name, info in source.tensors.items()}
        for name, values in back.run():
            np.testing.assert_array_equal(values, source.read(name), err_msg=name)

    def test_the_data_is_not_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = weights.open(folder)
        monkeypatch.setattr(type(source.file), "read", None)
        plan = source.plan()
        assert len(plan.rows()) == 4 + 12 * 2 + 1
        with pytest.raises(TypeError):
            next(plan.run())


class TestRefusals:
    """Each is one sentence that names what is wrong."""

    def edit_config(self, folder: Path, **changes: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        refused(folder, "no config.json", "model.safetensors")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        refused(tmp_path, "no model.safetensors", "holds nothing")

    def test_a_path_of_nothing(self, tmp_path: Path) -> None:
        refused(tmp_path / "gpt2", "does not exist")

    def test_a_shape_that_does_not_fit(self, folder: Path) -> None:
        self.edit_config(folder, n_embd=48)
        refused(folder, "transformer.wte.weight", "[61, 24]", "[61, 48]")

    def test_too_many_layers(self, folder: Path) -> None:
        self.edit_config(folder, n_layer=1)
        refused(folder, "'transformer.h.1.", "11 more tensors", "n_layers 1")

    def test_too_few_layers(self, folder: Path) -> None:
        self.edit_config(folder, n_layer=3)
        refused(folder, "'transformer.h.2.ln_1.weight'", "11 more tensors", "blocks.2.norm_1.weight", "n_layers 3")

    def test_a_missing_tensor_with_a_near_name(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder, lambda name: name.replace("h.1.ln_2.bias", "h.1.ln_2.beta"))
        refused(folder, "h.1.ln_2.bias", "h.1.ln_2.beta")

    def test_a_tensor_that_a_gpt2_does_not_have(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder, adapter=torch.zeros(3))
        refused(folder, "'adapter'", "does not have")

    def test_two_names_of_one_tensor(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder, str, **{"wpe.weight": torch.zeros(16, 24)})
        refused(folder, "'wpe.weight'", "'transformer.wpe.weight'")

    def test_weights_that_are_not_floats(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder, str, **{"transformer.h.0.ln_1.weight": torch.ones(24, dtype=torch.int8)})
        refused(folder, "h.0.ln_1.weight", "int8")

    def test_an_untied_head_that_is_not_there(self, folder: Path) -> None:
        self.edit_config(folder, tie_word_embeddings=False)
        refused(folder, "lm_head.weight", "tie_word_embeddings")

    def test_biases_that_should_not_be_there(self, folder: Path) -> None:
        self.edit_config(folder, qkv_bias=False)
        refused(folder, "c_attn.bias", "qkv_bias")

    def test_another_kind_of_model(self, folder: Path) -> None:
        self.edit_config(folder, model_type="llama")
        refused(folder, "llama")

    def test_a_missing_shard(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        peer.save_pretrained(tmp_path, max_shard_size="20KB")
        lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
        lost.unlink()
        refused(tmp_path, lost.name, "shards are there")

    def test_shards_without_their_index(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        peer.save_pretrained(tmp_path, max_shard_size="20KB")
        (tmp_path / "model.safetensors.index.json").unlink()
        refused(tmp_path, "index", "model-00001-of-")

    @pytest.mark.parametrize(
        "index",
        ["[]", "{}", '{"weight_map": {"wte.weight": "../secret"}}', '{"weight_map": {"a": 3}}', "no json", "[" * 9999],
    )
    def test_a_damaged_index(self, folder: Path, index: str) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(index)
        refused(folder, "index.json")

    def test_an_index_that_promises_too_much(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        peer.save_pretrained(tmp_path, max_shard_size="20KB")
        path = tmp_path / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["more"] = next(iter(index["weight_map"].values()))
        path.write_text(json.dumps(index))
        refused(tmp_path, "'more'")

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    @pytest.mark.parametrize(
        ("contents", "word"),
        [
            (b"", "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5\n", "git lfs pull"),
            (b"\n<!DOCTYPE html><html><head>", "web page"),
            (b"Entry not found", "download it again"),
            (b"abc", "download it again"),
        ],
    )
    def test_what_is_no_weights_file(self, folder: Path, name: str, contents: bytes, word: str) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(contents)
        refused(folder, name, word)

    def test_a_pytorch_file_cut_short(self, peer: GPT2LMHeadModel, folder: Path) -> None:
        as_bin(peer, folder)
        path = folder / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[:-2000])
        refused(folder, "pytorch_model.bin", "download it again")

    def test_a_pickle_that_would_run_code(self, folder: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (folder / "exploded",))

        (folder / "model.safetensors").unlink()
        torch.save({"wte.weight": Bomb()}, folder / "pytorch_model.bin")
        refused(folder, "could run code")
        assert not (folder / "exploded").exists()

    def test_a_pytorch_file_with_something_else_in_it(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save({"step": 3, "losses": [1.0]}, folder / "pytorch_model.bin")
        refused(folder, "'step'", "state_dict")

    def test_an_unknown_form(self, folder: Path) -> None:
        with pytest.raises(WeightsError, match="no layout 'caffe'"):
            weights.open(folder, layout="caffe")

    def test_an_unknown_tensor(self, folder: Path) -> None:
        with pytest.raises(WeightsError, match="no tensor 'x'"):
            weights.open(folder).read("x")
