"""A model that learned induction (examples/induction): the lens finds the heads that do it, and knocks them out."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import clearhead
from clearhead import GPT, lens
from clearhead.training.recipe_reader import read_recipe

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples/induction"
LENGTH = 12
"""Letters of a random string before it repeats."""


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return clearhead.load(FOLDER / "model", backend="torch")


@pytest.fixture(scope="module")
def texts(gpt: GPT) -> list[list[int]]:
    assert gpt.tokenizer is not None
    drawn = np.random.default_rng(7)
    letters = gpt.tokenizer.encode("abcdefghijklmnopqrstuvwxyz")
    return [drawn.choice(letters, LENGTH, replace=False).tolist() * 2 for _ in range(64)]


def second_copy(gpt: GPT, texts: list[list[int]]) -> tuple[float, float]:
    """Return how well the model predicts the second copy from its second letter on: accuracy, and loss in nats."""
    logits = torch.tensor(gpt.run_with_cache(texts, "logits")["logits"])[:, LENGTH:-1].flatten(0, 1)
    targets = torch.tensor(texts)[:, LENGTH + 1 :].flatten()
    accuracy = float((logits.argmax(-1) == targets).float().mean())
    return accuracy, float(torch.nn.functional.cross_entropy(logits, targets))


def strongest(gpt: GPT, kind: str) -> tuple[int, int]:
    """Return the layer and head with the highest score of a kind."""
    scores = lens.head_scores(gpt.model, length=LENGTH)
    values = scores.values[scores.labels[0].index(kind)]
    layer, head = np.unravel_index(values.argmax(), values.shape)
    return int(layer), int(head)


def without(gpt: GPT, texts: list[list[int]], layer: int, heads: int | list[int]) -> tuple[float, float]:
    """Return the same two numbers with the mean of some heads' outputs in their place."""
    with lens.ablate(gpt.model, f"blocks.{layer}.attention.mixed", "mean", heads=heads, reference=texts):
        return second_copy(gpt, texts)


def test_the_scores_find_a_head_for_each_half_of_induction(gpt: GPT) -> None:
    scores = lens.head_scores(gpt.model, length=LENGTH)
    previous, induction = (scores.values[scores.labels[0].index(kind)] for kind in ("previous token", "induction"))
    assert strongest(gpt, "previous token")[0] == 0 and previous.max() > 0.8
    assert strongest(gpt, "induction")[0] == 1 and induction.max() > 0.4
    assert induction[0].max() < 0.2  # one layer cannot: it does not know what came before a token


def test_without_its_induction_heads_the_model_cannot_continue(gpt: GPT, texts: list[list[int]]) -> None:
    accuracy, loss = second_copy(gpt, texts)
    assert accuracy > 0.95
    scores = lens.head_scores(gpt.model, length=LENGTH)
    induction = scores.values[scores.labels[0].index("induction"), 1]
    found = np.flatnonzero(induction > 0.2).tolist()
    (other,) = set(range(gpt.config.n_heads)) - set(found)
    assert without(gpt, texts, 1, int(induction.argmax()))[1] > loss + 0.8
    kept = without(gpt, texts, 1, other)
    assert kept[0] > 0.95 and kept[1] < loss + 0.2
    assert without(gpt, texts, 1, found)[0] < 0.2


def test_the_model_is_what_the_recipe_describes(gpt: GPT) -> None:
    recipe = read_recipe(ROOT / "recipes/induction.toml")
    assert recipe.model == gpt.config
    assert gpt.tokenizer is not None
    made = runpy.run_path(str(FOLDER / "make_text.py"))["random_text"](1000, seed=2)
    assert len(set(made)) == gpt.config.vocab_size and gpt.tokenizer.decode(gpt.tokenizer.encode(made)) == made
    assert sum(file.stat().st_size for file in (FOLDER / "model").iterdir()) < 300_000
