"""The data sets of the paper's table 3, single published values, and how both are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.errors import InputError
from clearhead.evaluation import paper_tasks
from clearhead.evaluation.paper_tasks import detokenize_treebank
from clearhead.evaluation.published_scores import compare_published
from clearhead.evaluation.results import Metric, TaskResult
from clearhead.evaluation.task_scoring import TaskOptions
from clearhead.evaluation.tasks import TASKS, task_file
from clearhead.gpt import GPT
from clearhead.loading import bundled

CBT = """1 The dog had a ball .
2 `` I like my ball , '' he said .
21 Then the dog ran to get the XXXXX , and he was happy .\tball\t\tball|sky|moon

1 There was a girl .
21 The XXXXX did n't see the sun .\tmoon\t\tgirl|moon
"""


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return clearhead.load(dtype="float32")


def test_cbt_scores_the_candidate_and_the_rest_of_its_sentence(gpt: GPT, tmp_path: Path) -> None:
    file = tmp_path / "cbtest_CN_test_2500ep.txt"
    file.write_text(CBT)
    texts = [
        ('The dog had a ball. " I like my ball," he said. Then the dog ran to get the', ", and he was happy."),
        ("There was a girl. The", " didn't see the sun."),
    ]
    peer = GPT2LMHeadModel.from_pretrained(bundled(), dtype=torch.float32).eval()
    right = []
    assert gpt.tokenizer is not None
    for (before, after), choices, answer in zip(
        texts, (["ball", "sky", "moon"], ["girl", "moon"]), ("ball", "moon"), strict=True
    ):
        values = {}
        for choice in choices:
            context, ids = gpt.tokenizer.encode(before), gpt.tokenizer.encode(f"{before} {choice}{after}")
            with torch.inference_mode():
                rows = peer(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            values[choice] = sum(float(rows[at - 1, ids[at]]) for at in range(len(context), len(ids)))
        right.append(max(values, key=lambda choice: values[choice]) == answer)
    found = TASKS["cbt-cn"].evaluate(gpt, file, TaskOptions())
    assert (found.task, found.n, found["acc"].value) == ("cbt-cn", 2, sum(right) / 2)
    assert TASKS["cbt-ne"].evaluate(gpt, file, TaskOptions(limit=1)).n == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a line", "line 1 of .* has no number"),
        ("1 A dog .\n", "contains no questions"),
        ("21 The XXXXX .\tdog\t\tcat|sun\n", "line 1 of .* is not a question"),
        ("21 The dog .\tdog\t\tdog|sun\n", "line 1 of .* is not a question"),
    ],
)
def test_a_file_that_is_not_cbt_is_refused(gpt: GPT, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cbt.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        TASKS["cbt-cn"].evaluate(gpt, file, TaskOptions())


def test_the_treebank_is_detokenized() -> None:
    text = "`` I do n't know , '' said Mr. N -LRB- the dog 's -RRB- for $ 5 ."
    assert detokenize_treebank(text) == "\"I don't know,\" said Mr. N (the dog's) for $5."


def test_bits_of_files_and_of_the_end_of_whole_ones(gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the whole data set's size is scored at its end only, from the first whole character on."""
    end = "the dog was happy and the sun was big"
    file, part = tmp_path / "enwik8", tmp_path / "part"
    part.write_text(end)
    data = ("x" * 500).encode() + "é".encode() + end.encode() + "é".encode()[:1]
    file.write_bytes(data)
    monkeypatch.setattr(paper_tasks, "_WHOLE", len(data))
    monkeypatch.setattr(paper_tasks, "_HELD_OUT", len(end) + 2)
    whole, alone = TASKS["enwik8"].evaluate(gpt, file, TaskOptions()), TASKS["text8"].evaluate(gpt, part, TaskOptions())
    assert whole["bits_per_byte"].value == alone["bits_per_character"].value == alone["bits_per_byte"].value
    for task in ("ptb", "wikitext103", "1bw"):
        found = TASKS[task].evaluate(gpt, part, TaskOptions())
        assert found["word_perplexity"].value == pytest.approx(
            math.exp(alone["bits_per_byte"].value * math.log(2) * len(end) / len(end.split()))
        )


def points(gpt: GPT) -> dict[str, object]:
    """Values by transformers, in the form of lm-evaluation-harness's tests."""
    peer = GPT2LMHeadModel.from_pretrained(bundled(), dtype=torch.float32).eval()
    assert gpt.tokenizer is not None and gpt.tokenizer.end_of_text is not None

    def logs(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return peer(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    context, word = gpt.tokenizer.encode("Once upon a"), gpt.tokenizer.encode(" time")
    rows = logs([*context, *word])
    value = sum(float(rows[len(context) - 1 + i, token]) for i, token in enumerate(word))
    greedy = all(int(rows[len(context) - 1 + i].argmax()) == token for i, token in enumerate(word))
    ids = [gpt.tokenizer.end_of_text, *gpt.tokenizer.encode("The dog was very happy today")]
    alone = logs(ids[:-1])
    short = [logs(ids[:5])[i, ids[i + 1]] for i in range(5)]
    last = logs(ids[len(ids) - 6 : -1])
    short += [last[5 - (len(ids) - 6) + i, ids[6 + i]] for i in range(len(ids) - 6)]
    return {
        "loglikelihood_nats": [{"context": "Once upon a", "continuation": " time", "value": value}],
        "greedy_flags": [{"context": "Once upon a", "continuation": " time", "is_greedy": greedy}],
        "rolling": {
            "text": "The dog was very happy today",
            "with_context_1024": [float(alone[i, ids[i + 1]]) for i in range(len(ids) - 1)],
            "with_context_5": [float(one) for one in short],
        },
        "note": "ignored",
    }


def test_each_published_point_passes_or_fails(gpt: GPT, tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    given = points(gpt)
    file.write_text(json.dumps(given))
    found = TASKS["points"].evaluate(gpt, file, TaskOptions())
    assert found["passes"].value == 1.0 and found.n == len(found.groups) > 10
    given["loglikelihood_nats"][0]["value"] *= 1.002  # type: ignore[index]
    given["greedy_flags"][0]["is_greedy"] ^= True  # type: ignore[index]
    file.write_text(json.dumps(given))
    found = TASKS["points"].evaluate(gpt, file, TaskOptions())
    failing = [name for name, metrics in found.groups.items() if not metrics[-1].value]
    assert failing == ["log-likelihood 1", "greedy flag 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"it is \[\], and an object was expected"),
        ('{"rolling": {"text": "a", "with_context_5": ["x"]}}', "does not have a number for each of the text"),
        ("{}", "contains no loglikelihood_nats"),
        ('{"greedy_flags": 3}', "is not a list of objects"),
        ('{"greedy_flags": [{"context": 3}]}', "has 3 under 'context'"),
        ('{"rolling": {"text": "a", "with_context_5": []}}', "does not have a number for each"),
    ],
)
def test_a_file_that_has_no_points_is_refused(gpt: GPT, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "points.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        TASKS["points"].evaluate(gpt, file, TaskOptions())


def test_table_3_is_compared_where_it_can_be() -> None:
    result = TaskResult("cbt-ne", (Metric("acc", 0.85),), 1, {})
    (one,) = compare_published("124M", result)
    assert (one.published.value, one.agrees) == (pytest.approx(0.834), True)
    assert (
        compare_published("1558M", TaskResult("text8", (Metric("bits_per_character", 1.5),), 1, {}))[0].agrees is False
    )
    lambada = compare_published("355M", TaskResult("lambada", (Metric("acc", 0.5), Metric("perplexity", 15.0)), 1, {}))
    assert [(one.metric, one.agrees) for one in lambada] == [("acc", None), ("perplexity", None)]
    sliding = TaskResult("perplexity", (Metric("token_perplexity", 19.44),), 1, {"stride": 1024})
    assert [one.agrees for one in compare_published("774M", sliding)] == [True]


def test_the_command_shows_what_is_not_comparable(tmp_path: Path) -> None:
    file = tmp_path / "cbt.txt"
    file.write_text(CBT)
    shown = CliRunner().invoke(make_app(), ["evaluate", str(file), "--task", "cbt-cn"])
    assert shown.exit_code == 0 and "cbt-cn" in shown.output


def test_a_data_set_of_the_hub_is_read_by_datasets(tmp_path: Path) -> None:
    """A folder in a form that `datasets` loads stands for the hub, which a test cannot reach."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps({"text": "The boy had a ball"}) + "\n")
    with task_file("lambada", f"hub:{folder}") as file:
        assert [json.loads(line) for line in file.read_text().splitlines()] == [{"text": "The boy had a ball"}]
    with task_file("wikitext2", f"hub:{folder}") as file:
        assert file.read_text() == "The boy had a ball\n"
    assert not file.exists()
    shown = CliRunner().invoke(make_app(), ["evaluate", f"hub:{folder}", "--task", "lambada"])
    assert shown.exit_code == 0 and "lambada" in shown.output
    with pytest.raises(InputError, match="has no data set on the hub"), task_file("enwik8", "hub"):
        pass
    with pytest.raises(InputError, match="could not be loaded"), task_file("lambada", f"hub:{tmp_path / 'nothing'}"):
        pass
