"""`clearhead generate`, and the bundled model."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE, call, refused, run

from verbs.verb_runs import SMALL, interrupt, made

PROMPT = "The config of a"


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(model: Path) -> None:
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    theirs, tokenizer = GPT2LMHeadModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    written = theirs.generate(ids, max_new_tokens=15, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    ours = made("-m", model, PROMPT, "--temperature", "0", "-n", "15", "--logprobs", "3")
    (sample,) = ours["samples"]
    assert sample["ids"] == [id for id in written if id != 399]
    assert ours["prompt_tokens"] == ids.shape[1]
    expected = torch.log_softmax(theirs(ids).logits[0, -1], dim=-1).topk(3)
    top = sample["logprobs"][0]["top"]
    assert [token["id"] for token in top] == expected.indices.tolist()
    assert [token["logprob"] for token in top] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert [token["token"] for token in top] == [tokenizer.decode([token["id"]]) for token in top]
    options = ("-m", model, PROMPT, "--temperature", "0", "-n", "15")
    result = run("generate", *options, env={"PYTHONIOENCODING": "utf-8"})
    assert result.returncode == 0
    assert result.stdout.decode() == tokenizer.decode(sample["ids"]) + "\n"
    assert result.stderr == b""


def test_prompt_comes_from_the_argument_a_file_or_a_pipe(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(PROMPT.encode() + b"\n")
    options = ["-m", model, "--seed", "3", "-n", "8"]
    ways = [
        call("generate", *options, PROMPT),
        call("generate", *options, "--file", path),
        call("generate", *options, stdin=PROMPT.encode()),
        call("generate", *options, "-", stdin=PROMPT.encode() + b"\r\n"),
    ]
    assert len(ways[0].stdout) > 1
    assert {(way.returncode, way.stdout, way.stderr) for way in ways} == {(0, ways[0].stdout, b"")}
    # Only the newline that ends the file is left out; one in an argument was meant.
    assert made(*options, f"{PROMPT}\n")["prompt"] == made(*options, stdin=f"{PROMPT}\n\n".encode())["prompt"]


def test_one_seed_gives_one_text(model: Path) -> None:
    texts = {seed: made("-m", model, PROMPT, "--seed", seed)["samples"][0]["text"] for seed in ("1", "2")}
    assert texts["1"] != texts["2"]
    assert made("-m", model, PROMPT, "--seed", "1")["samples"][0]["text"] == texts["1"]
    fresh = made("-m", model, PROMPT)
    assert made("-m", model, PROMPT, "--seed", str(fresh["seed"])) == fresh


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.3},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"repetition_penalty": 5.0},
        {"presence_penalty": 9.0},
        {"frequency_penalty": 9.0},
        {"max_new_tokens": 7},
        {"stop": ["e"]},
        {"logprobs": 2},
    ],
    ids=str,
)
def test_every_option_arrives(model: Path, options: dict[str, Any]) -> None:
    from clearhead.loading import load

    words = []
    for name, value in options.items():
        words += ["--" + name.replace("_", "-"), str(value[0] if isinstance(value, list) else value)]
    ours = made("-m", model, PROMPT, "--seed", "4", *words)
    (expected,) = load(model).generate(PROMPT, seed=4, **options).samples
    (plain,) = load(model).generate(PROMPT, seed=4).samples
    assert expected != plain, "the option makes a difference here"
    (sample,) = ours["samples"]
    assert sample["text"] == expected.text
    assert tuple(sample["ids"]) == expected.ids
    assert sample["finish_reason"] == expected.finish_reason
    assert (sample["logprobs"] is None) == (expected.logprobs is None)


def test_options_and_defaults_are_those_of_the_library() -> None:
    from clearhead.cli.generate import generate
    from clearhead.inference.options import OPTIONS
    from clearhead.loading import load

    verb = {name: parameter.default for name, parameter in inspect.signature(generate).parameters.items()}
    declared = {name: option.default for name, option in OPTIONS.items() if option.flags}
    assert len(declared) == 14
    assert {name: verb[name] or None for name in declared} == {name: value or None for name, value in declared.items()}
    loading = inspect.signature(load).parameters
    for name in ("device", "dtype", "backend", "threads"):
        assert verb[name] == loading[name].default


def test_samples_are_written_one_below_another(model: Path) -> None:
    options = ["-m", model, PROMPT, "--seed", "9", "--samples", "3", "-n", "10"]
    texts = [sample["text"] for sample in made(*options)["samples"]]
    assert len(set(texts)) == 3
    lines = call("generate", *options).stdout.decode()
    parts = re.split(r"(?m)^(\d) of 3 ─+\n", lines)
    assert parts[0] == ""
    assert parts[1::2] == ["1", "2", "3"]
    assert [part.removesuffix("\n") for part in parts[2::2]] == texts


def test_logprobs_are_listed_below_the_text(model: Path) -> None:
    options = ["-m", model, PROMPT, "--seed", "9", "--logprobs", "2", "-n", "6"]
    (sample,) = made(*options)["samples"]
    text = call("generate", *options).stdout.decode()
    assert text.startswith(sample["text"] + "\n\n")
    lines = text.removeprefix(sample["text"] + "\n\n").splitlines()
    assert len(lines) == len(sample["ids"])
    for line, token in zip(lines, sample["logprobs"], strict=True):
        assert float(line.split()[0]) == pytest.approx(token["logprob"], abs=5e-4)
        for likely in token["top"]:
            assert f" {likely['logprob']:.2f}" in line


def test_end_of_the_context_is_told_once_beside_the_text(model: Path) -> None:
    options = ["generate", "-m", model, PROMPT, "--temperature", "0", "-n", "90"]
    result = call(*options)
    assert result.returncode == 0
    assert result.stderr.decode().splitlines() == [
        "clearhead: The text reached the 32 tokens that the model reads; it went on from the last 16."
    ]
    strict = refused(call(*options, "--strict-context"))
    assert "the model reads 32" in strict and strict.endswith("leave out --strict-context.")
    cut = call("generate", "-m", model, PROMPT * 20, "--temperature", "0", "-n", "1")
    assert cut.returncode == 0
    assert "only the last 32 were used" in cut.stderr.decode()
    assert "only the last 32 were used" in made("-m", model, PROMPT * 20, "-n", "1")["notices"][0]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([""], "the prompt is empty"),
        ([], "the prompt is empty"),
        (["a", "--temperature", "-1"], "temperature is -1.0"),
        (["a", "--temperature", "nan"], "temperature is nan"),
        (["a", "--top-k", "0"], "--top-k is 0"),
        (["a", "--top-p", "1.5"], "--top-p is 1.5"),
        (["a", "--min-p", "-0.1"], "--min-p is -0.1"),
        (["a", "--repetition-penalty", "0"], "--repetition-penalty is 0.0"),
        (["a", "--seed", "-1"], "seed is -1"),
        (["a", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["a", "--samples", "0"], "samples is 0"),
        (["a", "--logprobs", "-1"], "logprobs is -1"),
        (["a", "--logprobs", "401"], "the vocabulary has 400 tokens"),
        (["a", "--stop", ""], "a string of at least one character"),
        (["a", "--device", "tpu9"], "device is 'tpu9'"),
        (["a", "--dtype", "int3"], "dtype is 'int3'"),
        (["a", "--file", "b.txt"], "the prompt was given twice"),
        (["--file", "nowhere.txt"], "nowhere.txt could not be read"),
    ],
)
def test_generate_refuses_in_a_sentence(model: Path, args: list[str], sentence: str) -> None:
    assert sentence in refused(call("generate", "-m", model, *args))


def test_generate_as_a_process_refuses_in_a_sentence() -> None:
    assert "the prompt is empty" in refused(run("generate", ""))
    assert "does not exist" in refused(call("generate", "-m", "./nowhere", "a"))


def test_generate_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    assert call("new", tmp_path / "model", *SMALL, "--vocab-size", "50").returncode == 0
    assert "has no tokenizer" in refused(call("generate", "-m", tmp_path / "model", "a"))
    assert "tokenizer" in refused(call("tokenize", "-m", tmp_path / "model", "a"))


def test_text_appears_as_it_is_made_and_an_interrupt_ends_its_line(model: Path) -> None:
    # The likeliest tokens run in a circle here, so that the text goes on until it is interrupted.
    command = [sys.executable, "-m", "clearhead", "generate", "-m", str(model), PROMPT]
    command += ["-n", "1000000", "--temperature", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(100)) == 100
        rest, errors = interrupt(process)
    assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert errors == b""


@pytest.mark.slow
def test_terminal_shows_the_prompt_before_the_text(model: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "clearhead", "generate", "-m", str(model), PROMPT, "--seed", "9", "-n", "10"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        try:
            while data := os.read(ours, 1000):
                seen += data
        except OSError:  # the other end is closed
            pass
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    (sample,) = made("-m", model, PROMPT, "--seed", "9", "-n", "10")["samples"]
    plain = re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", seen).decode().replace("\r\n", "\n").replace("\r", "")
    assert f"{PROMPT}{sample['text']}\n" in plain


def test_demo_writes_a_story_and_says_what_to_try(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearhead.loading.bundled", lambda: model)
    result = call("generate", "--demo")
    assert result.returncode == 0
    text = result.stdout.decode()
    assert text.startswith("A GPT-2 with 24,864 parameters (2 blocks, 4 heads, 24 numbers per token) writes:\n")
    assert "\nOnce upon a time" in text
    tried = re.findall(r"(?m)^  clearhead (.*)$", text)
    assert len(tried) == 3
    for command in tried:
        assert call(*shlex.split(command)).returncode == 0, command


def test_bundled_is_the_name_of_a_model_everywhere() -> None:
    assert call("tokenize", "-m", "bundled", "Hi", "--ids").stdout == call("tokenize", "Hi", "--ids").stdout
    assert call("weights", "inspect", "bundled").returncode == 0
    assert call("generate", "Hi", "-m", "bundled", "-n", "1").returncode == 0
