"""The command line at its edges: closed streams, odd encodings, control characters, early interrupts, huge numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from command_line import PATIENCE, call, refused, run
from typer.main import get_command

from clearhead.cli.app import make_app
from clearhead.cli.options import flatten

COMMAND = f'"{sys.executable}" -m clearhead'


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell."""
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_closed_output_is_one_sentence() -> None:
    result = shell(f"{COMMAND} params >&-")
    assert result.returncode == 1
    assert result.stderr == "clearhead: standard output is closed; send it to a file or to /dev/null.\n"


def test_closed_input_is_one_sentence() -> None:
    result = shell(f"{COMMAND} tokenize <&-")
    assert result.returncode == 2
    assert result.stderr.startswith("clearhead: there is no text, and standard input is closed;")
    assert result.stderr.count("\n") == 1


def test_closed_errors_do_not_matter() -> None:
    result = shell(f"{COMMAND} tokenize Hello --ids 2>&-")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    result = shell(f"{COMMAND} params > /dev/full")
    assert result.returncode == 1
    assert result.stderr == "clearhead: No space left on device.\n"


@pytest.mark.parametrize("module", ["typer", "clearhead.cli.app", "clearhead.cli.generate", "rich"])
def test_ctrl_c_while_the_program_starts_is_quiet(module: str) -> None:
    code = f"""
import runpy, signal, sys


class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)


sys.meta_path.insert(0, Interrupt())
sys.argv = ["clearhead", "--help"]
runpy.run_module("clearhead", run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_json_keeps_every_character_in_any_encoding() -> None:
    text = "héllo 你好 🎉"
    result = run("tokenize", text, "--json", env={"PYTHONIOENCODING": "cp1252"})
    assert result.returncode == 0
    assert result.stdout.isascii() and json.loads(result.stdout)["characters"] == len(text)
    shown = run("generate", text, "-n", "1", "--json", env={"PYTHONIOENCODING": "cp1252"})
    assert json.loads(shown.stdout)["prompt"] == text


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    name = tmp_path / "\x1b[31mred"
    assert "\\x1b[31mred" in refused(call("weights", "inspect", name))
    assert "\\x1b[31mred" in refused(call("generate", "--file", name))


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a", "--threads", "100000"],
        ["generate", "a", "--presence-penalty", "1e39"],
        ["generate", "a", "--frequency-penalty", "-1e39"],
        ["generate", "a", "--repetition-penalty", "1e39"],
        ["generate", "a", "--samples", str(3 * 10**9)],
        ["generate", "a", "--seed", str(10**20)],
        ["generate", "a", "--logprobs", str(10**20)],
        ["walk", "a", "--html", ""],
        ["walk", "a", "--block", str(10**20)],
        ["new", "model", "--emb-dim", str(10**11), "--n-heads", "1", "--n-layers", "1"],
        ["new", "model", "--emb-dim", "8", "--n-heads", "1", "--n-layers", str(10**7)],
        ["new", "model", "--emb-dim", "200000", "--n-heads", "1", "--n-layers", "4000"],
        ["new", "model", "--size", "124M", "--seed", str(10**20)],
        ["diagram", "--scale", "1e9", "-o", "x.png"],
        ["diagram", "--out", ""],
        ["tour", "--port", "99999999"],
        ["weights", "inspect", "fifo"],
        ["generate", "a", "-m", "fifo"],
        ["tokenize", "a", "-m", "fifo"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_impossible_values_are_one_sentence(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "fifo" in words:
        os.mkfifo("fifo")
    assert refused(call(*words))
    assert not (tmp_path / "model").exists()


def test_memory_that_runs_out_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch raises a plain RuntimeError."""
    monkeypatch.setattr("clearhead.cli.new.make_config", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    result = call("new", "model")
    assert result.returncode == 1
    assert result.stderr == b"clearhead: there is not enough memory for this; use a smaller model.\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["generate", "a", "--temp", "1"], "--temperature"),
        (["generate", "a", "--max-tokens", "1"], "--max-new-tokens"),
        (["generate", "a", "--tempp", "1"], "(Possible options: --temperature"),
        (["generate", "Once", "upon", "a", "time"], '"Once upon a time"'),
        (["generate", "-n", "3", "Once", "upon", "--seed", "1", "a", "time"], 'clearhead generate "Once upon a time"'),
    ],
)
def test_usage_errors_say_what_was_meant(words: list[str], hint: str) -> None:
    result = call(*words)
    assert result.returncode == 2
    assert hint in " ".join(result.stderr.decode().replace("│", " ").split())


def test_quotes_are_suggested_only_for_text() -> None:
    result = call("weights", "inspect", "a", "b")
    assert result.returncode == 2 and b"(b)" in result.stderr and b"quotes" not in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--dtype", "int3"], "--dtype is 'int3'"),
        (["--device", "cuda", "--backend", "engine"], "--device is 'cuda'"),
        (["--threads", "0"], "--threads is 0"),
        (["--logprobs", "99999"], "--logprobs is 99999"),
    ],
)
def test_errors_name_options_as_the_command_line_does(words: list[str], sentence: str) -> None:
    assert refused(call("generate", "a", *words)).startswith(sentence)


def _numeric_options() -> Iterator[tuple[str, ...]]:
    """Yield the long flag of each option that takes a number, behind the verb's words."""
    commands: dict[tuple[str, ...], Any] = {(): get_command(make_app())}
    while commands:
        words, command = commands.popitem()
        for name, below in getattr(command, "commands", {}).items():
            commands[*words, name] = below
        for parameter in command.params:
            kind = get_args(flatten(command.callback).__annotations__.get(parameter.name))[:1]
            if kind in ((int,), (int | None,), (float,), (float | None,)):
                yield *words, next(flag for flag in parameter.opts if flag.startswith("--"))


@pytest.mark.parametrize("words", sorted(_numeric_options()), ids=" ".join)
def test_a_word_where_a_number_belongs_is_one_sentence(words: tuple[str, ...]) -> None:
    *_, flag = words
    assert refused(call(*words, "three")).startswith(f"{flag} is 'three'; give a ")
    error = call(*words, "three", "--lang", "zh").stderr.decode()
    assert error.startswith(f"clearhead: {flag} 为 'three'；请给出") and error.count("\n") == 1


def test_a_number_out_of_range_is_one_sentence() -> None:
    assert refused(call("serve", "--port", "70000")) == "--port is 70000; give a whole number from 0 to 65535."


def test_hidden_options_are_not_suggested() -> None:
    assert b"--demo" not in call("generate", "a", "--dem").stderr


@pytest.mark.slow
def test_a_variable_of_numba_without_a_number_does_no_harm(compiled_engine: None) -> None:
    result = run("tokenize", "Once", env={"NUMBA_NUM_THREADS": "²"})
    assert (result.returncode, result.stderr) == (0, b"")
    result = run("generate", "Once", "-n", "3", env={"NUMBA_NUM_THREADS": "²"})
    assert result.returncode == 0
    assert b"NUMBA" not in result.stderr


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(compiled_engine: None) -> None:
    result = run("generate", "Once", "-n", "3", "--seed", "1", env={"CLEARHEAD_CACHE": "/dev/null/cache"})
    assert result.returncode == 0
    assert result.stdout == run("generate", "Once", "-n", "3", "--seed", "1").stdout
    sentence = "compiled code cannot be kept in /dev/null/cache (Not a directory), so every run takes this time again;"
    assert result.stderr.decode().count("cannot be kept in") == result.stderr.decode().count(sentence) == 1
