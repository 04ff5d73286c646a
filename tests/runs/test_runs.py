"""What a run leaves; resuming, milestones, and the loss on held-out texts."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.harness import damage_json, dump
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import SMALL, ours_of, peer_of
from small_runs import RECIPE, assert_equal_runs, recipe, small_run, weights_of
from transformers import GPT2LMHeadModel

import clearhead
from clearhead.data.corpus import Corpus
from clearhead.errors import TrainingError
from clearhead.evaluation.perplexity import evaluate_perplexity
from clearhead.training.checkpoint import checkpoints, read_state
from clearhead.training.export import export_checkpoint
from clearhead.training.length import resolve_steps
from clearhead.training.overview import list_runs
from clearhead.training.step import Step, Stepper
from clearhead.training.task import PretrainingTask
from clearhead.training.train import train
from clearhead.utils.json_files import record_text


@pytest.fixture(scope="module")
def finished(data: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("run")
    train(recipe(), data, out, corpus_folder=corpus.folder)
    return out


def test_a_run_learns_and_leaves_a_model_that_transformers_opens(finished: Path, corpus: Corpus) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    valid = [line["valid"]["birds"]["bits_per_byte"] for line in lines if "valid" in line]
    final = lines[-1]["final"]["birds"]["bits_per_byte"]
    assert len(valid) == 2
    assert valid[0] > valid[1] > final > 0
    gpt = clearhead.load(finished / "model")
    peer = GPT2LMHeadModel.from_pretrained(finished / "model").eval()
    ids = gpt.tokenizer.encode("The old bird sings") if gpt.tokenizer else []
    with torch.inference_mode():
        assert (peer(torch.tensor([ids])).logits - gpt.model(torch.tensor([ids]))).abs().max() < 1e-4
    assert peer.config.eos_token_id == corpus.tokenizer.end_of_text
    assert (finished / "recipe.toml").read_text() == RECIPE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_stops_and_resumes_is_the_run_that_did_not(
    data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Resuming is exact to the bit in every precision."""
    chosen = recipe(("float32", precision))
    train(chosen, data, tmp_path / "undisturbed", corpus_folder=corpus.folder)
    take = Stepper.take

    def interrupted(self: Stepper, number: int, *rest: Any) -> Step:
        if number == 6:
            signal.raise_signal(signal.SIGTERM)  # arrives in the middle of a step, which is finished and the last
        return take(self, number, *rest)

    monkeypatch.setattr(Stepper, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, data, tmp_path / "stopped", corpus_folder=corpus.folder)
    monkeypatch.setattr(Stepper, "take", take)
    assert read_state(checkpoints(tmp_path / "stopped")[-1])["step"] == 7
    train(chosen, data, tmp_path / "stopped", corpus_folder=corpus.folder, resume=True)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "undisturbed")


def test_a_run_may_be_made_longer_before_its_rate_falls(
    data: Path, corpus: Corpus, finished: Path, tmp_path: Path
) -> None:
    short = recipe(("steps = 12", "steps = 5"), ("decay_steps = 4", "decay_steps = 0"))
    train(short, data, tmp_path, corpus_folder=corpus.folder)
    train(recipe(), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    expected = weights_of(finished)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(tmp_path).items())


@pytest.mark.parametrize(
    ("changes", "resume", "words"),
    [
        ((), False, "contains a run already"),
        ((("learning_rate = 3e-3", "learning_rate = 4e-3"),), True, "learning_rate was 0.003 and is 0.004"),
        ((("decay_steps = 4", "decay_steps = 8"),), True, "another recipe or corpus"),
        ((("n_layers = 2", "n_layers = 1"),), True, "n_layers was 2 and is 1"),
    ],
    ids=["anew", "other rate", "other past", "other model"],
)
def test_a_run_does_not_go_on_as_another(
    data: Path, corpus: Corpus, finished: Path, changes: tuple[tuple[str, str], ...], resume: bool, words: str
) -> None:
    before = weights_of(finished)
    with pytest.raises(TrainingError, match=words):
        train(recipe(*changes), data, finished, corpus_folder=corpus.folder, resume=resume)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(finished).items())
    assert (finished / "recipe.toml").read_text() == RECIPE


def test_there_must_be_something_to_resume(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(recipe(), data, tmp_path, corpus_folder=corpus.folder, resume=True)


def test_a_checkpoint_that_was_cut_short_is_named(data: Path, corpus: Corpus, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    newest = checkpoints(tmp_path / "run")[-1]
    file = next(newest.glob("training/*.safetensors"))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(TrainingError, match=rf"{newest.name} is broken.*delete it to resume from the one before"):
        train(recipe(), data, tmp_path / "run", corpus_folder=corpus.folder, resume=True)
    shutil.rmtree(newest)
    train(recipe(), data, tmp_path / "run", corpus_folder=corpus.folder, resume=True)
    assert_equal_runs(tmp_path / "run", finished)


@pytest.fixture(scope="module")
def copied(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, for a test that changes it."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("copied") / "run")


@pytest.mark.parametrize("file", ["training/*.safetensors", "model.safetensors", "config.json"])
def test_a_flipped_bit_in_a_checkpoint_is_found(
    data: Path, corpus: Corpus, finished: Path, tmp_path: Path, file: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = next(checkpoints(tmp_path / "run")[-1].glob(file))
    content = bytearray(path.read_bytes())
    content[-30] ^= 4
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"step-00000012 is broken \(.*{path.name} differs from its checksum"):
        train(recipe(), data, tmp_path / "run", corpus_folder=corpus.folder, resume=True)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), sealed=st.booleans())
def test_a_state_of_wrong_types_is_a_sentence(corpus: Corpus, copied: Path, seed: int, sealed: bool) -> None:
    """Whatever JSON stands anywhere in a checkpoint's state, resuming succeeds or says what is wrong."""
    path = checkpoints(copied)[-1] / "state.json"
    before = path.read_bytes()
    damaged = damage_json(json.loads(before), random.Random(seed))
    path.write_bytes(dump(damaged))
    if sealed and isinstance(damaged, dict):
        with contextlib.suppress(RecursionError, UnicodeEncodeError):
            path.write_text(record_text(damaged), encoding="utf-8")
    try:
        small_run(recipe(), corpus, copied).resume()
    except TrainingError as error:
        assert "checkpoint" in str(error)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": ""}, "files is '', and an object was expected"),
        ({"clock": []}, r"clock is \[\], and an object was expected"),
        ({"clock": {"loss": "", "seen": 0}}, "clock.loss is '', and a number or null was expected"),
        ({"spikes": {}}, "spikes lacks 'loss'"),
        ({"loss_scale": {"scale": 0, "good": 0}}, "loss_scale.scale is 0, and a number from 1 on was expected"),
        ({"tokens": True}, "tokens is True, and a whole number was expected"),
        ({"step": -1}, "step is -1, and a whole number from 0 on was expected"),
        ({"precision": "auto"}, "precision is 'auto', and one of float32, bfloat16, float16 was expected"),
        ({"milestone": 0}, "milestone is 0, and a text or null was expected"),
        ({"training": ""}, "training is '', and an object was expected"),
    ],
)
def test_a_wrong_value_in_a_state_is_named(corpus: Corpus, copied: Path, change: dict[str, Any], words: str) -> None:
    path = checkpoints(copied)[-1] / "state.json"
    before = path.read_text(encoding="utf-8")
    path.write_text(record_text({**json.loads(before), **change}), encoding="utf-8")
    try:
        with pytest.raises(TrainingError, match=rf"state\.json could not be read \({words}\); delete that checkpoint"):
            small_run(recipe(), corpus, copied).resume()
    finally:
        path.write_text(before, encoding="utf-8")


def test_one_digit_of_a_state_that_changed_is_noticed(corpus: Corpus, copied: Path) -> None:
    path = checkpoints(copied)[-1] / "state.json"
    before = path.read_text(encoding="utf-8")
    values = json.loads(before)
    path.write_text(json.dumps({**values, "tokens": values["tokens"] + 1}), encoding="utf-8")
    try:
        with pytest.raises(TrainingError, match=r"state\.json could not be read \(its checksum is not that of its"):
            small_run(recipe(), corpus, copied).resume()
    finally:
        path.write_text(before, encoding="utf-8")


def test_every_checkpoint_is_a_model(finished: Path) -> None:
    """Hugging Face's and our own loader open a checkpoint; the last one is the run's model."""
    newest = checkpoints(finished)[-1]
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = clearhead.load(finished / "model").model(ids)
        assert torch.equal(clearhead.load(newest).model(ids), expected)
        assert (GPT2LMHeadModel.from_pretrained(newest).eval()(ids).logits - expected).abs().max() < 1e-4
        earlier = clearhead.load(checkpoints(finished)[-2]).model(ids)
    assert not torch.equal(earlier, expected)


def test_a_run_ends_after_epochs_or_tokens_and_keeps_its_milestones(
    data: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 windows of 16 tokens a step. The newest two checkpoints stay, and those of milestones."""
    milestones = 'milestones = ["200 tokens", "3 steps", "2k tokens"]'
    length = ("steps = 12", f"tokens = 1500\n{milestones}\nkeep_checkpoints = 1")
    changes = (length, ("decay_steps = 4", "decay_steps = 0"), ("checkpoint_every = 4", "checkpoint_every = 5"))
    train(recipe(*changes), data, tmp_path / "run", corpus_folder=corpus.folder)
    assert "the milestone 2k tokens is not reached: that takes 16 steps, and the run has 12." in capsys.readouterr().err
    assert [path.name for path in checkpoints(tmp_path / "run")] == [f"step-{step:08d}" for step in (2, 3, 12)]
    assert [read_state(path)["milestone"] for path in checkpoints(tmp_path / "run")] == ["200 tokens", "3 steps", None]
    assert (list_runs([tmp_path / "run"])[0].steps, list_runs([tmp_path / "run"])[0].state) == (12, "finished")
    epochs = resolve_steps(
        recipe(("steps = 12", "epochs = 2"), ("decay_steps = 4", "decay_steps = 0")), PretrainingTask(recipe(), corpus)
    )
    tokens = sum(split.tokens for split in corpus.train.values())
    assert epochs.training.steps == math.ceil(2 * tokens / (8 * 16))
    for step, name in ((3, "step-00000003"), (None, "step-00000012")):
        assert export_checkpoint(tmp_path / "run", tmp_path / "model", step).name == name
        ids = torch.arange(9)[None]
        with torch.inference_mode():
            expected = clearhead.load(tmp_path / "run/checkpoints" / name).model(ids)
            assert torch.equal(clearhead.load(tmp_path / "model").model(ids), expected)
    with pytest.raises(TrainingError, match="has no checkpoint of step 4; it has those of the steps 2, 3, 12"):
        export_checkpoint(tmp_path / "run", tmp_path / "model", 4)
    for path in checkpoints(tmp_path / "run")[1:]:
        shutil.rmtree(path)
    with pytest.raises(TrainingError, match="it has that of step 2"):
        export_checkpoint(tmp_path / "run", tmp_path / "model", 4)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("steps = 12\nepochs = 1", "has both steps and epochs"),
        ("epochs = 0.01", "warmup_steps 2 and decay_steps 4 do not fit into steps 1"),
        ('steps = 12\nmilestones = ["10 days"]', "the milestone '10 days' is not of the form 1000 steps"),
    ],
)
def test_a_length_or_milestone_that_cannot_be_is_refused(
    data: Path, corpus: Corpus, tmp_path: Path, new: str, words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        train(recipe(("steps = 12", new)), data, tmp_path, corpus_folder=corpus.folder)


def test_a_loss_that_is_no_number_stops_the_run(corpus: Corpus, tmp_path: Path) -> None:
    run = small_run(recipe(), corpus, tmp_path)
    with torch.no_grad():
        run.model.final_norm.weight[0] = math.nan
    with pytest.raises(TrainingError, match=r"the loss is nan.* at step 0"):
        run.go()
    assert not checkpoints(tmp_path)


def test_a_device_that_is_not_there_is_named(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no device 'cuda:77'"):
        train(recipe(), data, tmp_path, corpus_folder=corpus.folder, device="cuda:77")


def test_a_recipe_that_compiles_needs_a_compiler(
    data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiling = recipe(("steps = 12", "compile = true\nsteps = 12"))
    with pytest.raises(TrainingError, match="there is no 'no-such-compiler' here"):
        train(compiling, data, tmp_path / "run", corpus_folder=corpus.folder)
    assert not (tmp_path / "run").exists()


@settings(deadline=None, max_examples=15)
@given(length=st.integers(2, 200), batch_size=st.integers(1, 5), seed=st.integers(0, 1000))
def test_held_out_loss_is_transformers_window_by_window(
    tmp_path_factory: pytest.TempPathFactory, length: int, batch_size: int, seed: int
) -> None:
    peer = peer_of(SMALL, std=0.3)
    ours = ours_of(peer, tmp_path_factory.mktemp("held_out"))
    ids = np.random.default_rng(seed).integers(SMALL.vocab_size, size=length)
    nats = 0.0
    for start in range(0, length - 1, SMALL.context_length):
        window = torch.from_numpy(ids[start : start + SMALL.context_length + 1])[None]
        with torch.inference_mode():
            nats += peer(window[:, :-1]).logits.log_softmax(-1).gather(-1, window[:, 1:, None]).sum().item()
    found = evaluate_perplexity(ours, ids, text_bytes=3 * length, batch_size=batch_size)
    assert found.tokens == length - 1
    assert found.nats == pytest.approx(-nats, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(-nats / math.log(2) / (3 * length), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(-nats / (length - 1)), rel=1e-5)


def test_some_windows_estimate_the_whole(corpus: Corpus, finished: Path) -> None:
    gpt = clearhead.load(finished / "model")
    shard = corpus.train["birds"]
    ids = corpus.tokens(shard)
    whole = evaluate_perplexity(gpt.model, ids, shard.text_bytes)
    some = evaluate_perplexity(gpt.model, ids, shard.text_bytes, windows=40)
    assert 39 * 16 < some.tokens <= 40 * 16  # the text's last window is shorter
    assert some.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluate_prints_what_the_run_recorded(data: Path, corpus: Corpus, tmp_path: Path, precision: str) -> None:
    """In every precision the final scores are computed in float32, by the run as by `evaluate`."""
    short = recipe(("float32", precision), ("steps = 12", "steps = 4"), ("decay_steps = 4", "decay_steps = 0"))
    train(short, data, tmp_path, corpus_folder=corpus.folder)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "clearhead", "evaluate", str(data / "birds_valid.txt")),
            *("--model", str(tmp_path / "model"), "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    final = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["final"]["birds"]["bits_per_byte"]
    assert json.loads(done.stdout)["bits_per_byte"] == pytest.approx(final, rel=1e-5)
