"""`clearhead score`: tables of tokens, words and regions, against transformers and minicons."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2LMHeadModel
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.errors import ClearheadError, InputError
from clearhead.evaluation.surprisal import InputText, Row, SurprisalOptions, SurprisalTable
from clearhead.evaluation.table_files import TableWriter, read_table
from clearhead.evaluation.text_inputs import Columns, read_texts
from clearhead.evaluation.words import TextSpan, assign_tokens, find_words, token_ends
from clearhead.gpt import GPT
from clearhead.loading import bundled
from clearhead.tokenizer import Tokenizer
from clearhead.verification.reference_text import TEXT

ODD = "  Once upon a time, e\u0301 naïve 🙂👩‍👩‍👧 \u200bbear — 北京\u00a0\x00\t  cat's\r\n\nend.\n "
TEXTS = st.text(min_size=1, max_size=60).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    """The bundled model in float32."""
    return clearhead.load(dtype="float32")


def rows_of(gpt: GPT, texts: Sequence[str], **options: Any) -> list[list[Row]]:
    table = SurprisalTable(gpt, SurprisalOptions(**options))
    return list(table.rows(InputText(str(number), text) for number, text in enumerate(texts)))


# --- positions -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(TEXTS)
def test_rows_cut_the_text_exactly(gpt: GPT, text: str) -> None:
    (tokens,), (words,) = rows_of(gpt, [text]), rows_of(gpt, [text], by="word")
    assert "".join(row["token"] for row in tokens) == text
    assert bytes.fromhex("".join(row["bytes"] for row in tokens)) == text.encode()
    assert [row["char_end"] for row in tokens[:-1]] == [row["char_start"] for row in tokens[1:]]
    assert [row["word"] for row in words] == text.split()
    for row in [*words, *tokens]:
        assert text[row["char_start"] : row["char_end"]] == row["word" if "n_tokens" in row else "token"]
    assert sum(row["n_tokens"] for row in words) == (len(tokens) if words else 0)


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_sums_of_words_are_the_text_and_the_correction_changes_the_ends_only(gpt: GPT, text: str) -> None:
    (words,) = rows_of(gpt, [text], by="word")
    if not words:
        return
    whole = gpt.score(text)
    assert gpt.tokenizer is not None and whole.bos is not None
    assert math.fsum(row["surprisal"] for row in words) == pytest.approx(whole.surprisal, abs=1e-4)
    ids = [whole.bos, *gpt.tokenizer.encode(text)]
    logits = torch.from_numpy(gpt.runner.logits(ids)).double().log_softmax(-1)
    space, end = spaces(gpt.tokenizer), gpt.tokenizer.end_of_text
    assert end is not None
    after = -torch.logsumexp(logits[-1, [*space, end]], 0)
    others = [token for token in range(len(logits[0])) if token not in space]
    before = -torch.logsumexp(logits[0, [*space, end] if ids[1] in space else others], 0)
    expected = whole.surprisal + float(after - before) / math.log(2)
    assert math.fsum(row["corrected"] for row in words) == pytest.approx(expected, abs=1e-3)


def spaces(tokenizer: Tokenizer) -> set[int]:
    return {id for id, _ in tokenizer.names() if tokenizer.token_bytes(id)[:1] in b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"}


@pytest.mark.slow
def test_a_thousand_random_texts_are_as_by_transformers(gpt: GPT) -> None:
    peer = GPT2LMHeadModel.from_pretrained(bundled(), dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    letters = [*"abcdefghij ,.'\n\t", "é", "e\u0301", "北", "🙂", "\u200b", "\u00a0", " the", " dog", " said"]
    texts = ["".join(rng.choice(letters, rng.integers(1, 40))) for _ in range(1000)]
    assert gpt.tokenizer is not None
    for text, rows in zip(texts, rows_of(gpt, texts), strict=True):
        ids = [gpt.tokenizer.end_of_text or 0, *gpt.tokenizer.encode(text)]
        with torch.inference_mode():
            logs = peer(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = -logs[torch.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose([row["surprisal_nats"] for row in rows], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:tokenizer is changed")
def test_words_are_those_of_minicons(gpt: GPT) -> None:
    """200 sentences, with its options: a token before the text, and its correction."""
    scorer = pytest.importorskip("minicons.scorer")
    model = GPT2LMHeadModel.from_pretrained(bundled(), dtype=torch.float32).eval()
    peer = scorer.IncrementalLMScorer(model, "cpu", tokenizer=AutoTokenizer.from_pretrained(bundled()))
    texts = [sentence.strip() + "." for sentence in TEXT.replace("\n\n", " ").replace('"', "").split(".") * 4][:200]
    texts = [text for text in texts if " " in text]
    for corrected in (False, True):
        theirs = peer.word_score_tokenized(
            texts, lambda text: text.split(), bos_token=True, surprisal=True, bow_correction=corrected
        )
        ours = rows_of(gpt, texts, by="word", correction="minicons")
        column = "corrected_nats" if corrected else "surprisal_nats"
        for their_words, our_words in zip(theirs, ours, strict=True):
            assert [word for word, _ in their_words] == [row["word"] for row in our_words]
            assert [row[column] for row in our_words] == pytest.approx([v for _, v in their_words], abs=2e-4)


def test_tokens_of_a_tokenizer_with_a_space_before_the_text(tmp_path: Path) -> None:
    definition = json.loads((bundled() / "tokenizer.json").read_text(encoding="utf-8"))
    definition["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = Tokenizer.from_json(tmp_path / "tokenizer.json")
    for text in ("dog", " dog", ODD):
        ends = token_ends(text, tokenizer.encode(text), tokenizer)
        assert ends[-1] == len(text) and ends == sorted(ends)


def test_a_token_belongs_to_the_span_of_its_first_visible_character() -> None:
    text, ends = "  ab, cd  ", [1, 4, 5, 8, 10]  # " ", " ab", ",", " cd", "  "
    assert assign_tokens(text, ends, find_words(text)) == [0, 0, 0, 1, 1]
    assert assign_tokens(text, ends, [TextSpan(2, 4), TextSpan(6, 8)]) == [0, 0, -1, 1, 1]
    assert assign_tokens(text, ends, []) == [-1] * 5
    assert assign_tokens("北京", [0, 0, 1, 1, 2], [TextSpan(0, 1), TextSpan(1, 2)]) == [0, 0, 0, 1, 1]


def test_chinese_words(gpt: GPT) -> None:
    pytest.importorskip("jieba")
    (rows,) = rows_of(gpt, ["我来到北京清华大学 today"], by="word", words="jieba")
    assert [row["word"] for row in rows] == ["我", "来到", "北京", "清华大学", "today"]
    total = gpt.score("我来到北京清华大学 today").surprisal
    assert math.fsum(row["surprisal"] for row in rows) == pytest.approx(total, abs=1e-4)


def test_without_a_token_before_the_text_the_first_is_not_scored(gpt: GPT) -> None:
    (tokens,), (words,) = rows_of(gpt, ["The dog sat"], bos=False), rows_of(gpt, ["The dog sat"], by="word", bos=False)
    assert tokens[0]["surprisal"] is None and tokens[0]["bos"] is None and tokens[1]["context_length"] == 1
    assert words[0]["surprisal"] is words[0]["corrected"] is None
    assert words[1]["surprisal"] == pytest.approx(tokens[1]["surprisal"])


def test_long_texts_state_window_and_context(gpt: GPT) -> None:
    (rows,) = rows_of(gpt, [TEXT], stride=100, top=2)
    length = gpt.config.context_length
    assert rows[length - 1]["context_length"] == length and rows[length]["context_length"] == length - 99
    assert [rows[index]["window"] for index in (0, length - 1, length, length + 100)] == [0, 0, 1, 2]
    best = rows[5]
    assert best["rank"] > 0 or best["top_1_id"] == best["token_id"]
    assert best["top_1_surprisal"] <= best["top_2_surprisal"]


# --- the command line ----------------------------------------------------------------------------------


def run(*arguments: object) -> str:
    result = CliRunner().invoke(make_app(), ["score", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_every_format_has_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeff" + ODD, encoding="utf-8", newline="")
    (tmp_path / "b.txt").write_text("The end.", encoding="utf-8")
    files = tmp_path / "a.txt", tmp_path / "b.txt"
    printed = [json.loads(line) for line in run(*files).splitlines()]
    for suffix in (".jsonl", ".csv", ".parquet"):
        run(*files, "-o", tmp_path / f"out{suffix}")
        assert not (tmp_path / f"out{suffix}.parts").exists()
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == printed
    assert list(read_table(tmp_path / "out.parquet")) == printed
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["surprisal"]) for row in table] == [row["surprisal"] for row in printed]
    assert "".join(row["token"] for row in printed if row["text_id"] == "a.txt") == ODD
    import pyarrow.parquet

    stored = json.loads(pyarrow.parquet.read_schema(tmp_path / "out.parquet").metadata[b"clearhead"])
    assert stored == json.loads((tmp_path / "out.csv.metadata.json").read_text())
    assert stored["bos"] == 4095 and stored["dtype"] == "float32" and len(stored["weights_sha256"]) == 64


def test_what_decides_the_numbers_goes_to_standard_error_with_the_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The end.")
    run(tmp_path / "a.txt", "--by", "word", "-o", tmp_path / "out.csv")
    result = CliRunner().invoke(make_app(), ["score", str(tmp_path / "a.txt"), "--by", "word"])
    said = json.loads(result.stderr.strip().splitlines()[-1].removeprefix("clearhead: "))
    assert said == json.loads((tmp_path / "out.csv.metadata.json").read_text()) and said["words"] == "whitespace"


def test_tables_with_context_and_regions(gpt: GPT, tmp_path: Path) -> None:
    (tmp_path / "items.tsv").write_text("item\tbefore\tsentence\n7\tThe big dog\t sat on the mat.\n8\t\tThe end\n")
    rows = [
        json.loads(line)
        for line in run(
            tmp_path / "items.tsv", "--id", "item", "--text", "sentence", "--context", "before", "--by", "word"
        ).splitlines()
    ]
    assert [row["word"] for row in rows] == ["sat", "on", "the", "mat.", "The", "end"]
    assert math.fsum(row["surprisal"] for row in rows[:4]) == pytest.approx(
        gpt.score("The big dog", " sat on the mat.").surprisal, abs=1e-4
    )
    (tmp_path / "regions.csv").write_text("text_id,start,end,region\n7,8,15,place\n7,0,4,verb\n")
    rows = [
        json.loads(line)
        for line in run(
            tmp_path / "items.tsv", "--id", "item", "--text", "sentence", "--by", "region", "--regions",
            tmp_path / "regions.csv",
        ).splitlines()
    ]  # fmt: skip
    assert [(row["region"], row["text"]) for row in rows] == [("verb", " sat"), ("place", "the mat")]


def test_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("The dog.\n\nThe cat.\n")
    rows = [json.loads(line) for line in run(tmp_path / "lines.txt", "--lines", "--by", "word").splitlines()]
    assert [row["text_id"] for row in rows] == ["lines.txt:1"] * 2 + ["lines.txt:3"] * 2


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "strange name"])
def test_a_job_with_a_damaged_part_resumes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, damage: str
) -> None:
    monkeypatch.setattr("clearhead.evaluation.table_files._PART_ROWS", 1)
    texts = [[{"text_id": str(text), "value": text / 3}] for text in range(5)]

    def stops() -> Any:
        yield from texts[:4]
        raise KeyboardInterrupt

    output = tmp_path / f"out{suffix}"
    with pytest.raises(KeyboardInterrupt):
        TableWriter(output, {}, {}).write(stops())
    second = sorted((tmp_path / f"out{suffix}.parts").glob(f"*{suffix}"))[1]
    data = second.read_bytes()
    if damage == "strange name":
        second.rename(second.with_name(f"000001-x{suffix}"))
    else:
        second.write_bytes(data[:-1] if damage == "cut" else data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    writer = TableWriter(output, {}, {})
    assert writer.done == 1
    writer.write(texts[1:])
    TableWriter(whole := tmp_path / f"whole{suffix}", {}, {}).write(texts)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_an_interrupted_job_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr("clearhead.evaluation.table_files._PART_ROWS", 10)
    texts = [[{"text_id": str(text), "value": row / 3} for row in range(6)] for text in range(7)]

    def stops() -> Any:
        yield from texts[:5]
        raise KeyboardInterrupt

    output, job = tmp_path / f"out{suffix}", {"files": ["a"]}
    with pytest.raises(KeyboardInterrupt):
        TableWriter(output, job, {}).write(stops())
    assert not output.exists()
    assert TableWriter(output, job, {}).done == 4  # two parts of two texts
    assert TableWriter(output, {"files": ["b"]}, {}).done == 0  # another job begins anew
    with pytest.raises(KeyboardInterrupt):
        TableWriter(output, job, {}).write(stops())
    writer = TableWriter(output, job, {"model": "x"})
    writer.write(texts[writer.done :])
    whole = tmp_path / f"whole{suffix}"
    TableWriter(whole, job, {"model": "x"}).write(texts)
    if suffix == ".parquet":
        assert list(read_table(output)) == list(read_table(whole)) == [row for text in texts for row in text]
    else:
        assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


@pytest.mark.parametrize(
    ("name", "content", "arguments", "sentence"),
    [
        ("a.csv", "text,id\nhello,1\n", ["--text", "sentence"], "has no column 'sentence'; it has text, id"),
        ("a.csv", 'text\n""\n', [], "line 2 of .* is empty"),
        ("a.txt", "", [], "a.txt is empty"),
        ("a.csv", "text\nShe left, then came back.\n", [], "is 2, and that of columns in the first line 1"),
        ("a.tsv", 'text\n"Yes" he said\n', [], "line 2 of .* is not a row of a table"),
        ("a.csv", "text,Text\na,b\n", [], "names the column 'text' twice"),
        ("a.csv", b"text\n" + b"a line\n" * 9000 + b"caf\xe9\n", [], "is not UTF-8 text .*at byte 63,008"),
        ("a.jsonl", "[1]\n", [], "is not a JSON object"),
        ("a.jsonl", "{\n", [], "is not JSON"),
        ("a.jsonl", '{"text": 3}', [], "contains 3; give text"),
        ("a.txt", b"caf\xe9", [], "is not UTF-8 text"),
        ("a.txt", "text", ["--words", "letters", "--by", "word"], "no rule for words named 'letters'"),
        ("a.txt", "text", ["--top", "5000"], "top is 5000"),
        ("a.txt", "text", ["--stride", "0"], "stride is 0"),
        ("a.txt", "text", ["-o", "out.xlsx"], "has no known suffix"),
        ("none.txt", None, [], "could not be read"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, arguments: list[str], sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ClearheadError, match=sentence):
        run(tmp_path / name, *arguments)


@pytest.mark.parametrize(
    ("regions", "sentence"),
    [
        ("a.txt,0,4,x\na.txt,2,5,y", "overlap"),
        ("a.txt,4,99,x", "within the 9 characters"),
        ("a.txt,x,3,y", "whole numbers"),
        ("a.txt,0,4,x\nb.txt,0,3,y", "region of text 'b.txt', which is not among the texts; .* 'a.txt'"),
        ("a.txt,0,3,x", r"cuts 'e.' in two at 3"),
        ("a.txt,0,6,x", "in two at 6"),
    ],
)
def test_regions_that_do_not_fit(tmp_path: Path, regions: str, sentence: str) -> None:
    (tmp_path / "a.txt").write_text("The\u0301 \U0001f469\u200d\U0001f469.", encoding="utf-8")
    (tmp_path / "regions.csv").write_text("text_id,start,end,region\n" + regions + "\n")
    with pytest.raises(InputError, match=sentence):
        run(tmp_path / "a.txt", "--by", "region", "--regions", tmp_path / "regions.csv")


def test_texts_come_from_every_form_of_table(tmp_path: Path) -> None:
    """With a value of two lines, one longer than Python's limit, and characters at which `splitlines` ends a line."""
    texts = ['"Yes," she\nsaid.', "a\u2028b\x0cc\x85d", "long " * 40_000]
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["ID", " Text"], *enumerate(texts)])
    with (tmp_path / "a.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["id", "text"], *enumerate(texts)])
    rows = [{"id": index, "text": text} for index, text in enumerate(texts)]
    lines_of_json = (json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines_of_json), encoding="utf-8")
    (tmp_path / "array.jsonl").write_text(json.dumps(rows, indent=1))
    for name in ("a.csv", "a.tsv", "a.jsonl", "array.jsonl"):
        found = list(read_texts([tmp_path / name], Columns("text", "id")))
        assert [(one.id, one.text) for one in found] == [(str(row["id"]), row["text"]) for row in rows], name
    lines = tmp_path / "lines.txt"
    lines.write_bytes("one\u2028line\r\n\r\nanother\x0cline".encode())
    assert [one.text for one in read_texts([lines], lines=True)] == ["one\u2028line", "another\x0cline"]


def test_other_regions_are_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, regions = tmp_path / "a.txt", tmp_path / "regions.csv"
    text.write_text("The end.")
    jobs: list[Any] = []
    monkeypatch.setattr("clearhead.cli.score.write_table", lambda *given, **_: jobs.append(given[3]))
    for lines in ("a.txt,0,3", None, "a.txt,0,3\na.txt,4,7"):
        if lines is not None:
            regions.write_text(f"text_id,start,end\n{lines}\n")
        run(text, "--by", "region", "--regions", regions, "-o", tmp_path / "out.csv")
    assert jobs[0] == jobs[1] != jobs[2]


def test_a_model_without_a_tokenizer(gpt: GPT) -> None:
    with pytest.raises(InputError, match="has no tokenizer"):
        SurprisalTable(GPT(lambda: gpt.model, None, runner=gpt.runner))
