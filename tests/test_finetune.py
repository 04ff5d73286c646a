"""Fine-tuning: texts, responses and classes, all weights and LoRA, against transformers and peft on a plain loop."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from small_runs import ALONE, assert_equal_runs, one_step
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2LMHeadModel, pipeline
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.config import GPTConfig
from clearhead.data.documents import encode_documents
from clearhead.data.examples import Example, ExampleBatches, pad_together
from clearhead.data.instructions import read_instructions
from clearhead.data.sources import text_file
from clearhead.data.templates import PromptTemplate
from clearhead.errors import ClearheadError, TrainingError, WeightsError
from clearhead.gpt import GPT
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer
from clearhead.training.classifier import load_classifier
from clearhead.training.finetune import begin_finetuning
from clearhead.training.finetune_tasks import MoreText
from clearhead.training.loop import Run
from clearhead.training.lora import merge_lora
from clearhead.training.recipe import Recipe
from clearhead.training.recipe_reader import parse_recipe
from clearhead.training.run_folder import read_metrics
from clearhead.training.train import train

RECIPE = """
[finetune]
start = "{start}"
kind = "{kind}"
train = "train.{ending}"
valid = "valid.{ending}"
{more}

[training]
steps = 24
batch_size = 8
precision = "float32"
learning_rate = 5e-3
warmup_steps = 2
schedule = "cosine"
log_every = 1
evaluate_every = 12
checkpoint_every = 12
"""
GOOD, BAD = ["warm", "bright", "kind", "sweet"], ["cold", "dark", "mean", "sour"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, and files of each kind."""
    where = tmp_path_factory.mktemp("examples")
    draw = random.Random(5)

    def sentence(words: list[str]) -> str:
        return f"The {draw.choice(words)} {draw.choice(['day', 'cake', 'dog'])} was {draw.choice(words)}."

    texts = [sentence(GOOD + BAD) for _ in range(400)]
    tokenizer = Tokenizer.train(iter(texts), 300)
    torch.manual_seed(3)
    config = GPTConfig(
        vocab_size=300, context_length=48, emb_dim=32, n_heads=2, n_layers=2, qkv_bias=True, tie_weights=True
    )
    GPT(GPTModel(config), tokenizer).save(where / "model")
    (where / "train.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    (where / "valid.txt").write_text("\n<|endoftext|>\n".join(sentence(GOOD + BAD) for _ in range(30)))
    for name, number in (("train", 60), ("valid", 21)):
        lines = []
        for n in range(number):
            words, label = (GOOD, "good") if n % 2 else (BAD, "bad")
            text = sentence(words)
            lines.append({"text": text, "label": label, "prompt": text, "response": f" It is {label}."})
        (where / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return where


def recipe(folder: Path, kind: str, more: str = "") -> Recipe:
    ending = "txt" if kind == "text" else "jsonl"
    return parse_recipe(RECIPE.format(start=folder / "model", kind=kind, ending=ending, more=more))


def run_of(folder: Path, kind: str, out: Path, more: str = "") -> Run:
    start = begin_finetuning(recipe(folder, kind, more), folder)
    return Run(start.recipe, start.task, out, ALONE, start.model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "instructions", "classes"])
@pytest.mark.parametrize("more", ["", "lora_rank = 4"])
def test_it_learns_and_leaves_an_ordinary_folder(folder: Path, kind: str, more: str, tmp_path: Path) -> None:
    out = train(recipe(folder, kind, more), folder, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 24
    assert losses[-1] < losses[0] - 0.1
    final = lines[-1]["final"]["valid.txt" if kind == "text" else "valid.jsonl"]
    assert final["loss"] < losses[0]
    if kind == "classes":
        assert final["accuracy"] >= 0.8
    else:
        assert (final.keys() == {"loss"}) == (kind == "instructions")
        gpt = clearhead.load(out)
        assert sum(p.numel() for p in gpt.model.parameters()) == sum(
            p.numel() for p in clearhead.load(folder / "model").model.parameters()
        )
        peer = GPT2LMHeadModel.from_pretrained(out).eval()
        ids = torch.arange(40)[None]
        with torch.inference_mode():
            assert (peer(ids).logits - gpt.model(ids)).abs().max() < 1e-4


@pytest.mark.slow
def test_classes_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    out = train(recipe(folder, "classes", "lora_rank = 4"), folder, tmp_path / "run")
    peer = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    ours = load_classifier(out)
    texts = [json.loads(line)["text"] for line in (folder / "valid.jsonl").read_text().splitlines() if line]
    right = 0
    for text in texts:
        found = ours.probabilities(text)
        with torch.inference_mode():
            logits = peer(**tokenizer(text, return_tensors="pt")).logits[0]
        expected = {peer.config.id2label[n]: p for n, p in enumerate(logits.softmax(-1).tolist())}
        assert found == pytest.approx(expected, abs=1e-5)
        right += next(iter(found)) == ("good" if any(word in text for word in GOOD) else "bad")
    batched = pipeline("text-classification", model=peer, tokenizer=tokenizer)(texts, batch_size=4)
    for text, answer in zip(texts, batched, strict=True):
        assert answer["score"] == pytest.approx(ours.probabilities(text)[answer["label"]], abs=1e-5)
    recorded = read_metrics(tmp_path / "run")[-1]["final"]["valid.jsonl"]["accuracy"]
    assert right / len(texts) == pytest.approx(recorded)
    said = CliRunner().invoke(make_app(), ["classify", "The warm cake was sweet.", "--model", str(out), "--json"])
    assert json.loads(said.output) == pytest.approx(ours.probabilities("The warm cake was sweet."))
    (tmp_path / "asked.txt").write_bytes(b" The warm cake \r\n")  # as it stands, but for the end of the line
    said = CliRunner().invoke(
        make_app(), ["classify", "--file", str(tmp_path / "asked.txt"), "--model", str(out), "--json"]
    )
    assert json.loads(said.output) == pytest.approx(ours.probabilities(" The warm cake "))
    assert clearhead.load(out).config.emb_dim == 32  # the body is there for what needs no head


def test_the_loss_is_on_the_responses_only(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, "instructions", tmp_path)
    tokenizer = run.task.tokenizer
    peer = GPT2LMHeadModel.from_pretrained(folder / "model")
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines() if line]
    by_input = {}
    for line in lines:
        before, after = tokenizer.encode(line["prompt"]), tokenizer.encode(line["response"])
        assert tokenizer.end_of_text is not None
        by_input[(*before, *after)] = (len(before), [*before, *after, tokenizer.end_of_text])
    inputs, targets = run.task.draw(0)
    total, count = 0.0, 0
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        key = next(key for key in by_input if tuple(row[: len(key)]) == key)
        prompt, ids = by_input[key]
        labels = torch.tensor(ids)
        with torch.no_grad():
            logits = peer(labels[None]).logits[0]
        total += F.cross_entropy(logits[prompt - 1 : -1], labels[prompt:], reduction="sum").item()
        count += len(ids) - prompt
        assert [t for t in wanted if t != -100] == ids[prompt:]
    assert one_step(run).loss == pytest.approx(total / count, abs=1e-4)


def test_lora_learns_as_peft_on_transformers_does(folder: Path, tmp_path: Path) -> None:
    """peft on transformers' GPT-2, a loop of its own: the same losses. Their qkv, out, up, down are Conv1D."""
    from peft import LoraConfig, get_peft_model

    run = run_of(folder, "text", tmp_path, "lora_rank = 3\nlora_alpha = 6")
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"], fan_in_fan_out=True
    )
    peer = get_peft_model(GPT2LMHeadModel.from_pretrained(folder / "model"), config)
    names = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    theirs = dict(peer.named_parameters())
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if "lora_" in name:
                _, layer, _, matrix, *rest = name.split(".")
                theirs[f"base_model.model.transformer.h.{layer}.{names[matrix]}.{'.'.join(rest)}"].copy_(parameter)
    t = run.recipe.training
    learned = [p for p in peer.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) == sum(p.numel() for p in run.stepper.parameters)
    optimizer = torch.optim.AdamW(learned, lr=1.0, betas=(t.beta_1, t.beta_2), weight_decay=t.weight_decay)
    for step in range(5):
        inputs, targets = map(torch.from_numpy, run.task.draw(step))
        loss = F.cross_entropy(peer(inputs).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, t.clip_norm)
        found = one_step(run)
        for group in optimizer.param_groups:
            group["lr"] = t.learning_rate * found.rate
        optimizer.step()
        optimizer.zero_grad()
        assert found.loss == pytest.approx(loss.item(), abs=1e-4)


def test_merging_changes_nothing_but_the_form(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, "text", tmp_path, "lora_rank = 4")
    for _ in range(5):
        one_step(run)
    run.model.eval()
    ids = torch.arange(96).reshape(2, 48)
    with torch.inference_mode():
        before = run.model(ids)
        assert (merge_lora(run.model)(ids) - before).abs().max() < 1e-4
        assert torch.equal(run.model(ids), before)  # the model that learns was not touched
        assert (before - clearhead.load(folder / "model").model(ids)).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "lora_rank = 4\nlora_dropout = 0.2"])
def test_a_fine_tuning_that_stops_goes_on_exactly(folder: Path, more: str, tmp_path: Path) -> None:
    whole = recipe(folder, "instructions", more)
    text = whole.text.replace('schedule = "cosine"', "decay_steps = 10")
    whole, short = (
        parse_recipe(text),
        parse_recipe(text.replace("steps = 24", "steps = 13").replace("decay_steps = 10", "")),
    )
    train(whole, folder, tmp_path / "one")
    train(short, folder, tmp_path / "two")
    train(whole, folder, tmp_path / "two", resume=True)
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_fine_tuning_goes_on_from_any_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model by a path from the first folder, or by another; what is held out may change, what is learned not."""
    text = recipe(folder, "instructions").text.replace(str(folder / "model"), "model")
    text = text.replace('schedule = "cosine"', "").replace("steps = 24", "steps = 3")
    (tmp_path / "recipe.toml").write_text(text)
    monkeypatch.chdir(folder)
    first = ["train", str(tmp_path / "recipe.toml"), "--data", str(folder), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(make_app(), first, catch_exceptions=False).exit_code == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/recipe.toml").write_text(text.replace("steps = 3", "steps = 4"))
    CliRunner().invoke(make_app(), ["train", "--resume", "--out", "run"], catch_exceptions=False)
    other = text.replace('"model"', f'"{folder}/../{folder.name}/model"').replace("steps = 3", "steps = 5")
    (tmp_path / "recipe.toml").write_text(other.replace('valid = "valid.jsonl"', 'valid = "train.jsonl"'))
    CliRunner().invoke(make_app(), ["train", "recipe.toml", "--resume", "--out", "run"], catch_exceptions=False)
    assert read_metrics(tmp_path / "run")[-1]["final"].keys() == {"train.jsonl"}
    (tmp_path / "recipe.toml").write_text(other.replace("[training]", "lora_rank = 4\n[training]"))
    with pytest.raises(TrainingError, match="lora_rank was 0 and is 4"):
        CliRunner().invoke(make_app(), ["train", "recipe.toml", "--resume", "--out", "run"], catch_exceptions=False)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    size=st.integers(1, 7),
    seed=st.integers(0, 1000),
    step=st.integers(0, 50),
)
def test_batches_of_examples_depend_on_the_step_alone_and_see_all_once_an_epoch(
    lengths: list[int], size: int, seed: int, step: int
) -> None:
    examples = [Example(np.full(n, i), np.full(n, i)) for i, n in enumerate(lengths)]
    batches = ExampleBatches(examples, size, seed, 90)
    expected = ExampleBatches(examples, size, seed, 90).draw(step)
    seen = [int(row[0]) for s in range(len(lengths)) for row in batches.draw(s)[0]]  # `size` whole epochs
    for epoch in range(size):
        assert sorted(seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
    assert all((a == b).all() for a, b in zip(batches.draw(step), expected, strict=True))
    assert (
        (expected[1] == -100).sum(axis=1) == expected[1].shape[1] - np.array([lengths[r[0]] for r in expected[1]])
    ).all()


@pytest.mark.parametrize("kind", ["instructions", "classes"])
def test_examples_as_long_as_the_context_are_learned_from(folder: Path, kind: str, tmp_path: Path) -> None:
    """The model has 48 positions, which is no multiple of what the length of a batch is rounded up to."""
    tokenizer = clearhead.load(folder / "model").tokenizer
    assert tokenizer is not None
    text = tokenizer.decode(tokenizer.encode(" The warm day was kind." * 20)[:40])
    line = {"text": text, "prompt": "The", "response": text}
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps({**line, "label": n % 2}) for n in range(8)))
    start = begin_finetuning(recipe(folder, kind), tmp_path)
    run = Run(start.recipe, start.task, tmp_path, ALONE, start.model)
    assert run.task.draw(0)[0].shape == (8, 48)
    assert one_step(run).loss > 0
    assert run.evaluate(None)["valid.jsonl"]["loss"] > 0


def test_a_part_of_what_is_held_out_is_spread_over_it(folder: Path, tmp_path: Path) -> None:
    """A file that is sorted by class, with one text for each: two of its examples say what all say."""
    (tmp_path / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    rows = [{"text": "Cold.", "label": "bad"}] * 20 + [{"text": "It was warm.", "label": "good"}] * 20
    (tmp_path / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    start = begin_finetuning(recipe(folder, "classes"), tmp_path)
    run = Run(start.recipe, start.task, tmp_path, ALONE, start.model)
    assert run.evaluate(2)["valid.jsonl"] == pytest.approx(run.evaluate(None)["valid.jsonl"], abs=1e-5)


def test_a_text_is_the_tokens_of_its_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "BLOCK_BYTES", 300)
    task = begin_finetuning(recipe(folder, "text"), folder).task
    assert isinstance(task, MoreText)
    assert task.valid is not None
    for (ids, size), name in (((task.ids, None), "train.txt"), (task.valid, "valid.txt")):
        expected = list(encode_documents(folder / name, task.tokenizer))
        assert ids.tolist() == [i for tokens, _ in expected for i in tokens]
        assert size in (None, sum(length for _, length in expected))


def test_a_held_out_text_of_one_token_is_refused(folder: Path, tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=3, context_length=8, emb_dim=8, n_heads=1, n_layers=1)
    GPT(GPTModel(config), Tokenizer.of_characters("abc")).save(tmp_path / "model")
    (tmp_path / "train.txt").write_text("abcabcabcabc")
    (tmp_path / "valid.txt").write_text("a")
    with pytest.raises(TrainingError, match=r"valid\.txt has one token"):
        begin_finetuning(recipe(tmp_path, "text"), tmp_path)


def test_padding_changes_no_loss(folder: Path) -> None:
    gpt = clearhead.load(folder / "model")
    assert gpt.tokenizer is not None
    template = PromptTemplate.from_recipe("{prompt}")
    found, left_out = read_instructions(folder / "train.jsonl", gpt.tokenizer, template, 48)
    examples = [instruction.example for instruction in found]
    assert left_out == 0
    with torch.no_grad():
        alone = [gpt.model.loss(*map(torch.from_numpy, (e.inputs[None], e.targets[None]))) for e in examples[:6]]
        counts = [int((e.targets != -100).sum()) for e in examples[:6]]
        batch = gpt.model.loss(*map(torch.from_numpy, pad_together(examples[:6], 48)))
    mean = sum(loss.item() * n for loss, n in zip(alone, counts, strict=True)) / sum(counts)
    assert batch.item() == pytest.approx(mean, abs=1e-5)


def test_the_books_keys_are_read(folder: Path, tmp_path: Path) -> None:
    gpt = clearhead.load(folder / "model")
    assert gpt.tokenizer is not None
    lines = [
        {"instruction": "Name a day.", "input": "", "output": "warm"},
        {"instruction": "Name a day.", "input": "dark", "output": "cold"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    examples, _ = read_instructions(
        tmp_path / "a.jsonl", gpt.tokenizer, PromptTemplate.from_recipe("Q: {prompt} A:"), 48
    )
    texts = [gpt.tokenizer.decode(found.example.inputs.tolist()) for found in examples]
    assert texts == ["Q: Name a day. A:warm", "Q: Name a day.\n\ndark A:cold"]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (
            "classes",
            {"train.jsonl": '{"text": "a", "label": "x"}\n{"text": "b"}'},
            "line 2 of .* needs a text .* and a label.*; 'text' is a text, 'label' is missing, and there is only 'tex",
        ),
        ("classes", {"train.jsonl": '{"text": "", "label": null}'}, "line 1 of .*; 'text' is empty, 'label' is null"),
        (
            "classes",
            {"train.jsonl": '{"text": "a", "label": "x"}'},
            "has the label 'x' only, and a classifier needs at least two",
        ),
        ("classes", {"valid.jsonl": '{"text": "a", "label": "odd"}'}, "'odd', which no training example has"),
        ("instructions", {"train.jsonl": '{"prompt": 3}'}, "needs a prompt .*; 'prompt' is 3, 'response' is missing"),
        (
            "instructions",
            {"train.jsonl": '{"instruction": "a", "input": 5, "output": "b"}'},
            "'instruction' is a text, 'output' is a text, 'input' is 5",
        ),
        ("classes", {"train.jsonl": ""}, "contains no example"),
        ("instructions", {"train.jsonl": '{"prompt": "", "response": "b"}'}, "line 1 of .* has an empty prompt"),
        ("instructions", {"train.jsonl": "[1]"}, "(line|item) 1 of .* is not a JSON object"),
        ("instructions", {"train.jsonl": '{"prompt": "a", "response": "b"}\n{"pro'}, "line 2 of .* is not JSON"),
        ("instructions", {"train.jsonl": "\n"}, "contains no example"),
        ("instructions", {"train.jsonl": json.dumps({"prompt": "q" * 99, "response": "a"})}, "none of the 1 examples"),
        ("text", {"train.txt": "Too short."}, "needs at least 49"),
        ("text", {"train.txt": " "}, "has no text in it"),
    ],
)
def test_files_that_cannot_be_learned_from_are_named(
    folder: Path, kind: str, changes: dict[str, str], words: str, tmp_path: Path
) -> None:
    for name in ("train.txt", "valid.txt", "train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text(changes.get(name, (folder / name).read_text()))
    with pytest.raises(ClearheadError, match=words):
        begin_finetuning(recipe(folder, kind), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[training]", "[model]\nemb_dim = 4\n[training]", r"has both \[model\] and \[finetune\]"),
        ("lora_rank = 4", "lora_rnak = 4", "did you mean 'lora_rank'"),
        ("lora_rank = 4", 'template = "no"', r"must contain \{prompt\} once"),
        (
            "lora_rank = 4",
            "test_share = 0.1",
            'test_share draws examples, and kind is "text"; hold out a text with valid',
        ),
        (
            'kind = "text"',
            'kind = "classes"\nvalid_share = 0.1',
            "valid and valid_share both hold out examples; leave one",
        ),
        ("lora_rank = 4", "lora_alpha = 8", "lora_alpha is for LoRA, and lora_rank is 0; set lora_rank"),
        (
            "lora_rank = 4",
            'template = "alpaca"',
            'template is for the kind instructions or preferences, and kind is "text"',
        ),
        ("lora_rank = 4", "beta = 0.2", 'beta is for the kind preferences, and kind is "text"; leave beta out'),
        ("batch_size", 'optimizer = "muon"\nbatch_size', "Muon is for the matrices"),
        ('kind = "text"', 'kind = "texts"', "one of text, instructions, preferences, classes"),
        ("lora_rank = 4", "context_length = 64", "has 48 positions"),
        ("lora_rank = 4", 'start = "x"', "not TOML"),
        ('valid = "valid.txt"', 'valid = "gone.txt"', r"gone\.txt could not be read"),
    ],
)
def test_a_fine_tuning_that_cannot_be_is_refused(folder: Path, old: str, new: str, words: str) -> None:
    text = recipe(folder, "text", "lora_rank = 4").text
    assert old in text
    with pytest.raises(ClearheadError, match=words):
        begin_finetuning(parse_recipe(text.replace(old, new, 1)), folder)


def test_lora_without_its_library_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(TrainingError, match=r"pip install \"clearhead\[train\]\""):
        begin_finetuning(recipe(folder, "text", "lora_rank = 4"), folder)


def test_a_full_disk_leaves_the_classifier_from_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = begin_finetuning(recipe(folder, "classes"), folder)
    start.task.save(start.model, tmp_path, "float32")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("clearhead.training.classifier.save_torch", full)
    with pytest.raises(WeightsError, match=r"could not be written \(.*No space left.*make room"):
        start.task.save(start.model, tmp_path, "float16")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_no_classifier_is_named(folder: Path) -> None:
    found: Any = CliRunner().invoke(make_app(), ["classify", "text", "--model", str(folder / "model")]).exception
    assert isinstance(found, ClearheadError)
    assert "is no classifier" in str(found)
