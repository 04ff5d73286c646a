"""GPT-2's own vocabulary in the package: the published files, offline, and for models that come without one."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken_ext.openai_public
import torch
from command_line import call
from transformers import AutoTokenizer

import clearhead
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.tokenizer.gpt2 import MERGES_FILE, is_gpt2_name

TEXT = "Hello, world! It's 12 o'clock; naïve 你好 🙂\n\n  def f(x):\n\treturn x<|endoftext|>"


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.gpt2()


def test_the_package_has_the_published_files(gpt2: Tokenizer, gpt2_files: Path) -> None:
    merges = gzip.decompress(MERGES_FILE.read_bytes())
    assert merges == (gpt2_files / "vocab.bpe").read_bytes()
    bpe = gpt2.bpe
    assert bpe is not None
    encoder = json.dumps(bpe[0]).encode()  # as OpenAI wrote it, byte for byte
    assert encoder == (gpt2_files / "encoder.json").read_bytes()
    known = inspect.getsource(tiktoken_ext.openai_public.gpt2)  # tiktoken compares what it downloads with these
    assert hashlib.sha256(merges).hexdigest() in known and hashlib.sha256(encoder).hexdigest() in known


def test_it_is_the_tokenizer_of_the_files(gpt2: Tokenizer, gpt2_files: Path) -> None:
    other = Tokenizer.from_folder(gpt2_files)
    assert gpt2.sha256() == other.sha256()
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode(TEXT, special=True) == other.encode(TEXT, special=True)


def test_names() -> None:
    for name in ("gpt2", "gpt2-xl", "124M", "1558M", "openai-community/gpt2-large", "distilgpt2"):
        assert is_gpt2_name(name)
    for name in ("gpt3", "owner/gpt2", "openai-community/other", "", "/gpt2", "bundled"):
        assert not is_gpt2_name(name)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to reach the hub fail the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2-medium", "124M", "distilgpt2"])
def test_tokenize_works_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("tokenize", "-m", name, "--ids", "Hello, world!")
    assert (result.returncode, result.stdout) == (0, b"15496 11 995 0\n")
    decoded = call("tokenize", "-m", name, "--decode", "15496 11 995")
    assert decoded.stdout == b"Hello, world"


def test_a_local_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tokenizer.of_bytes().save(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    result = call("tokenize", "-m", "gpt2", "--ids", "Hi")
    assert result.stdout == b"72 105\n"


def state_dict(vocab_size: int) -> tuple[GPTConfig, dict[str, Any]]:
    config = GPTConfig(vocab_size=vocab_size, context_length=16, emb_dim=4, n_heads=1, n_layers=1, qkv_bias=True)
    torch.manual_seed(0)
    return config, {name: tensor.detach().numpy() for name, tensor in GPTModel(config).state_dict().items()}


@pytest.mark.parametrize("vocab_size", [50257, 50304])
def test_a_model_of_that_size_without_a_tokenizer_has_it_and_says_so(vocab_size: int, tmp_path: Path) -> None:
    config, tensors = state_dict(vocab_size)
    weights.save_huggingface(tmp_path / "model", config, tensors)
    gpt = clearhead.load(tmp_path / "model")
    assert any("GPT-2's own vocabulary" in note for note in gpt.notes)
    assert gpt.tokenizer is not None and gpt.tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]
    assert len(gpt.generate("Hello", max_new_tokens=3).samples[0].ids) == 3
    result = call("tokenize", "-m", str(tmp_path / "model"), "--ids", "Hello")
    assert (result.returncode, result.stdout) == (0, b"15496\n") and b"GPT-2's own vocabulary" in result.stderr
    # A conversion takes it along, so that others read the model too.
    weights.convert(tmp_path / "model", tmp_path / "again", "huggingface")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("Hello, world!").input_ids == [15496, 11, 995, 0]
    assert not weights.open(tmp_path / "again").notes
    weights.convert(tmp_path / "model", tmp_path / "model.gguf", "gguf")
    opened = weights.open(tmp_path / "model.gguf")
    own = opened.tokenizer()
    assert own is not None and own.encode(TEXT) == gpt.tokenizer.encode(TEXT) and not opened.notes


def test_other_sizes_have_none(tmp_path: Path) -> None:
    config, tensors = state_dict(300)
    weights.save_huggingface(tmp_path, config, tensors)
    opened = weights.open(tmp_path)
    assert opened.tokenizer() is None and opened.notes == ()
    result = call("tokenize", "-m", str(tmp_path), "Hello")
    assert result.returncode == 2 and b"has no tokenizer" in result.stderr


def test_a_tokenizer_beside_the_weights_wins(tmp_path: Path) -> None:
    config, tensors = state_dict(50257)
    weights.save_huggingface(tmp_path, config, tensors)
    Tokenizer.of_bytes().save(tmp_path)
    opened = weights.open(tmp_path)
    own = opened.tokenizer()
    assert own is not None and own.vocab_size == 257 and opened.notes == ()


def test_the_ids_of_every_token_are_those_of_transformers(gpt2: Tokenizer, tmp_path: Path) -> None:
    gpt2.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chance = np.random.default_rng(1)
    for _ in range(50):
        ids = chance.integers(0, 50257, 60).tolist()
        text = gpt2.decode(ids)
        assert gpt2.encode(text, special=True) == theirs(text).input_ids
