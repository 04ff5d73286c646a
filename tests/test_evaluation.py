"""Evaluation tasks on small files, against a computation with transformers."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.errors import ClearheadError, InputError
from clearhead.evaluation.published_scores import compare_published
from clearhead.evaluation.results import Metric, TaskResult, accuracy, perplexity
from clearhead.evaluation.task_files import detokenize_wikitext, read_blimp
from clearhead.evaluation.task_scoring import TaskOptions
from clearhead.evaluation.tasks import TASKS
from clearhead.gpt import GPT
from clearhead.loading import bundled
from clearhead.verification.reference_text import TEXT

PASSAGES = [
    "Once upon a time there was a little girl. Her name was Lily. She was a happy little girl",
    "The boy had a ball. He threw the ball to his dog. The dog ran to get the ball",
    "It was dark and the cat could not see the xylophone",
]
QUESTIONS: list[dict[str, Any]] = [
    {"activity_label": "Play", "ctx": "The dog saw a ball. The dog", "label": 1,
     "endings": ["is a [title] very big house in the sky.", "ran to the ball.", "blue.", "and and and."]},
    {"activity_label": "Cook", "ctx_a": "A girl made a cake.", "ctx_b": "she", "label": "2",
     "endings": ["sun.", "[step] went under the sea with the moon.", "ate the cake.", "it it it it it"]},
]  # fmt: skip
PAIRS = [
    {"sentence_good": "The dogs were happy.", "sentence_bad": "The dogs was happy.", "field": "morphology", "UID": "a"},
    {"sentence_good": "The dog was happy.", "sentence_bad": "The dog were happy.", "field": "morphology", "UID": "a"},
    {"sentence_good": "qxz zqx", "sentence_bad": "The dog was happy.", "field": "syntax", "UID": "b"},
]


@pytest.fixture(scope="module")
def gpt() -> GPT:
    """The bundled model in float32."""
    return clearhead.load(dtype="float32")


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    """The same in transformers."""
    return GPT2LMHeadModel.from_pretrained(bundled(), dtype=torch.float32).eval()


def score(peer: GPT2LMHeadModel, gpt: GPT, context: str, continuation: str) -> tuple[float, bool]:
    """The log-probability of a continuation, and whether it is the greedy one, by transformers."""
    assert gpt.tokenizer is not None
    before = gpt.tokenizer.encode(context) or [gpt.tokenizer.end_of_text or 0]
    ids = [*before, *gpt.tokenizer.encode(continuation)]
    with torch.inference_mode():
        rows = peer(torch.tensor([ids])).logits[0].double().log_softmax(-1)[len(before) - 1 : -1]
    targets = torch.tensor(ids[len(before) :])
    chosen = rows[torch.arange(len(targets)), targets]
    return float(chosen.sum()), bool((rows.argmax(-1) == targets).all())


def json_lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_lambada(gpt: GPT, peer: GPT2LMHeadModel, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"lambada{suffix}"
    if suffix == ".txt":
        file.write_text("\n".join(PASSAGES))
    else:
        json_lines(file, [{"text": passage} for passage in PASSAGES])
    found = TASKS["lambada"].evaluate(gpt, file, TaskOptions())
    words = [passage.rpartition(" ") for passage in PASSAGES]
    expected = [score(peer, gpt, context, f" {word}") for context, _, word in words]
    assert found["acc"].value == sum(greedy for _, greedy in expected) / 3
    mean = -sum(value for value, _ in expected) / 3
    assert found["perplexity"].value == pytest.approx(math.exp(mean), rel=1e-4)
    with_bos = TASKS["lambada"].evaluate(gpt, file, TaskOptions(bos=True))
    assert with_bos.settings["bos"] and with_bos["perplexity"].value != found["perplexity"].value


def test_hellaswag(gpt: GPT, peer: GPT2LMHeadModel, tmp_path: Path) -> None:
    file = json_lines(tmp_path / "hellaswag.jsonl", QUESTIONS)
    contexts = ["Play: The dog saw a ball. The dog", "Cook: A girl made a cake. She"]
    endings: list[list[str]] = [list(question["endings"]) for question in QUESTIONS]
    endings[0][0] = "is a. very big house in the sky."
    endings[1][1] = " went under the sea with the moon."
    right = []
    for context, choices, answer in zip(contexts, endings, (1, 2), strict=True):
        values = [score(peer, gpt, context, f" {ending}")[0] for ending in choices]
        normalized = [value / len(ending) for value, ending in zip(values, choices, strict=True)]
        right.append((int(np.argmax(values)) == answer, int(np.argmax(normalized)) == answer))
    found = TASKS["hellaswag"].evaluate(gpt, file, TaskOptions())
    assert found["acc"].value == sum(one for one, _ in right) / 2
    assert found["acc_norm"].value == sum(one for _, one in right) / 2
    assert TASKS["hellaswag-completion"].evaluate(gpt, file, TaskOptions(limit=1)).n == 1


@pytest.mark.parametrize("form", ["file", "folder", "zip"])
def test_blimp(gpt: GPT, peer: GPT2LMHeadModel, tmp_path: Path, form: str) -> None:
    (tmp_path / "data").mkdir()
    source = json_lines(tmp_path / "data" / "pairs.jsonl", PAIRS)
    if form == "folder":
        source = tmp_path / "data"
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "blimp.zip", "w") as archive:
            archive.write(source, "data/pairs.jsonl")
            archive.writestr("__MACOSX/data/._pairs.jsonl", b"\xb0\x00")
        source = tmp_path / "blimp.zip"
    found = TASKS["blimp"].evaluate(gpt, source, TaskOptions())
    expected = [
        score(peer, gpt, "", " " + pair["sentence_good"])[0] > score(peer, gpt, "", " " + pair["sentence_bad"])[0]
        for pair in PAIRS
    ]
    assert found["acc"].value == sum(expected) / 3 and not expected[2]
    assert found.groups["b"][0].value == 0 and found.groups["field morphology"][0].value == sum(expected[:2]) / 2
    assert TASKS["blimp"].evaluate(gpt, source, TaskOptions(limit=1)).n == 2  # of each paradigm


def test_perplexity_by_sliding_windows(gpt: GPT, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\ufeff" + TEXT, encoding="utf-8")
    whole = gpt.score(TEXT, stride=64)
    found = TASKS["perplexity"].evaluate(gpt, tmp_path / "text.txt", TaskOptions(stride=64))
    assert found["token_perplexity"].value == pytest.approx(whole.perplexity, rel=1e-6)
    assert found["bits_per_byte"].value == pytest.approx(whole.bits_per_byte, rel=1e-6)
    assert found["word_perplexity"].value == pytest.approx(math.exp(-whole.logprob / len(TEXT.split())), rel=1e-6)
    assert found.settings["stride"] == 64


def test_wikitext_is_detokenized(gpt: GPT, tmp_path: Path) -> None:
    original = (
        " = Robert = \n \n He had a guest @-@ starring role , in 2 @,@ 000 ( or 1 @.@ 5 ) plays ; he did n't say "
        '" no " : it \'s .\n'
    )
    plain = "= Robert =\n\nHe had a guest-starring role, in 2,000 (or 1.5) plays; he didn't say \"no\": it's.\n"
    assert detokenize_wikitext(original) == plain
    (tmp_path / "wiki.txt").write_text(original)
    found = TASKS["wikitext2"].evaluate(gpt, tmp_path / "wiki.txt", TaskOptions())
    words = len(original.split())
    assert found["word_perplexity"].value == pytest.approx(math.exp(-gpt.score(plain).logprob / words), rel=1e-6)


def test_standard_errors() -> None:
    found = accuracy("acc", [True] * 30 + [False] * 70)
    assert found.value == 0.3 and found.standard_error == pytest.approx(np.std([1] * 30 + [0] * 70, ddof=1) / 10)
    nats = np.random.default_rng(0).normal(2, 1, 400)
    found = perplexity("ppl", nats.tolist())
    assert found.value == pytest.approx(math.exp(nats.mean()))
    assert found.standard_error == pytest.approx(math.exp(nats.mean()) * nats.std(ddof=1) / 20)
    assert accuracy("acc", [True]).standard_error is None and perplexity("ppl", [800.0]).value == math.inf


def test_published_values_agree_within_their_tolerance() -> None:
    result = TaskResult("lambada", (Metric("acc", 0.3260), Metric("perplexity", 45.0), Metric("other", 1.0)), 5, {})
    found = {one.metric: one.agrees for one in compare_published("124M", result) if one.agrees is not None}
    assert found == {"acc": True, "perplexity": False}
    assert all(one.agrees is None for one in compare_published("774M", result))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(make_app(), ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_command_line(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "pairs.jsonl", PAIRS)
    found = json.loads(run(file, "--task", "blimp", "--json"))
    assert found["task"] == "blimp" and found["n"] == 3 and found["settings"]["bos"] is False
    assert found["groups"]["a"]["acc"] >= 0 and "acc_stderr" in found
    table = run(file, "--task", "blimp").splitlines()
    assert table[0].split() == ["task", "metric", "value", "±", "stderr"] and table[1].startswith("blimp")
    assert run(file, "--task", "blimp", "--markdown").startswith("| task | metric | value |")
    assert "need --task" in CliRunner().invoke(make_app(), ["evaluate", str(file), "--limit", "3"]).output


@pytest.mark.parametrize(
    ("task", "content", "sentence"),
    [
        ("lambada", '{"text": 1}', "has an int under 'text', not a text"),
        ("lambada", '{"text": ""}', "has an empty text under 'text', not a text"),
        ("lambada", '{"text": "word"}', "has no last word"),
        ("lambada", "", "contains no passages"),
        ("hellaswag", '{"ctx": "a", "activity_label": "b"}', "has no list of endings"),
        ("hellaswag", '{"ctx": "a", "activity_label": "b", "endings": ["c"], "label": 4}', "has the label 4"),
        ("blimp", '{"sentence_good": "a"}', "has no text under 'sentence_bad'"),
        ("blimp", "[1]", "is not a JSON object"),
        ("blimp", "x", "is not JSON"),
        ("blimp", '{"sentence_good": "a\u2028b"}', "has no text under 'sentence_bad'"),
        ("perplexity", " \n", "has no text"),
        ("none", "x", "there is no task named 'none'"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, task: str, content: str, sentence: str) -> None:
    (tmp_path / "file.jsonl").write_text(content)
    with pytest.raises(ClearheadError, match=sentence):
        run(tmp_path / "file.jsonl", "--task", task)
    with pytest.raises(ClearheadError, match="another shape"):
        run(tmp_path / "file.jsonl", "--task", "blimp", "--published")


@pytest.mark.parametrize(
    "place, value, sentence", [(0, 1, "File 'x.jsonl' is encrypted"), (2, 97, "That compression method is not")]
)
def test_a_zip_that_cannot_be_unpacked_is_one_sentence(tmp_path: Path, place: int, value: int, sentence: str) -> None:
    """One with a password, and one that another program compressed: the two headers of its file say so."""
    with zipfile.ZipFile(tmp_path / "blimp.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.jsonl", '{"sentence_good": "a b", "sentence_bad": "a c"}')
    data = bytearray((tmp_path / "blimp.zip").read_bytes())
    data[data.index(b"PK\x03\x04") + 6 + place] = data[data.index(b"PK\x01\x02") + 8 + place] = value
    (tmp_path / "blimp.zip").write_bytes(data)
    with pytest.raises(InputError, match=rf"cannot be unpacked here \({sentence}"):
        read_blimp(tmp_path / "blimp.zip")
