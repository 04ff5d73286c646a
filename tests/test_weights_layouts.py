"""Every layout of weights but Hugging Face's: read and written, against transformers, gguf and the documents."""

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
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.model import GPTModel
from clearhead.model_weights import load_into
from clearhead.tokenizer import Tokenizer

V, T, C, H, L = 301, 16, 64, 2, 2
CONFIG = GPTConfig(V, T, C, H, L, qkv_bias=True, tie_weights=True)
IDS = torch.arange(30).reshape(2, 15) * 7 % V
LAYOUT_NAMES = ["book", "nanogpt", "llmc", "transformerlens", "gguf", "canonical"]


def random_model(**changes: Any) -> GPT2LMHeadModel:
    """A GPT-2 of transformers' whose every parameter is random."""
    torch.manual_seed(1)
    shape = {"vocab_size": V, "n_positions": T, "n_embd": C, "n_head": H, "n_layer": L}
    model = GPT2LMHeadModel(GPT2Config(**{**shape, "bos_token_id": 0, "eos_token_id": 0, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    return random_model()


@pytest.fixture(scope="module")
def erf_peer() -> GPT2LMHeadModel:
    return random_model(activation_function="gelu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("the cat sat on the mat, and the rat sat on the cat; then that was that. " * 3, 280)


@pytest.fixture(scope="module")
def folder(peer: GPT2LMHeadModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The peer as transformers saves it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    peer.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@torch.no_grad()
def logits_of(source: weights.Source) -> torch.Tensor:
    """What our model computes with weights from a source."""
    model = GPTModel(source.config).eval()
    load_into(model, source)
    return model(IDS)


@torch.no_grad()
def assert_logits(source: weights.Source, expected: nn.Module) -> None:
    out = expected(IDS)
    torch.testing.assert_close(logits_of(source), getattr(out, "logits", out), atol=1e-4, rtol=0)


class Norm(nn.Module):
    """A layer norm whose parameters have given names; without a second, no bias."""

    def __init__(self, weight: str, bias: str | None) -> None:
        super().__init__()
        self.names = weight, bias
        for name in self.names:
            if name:
                self.register_parameter(name, nn.Parameter(torch.ones(C)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (getattr(self, name) if name else None for name in self.names)
        return F.layer_norm(x, (C,), weight, bias, 1e-5)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention over [B, T, C], heads side by side."""
    q, k, v = (x.unflatten(-1, (H, C // H)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)


class BookAttention(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.W_query, self.W_key, self.W_value = (nn.Linear(C, C, bias=bias) for _ in range(3))
        self.out_proj = nn.Linear(C, C)
        self.register_buffer("mask", torch.ones(T, T).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(attend(self.W_query(x), self.W_key(x), self.W_value(x)))


class BookBlock(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.att = BookAttention(bias)
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(C, 4 * C), nn.GELU("tanh"), nn.Linear(4 * C, C))})
        self.norm1, self.norm2 = Norm("scale", "shift"), Norm("scale", "shift")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff["layers"](self.norm2(x))


class Book(nn.Module):
    """A module with the names and shapes of the book's `GPTModel`."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(V, C), nn.Embedding(T, C)
        self.trf_blocks = nn.Sequential(*(BookBlock(bias) for _ in range(L)))
        self.final_norm = Norm("scale", "shift")
        self.out_head = nn.Linear(C, V, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_emb(ids) + self.pos_emb.weight[: ids.shape[1]]
        return self.out_head(self.final_norm(self.trf_blocks(x)))

    @torch.no_grad()
    def take(self, peer: GPT2LMHeadModel) -> Book:
        """This with the peer's weights."""
        body: Any = peer.transformer
        blocks: Any = self.trf_blocks
        final: Any = self.final_norm
        pairs: list[tuple[Any, Any]] = [(self.tok_emb.weight, body.wte.weight), (self.pos_emb.weight, body.wpe.weight)]
        pairs += [(self.out_head.weight, peer.lm_head.weight), (final.scale, body.ln_f.weight)]
        pairs += [(final.shift, body.ln_f.bias)]
        for ours, theirs in zip(blocks, body.h, strict=True):
            for norm, ln in ((ours.norm1, theirs.ln_1), (ours.norm2, theirs.ln_2)):
                pairs += [(norm.scale, ln.weight), (norm.shift, ln.bias)]
            qkv = (ours.att.W_query, ours.att.W_key, ours.att.W_value)
            for n, linear in enumerate(qkv):
                pairs += [(linear.weight, theirs.attn.c_attn.weight[:, n * C : (n + 1) * C].T)]
                if linear.bias is not None:
                    pairs += [(linear.bias, theirs.attn.c_attn.bias[n * C : (n + 1) * C])]
            for linear, conv in (
                (ours.att.out_proj, theirs.attn.c_proj),
                (ours.ff["layers"][0], theirs.mlp.c_fc),
                (ours.ff["layers"][2], theirs.mlp.c_proj),
            ):
                pairs += [(linear.weight, conv.weight.T), (linear.bias, conv.bias)]
        for mine, other in pairs:
            mine.copy_(other)
        return self.eval()


class NanoBlock(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (Norm("weight", "bias" if bias else None) for _ in range(2))
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C, bias), "c_proj": nn.Linear(C, C, bias)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C, bias), "c_proj": nn.Linear(4 * C, C, bias)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn["c_proj"](attend(*self.attn["c_attn"](self.ln_1(x)).chunk(3, -1)))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Nano(nn.Module):
    """A module with the names, shapes and GELU of nanoGPT's `GPT`."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        tokens = nn.Embedding(V, C)
        self.transformer: Any = nn.ModuleDict(
            {
                "wte": tokens,
                "wpe": nn.Embedding(T, C),
                "h": nn.ModuleList(NanoBlock(bias) for _ in range(L)),
                "ln_f": Norm("weight", "bias" if bias else None),
            }
        )
        self.lm_head = nn.Linear(C, V, bias=False)
        self.lm_head.weight = tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))

    @torch.no_grad()
    def take(self, peer: GPT2LMHeadModel) -> Nano:
        """This with the peer's weights, its matrices turned; biases that this has not are passed over."""
        state = peer.state_dict()
        for name, mine in self.state_dict().items():
            other = state[name]
            mine.copy_(other.T if other.shape != mine.shape or ".c_proj.weight" in name else other)
        return self.eval()

    def save(self, path: Path, prefix: str = "", **around: Any) -> Path:
        """A checkpoint as train.py writes it."""
        bias = "transformer.ln_f.bias" in self.state_dict()
        args = {"n_layer": L, "n_head": H, "n_embd": C, "block_size": T, "bias": bias, "vocab_size": V, "dropout": 0.1}
        state = {prefix + name: tensor for name, tensor in self.state_dict().items()}
        checkpoint = {"model": state, "optimizer": {"state": {}}, "model_args": args, "iter_num": 5}
        torch.save({**checkpoint, "best_val_loss": torch.tensor(3.0), "config": {}, **around}, path)
        return path


class TestBook:
    @pytest.mark.parametrize("as_safetensors", [False, True])
    def test_it_is_read(self, peer: GPT2LMHeadModel, tmp_path: Path, as_safetensors: bool) -> None:
        from safetensors.torch import save_file

        book = Book().take(peer)
        torch.testing.assert_close(book(IDS), peer(IDS).logits, atol=1e-4, rtol=0)
        path = tmp_path / "gpt.data"
        save_file(book.state_dict(), path) if as_safetensors else torch.save(book.state_dict(), path)
        source = weights.open(path, config=CONFIG.replace(qkv_bias=False))
        assert source.layout == "book"
        assert source.config == CONFIG
        assert "qkv_bias=True is taken" in source.notes[0]
        assert_logits(source, peer)
        assert source.plan().ignored["trf_blocks.0.att.mask"]

    def test_the_shape_comes_from_the_tensors(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        torch.save({"model_state_dict": Book().take(peer).state_dict(), "optimizer_state_dict": {}}, tmp_path / "x.pth")
        source = weights.open(tmp_path)
        assert source.config == CONFIG.replace(n_heads=1)  # 64 numbers a head: not what this model has, and it is said
        assert "attention heads" in source.notes[0] and "put a config.json" in source.notes[0]
        (tmp_path / "config.json").write_text(json.dumps(CONFIG.replace(drop_rate=0.2).to_huggingface()))
        assert weights.open(tmp_path / "x.pth").config == CONFIG.replace(drop_rate=0.2)

    def test_without_biases_and_with_a_head_of_its_own(self, tmp_path: Path) -> None:
        peer = random_model(tie_word_embeddings=False)
        with torch.no_grad():
            for block in peer.transformer.h:
                block.attn.c_attn.bias.zero_()
        torch.save(Book(bias=False).take(peer).state_dict(), tmp_path / "x.pth")
        source = weights.open(tmp_path / "x.pth", config=CONFIG.replace(tie_weights=False))
        assert source.config == CONFIG.replace(qkv_bias=False, tie_weights=False)
        assert_logits(source, peer)
        source.save(tmp_path / "y.pth", "book")
        back = Book(bias=False)
        back.load_state_dict(torch.load(tmp_path / "y.pth", weights_only=True))
        torch.testing.assert_close(back(IDS), peer(IDS).logits, atol=1e-4, rtol=0)

    def test_the_books_module_takes_what_is_written(self, peer: GPT2LMHeadModel, folder: Path, tmp_path: Path) -> None:
        saved = weights.convert(folder, tmp_path / "gpt.pth", "book")
        assert "2 attention heads" in saved.notes[0]
        book = Book().eval()
        book.load_state_dict(torch.load(saved.path, weights_only=True))
        for name, tensor in Book().take(peer).state_dict().items():
            assert torch.equal(book.state_dict()[name], tensor), name

    def test_what_is_refused(self, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        state = Book().take(peer).state_dict()
        torch.save({**state, "out_head.weight": torch.zeros(2, C), "out_head.bias": torch.zeros(2)}, tmp_path / "x.pth")
        refused(tmp_path / "x.pth", "2 classes")
        torch.save({name: t for name, t in state.items() if name != "pos_emb.weight"}, tmp_path / "x.pth")
        refused(tmp_path / "x.pth", "pos_emb.weight")
        torch.save({"encoder.weight": torch.zeros(3), "encoder.bias": torch.zeros(3)}, tmp_path / "x.pth")
        refused(tmp_path / "x.pth", "encoder.weight", "book (tok_emb.weight", "nanogpt")
        torch.save(state, tmp_path / "x.pth")
        whole = (tmp_path / "x.pth").read_bytes()
        (tmp_path / "x.pth").write_bytes(whole[:-300])
        refused(tmp_path / "x.pth", "cut short")


class TestNanoGPT:
    @pytest.mark.parametrize("prefix", ["", "_orig_mod."])
    def test_it_is_read(self, erf_peer: GPT2LMHeadModel, tmp_path: Path, prefix: str) -> None:
        nano = Nano(bias=True).take(erf_peer)
        torch.testing.assert_close(nano(IDS), erf_peer(IDS).logits, atol=1e-4, rtol=0)
        source = weights.open(nano.save(tmp_path / "ckpt.pt", prefix).parent)
        assert source.layout == "nanogpt"
        assert source.config == CONFIG.replace(drop_rate=0.1, activation="gelu_erf")
        assert "erf" in source.notes[0]
        assert_logits(source, erf_peer)

    def test_without_biases(self, tmp_path: Path) -> None:
        peer = random_model(activation_function="gelu")
        with torch.no_grad():
            for name, parameter in peer.named_parameters():
                if name.endswith(".bias"):
                    parameter.zero_()
        nano = Nano(bias=False).take(peer)
        source = weights.open(nano.save(tmp_path / "ckpt.pt"))
        assert not source.config.qkv_bias
        assert_logits(source, peer)
        source.save(tmp_path / "again.pt", "nanogpt")
        written = torch.load(tmp_path / "again.pt", weights_only=True)
        assert written["model_args"]["bias"] is False
        Nano(bias=False).load_state_dict(written["model"])

    @pytest.mark.parametrize(
        ("around", "activation"),
        [
            ({"config": {"init_from": "gpt2-xl"}, "iter_num": 0}, "gelu_tanh"),
            ({"config": {"init_from": "gpt2-xl"}, "iter_num": 9}, "gelu_erf"),
            ({"config": {"init_from": "scratch"}, "iter_num": 0}, "gelu_erf"),
        ],
    )
    def test_which_gelu(self, peer: GPT2LMHeadModel, tmp_path: Path, around: dict[str, Any], activation: str) -> None:
        source = weights.open(Nano(bias=True).take(peer).save(tmp_path / "ckpt.pt", **around))
        assert source.config.activation == activation
        assert len(source.notes) == 1

    @pytest.mark.parametrize("checkpoint", [False, True], ids=["state dict, as minGPT", "checkpoint"])
    @pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu"])
    def test_a_config_in_the_folder_states_the_activation(self, tmp_path: Path, name: str, checkpoint: bool) -> None:
        peer = random_model(activation_function=name)
        peer.config.save_pretrained(tmp_path)
        nano = Nano(bias=True).take(peer)
        path = nano.save(tmp_path / "model.pt")
        if not checkpoint:
            torch.save(nano.state_dict(), path)
        source = weights.open(path)
        assert (source.layout, source.notes) == ("nanogpt", ())
        assert_logits(source, peer)

    def test_the_note_on_the_activation_names_what_every_command_can_do(self, peer: Any, tmp_path: Path) -> None:
        path = Nano(bias=True).take(peer).save(tmp_path / "model.pt")
        torch.save(Nano(bias=True).take(peer).state_dict(), path)
        (tmp_path / "config.json").write_text(GPT2Config(n_embd=C, n_head=H, n_layer=L + 1).to_json_string())
        notes = " ".join(weights.open(path).notes)
        assert "another shape than model.pt and is not used" in notes
        assert 'put a config.json with "activation_function"' in notes
        (tmp_path / "config.json").write_text("[" * 100_000)
        assert "is not used: " in weights.open(path).notes[0]

    def test_nanogpt_takes_what_is_written(self, erf_peer: GPT2LMHeadModel, tmp_path: Path) -> None:
        erf_peer.save_pretrained(tmp_path / "model")
        saved = weights.convert(tmp_path / "model", tmp_path / "ckpt.pt", "nanogpt")
        assert saved.notes == ()
        written = torch.load(tmp_path / "ckpt.pt", weights_only=True)
        args = {"n_layer": L, "n_head": H, "n_embd": C, "block_size": T, "bias": True, "vocab_size": V, "dropout": 0.1}
        assert written["model_args"] == args
        nano = Nano(bias=True)
        nano.load_state_dict(written["model"])
        torch.testing.assert_close(nano(IDS), erf_peer(IDS).logits, atol=1e-4, rtol=0)
        state = written["model"]
        assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()

    def test_what_is_refused(self, peer: GPT2LMHeadModel, folder: Path, tmp_path: Path) -> None:
        nano = Nano(bias=True).take(peer)
        refused(nano.save(tmp_path / "ckpt.pt", model_args={"n_layer": 2}), "model_args", "n_embd")
        path = nano.save(tmp_path / "ckpt.pt")
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-200_000])
        refused(path, "cut short: at least ", "bytes are missing at its end")
        with pytest.raises(WeightsError) as caught:
            weights.open(path)
        told = int(str(caught.value).split("at least ")[1].split()[0].replace(",", ""))
        assert 150_000 < told <= 200_000 < size  # the zip's own tables at the end are not counted
        path.write_bytes(path.read_bytes()[:3000])
        refused(path, "cut short")
        untied, wide = CONFIG.replace(tie_weights=False), CONFIG.replace(ff_dim=100)
        for config, word in ((untied, "head of its own"), (wide, "4 * emb_dim")):
            tensors = {name: t.numpy() for name, t in GPTModel(config).state_dict().items()}
            with pytest.raises(WeightsError, match=word.replace("*", r"\*")):
                weights.save(tmp_path / "x.pt", config, tensors, "nanogpt")


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
