"""Clearhead where PyTorch is not installed: what works, and the sentence of what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from typer.main import get_command

import clearhead
from clearhead.cli.app import make_app

HIDE = """
import sys


class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hide())
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory, compiled_engine: None) -> dict[str, str]:
    """Return the environment of a process in which no import of torch succeeds."""
    folder = tmp_path_factory.mktemp("hide")
    (folder / "sitecustomize.py").write_text(HIDE)
    package = Path(clearhead.__file__).parent.parent
    return {"PYTHONPATH": f"{folder}:{package}"}


WORKS = [
    ["generate", "Once", "-n", "3"],
    ["generate", "Once", "-n", "3", "--dtype", "int8", "--json"],
    ["tokenize", "Once upon a time"],
    ["params", "bundled"],
    ["diagram", "124M"],
    ["weights", "inspect", "bundled"],
    ["weights", "map", "bundled"],
    ["weights", "verify", "bundled", "--no-run"],
    ["weights", "convert", "bundled", "copy", "--to", "huggingface"],
    ["corpus", "build", "text.txt", "-o", "corpus", "-t", "bytes", "-v", "tail:0.5"],
    ["corpus", "inspect", "corpus"],
    ["architecture", "bundled"],
    ["chat"],
    ["score", "text.txt"],
    ["compress", "text.txt", "-o", "text.compressed"],
    ["tour", "--notebook", "notebooks"],
    ["walk", "Once upon a time", "--json"],
    ["evaluate", "text.txt"],
    ["evaluate", "text.txt", "--task", "perplexity"],
    ["weights", "verify", "bundled"],
]
"""Commands that run without PyTorch; each is given as a user types it."""

SAYS_SO = [
    ["generate", "Once", "--backend", "torch"],
    ["generate", "Once", "--dtype", "float16"],
    ["walk", "Once", "--device", "cuda"],
    ["new", "model", "--size", "124M"],
    ["train", "recipe.toml", "--data", ".", "--out", "run"],
    ["evaluate", "text.jsonl", "--examples"],
    ["classify", "text", "-m", "."],
    ["lens", "report", "bundled"],
    ["weights", "verify", "bundled", "--device", "cuda"],
    ["weights", "convert", "bundled", "gpt.pth", "--to", "book"],
]
"""Commands that name what is missing."""

ELSEWHERE = {
    "bench": "measures; its tests are in test_benchmark.py",
    "decompress": "loads the model as compress does",
    "page": "is written from weights that are opened as by weights map",
    "runs": "needs a finished run, which training makes",
    "serve": "does not end by itself",
    "weights fetch": "needs the network",
}
"""Verbs that no command here runs, and why."""


def verbs(command: Any, name: str = "") -> Iterator[str]:
    """Yield the names of all verbs, those in groups with the group's."""
    below = getattr(command, "commands", {})
    for key, one in below.items():
        yield from verbs(one, f"{name} {key}".strip())
    if not below:
        yield name


def test_every_verb_is_tried_without_torch() -> None:
    named = {words[0] for words in WORKS + SAYS_SO} | {" ".join(words[:2]) for words in WORKS + SAYS_SO}
    every = set(verbs(get_command(make_app())))
    assert len(every) > 20 and {"weights verify", "generate"} <= every
    assert sorted(every - named - ELSEWHERE.keys()) == []
    assert sorted(ELSEWHERE.keys() - every) == []


@pytest.mark.parametrize("words", WORKS, ids=lambda words: " ".join(words[:2]))
def test_what_needs_no_torch_works(
    words: list[str],
    hidden: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "without-torch"
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("One line of text.\n" * 50)
    monkeypatch.chdir(folder)
    if words[:2] == ["corpus", "inspect"]:
        run("corpus", "build", "text.txt", "-o", "corpus", "-t", "bytes", "-v", "tail:0.5", env=hidden)
    result = run(*words, env=hidden)
    assert result.returncode == 0, result.stderr.decode()
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("words", SAYS_SO, ids=lambda words: " ".join(words[:2]))
def test_what_needs_torch_says_so(
    words: list[str], hidden: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("One line of text.\n")
    (tmp_path / "text.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    (tmp_path / "recipe.toml").touch()
    result = run(*words, env=hidden)
    error = result.stderr.decode()
    assert result.returncode == 2, error
    assert error.startswith("clearhead: ") and error.count("\n") == 1, error
    assert "PyTorch, which is not installed; install it with: pip install 'clearhead[torch]'" in error


def test_methods_work_or_say_what_is_missing(hidden: dict[str, str], tmp_path: Path) -> None:
    code = f"""
import clearhead
import clearhead.lens

gpt = clearhead.load()
assert gpt.generate("Once", max_new_tokens=3).text
assert "".join(gpt.stream("Once", max_new_tokens=3))
assert gpt.score("Once upon a time").bits_per_byte > 0
assert gpt.config.n_layers == 6
trace = gpt.watch("Once upon a time", ["blocks.*.attention.pattern", "blocks.2.hook_resid_post"])
assert trace["blocks.5.attention.pattern"].shape[0] == 7 and len(trace) == 7
cache = gpt.run_with_cache(["Once", "Once upon a time"], "logits", positions=-1)
assert cache["logits"].shape == (2, 1, gpt.config.vocab_size)
assert gpt.walk("Once upon a time").values["prompt_tokens"] == len(gpt.tokenizer.encode("Once upon a time"))
logits = clearhead.lens.logit_lens(gpt._networks.numpy, trace["blocks.2.hook_resid_post"])
assert logits.shape[-1] == gpt.config.vocab_size
gpt.save("saved")
assert clearhead.load("saved").score("Once upon a time").logprob == gpt.score("Once upon a time").logprob
assert clearhead.verify("saved").ok
assert clearhead.weights.open({str(Path(clearhead.__file__).parent / "bundled")!r}).plan()
for name, call in {{
    "model": lambda: gpt.model,
    "watch as tensors": lambda: gpt.watch("Once", as_torch=True),
    "watch with gradients": lambda: gpt.watch("Once", metric=lambda logits: logits.sum()),
    "cache as tensors": lambda: gpt.run_with_cache(["Once"], as_torch=True),
    "lens": lambda: clearhead.lens.head_scores,
    "edit": lambda: gpt.edit("*", 0).__enter__(),
    "verify": lambda: clearhead.verify("saved", device="cuda"),
    "load": lambda: clearhead.load(backend="torch"),
}}.items():
    try:
        call()
    except clearhead.ClearheadError as error:
        assert "pip install 'clearhead[torch]'" in str(error), (name, error)
    else:
        raise SystemExit(f"{{name}} did not say that PyTorch is missing")
"""
    import os

    environment = {**os.environ, **hidden, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
