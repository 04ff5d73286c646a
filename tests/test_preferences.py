"""Direct preference optimization: its loss against transformers' logits, and a run from a file to a model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_models import SMALL
from transformers import GPT2LMHeadModel

from clearhead.data.examples import Example
from clearhead.data.instructions import Instruction
from clearhead.data.preferences import Preference, pair_batch, read_preferences
from clearhead.data.templates import PromptTemplate
from clearhead.errors import TrainingError
from clearhead.gpt import GPT
from clearhead.loading import load
from clearhead.losses import NOT_COUNTED
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.training.preference import PreferenceObjective
from clearhead.training.recipe_reader import parse_recipe
from clearhead.training.run_folder import read_metrics
from clearhead.training.train import train

RECIPE = """
[finetune]
start = "{start}"
kind = "preferences"
train = "train.jsonl"
valid_share = 0.2
test_share = 0.1
beta = 0.5
response_tokens = 4

[training]
steps = 30
batch_size = 8
precision = "float32"
learning_rate = 3e-3
warmup_steps = 2
schedule = "cosine"
log_every = 1
evaluate_every = 15
checkpoint_every = 15
"""


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> Preference:
    """Return a pair of token lists."""

    def instruction(response: list[int]) -> Instruction:
        ids = np.array(prompt + response, np.int64)
        targets = ids[1:].copy()
        targets[: len(prompt) - 1] = NOT_COUNTED
        return Instruction(Example(ids[:-1], targets), tuple(prompt), "", "")

    return Preference(instruction(chosen), instruction(rejected))


def log_probability(model: GPT2LMHeadModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return log p(response | prompt), token by token from transformers' logits."""
    logs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return torch.stack([logs[n, token] for n, token in zip(places, response, strict=True)]).sum()


def test_the_loss_and_its_gradient_are_those_of_the_formula(tmp_path: Path) -> None:
    """-log sigmoid(beta ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected))), Rafailov et al., equation 7."""
    torch.manual_seed(0)
    models, peers = [], []
    for name in ("before", "after"):
        model = GPTModel(SMALL)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        GPT(model, None).save(tmp_path / name)
        models.append(model.train())
        peers.append(GPT2LMHeadModel.from_pretrained(tmp_path / name).eval())
    texts = [([1, 2, 3], [4, 5], [6]), ([7], [8, 9, 10, 11], [12, 13]), ([5, 5], [1], [2, 3, 4])]
    inputs, targets = map(torch.from_numpy, pair_batch([pair(*text) for text in texts], SMALL.context_length))
    objective = PreferenceObjective(models[1], models[0], 0.3)
    loss = objective(inputs, targets)
    (gradient,) = torch.autograd.grad(loss, models[1].position_embedding.weight)

    expected = torch.zeros(())
    preferred = []
    for prompt, chosen, rejected in texts:
        gains = []
        for response in (chosen, rejected):
            gain = log_probability(peers[1], prompt, response) - log_probability(peers[0], prompt, response).detach()
            gains.append(gain)
        margin = 0.3 * (gains[0] - gains[1])
        expected = expected - torch.nn.functional.logsigmoid(margin)
        preferred.append(int(margin > 0))
    (expected_gradient,) = torch.autograd.grad(expected, peers[1].transformer.wpe.weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, expected_gradient, atol=1e-4 * float(expected_gradient.abs().max()))
    assert objective(inputs, targets, guess=True).tolist() == preferred


def test_a_model_that_has_not_moved_pays_log_2_a_pair() -> None:
    torch.manual_seed(0)
    model = GPTModel(SMALL)
    inputs, targets = map(torch.from_numpy, pair_batch([pair([1, 2], [3], [4, 5])] * 3, SMALL.context_length))
    reference = GPTModel(SMALL)
    reference.load_state_dict(model.state_dict())
    assert PreferenceObjective(model, reference, 0.1)(inputs, targets).item() == pytest.approx(3 * math.log(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and pairs of which the polite response is the preferred one."""
    where = tmp_path_factory.mktemp("pairs")
    rows = [
        {"prompt": f"Say {word} {n}.", "chosen": f" {word}, please", "rejected": f" {word} now"}
        for n in range(15)
        for word in ("yes", "no", "more", "less")
    ]
    (where / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [row["prompt"] + row[key] for row in rows for key in ("chosen", "rejected")]
    torch.manual_seed(3)
    GPT(GPTModel(SMALL.replace(vocab_size=280)), Tokenizer.train(iter(texts), 280)).save(where / "model")
    return where


def test_a_run_comes_to_prefer_what_was_chosen(folder: Path, tmp_path: Path) -> None:
    out = train(parse_recipe(RECIPE.format(start=folder / "model")), folder, tmp_path / "run")
    first, *_, last = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert last["loss"] < 0.5
    final = read_metrics(tmp_path / "run")[-1]["final"]
    assert final["test"]["accuracy"] == 1
    assert len((tmp_path / "run/test.jsonl").read_text().splitlines()) == 6
    assert "chat_template" in json.loads((out / "tokenizer_config.json").read_text())
    assert GPT2LMHeadModel.from_pretrained(out).config.n_layer == SMALL.n_layers


def test_a_record_without_a_second_response_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "chosen": "b"}')
    tokenizer = load(folder / "model").tokenizer
    assert tokenizer is not None
    with pytest.raises(TrainingError, match=r"line 1 of .*two responses, chosen and rejected.*'rejected' is missing"):
        read_preferences(tmp_path / "one.jsonl", tokenizer, PromptTemplate.from_recipe("{prompt}"), 32)


def test_a_reference_is_not_spread(folder: Path) -> None:
    text = RECIPE.format(start=folder / "model").replace("[training]", '[training]\nparallel = "shard"')
    with pytest.raises(TrainingError, match="preferences compare with a second model"):
        parse_recipe(text)
