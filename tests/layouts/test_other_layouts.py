"""Weights of llm.c, TransformerLens and GGUF, and every layout there and back."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from refusals import refused
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from layouts.layout_models import CONFIG, C, H, L, T, V, assert_logits, random_model

LAYOUT_NAMES = ["book", "nanogpt", "llmc", "transformerlens", "gguf", "canonical"]


def llmc_bytes(peer: GPT2LMHeadModel, version: int) -> bytes:
    """A model as llm.c's train_gpt2.py writes it: header, then each tensor, those of the blocks stacked."""
    body = peer.transformer
    padded = -(-V // 128) * 128
    header = np.zeros(256, "<i4")
    header[:8] = 20240326, version, T, V, L, H, C, padded
    tensors = [F.pad(body.wte.weight, (0, 0, 0, padded - V)), body.wpe.weight]
    for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        modules = [block.get_submodule(name) for block in body.h]
        tensors.append(torch.stack([m.weight.T if m.weight.ndim == 2 else m.weight for m in modules]))
        tensors.append(torch.stack([m.bias for m in modules]))
    tensors += [body.ln_f.weight, body.ln_f.bias]
    data = header.tobytes()
    for tensor in tensors:
        values = tensor.detach().contiguous()
        data += values.numpy().tobytes() if version == 3 else values.bfloat16().view(torch.int16).numpy().tobytes()
    return data


class TestLlmc:
    @pytest.mark.parametrize(("version", "dtype"), [(3, "float32"), (5, "bfloat16")])
    def test_read_and_written(
        self, peer: GPT2LMHeadModel, folder: Path, tmp_path: Path, version: int, dtype: str
    ) -> None:
        data = llmc_bytes(peer, version)
        (tmp_path / "model.bin").write_bytes(data)
        source = weights.open(tmp_path / "model.bin")
        assert (source.layout, source.config) == ("llmc", CONFIG)
        expected = random_model().to(getattr(torch, dtype)).float()
        assert_logits(source, expected)
        assert source.tensors["wte"].shape == (V, C)
        weights.convert(folder, tmp_path / "ours.bin", "llmc", dtype)
        assert (tmp_path / "ours.bin").read_bytes() == data
        source.save(tmp_path / "again.bin", "llmc", dtype)
        assert (tmp_path / "again.bin").read_bytes() == data

    def test_what_is_refused(self, peer: GPT2LMHeadModel, folder: Path, tmp_path: Path) -> None:
        data, path = llmc_bytes(peer, 3), tmp_path / "model.bin"
        for contents, words in (
            (data[:-1000], ["cut short", "1,000 too few"]),
            (data[:700], ["cut short", "324 too few"]),
            (data + b"more", ["4 more"]),
            (data[:4] + b"\x01" + data[5:], ["version 1", "3 (float32)"]),
            (data[:20] + b"\x05" + data[21:], ["header", "5 heads"]),
            (data[:28] + b"\x01\x00" + data[30:], ["header", "smaller"]),
        ):
            path.write_bytes(contents)
            refused(path, "model.bin", *words)
        with pytest.raises(WeightsError, match="not written as 'float16'"):
            weights.convert(folder, path, "llmc", "float16")
        tensors = {name: t.numpy() for name, t in GPTModel(CONFIG.replace(tie_weights=False)).state_dict().items()}
        with pytest.raises(WeightsError, match="cannot hold an output head"):
            weights.save(path, CONFIG.replace(tie_weights=False), tensors, "llmc")


def lens_state(peer: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """A state dict as TransformerLens keeps it, with its buffers; each head's matrices apart."""
    body = peer.transformer
    state = {"embed.W_E": body.wte.weight, "pos_embed.W_pos": body.wpe.weight}
    state |= {"ln_final.w": body.ln_f.weight, "ln_final.b": body.ln_f.bias}
    state |= {"unembed.W_U": peer.lm_head.weight.T, "unembed.b_U": torch.zeros(V)}
    for i, block in enumerate(body.h):
        at = f"blocks.{i}."
        for ours, norm in (("ln1", block.ln_1), ("ln2", block.ln_2)):
            state |= {f"{at}{ours}.w": norm.weight, f"{at}{ours}.b": norm.bias}
        for n, letter in enumerate("QKV"):
            columns = slice(n * C, (n + 1) * C)
            heads = block.attn.c_attn.weight[:, columns].reshape(C, H, C // H)
            state[f"{at}attn.W_{letter}"] = heads.permute(1, 0, 2)
            state[f"{at}attn.b_{letter}"] = block.attn.c_attn.bias[columns].reshape(H, C // H)
        state[f"{at}attn.W_O"] = block.attn.c_proj.weight.reshape(H, C // H, C)
        state[f"{at}attn.b_O"] = block.attn.c_proj.bias
        state |= {f"{at}mlp.W_in": block.mlp.c_fc.weight, f"{at}mlp.b_in": block.mlp.c_fc.bias}
        state |= {f"{at}mlp.W_out": block.mlp.c_proj.weight, f"{at}mlp.b_out": block.mlp.c_proj.bias}
        state |= {f"{at}attn.mask": torch.ones(T, T).tril().bool(), f"{at}attn.IGNORE": torch.tensor(-torch.inf)}
    return {name: tensor.detach() for name, tensor in state.items()}


class TestTransformerLens:
    def test_read_and_written(self, peer: GPT2LMHeadModel, folder: Path, tmp_path: Path) -> None:
        state = lens_state(peer)
        torch.save(state, tmp_path / "lens.pth")
        source = weights.open(tmp_path / "lens.pth")
        assert (source.layout, source.config, source.notes) == ("transformerlens", CONFIG, ())
        assert_logits(source, peer)
        saved = weights.convert(folder, tmp_path / "ours.pth", "transformerlens")
        written = torch.load(saved.path, weights_only=True)
        assert written.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(written[name], tensor), name

    def test_folded_weights_are_refused(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        state = lens_state(peer)
        torch.save({n: t for n, t in state.items() if ".ln" not in n and "ln_final" not in n}, tmp_path / "x.pth")
        refused(tmp_path / "x.pth", "fold_ln=False", "center_writing_weights=False")
        torch.save({**state, "unembed.b_U": torch.ones(V)}, tmp_path / "x.pth")
        refused(tmp_path / "x.pth", "unembed.b_U", "fold_ln=False", config=CONFIG)
        (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:-100])
        refused(tmp_path / "x.pth", "cut short")


def write_peer_gguf(peer: GPT2LMHeadModel, path: Path, kind: gguf.GGMLQuantizationType, output: bool = False) -> None:
    """A GGUF file as llama.cpp's converter writes it: matrices [out, in] in one format, vectors in float32."""
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(L)
    writer.add_context_length(T)
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(4 * C)
    writer.add_head_count(H)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{id}" for id in range(V)])
    writer.add_token_types([1] * V)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, L)
    for name, tensor in peer.state_dict().items():
        if name == "lm_head.weight" and not output:
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        conv = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        values = np.ascontiguousarray((tensor.T if conv else tensor).numpy())
        chosen = kind if values.ndim == 2 and ".wpe." not in name else gguf.GGMLQuantizationType.F32
        writer.add_tensor(theirs, gguf.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestGGUF:
    @pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
    @torch.no_grad()
    def test_it_is_read(self, peer: GPT2LMHeadModel, tmp_path: Path, kind: str) -> None:
        path, number = tmp_path / "model.weights", gguf.GGMLQuantizationType[kind]
        write_peer_gguf(peer, path, number)
        source = weights.open(path)
        assert (source.layout, source.config) == ("gguf", CONFIG)
        assert bool(source.notes) == kind.startswith("Q")
        expected = random_model()
        for name, parameter in expected.named_parameters():
            if parameter.ndim == 2 and ".wpe." not in name:
                conv = ".c_" in name
                rows = np.ascontiguousarray((parameter.T if conv else parameter).numpy())
                stored = gguf.quantize(rows, number)
                rounded = torch.from_numpy(gguf.dequantize(stored, number).reshape(rows.shape).copy())
                parameter.copy_(rounded.T if conv else rounded)
        assert_logits(source, expected)

    def test_a_stored_head(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        write_peer_gguf(peer, tmp_path / "x.gguf", gguf.GGMLQuantizationType.F32, output=True)
        assert weights.open(tmp_path / "x.gguf").config.tie_weights
        untied = random_model(tie_word_embeddings=False)
        write_peer_gguf(untied, tmp_path / "x.gguf", gguf.GGMLQuantizationType.F32, output=True)
        assert_logits(weights.open(tmp_path / "x.gguf"), untied)

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
    def test_gguf_reads_what_is_written(
        self, peer: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path, tmp_path: Path, dtype: str
    ) -> None:
        kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
        write_peer_gguf(peer, tmp_path / "theirs.gguf", gguf.GGMLQuantizationType[kind])
        weights.convert(folder, tmp_path / "ours.gguf", "gguf", dtype)
        ours, theirs = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
        tensors = {tensor.name: tensor for tensor in ours.tensors}
        assert tensors.keys() == {tensor.name for tensor in theirs.tensors}
        for tensor in theirs.tensors:
            assert tensors[tensor.name].tensor_type == tensor.tensor_type, tensor.name
            np.testing.assert_array_equal(tensors[tensor.name].data, tensor.data, err_msg=tensor.name)
        values = {name: field.contents() for name, field in ours.fields.items()}
        same = [name for name in theirs.fields if name.startswith("gpt2.")]
        assert {name: values[name] for name in same} == {name: theirs.fields[name].contents() for name in same}
        assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
        vocab = json.loads((folder / "vocab.json").read_text())
        tokens = values["tokenizer.ggml.tokens"]
        assert {tokens[id]: id for id in range(tokenizer.vocab_size)} == vocab
        assert tokens[tokenizer.vocab_size :] == [f"[PAD{id}]" for id in range(tokenizer.vocab_size, V)]
        types = values["tokenizer.ggml.token_type"]
        assert types[tokenizer.end_of_text or 0] == 3 and types[0] == 1 and set(types[tokenizer.vocab_size :]) == {5}
        assert values["tokenizer.ggml.merges"] == (folder / "merges.txt").read_text().splitlines()[1:]
        assert values["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text

    def test_the_tokenizer_comes_back(self, tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
        weights.convert(folder, tmp_path / "x.gguf", "gguf")
        weights.convert(tmp_path / "x.gguf", tmp_path / "y.gguf", "gguf", "q8_0")
        weights.convert(tmp_path / "y.gguf", tmp_path / "back", "huggingface")
        back = Tokenizer.from_folder(tmp_path / "back")
        assert back.encode("that cat") == tokenizer.encode("that cat")
        assert back.end_of_text == tokenizer.end_of_text
        assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == tokenizer.end_of_text

    def test_what_is_refused(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "x.gguf"
        weights.convert(folder, path, "gguf", "q8_0")
        data = path.read_bytes()
        for contents, words in (
            (data[:-1000], ["cut short", "missing at its end", "from "]),
            (data[:2000], ["cut short", "within its header", "too few"]),
            (data[:4] + b"\x09" + data[5:], ["version 9"]),
            (data.replace(b"general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2",
                          b"general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0rwkv"), ["'rwkv'"]),
            (data.replace(b"gpt2.block_count", b"gpt2.block_wount"), ["gpt2.block_count"]),
        ):  # fmt: skip
            path.write_bytes(contents)
            refused(path, "x.gguf", *words)
        path.write_bytes(data)
        monkeypatch.setitem(__import__("sys").modules, "gguf", None)
        refused(path, "pip install 'clearhead[gguf]'")


def test_the_bytes_missing_at_the_end_are_counted(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    weights.convert(folder, path, "gguf")
    last = max(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    end = int(last.data_offset + last.n_bytes)
    with path.open("r+b") as file:
        file.truncate(end - 10)
    refused(path, f"10 bytes are missing at its end, from '{last.name}'")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_there_and_back_is_bit_equal(folder: Path, tmp_path: Path, layout: str) -> None:
    middle = tmp_path / "middle"
    weights.convert(folder, middle, layout)
    source = weights.open(middle, config=CONFIG)
    assert source.layout == layout
    assert [path.name for path in tmp_path.iterdir()] == ["middle"]
    weights.convert(middle, tmp_path / "back", "huggingface", config=CONFIG)
    one, other = weights.open(folder), weights.open(tmp_path / "back")
    assert one.tensors.keys() == other.tensors.keys()
    for name in one.tensors:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)
    assert other.config == CONFIG


@pytest.mark.parametrize("layout", ["book", "llmc"])
def test_an_interrupted_save_leaves_the_old_file(
    folder: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    source = weights.open(folder)
    read = source.file.read

    def fail(name: str) -> np.ndarray:
        if name.endswith("ln_f.bias"):
            raise KeyboardInterrupt
        return read(name)

    monkeypatch.setattr(source.file, "read", fail)
    with pytest.raises(KeyboardInterrupt):
        source.save(path, layout)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("dest", "options", "words"),
    [
        ("x", {"to": "ggml"}, "no layout 'ggml'.*huggingface, canonical, book"),
        ("x", {"to": "book", "dtype": "q8_0"}, "not written as 'q8_0'"),
        ("", {"to": "nanogpt"}, "is a folder.*ckpt.pt"),
        ("x/y", {"to": "llmc"}, "could not be written"),
    ],
)
def test_what_cannot_be_saved(folder: Path, tmp_path: Path, dest: str, options: Any, words: str) -> None:
    (tmp_path / "x").write_text("a file")
    with pytest.raises(WeightsError, match=words):
        weights.convert(folder, tmp_path / dest, **options)


def test_a_folder_with_several_files(folder: Path, tmp_path: Path) -> None:
    for name in ("a.pth", "b.gguf"):
        weights.convert(folder, tmp_path / name, "gguf")
    refused(tmp_path, "several files", "a.pth, b.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, layout: str) -> None:
    config = GPTConfig(64, 16, 128, 2, 16, qkv_bias=True, tie_weights=True)  # one stack of layers alone is 4.2 MB
    tensors = {name: t.numpy() for name, t in GPTModel(config).state_dict().items()}
    weights.save(tmp_path / "source", config, tensors, "llmc", "bfloat16")
    del tensors

    def peak(convert: Callable[[], Any]) -> int:
        convert()  # once before, so that what is imported and remembered does not count
        tracemalloc.start()
        convert()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(lambda: weights.convert(tmp_path / "source", tmp_path / "out", layout)) < 3_000_000
    assert peak(lambda: weights.convert(tmp_path / "out", tmp_path / "back", "llmc", config=config)) < 3_000_000
