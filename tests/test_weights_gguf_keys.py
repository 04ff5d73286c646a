"""GGUF files whose keys have the wrong types: every one opens, or is refused with a sentence."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import ClearheadError
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.schemes import gguf

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 5, 10**9, 2**63, 0.0, 0.5, float("nan"), float("inf"), "", "gpt2", "1", "x" * 300,
    [], [0], ["a"], ["a", "a"], [["a"]], [1.5], [2**40], ["a b", "a"], [6] * 275, ["x"] * 275, [-1] * 275, ["\x1b[2J"],
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    root = tmp_path_factory.mktemp("gguf")
    config = GPTConfig(
        vocab_size=275, context_length=8, emb_dim=8, n_heads=2, n_layers=1, qkv_bias=True, tie_weights=True
    )
    tensors = {name: tensor.detach().numpy() for name, tensor in GPTModel(config).state_dict().items()}
    Tokenizer.train(["the quick brown fox, the lazy dog; naïve 你好 🙂\n" * 8], 275).save(root / "model")
    weights.save_huggingface(root / "model", config, tensors)
    weights.convert(root / "model", root / "model.gguf", "gguf")
    return GGUFFile(root / "model.gguf")


@pytest.mark.slow
@settings(deadline=None, max_examples=1500)
@given(seed=st.integers(0, 2**32))
def test_keys_of_wrong_types(file: GGUFFile, seed: int) -> None:
    chance = random.Random(seed)
    keys = dict(file.keys)
    names = [*keys, "split.count", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.unknown_token_id"]
    for name in chance.sample(names, chance.choice([1, 1, 2, 3])):
        keys[name] = chance.choice(VALUES)
        if keys[name] is None:
            del keys[name]
    original, file.keys = file.keys, keys
    try:
        for read in (
            lambda: gguf.config_of(file),
            lambda: gguf.tokenizer_of(file),
            lambda: gguf.why_no_tokenizer(keys),
        ):
            try:
                read()
            except ClearheadError as error:
                assert "\x1b" not in str(error) and len(str(error)) < 2000
    finally:
        file.keys = original
