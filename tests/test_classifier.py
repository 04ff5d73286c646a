"""Classifiers of `transformers`, opened by ours: the same probabilities as its own pipeline gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2Model, pipeline
from typer.testing import CliRunner

from clearhead import weights
from clearhead.cli.app import make_app
from clearhead.errors import InputError, WeightsError
from clearhead.loading import bundled
from clearhead.training.classifier import load_classifier

TEXTS = ["Once upon a time there was a cake!", "No.", "The dog, who was walking on four legs again, was happy."]


SHAPE = {"n_positions": 64, "n_embd": 24, "n_layer": 2}


def save(folder: Path, **settings: Any) -> GPT2ForSequenceClassification:
    """Save a random classifier of transformers with the bundled tokenizer."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=4096, n_head=3, **SHAPE, **settings)).eval()
    with torch.no_grad():
        model.score.weight *= 20  # far from even odds
    model.save_pretrained(folder)
    shutil.copy(bundled() / "tokenizer.json", folder)
    return model


def expected(folder: Path, text: str) -> dict[str, float]:
    """What transformers' pipeline gives."""
    peer = pipeline("text-classification", model=str(folder), tokenizer=AutoTokenizer.from_pretrained(folder))
    return {one["label"]: one["score"] for one in peer(text, top_k=None)}


CASES: dict[str, dict[str, Any]] = {
    "default labels": {},
    "named labels": {"id2label": {0: "good", 1: "bad", 2: "neither"}, "label2id": {"good": 0, "bad": 1, "neither": 2}},
    "one label": {"num_labels": 1},
    "several labels at once": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "a regression": {"num_labels": 1, "problem_type": "regression"},
    "padding that a text can end with": {"pad_token_id": 0},  # "!"
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_probabilities_as_the_pipeline(tmp_path: Path, case: str) -> None:
    save(tmp_path, **CASES[case])
    ours = load_classifier(tmp_path)
    for text in TEXTS:
        assert ours.probabilities(text) == pytest.approx(expected(tmp_path, text), abs=1e-5)


def test_weights_as_pytorch_model_bin_and_in_shards(tmp_path: Path) -> None:
    model = save(tmp_path)
    found = load_classifier(tmp_path).probabilities(TEXTS[0])
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert load_classifier(tmp_path).probabilities(TEXTS[0]) == found
    (tmp_path / "pytorch_model.bin").unlink()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_classifier(tmp_path).probabilities(TEXTS[0]) == found


def test_the_command_line_names_every_likely_class(tmp_path: Path) -> None:
    save(tmp_path, **CASES["several labels at once"])
    found = load_classifier(tmp_path).probabilities(TEXTS[0])
    said = CliRunner().invoke(make_app(), ["classify", TEXTS[0], "--model", str(tmp_path)]).output.splitlines()
    likely = [label for label, probability in found.items() if probability >= 0.5]
    assert 0 < len(likely) < 4 and said[0] == ", ".join(likely) and len(said) == 5


@pytest.fixture(scope="module")
def chapter_6(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT2Model, torch.nn.Linear]:
    """A classifier as the book's chapter 6 saves it, a state dict alone, and the same network of transformers."""
    folder = tmp_path_factory.mktemp("chapter_6")
    save(folder / "model")
    weights.convert(folder / "model", folder / "review_classifier.pth", "book", lossy=True)
    state = torch.load(folder / "review_classifier.pth")
    head = torch.nn.Linear(24, 2)
    with torch.no_grad():
        head.weight *= 20
    state |= {"out_head.weight": head.weight.detach(), "out_head.bias": head.bias.detach()}
    torch.save(state, folder / "review_classifier.pth")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 4096, "n_head": 3, **SHAPE}))
    shutil.copy(bundled() / "tokenizer.json", folder)
    return folder / "review_classifier.pth", GPT2Model.from_pretrained(folder / "model").eval(), head


@pytest.mark.parametrize("pad_to", [0, 6, 40])
def test_the_books_chapter_6(chapter_6: tuple[Path, GPT2Model, torch.nn.Linear], pad_to: int) -> None:
    """Its `classify_review` fills a text with <|endoftext|> to one length and reads the last position."""
    path, network, head = chapter_6
    ours = load_classifier(path, ["not spam", "spam"])
    ours.pad_to = pad_to
    tokenizer = AutoTokenizer.from_pretrained(path.parent)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        ids = (ids + [end] * pad_to)[:pad_to] if pad_to else ids
        with torch.no_grad():
            expected = head(network(torch.tensor([ids])).last_hidden_state[0, -1]).softmax(-1).tolist()
        assert ours.probabilities(text) == pytest.approx(
            dict(zip(["not spam", "spam"], expected, strict=True)), abs=1e-5
        )


def test_the_command_names_the_books_classes(chapter_6: tuple[Path, GPT2Model, torch.nn.Linear]) -> None:
    path = str(chapter_6[0])
    runner, words = CliRunner(), ["classify", TEXTS[0], "--model", path, "--pad-to", "40"]
    said = runner.invoke(make_app(), [*words, "--labels", "not spam, spam"]).output
    assert said.splitlines()[0] in ("not spam", "spam")
    assert "LABEL_0" in runner.invoke(make_app(), words).output
    for more, sentence in (
        (["--labels", "a,a"], "2 labels were given (a, a); give 2"),
        (["--pad-to", "65"], "to 65 tokens"),
    ):
        with pytest.raises(InputError) as caught:
            runner.invoke(make_app(), [*words, *more], catch_exceptions=False)
        assert sentence in str(caught.value)


def test_the_books_classifier_is_no_other_model(
    chapter_6: tuple[Path, GPT2Model, torch.nn.Linear], tmp_path: Path
) -> None:
    opened = weights.open(chapter_6[0])
    assert "it is the head of a classifier" in " ".join(opened.notes)
    with pytest.raises(WeightsError, match="the head score"):
        opened.save(tmp_path / "model.gguf", "gguf")
    with pytest.raises(WeightsError, match=r"score.bias \(GPT2ForSequenceClassification has no bias\)"):
        opened.save(tmp_path / "model", "huggingface")


@pytest.mark.parametrize(
    ("labels", "words"),
    [({"0": "a"}, "does not name the 2 classes"), ({"0": "a", "1": "a"}, "the same name"), ([], "does not name")],
)
def test_labels_that_do_not_fit(tmp_path: Path, labels: Any, words: str) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    with pytest.raises(WeightsError, match=words):
        load_classifier(tmp_path)
