"""A grid of random GPT-2s of transformers: the same logits, the same text, and every layout there and back.

The cases are drawn from all combinations of attention scales, activations, shapes, tying, heads and tokenizers, so that
each value of each axis occurs.
"""

from __future__ import annotations

import itertools
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_weights_family import ACTIVATIONS, SCALES, assert_same_logits, config, logits_of, random_model
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

import clearhead
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

LAYOUT_NAMES = ["huggingface", "openai", "onnx", "book", "nanogpt", "llmc", "transformerlens", "gguf", "canonical"]
TEXT = "the cat sat on the mat, and the rat sat on the cat; then that was that. "
PROMPT = "the cat sat"
AXES: dict[str, list[Any]] = {
    "scale": SCALES,
    "activation": ACTIVATIONS,
    "tied": [True, False],
    "head": ["GPT2LMHeadModel", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification", "GPT2ForTokenClassification"],
    "biases": ["random", "zero"],
    "tokenizer": ["bpe", "bpe files", "characters", "words", "none"],
    "inner": [None, 40, 512],
}


def draw_cases(number: int) -> list[dict[str, Any]]:
    """Return combinations in which every value of every axis occurs."""
    chance = random.Random(5)
    columns = {}
    for axis, values in AXES.items():
        column = list(itertools.islice(itertools.cycle(range(len(values))), number))
        chance.shuffle(column)
        columns[axis] = [values[index] for index in column]
    return [{axis: column[row] for axis, column in columns.items()} for row in range(number)]


CASES = draw_cases(15)


def save_tokenizer(kind: str, folder: Path) -> int:
    """Write a tokenizer of more tokens than `IDS` needs into a folder; return how many it has."""
    folder.mkdir()
    if kind == "none":
        return 300
    if kind == "words":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split(), *string.printable[:94]]
        (folder / "vocab.txt").write_text("\n".join(words := list(dict.fromkeys(words))), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        return len(words)
    made = (
        Tokenizer.of_characters(string.printable, end_of_text=True)
        if kind == "characters"
        else Tokenizer.train([TEXT] * 3, 280)
    )
    made.save(folder)
    if kind == "bpe files":
        (folder / "tokenizer.json").unlink()
    return made.vocab_size


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], Path, Any]:
    """A combination, its folder as transformers saves it, and the same network with the output head."""
    one: dict[str, Any] = request.param
    rows = save_tokenizer(one["tokenizer"], tmp_path / "model")
    settings = config(
        vocab_size=rows, n_embd=128, n_head=2, n_inner=one["inner"], activation_function=one["activation"],
        tie_word_embeddings=one["tied"], pad_token_id=0, **one["scale"],
    )  # fmt: skip
    model = random_model(settings, getattr(transformers, one["head"]))
    if one["biases"] == "zero":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") and "ln" not in name:
                    parameter.zero_()
    model.save_pretrained(tmp_path / "model")
    plain = model
    if not isinstance(model, GPT2LMHeadModel):
        plain = GPT2LMHeadModel(settings).eval()
        plain.transformer.load_state_dict(model.transformer.state_dict())
        if hasattr(model, "lm_head"):
            plain.lm_head.load_state_dict(model.lm_head.state_dict())
        else:  # transformers leaves the head of a model without one random; a tied one is the embedding
            plain.config.tie_word_embeddings = True
            plain.lm_head.weight = plain.transformer.wte.weight
    return one, tmp_path / "model", plain


def greedy(model: Any, ids: list[int]) -> list[int]:
    """The tokens that transformers writes."""
    with torch.no_grad():
        whole = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=8, pad_token_id=0, eos_token_id=None
        )  # fmt: skip
    return [int(id) for id in whole[0, len(ids) :]]


def test_logits_and_text(case: tuple[dict[str, Any], Path, Any]) -> None:
    one, folder, plain = case
    has_head = one["head"] in ("GPT2LMHeadModel", "GPT2DoubleHeadsModel")
    if not has_head and not one["tied"]:
        with pytest.raises(WeightsError, match="not tied"):
            weights.open(folder).plan()
        return
    assert_same_logits(folder, logits_of(plain))
    gpt = clearhead.load(folder)
    ids = [5, 61, 2]
    if one["tokenizer"] != "none":
        assert gpt.tokenizer is not None
        ids = gpt.tokenizer.encode(PROMPT)
        if one["tokenizer"] != "words":
            peer = AutoTokenizer.from_pretrained(folder)
            assert isinstance(peer, PreTrainedTokenizerFast) or one["tokenizer"] == "bpe files"
            assert ids == peer(PROMPT, add_special_tokens=False).input_ids
    found = gpt.generate(ids, temperature=0, max_new_tokens=8, stop_at_end_of_text=False)
    assert list(found.samples[0].ids) == greedy(plain, ids)


def test_every_layout_there_and_back(case: tuple[dict[str, Any], Path, Any], tmp_path: Path) -> None:
    one, folder, _ = case
    if one["head"].startswith("GPT2For") and not one["tied"]:
        pytest.skip("a model without an output head that says it has one of its own cannot be read")
    source = weights.open(folder)
    expected = source.load()
    refused = set()
    for layout in LAYOUT_NAMES:
        try:
            source.save(tmp_path / layout, layout, lossy=True)
        except WeightsError:
            refused.add(layout)
            continue
        there = weights.open(tmp_path / layout, config=source.config)
        there.save(tmp_path / "back" / layout, "huggingface", lossy=True)
        back = weights.open(tmp_path / "back" / layout).load()
        for name, values in expected.items():
            np.testing.assert_array_equal(back[name], values, err_msg=f"{layout} {name}")
    assert refused == cannot_hold(source.config)


def cannot_hold(config: GPTConfig) -> set[str]:
    """The layouts whose programs compute something else than a model of this shape."""
    found = set()
    if config.ff_dim != 4 * config.emb_dim:
        found |= {"openai", "book", "nanogpt", "llmc"}
    if config.activation != "gelu_tanh":
        found |= {"openai"}
    if not config.tie_weights:
        found |= {"openai", "llmc", "nanogpt"}
    return found


def test_every_value_of_every_axis_occurs() -> None:
    for axis, values in AXES.items():
        assert all(any(case[axis] == value for case in CASES) for value in values), axis
