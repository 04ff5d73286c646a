"""What all verbs have in common: help, usage errors, pipes and interrupts."""

import inspect
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE, call, run

import clearhead
import clearhead.config
from verbs.verb_runs import interrupt

HEAVY = ("torch", "numba", "numpy", "transformers", "tiktoken", "tokenizers", "huggingface_hub", "safetensors")


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["walk", "--help"],
        ["weights", "verify", "--help"],
        ["params", "124M"],
    ],
)
def test_light_verbs_load_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from clearhead.cli import main\n"
        f"sys.argv = ['clearhead', *{args!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"
    assert result.stdout


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.decode() == f"clearhead {clearhead.__version__}\n"


def test_help_lists_the_verbs_and_fits_80_columns() -> None:
    for args in [[], ["params"], ["tokenize"], ["new"], ["generate"]]:
        result = call(*args, "--help")
        assert result.returncode == 0
        options, examples, _ = result.stdout.decode().partition("Examples:")
        assert max(map(len, options.splitlines())) <= 80 and examples  # an example is one line, to be copied
    listed = call("--help").stdout.decode()
    for verb in ("generate", "tokenize", "params", "new"):
        assert f"│ {verb} " in listed


def test_help_says_all_that_is_written_of_a_verb() -> None:
    """Square brackets are how rich marks up text, and they are how a recipe names its tables."""
    from clearhead.cli import corpus, lens, weights
    from clearhead.cli.app import VERBS, load_verb

    verbs: dict[tuple[str, ...], Any] = {(name,): load_verb(name)[0] for name in VERBS}
    verbs |= {("corpus", name): verb for name, (verb, _) in corpus.VERBS.items()}
    verbs |= {("lens", name): verb for name, (verb, _) in lens.VERBS.items()}
    verbs |= {("weights", name): verb for name, (verb, _) in weights.VERBS.items()}
    for words, verb in verbs.items():
        shown = " ".join(call(*words, "--help").stdout.decode().split())
        for paragraph in inspect.cleandoc(verb.__doc__ or "").split("\n\n"):
            assert " ".join(paragraph.split()) in shown


@pytest.mark.parametrize(
    "args",
    [
        ["no-such-verb"],
        ["params", "--no-such-option"],
        ["new"],
    ],
)
def test_usage_errors_exit_2_without_a_traceback(args: list[str]) -> None:
    result = call(*args)
    assert result.returncode == 2
    assert result.stdout == b""
    assert b"Traceback" not in result.stderr
    assert b"Usage: clearhead" in result.stderr


@pytest.mark.parametrize("args", [["params", "--batch", "many"], ["generate", "--top-p", "x"]])
def test_numbers_that_are_none_are_refused_in_one_line(args: list[str]) -> None:
    result = call(*args)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(f"clearhead: {args[1]} is {args[2]!r}; give a ".encode())
    assert result.stderr.count(b"\n") == 1


def test_reader_that_has_seen_enough_is_no_error(vocabulary: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("many words " * 50_000)
    command = [sys.executable, "-m", "clearhead", "tokenize", "-m", str(vocabulary), "--file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


def test_interrupt_is_quiet(vocabulary: Path) -> None:
    command = [sys.executable, "-m", "clearhead", "tokenize", "-m", str(vocabulary)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        # More than a pipe holds: when all is written, the command has started and reads.
        process.stdin.write(b"x" * 1_000_000)
        process.stdin.flush()
        time.sleep(0.5)  # and now it waits for more
        assert interrupt(process) == (b"", b"")
        assert process.returncode == 130
