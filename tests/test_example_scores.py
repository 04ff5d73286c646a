"""`evaluate --examples`: the response loss and a classifier's accuracy, against transformers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, pipeline

import clearhead
from clearhead import weights
from clearhead.data.templates import PromptTemplate
from clearhead.evaluation.provenance import describe_model, weights_digest
from clearhead.loading import bundled
from clearhead.training.chat_template import save_chat_template

PAIRS = [
    ("Who ate the cake?", "The dog."),
    ("Where is the ball?", "In the garden, under a tree."),
    ("Hi", "Yes"),
]
TEXTS = [
    ("The dog was happy.", "good"),
    ("No.", "bad"),
    ("A cake!", "good"),
    ("It rained all day.", "neither"),
] * 5


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("responses") / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": asked, "response": said}) + "\n" for asked, said in PAIRS))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a folder, which transformers opens too."""
    folder = tmp_path_factory.mktemp("model")
    clearhead.load().save(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    names = ["good", "bad", "neither"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    config = GPT2Config(vocab_size=4096, n_head=3, n_positions=64, n_embd=24, n_layer=2, **labels)
    network = GPT2ForSequenceClassification(config).eval()
    with torch.no_grad():
        network.score.weight *= 20
    network.save_pretrained(folder)
    shutil.copy(bundled() / "tokenizer.json", folder)
    return folder


def expected_loss(folder: Path, template: str) -> tuple[float, int]:
    """The mean nats of the responses and the end of text after each, by transformers, and the number of tokens."""
    peer, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    nats: list[float] = []
    for asked, said in PAIRS:
        before = tokenizer.encode(template.replace("{prompt}", asked))
        ids = torch.tensor([[*before, *tokenizer.encode(said), end]])
        with torch.no_grad():
            log_p = peer(ids).logits[0, :-1].log_softmax(-1)
        nats += (-log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]])[len(before) - 1 :].tolist()
    return float(np.mean(nats)), len(nats)


@pytest.mark.parametrize("template", ["{prompt}", "Q: {prompt}\nA:"])
def test_the_response_loss_is_that_of_transformers(model: Path, responses: Path, template: str) -> None:
    more = [] if template == "{prompt}" else ["--template", template]
    found = json.loads(call("evaluate", responses, "--examples", "-m", model, "--json", *more).stdout)
    loss, tokens = expected_loss(model, template)
    assert (found["examples"], found["left_out"], found["tokens"]) == (3, 0, tokens)
    assert found["loss"] == pytest.approx(loss, abs=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-3)
    assert found.items() >= describe_model(str(model), None, "float32").items()
    table = call("evaluate", responses, "--examples", "-m", model, *more).stdout.decode().splitlines()
    assert table[0].split() == ["loss", "perplexity", "tokens", "examples", "file"]
    assert table[1].split()[0] == f"{found['loss']:.4f}"


@pytest.mark.parametrize("more", [[], ["--examples"]])
def test_no_heading_stands_before_a_refusal(model: Path, responses: Path, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    alone = call("evaluate", tmp_path / "empty.jsonl", *more, "-m", model)
    assert (alone.returncode, alone.stdout) == (2, b"")
    second = call("evaluate", responses, tmp_path / "empty.jsonl", *more, "-m", model)
    assert second.returncode == 2
    assert [line.split()[-1] for line in second.stdout.decode().splitlines()] == ["file", str(responses)]


def test_examples_longer_than_the_context_are_named(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "response": "Yes"}, {"prompt": "Hi " * 5000, "response": "Yes"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    result = call("evaluate", tmp_path / "a.json", "--examples", "-m", model, "--json")
    found = json.loads(result.stdout)
    assert (found["examples"], found["left_out"]) == (1, 1)
    assert "1 example of" in result.stderr.decode()


def test_a_template_that_the_model_does_not_tell_is_asked_for(model: Path, responses: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    save_chat_template(PromptTemplate.from_recipe("Q: {prompt} A:"), tmp_path / "model")
    result = call("evaluate", responses, "--examples", "-m", tmp_path / "model")
    assert result.returncode == 2 and "give the text before a response" in result.stderr.decode()
    for template in ("Q: {prompt} A:", "Q: {prompt}\n\nA:"):
        given = template.replace("\n", "\\n")  # as a recipe has it
        words = ("evaluate", responses, "--examples", "-m", tmp_path / "model", "--template", given, "--json")
        assert json.loads(call(*words).stdout)["loss"] == pytest.approx(expected_loss(model, template)[0], abs=1e-4)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_accuracy_loss_and_confusion_are_those_of_the_pipeline(classifier: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"labelled{suffix}"
    if suffix == ".csv":
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows([("text", "label"), *TEXTS])
    else:
        file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in TEXTS))
    found = json.loads(call("evaluate", file, "--examples", "-m", classifier, "--json").stdout)
    labels = ["good", "bad", "neither"]
    confusion, nats = [[0] * 3 for _ in range(3)], []
    peer: Any = pipeline(
        "text-classification", model=str(classifier), tokenizer=AutoTokenizer.from_pretrained(classifier)
    )
    for text, label in TEXTS:
        scores = {one["label"]: one["score"] for one in peer(text, top_k=None)}
        nats.append(-np.log(scores[label]))
        confusion[labels.index(label)][labels.index(max(scores, key=lambda name: scores[name]))] += 1
    assert (found["labels"], found["confusion"], found["examples"]) == (labels, confusion, 20)
    assert found["accuracy"] == sum(confusion[n][n] for n in range(3)) / 20
    assert found["loss"] == pytest.approx(np.mean(nats), abs=1e-4)
    assert found.items() >= describe_model(str(classifier), None, "float32").items()
    lines = call("evaluate", file, "--examples", "-m", classifier).stdout.decode().splitlines()
    assert lines[1].split()[:3] == [f"{found['accuracy']:.4f}", f"{found['loss']:.4f}", "20"]
    for label, row in zip(labels, confusion, strict=True):
        assert any(line.split()[:4] == [label, *map(str, row)] for line in lines)


def test_the_digest_of_a_classifier_covers_its_head(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "other")
    network = GPT2ForSequenceClassification.from_pretrained(classifier)
    with torch.no_grad():
        network.score.weight += 1
    network.save_pretrained(tmp_path / "other")
    one, other = (weights_digest(weights.open(folder)) for folder in (classifier, tmp_path / "other"))
    assert one != other


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["labelled.jsonl", "--examples", "-m", "CLASSIFIER"], "has the label 'new', which no training example has"),
        (["labelled.jsonl", "--examples", "-m", "CLASSIFIER", "--template", "alpaca"], "not for classifiers"),
        (["labelled.jsonl", "--examples", "-m", "MODEL"], "needs a prompt and a response"),
        (["labelled.jsonl", "--examples", "-m", "MODEL", "--labels", "a,b"], "are for classifiers"),
        (["labelled.jsonl", "--examples", "-m", "MODEL", "--template", "{a}"], "has the unknown field {a}"),
        (["labelled.jsonl", "--template", "alpaca"], "need --examples"),
        (["labelled.jsonl", "--examples", "--task", "blimp"], "excludes --task"),
    ],
)
def test_examples_that_cannot_be_scored(
    classifier: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labelled.jsonl").write_text(json.dumps({"text": "The dog", "label": "new"}))
    places = {"CLASSIFIER": str(classifier), "MODEL": str(model)}
    result = call("evaluate", *(places.get(word, word) for word in words))
    said = " ".join(result.stderr.decode().replace("│", " ").split())
    assert result.returncode == 2 and sentence in said
