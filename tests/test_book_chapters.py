"""Chapters 6 and 7 of the book with files in its own form: from a file to a model, its scores and its outputs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

import clearhead
from clearhead.config import GPTConfig
from clearhead.data.examples import draw_split
from clearhead.data.instructions import read_instructions
from clearhead.data.labelled import read_labelled
from clearhead.data.records import read_records
from clearhead.data.templates import PromptFields, PromptTemplate
from clearhead.errors import InputError, TrainingError
from clearhead.gpt import GPT
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.training.checkpoint import checkpoints
from clearhead.training.finetune import begin_finetuning
from clearhead.training.finetune_tasks import Instructions
from clearhead.training.recipe_reader import parse_recipe
from clearhead.training.run_folder import read_metrics
from clearhead.training.train import train

TRAINING = """
[training]
epochs = 2
batch_size = 8
precision = "float32"
learning_rate = 5e-3
warmup_steps = 2
log_every = 1
"""


def entries(number: int) -> list[dict[str, str]]:
    """Entries of the form of the book's instruction-data.json."""
    draw = random.Random(3)
    found = []
    for _ in range(number):
        word = draw.choice(["sun", "moon", "river", "stone"])
        given = draw.choice(["", f"The {word} is old."])
        found.append({"instruction": f"Name the {word}.", "input": given, "output": f"It is the {word}."})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and files of the book's form."""
    where = tmp_path_factory.mktemp("book")
    data = entries(60)
    tokenizer = Tokenizer.train(iter([json.dumps(entry) for entry in data] * 3 + ["free prize", "see you"]), 310)
    torch.manual_seed(3)
    config = GPTConfig(
        vocab_size=310, context_length=256, emb_dim=32, n_heads=2, n_layers=2, qkv_bias=True, tie_weights=True
    )
    GPT(GPTModel(config), tokenizer).save(where / "model")
    (where / "instruction-data.json").write_text(json.dumps(data, indent=4), encoding="utf-8")
    draw = random.Random(4)
    kinds = ("ham", "See you at {}"), ("spam", 'Free prize "{}" call now')
    rows = [(kinds[n % 2][0], kinds[n % 2][1].format(draw.randint(1, 99))) for n in range(60)]
    (where / "sms.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")
    lines = ["Label,Text", *(f'{label},"{text.replace(chr(34), chr(34) * 2)}"' for label, text in rows)]
    (where / "sms.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    return where


@pytest.mark.parametrize("name", ["sms.tsv", "sms.csv"])
def test_tables_of_messages_are_read(folder: Path, name: str) -> None:
    found = [record.values for record in read_records(folder / name, ("label", "text"))]
    assert len(found) == 60
    assert {record["label"] for record in found} == {"ham", "spam"}
    assert found[1]["text"].startswith('Free prize "')
    assert all(record.keys() == {"label", "text"} for record in found)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label\na,b,c\n", r"line 2 of .*a\.csv is 3, and that of columns in the first line 2"),
        ("a.csv", 'text,label\n"a', r"line 2 of .*a\.csv is not a row of a table"),
        (
            "a.tsv",
            "ham\thi\nspam\nham\tyes\n",
            r"line 2 of .*a\.tsv is 1, and the columns are 'label', 'text', separated",
        ),
        ("a", "ham\thi\n", r"line 1 of .* is not JSON .* or give a table a name that ends in \.csv or \.tsv"),
        ("a.json", '[{"a": 1}, 2]', r"item 2 of .*a\.json is not a JSON object"),
        ("a.json", '[{"a": 1}', r"begins like a JSON array and is not one"),
        ("a.csv", b"text,label\na\xff,b", r"is not UTF-8 text"),
    ],
)
def test_records_that_are_malformed_are_named(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words):
        list(read_records(tmp_path / name, ("label", "text")))


def test_a_row_of_other_names_is_no_example(folder: Path, tmp_path: Path) -> None:
    """A label recurs, the name of a column does not."""
    rows = (folder / "sms.tsv").read_text(encoding="utf-8")
    (tmp_path / "named.tsv").write_text(f"Category\tMessage\n{rows}", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder / "model")
    words = "'text' is missing, 'label' is missing, and there is only 'category', 'message'"
    with pytest.raises(TrainingError, match=f"line 2 of .*{words}"):
        read_labelled(tmp_path / "named.tsv", tokenizer, 99, None)
    examples, labels = read_labelled(folder / "sms.tsv", tokenizer, 99, None)
    assert (len(examples), labels) == (60, ["ham", "spam"])


def test_the_alpaca_template_is_the_books() -> None:
    """Its function format_input, of chapter 7, with the response's heading."""

    def format_input(entry: dict[str, str]) -> str:
        text = (
            f"Below is an instruction that describes a task. "
            f"Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{entry['instruction']}"
        )
        return text + (f"\n\n### Input:\n{entry['input']}" if entry["input"] else "")

    template = PromptTemplate.from_recipe("alpaca")
    for entry in entries(9):
        fields = PromptFields(entry["instruction"], entry["input"])
        assert template.fill(fields) == format_input(entry) + "\n\n### Response:\n"


def test_special_tokens_of_a_template_are_tokens_and_those_of_a_prompt_are_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder / "model")
    template = PromptTemplate.from_recipe("<|endoftext|>Q: {prompt}\n")
    assert tokenizer.end_of_text is not None
    ids = template.encode(PromptFields("<|endoftext|>a"), tokenizer)
    assert ids == [tokenizer.end_of_text, *tokenizer.encode("Q: <|endoftext|>a\n")]
    assert ids.count(tokenizer.end_of_text) == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{question}", r"unknown field \{question\}; known are \{prompt\}, \{instruction\} and \{input\}"),
        ("no field", "must contain"),
        ("{input}", "must contain"),
        ("{prompt}{prompt}", "must contain each field once"),
    ],
)
def test_a_template_that_cannot_be_is_refused(template: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        PromptTemplate.from_recipe(template)


def test_a_split_has_the_shares_and_every_example_once() -> None:
    parts = draw_split(200, 0.05, 0.1, seed=1)
    assert [len(part) for part in parts] == [170, 10, 20]
    assert sorted(n for part in parts for n in part) == list(range(200))
    assert draw_split(200, 0.05, 0.1, seed=2) != parts


def test_the_loss_counts_the_response_or_all(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder / "model")
    template = PromptTemplate.from_recipe("alpaca")
    counted = []
    for all_tokens in (False, True):
        found, _ = read_instructions(folder / "instruction-data.json", tokenizer, template, 256, all_tokens=all_tokens)
        counted.append([int((one.example.targets != -100).sum()) for one in found])
    responses = [len(tokenizer.encode(entry["output"])) + 1 for entry in entries(60)]
    assert counted[0] == responses
    assert counted[1] == [len(one.example.targets) for one in found]


def test_chapter_7_from_its_file_to_responses(folder: Path, tmp_path: Path) -> None:
    text = f"""
[finetune]
start = "{folder / "model"}"
kind = "instructions"
train = "instruction-data.json"
valid_share = 0.05
test_share = 0.1
template = "alpaca"
response_tokens = 5
lora_rank = 4
save_adapter = true
{TRAINING}"""
    out = train(parse_recipe(text), folder, tmp_path / "run")
    final = read_metrics(tmp_path / "run")[-1]
    assert final["final"].keys() == {"valid", "test"}
    assert final["step"] == 13  # two epochs of 51 examples, 8 a step
    outputs = [json.loads(line) for line in (tmp_path / "run/test.jsonl").read_text().splitlines()]
    assert len(outputs) == 6
    assert all(output.keys() == {"prompt", "expected", "response"} for output in outputs)
    gpt = clearhead.load(out)
    first = outputs[0]
    assert gpt.generate(first["prompt"], max_new_tokens=5, temperature=0).text == first["response"]
    _, _, test = draw_split(60, 0.05, 0.1, parse_recipe(text).training.seed)
    (tmp_path / "test.json").write_text(json.dumps([entries(60)[index] for index in test]))
    found = json.loads(call("evaluate", tmp_path / "test.json", "--examples", "-m", out, "--json").stdout)
    assert found["examples"] == 6 and found["left_out"] == 0  # the template is the one saved with the model
    assert found["loss"] == pytest.approx(final["final"]["test"]["loss"], abs=1e-4)
    chat = AutoTokenizer.from_pretrained(out).apply_chat_template(
        [{"role": "user", "content": "Name the sun."}], tokenize=False
    )
    assert chat == PromptTemplate.from_recipe("alpaca").fill(PromptFields("Name the sun."))


def test_an_adapter_over_the_first_model_is_the_merged_model(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    text = f"""
[finetune]
start = "{folder / "model"}"
kind = "instructions"
train = "instruction-data.json"
lora_rank = 4
lora_alpha = 8
save_adapter = true
{TRAINING}"""
    out = train(parse_recipe(text), folder, tmp_path / "run")
    base = GPT2LMHeadModel.from_pretrained(folder / "model")
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert (adapted(ids).logits - clearhead.load(out).model(ids)).abs().max() < 1e-4
    assert any(tensor.abs().max() > 0 for name, tensor in load_file(out / "adapter/adapter_model.safetensors").items())


def test_chapter_6_from_its_table_to_predictions(folder: Path, tmp_path: Path) -> None:
    """Only the last block, the final norm and the new head are trained, as in the book."""
    text = f"""
[finetune]
start = "{folder / "model"}"
kind = "classes"
train = "sms.tsv"
valid_share = 0.1
test_share = 0.2
freeze = "all but the last block"
{TRAINING.replace("epochs = 2", "epochs = 5")}"""
    out = train(parse_recipe(text), folder, tmp_path / "run")
    final = read_metrics(tmp_path / "run")[-1]["final"]
    assert final["test"]["accuracy"] > 0.9
    outputs = [json.loads(line) for line in (tmp_path / "run/test.jsonl").read_text().splitlines()]
    assert len(outputs) == 12
    assert np.mean([output["label"] == output["predicted"] for output in outputs]) == final["test"]["accuracy"]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, outputs)))
    found = json.loads(call("evaluate", tmp_path / "test.jsonl", "--examples", "-m", out, "--json").stdout)
    assert found["accuracy"] == final["test"]["accuracy"]
    assert found["loss"] == pytest.approx(final["test"]["loss"], abs=1e-4)
    before, after = load_file(folder / "model/model.safetensors"), load_file(out / "model.safetensors")
    changed = {
        name for name, tensor in after.items() if (old := before.get(name)) is not None and not torch.equal(tensor, old)
    }
    assert changed
    assert {name for name in changed if not name.startswith(("transformer.h.1.", "transformer.ln_f."))} == set()
    assert checkpoints(tmp_path / "run")


def test_a_share_of_less_than_one_example_is_refused(folder: Path) -> None:
    text = f"""
[finetune]
start = "{folder / "model"}"
kind = "instructions"
train = "instruction-data.json"
valid_share = 0.005
{TRAINING}"""
    with pytest.raises(TrainingError, match=r"valid_share 0.005 of the 60 examples of .* is less than one; raise it"):
        begin_finetuning(parse_recipe(text), folder)


def test_files_of_one_name_in_two_folders_are_both_scored(folder: Path, tmp_path: Path) -> None:
    for name, number in (("train", 8), ("valid", 3), ("test", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(json.dumps(entries(number)), encoding="utf-8")
    text = f"""
[finetune]
start = "{folder / "model"}"
kind = "instructions"
train = "train/data.json"
valid = "valid/data.json"
test = "test/data.json"
{TRAINING}"""
    task = begin_finetuning(parse_recipe(text), tmp_path).task
    assert isinstance(task, Instructions)
    found = task.data.held_out(task.valid, task.test, None)
    assert {name: len(examples) for name, examples in found.items()} == {"valid": 3, "test": 5}


def test_a_class_that_only_the_test_set_has_is_named(folder: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": "see you", "label": label}) for label in ["a", "b"] * 5]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "see", "label": "c"}))
    text = f"""
[finetune]
start = "{folder / "model"}"
kind = "classes"
train = "train.jsonl"
test = "test.jsonl"
{TRAINING}"""
    with pytest.raises(TrainingError, match="has the label 'c', which no training example has"):
        begin_finetuning(parse_recipe(text), tmp_path)
