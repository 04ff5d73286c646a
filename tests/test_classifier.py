"""Classifiers of `transformers`, opened by ours: the same probabilities as its own pipeline gives."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
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
from clearhead.evaluation.surprisal import InputText
from clearhead.evaluation.table_files import read_table
from clearhead.loading import bundled
from clearhead.training.classifier import Classifier, load_classifier
from clearhead.training.classify_texts import classify_texts

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


def test_a_byte_order_mark_in_the_config_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, **CASES["named labels"])
    found = load_classifier(tmp_path).probabilities(TEXTS[0])
    config = tmp_path / "config.json"
    config.write_text("\ufeff" + config.read_text(encoding="utf-8"), encoding="utf-8")
    assert load_classifier(tmp_path).probabilities(TEXTS[0]) == found


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
        (["--labels", "a,a"], "the classes are named a, a; give 2 different names"),
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


def classify(*words: str, **options: Any) -> str:
    """What the command prints."""
    return CliRunner().invoke(make_app(), ["classify", *words], catch_exceptions=False, **options).stdout


def check_rows(rows: list[dict[str, Any]], folder: Path, ids: list[str], texts: list[str]) -> None:
    """Compare rows of a table with what transformers' pipeline gives."""
    assert [row["id"] for row in rows] == ids
    peer = pipeline("text-classification", model=str(folder), tokenizer=AutoTokenizer.from_pretrained(folder))
    for row, text in zip(rows, texts, strict=True):
        wanted = {f"probability_{one['label']}": one["score"] for one in peer(text, top_k=None)}
        assert row["label"] == max(wanted, key=lambda name: wanted[name]).removeprefix("probability_")
        found = {name: float(value) for name, value in row.items() if name not in ("id", "label")}
        assert found == pytest.approx(wanted, abs=1e-5)


LONG = "Once upon a time there was a cake! " * 20  # longer than the context
MANY = [*TEXTS, LONG, *(f"The dog ate {'very ' * (n % 7)}many cakes, {n} of them." for n in range(300))]


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three_classes")
    save(folder, **CASES["named labels"])
    return folder


def test_batches_give_what_single_texts_give(three_classes: Path) -> None:
    """300 texts are more than are sorted together, and of many lengths."""
    ours = load_classifier(three_classes)
    rows = [row for (row,) in classify_texts(ours, (InputText(str(n), text) for n, text in enumerate(MANY)))]
    assert [row["id"] for row in rows] == [str(n) for n in range(len(MANY))]
    for row, text in list(zip(rows, MANY, strict=True))[::7]:
        found = ours.probabilities(text)
        assert {name: row[f"probability_{name}"] for name in found} == pytest.approx(found, abs=1e-5)


def test_tables_and_lines_from_the_command_line(three_classes: Path, tmp_path: Path) -> None:
    model = ("-m", str(three_classes))
    table, lines, texts = tmp_path / "t.csv", tmp_path / "t.jsonl", tmp_path / "t.txt"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["n", "said"], *([f"x{n}", text] for n, text in enumerate(TEXTS))])
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    texts.write_text("\n\n".join(TEXTS))
    found = classify("--file", str(table), "--text", "said", "--id", "n", "--json", *model)
    check_rows([json.loads(line) for line in found.splitlines()], three_classes, ["x0", "x1", "x2"], TEXTS)
    found = classify("--file", str(lines), "-f", str(texts), "--lines", "--json", *model)
    ids = ["t.jsonl:1", "t.jsonl:2", "t.jsonl:3", "t.txt:1", "t.txt:3", "t.txt:5"]
    check_rows([json.loads(line) for line in found.splitlines()], three_classes, ids, TEXTS * 2)
    array = tmp_path / "t.json"
    array.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    found = classify("--file", str(array), "--json", *model)
    check_rows(
        [json.loads(line) for line in found.splitlines()], three_classes, [f"t.json:{n}" for n in (1, 2, 3)], TEXTS
    )
    found = classify("--lines", "--json", *model, input="\n".join(TEXTS))
    ids = ["stdin:1", "stdin:2", "stdin:3"]
    check_rows([json.loads(line) for line in found.splitlines()], three_classes, ids, TEXTS)
    labelled = tmp_path / "sms.tsv"  # without names of its columns, as the classifier of such a file is trained
    labelled.write_text("".join(f"ham\t{text}\n" for text in TEXTS))
    found = classify("--file", str(labelled), "--json", *model)
    check_rows(
        [json.loads(line) for line in found.splitlines()], three_classes, [f"sms.tsv:{n}" for n in (1, 2, 3)], TEXTS
    )
    expected = load_classifier(three_classes).probabilities(TEXTS[1])
    printed = classify("--lines", *model, input="\n".join(TEXTS)).splitlines()
    label, probability = next(iter(expected.items()))
    assert len(printed) == 3 and printed[1] == f"stdin:2  {100 * probability:5.1f}%  {label}"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_classes_of_a_file_as_a_table(three_classes: Path, tmp_path: Path, suffix: str) -> None:
    source, output = tmp_path / "t.txt", tmp_path / f"classes{suffix}"
    source.write_text("\n".join(TEXTS))
    words = ["-f", str(source), "--lines", "-m", str(three_classes), "-o", str(output)]
    classify(*words)
    if suffix == ".csv":
        with output.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = list(read_table(output))
    check_rows(rows, three_classes, ["t.txt:1", "t.txt:2", "t.txt:3"], TEXTS)
    if suffix == ".jsonl":
        assert json.loads((tmp_path / "classes.jsonl.metadata.json").read_text())["labels"] == [
            "good",
            "bad",
            "neither",
        ]


def test_an_interrupted_table_is_resumed(three_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearhead.evaluation.table_files._PART_ROWS", 1)
    monkeypatch.setattr("clearhead.training.classify_texts._GROUP", 1)
    output, computed, original = tmp_path / "classes.jsonl", [0], Classifier.probabilities_of

    def interrupted(self: Classifier, texts: Sequence[Sequence[int]]) -> list[dict[str, float]]:
        computed[0] += 1
        if computed[0] == 3:
            raise InputError("interrupted")
        return original(self, texts)

    monkeypatch.setattr(Classifier, "probabilities_of", interrupted)
    words = ["--lines", "-m", str(three_classes), "-o", str(output)]
    with pytest.raises(InputError, match="interrupted"):
        classify(*words, input="\n".join(TEXTS))
    assert not output.exists()
    classify(*words, input="\n".join(TEXTS))
    assert computed == [4]  # two, the one that was interrupted, and it again
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    check_rows(rows, three_classes, ["stdin:1", "stdin:2", "stdin:3"], TEXTS)


def test_a_table_of_a_regression_and_of_several_classes(tmp_path: Path) -> None:
    for case, columns in (("a regression", ["value_LABEL_0"]), ("several labels at once", ["probability_LABEL_3"])):
        save(tmp_path / case, **CASES[case])
        found = json.loads(classify("--lines", "--json", "-m", str(tmp_path / case), input=TEXTS[0]))
        ours = load_classifier(tmp_path / case)
        alone = ours.probabilities(TEXTS[0])
        assert list(found)[-1:] == columns and found["label"] == ", ".join(ours.likely(alone))
        assert found[columns[0]] == pytest.approx(alone[columns[0].partition("_")[2]], abs=1e-5)
        printed = classify("--lines", "-m", str(tmp_path / case), input=TEXTS[0])
        assert printed.startswith("stdin:1  ") and ("%" in printed) == (case != "a regression")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--file", "t.csv"], "t.csv has no column 'text'; it has n, said."),
        (["--file", "t.tsv"], "t.tsv has no column 'text'; it has n, said."),
        (["--file", "t.csv", "--text", "said"], "in line 3 of t.csv: the text to classify is empty; give some text."),
        (["a text", "--lines"], "a text was given as an argument"),
        (["--output", "o.csv"], "--output writes the classes of the texts in files"),
        (["--file", "t.csv", "--text", "said", "-o", "o.txt"], "o.txt has no known suffix"),
        (["--lines", "--file", "empty.txt"], "there is no text in the input"),
    ],
)
def test_input_that_cannot_be_classified(
    three_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("n,said\n1,a text\n2,\n")
    Path("t.tsv").write_text("n\tsaid\n1\ta text\n2\tanother\n")
    Path("empty.txt").write_text("\n")
    with pytest.raises(InputError) as caught:
        classify(*words, "-m", str(three_classes))
    assert sentence in str(caught.value)
