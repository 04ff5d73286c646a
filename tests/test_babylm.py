"""Budgets and milestones in words, revisions of a run, and a task at each of them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import recipe
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.data.corpus import Corpus
from clearhead.data.word_count import count_words
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.training.checkpoint import checkpoints
from clearhead.training.length import find_milestones, resolve_steps
from clearhead.training.recipe_reader import parse_recipe
from clearhead.training.revisions import list_revisions, write_revisions
from clearhead.training.task import PretrainingTask
from clearhead.training.train import train

TOKENIZER = clearhead.load().tokenizer


@given(st.text(alphabet=" \n\tab.é我\u3000", max_size=60))
def test_words_are_those_that_white_space_separates(text: str) -> None:
    assert TOKENIZER is not None
    # A kind of white space that the vocabulary splits among tokens is not seen as one.
    plain = text.replace("\u3000", "\u3000" if len(TOKENIZER.encode("\u3000")) == 1 else "x")
    assert count_words(TOKENIZER.encode_array(plain), TOKENIZER) == len(plain.split())


def test_special_tokens_separate_words() -> None:
    assert TOKENIZER is not None and TOKENIZER.end_of_text is not None
    ids = [*TOKENIZER.encode("a dog"), TOKENIZER.end_of_text, *TOKENIZER.encode("ran off")]
    assert count_words(np.array(ids), TOKENIZER) == 4


def test_a_budget_in_words_follows_from_the_words_of_the_texts(data: Path, corpus: Corpus) -> None:
    """With one window in so many from each text, a step has their words in these shares."""
    task = PretrainingTask(recipe(), corpus)
    seen, names = task.batches.epochs(10_000), list(corpus.train)
    words = {name: count_words(corpus.tokens(corpus.train[name]), corpus.tokenizer) for name in names}
    birds = (data / "birds.txt").read_text().replace("<|endoftext|>", "")
    assert words["birds"] == len(birds.split())  # all of this text is trained on
    expected = sum(times * words[name] for name, times in zip(names, seen, strict=True)) / 10_000
    assert task.words_per_step() == pytest.approx(expected, rel=1e-6)
    changes = (("steps = 12", "words = 900"), ("decay_steps = 4", "decay_steps = 0"))
    steps = resolve_steps(recipe(*changes), task).training.steps
    assert (steps - 1) * expected < 900 <= steps * expected
    together = find_milestones(["0.9k words", f"{steps} steps"], task)
    assert {one.step: one.name for one in together} == {steps: "0.9k words"}  # what revisions are made of


@pytest.fixture(scope="module")
def run(data: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two milestones in words and one in steps."""
    out = tmp_path_factory.mktemp("babylm") / "run"
    length = ("steps = 12", 'words = 900\nmilestones = ["0.3k words", "600 words", "1 steps"]\nkeep_checkpoints = 1')
    train(recipe(length, ("decay_steps = 4", "decay_steps = 0")), data, out, corpus_folder=corpus.folder)
    return out


def test_milestones_are_revisions_that_transformers_opens(run: Path, corpus: Corpus, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    found = CliRunner().invoke(make_app(), ["runs", "revisions", str(run), str(hub), "--name", "me/baby"])
    assert found.exit_code == 0 and "chck_0.3k, chck_600, main" in found.output.replace("\n", " ")
    ids = torch.arange(9)[None]
    opened = []
    for revision in (*list_revisions(run), None):
        name = "main" if revision is None else revision.name
        folder = checkpoints(run)[-1] if revision is None else revision.checkpoint
        model = AutoModelForCausalLM.from_pretrained("me/baby", revision=name, cache_dir=hub, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained("me/baby", revision=name, cache_dir=hub, local_files_only=True)
        with torch.inference_mode():
            logits = model.eval()(ids).logits
            assert torch.allclose(logits, clearhead.load(folder, backend="torch").model(ids), atol=1e-5)
        assert tokenizer.encode("The red bird") == corpus.tokenizer.encode("The red bird")
        opened.append(logits)
    assert not torch.equal(opened[0], opened[1])
    again = CliRunner().invoke(make_app(), ["runs", "revisions", str(run), str(hub), "--name", "me/baby"])
    assert again.exit_code == 0 and len(list((hub / "models--me--baby/snapshots").iterdir())) == 3


def test_a_batch_can_be_padded(run: Path) -> None:
    """The pipeline's fine-tuning makes batches of texts with different lengths."""
    peer = AutoTokenizer.from_pretrained(run / "model", padding_side="right")
    batch = peer(["a", "a longer text"], padding=True, return_tensors="pt")
    end = Tokenizer.from_folder(run / "model").end_of_text
    assert peer.pad_token_id == end and batch["input_ids"][0, -1] == end and batch["attention_mask"][0, -1] == 0


def test_a_task_runs_at_every_revision(run: Path, tmp_path: Path) -> None:
    file, curves = tmp_path / "text.txt", tmp_path / "curves.svg"
    file.write_text("The red bird sings in the garden.")
    arguments = ["evaluate", str(file), "--task", "perplexity", "--revisions", str(run)]
    found = CliRunner().invoke(make_app(), [*arguments, "--json"])
    rows = [json.loads(line) for line in found.output.splitlines() if line.startswith("{")]
    assert [row["revision"] for row in rows] == ["chck_0.3k", "chck_600"]
    assert rows[0]["token_perplexity"] != rows[1]["token_perplexity"]
    drawn = CliRunner().invoke(make_app(), [*arguments, "--curves", str(curves)])
    assert drawn.exit_code == 0 and "chck_600" in drawn.output
    assert curves.read_text().count("millions of words seen") == 4  # a chart of each metric


def test_what_has_no_words_is_refused(run: Path, tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(TrainingError, match="no checkpoint of a milestone in words"):
        list_revisions(tmp_path)
    with pytest.raises(TrainingError, match="give one such as me/babylm"):
        write_revisions(run, tmp_path, "a b")

    class Examples(PretrainingTask):
        def words_per_step(self) -> float | None:
            return None

    with pytest.raises(TrainingError, match="words are counted in runs on texts"):
        find_milestones(["1M words"], Examples(recipe(), corpus))


def test_the_recipe_has_the_milestones_of_the_rules() -> None:
    text = (Path(__file__).parents[1] / "recipes/babylm.toml").read_text()
    parse_recipe(text)
    amounts = [int(name.removesuffix("M words")) for name in tomllib.loads(text)["training"]["milestones"]]
    assert amounts == [*range(1, 11), *range(20, 101, 10)]
