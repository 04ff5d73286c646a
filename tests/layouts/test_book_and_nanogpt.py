"""Weights of the book and of nanoGPT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import weights
from clearhead.errors import WeightsError
from clearhead.model import GPTModel
from layouts.layout_models import CONFIG, IDS, C, H, L, T, V, assert_logits, random_model


@pytest.fixture(scope="module")
def erf_peer() -> GPT2LMHeadModel:
    return random_model(activation_function="gelu")


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
        assert any("head of a classifier" in note for note in weights.open(tmp_path / "x.pth").notes)
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
