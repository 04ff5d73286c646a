"""What a type checker sees of the public API: every type, and no `Any`."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import clearhead
from clearhead.gpt import GPT
from clearhead.inference.options import OPTIONS

pytestmark = pytest.mark.slow

USER = """
import clearhead
from clearhead import lens

gpt = clearhead.load()
one = gpt.generate("a", temperature=0.5, top_k=3, stop=["x"], logit_bias={3: 1.0}, seed=1, n=2)
many = gpt.generate(["a", [1, 2]], max_new_tokens=4)
text: str = str(one) + str(many[0].text) + str(one.samples[0].logprobs)
with gpt.stream(prompt="a", temperature=0) as pieces:
    for piece in pieces:
        text += piece
total: float = gpt.score("a").surprisal + sum(token.surprisal or 0.0 for token in gpt.score([1, 2]).tokens)
reveal_type(clearhead.load)
reveal_type(one)
reveal_type(many)
reveal_type(gpt.watch("a"))
reveal_type(gpt.watch("a", as_torch=True)["logits"])
reveal_type(gpt.request)
reveal_type(gpt.model)
with gpt.edit("blocks.0.attention.mixed", lambda value: value * 2):
    reveal_type(lens.names(gpt.config)["logits"])
gpt.save("somewhere")
parameters = clearhead.SamplingParams(temperature=0)
report = clearhead.verify("somewhere")
"""

REVEALED = [
    "def (source: str | os.PathLike[str] | None =",
    '"clearhead.inference.results.Generation"',
    '"list[clearhead.inference.results.Generation]"',
    "Trace[numpy.ndarray[",
    "torch._tensor.Tensor",
    "temperature: float =, top_k: int | None =",
    '"clearhead.model.GPTModel"',
    '"clearhead.lens.activations.Activation"',
]

MISTAKES = """
import clearhead

gpt = clearhead.load()
gpt.generate("a", tempreature=0.5)
gpt.generate("a", temperature="hot")
gpt.stream("a", top_k=0.5)
gpt.request(max_new_tokens=3)
clearhead.laod()
"""


def check(path: Path, code: str) -> list[str]:
    """Return mypy's lines about a script of a user, without this project's settings."""
    path.write_text(code)
    command = [
        sys.executable, "-m", "mypy", "--strict", "--disallow-any-expr", "--follow-imports=silent",
        f"--config-file={path.parent / 'none.ini'}", str(path),
    ]  # fmt: skip
    (path.parent / "none.ini").write_text("[mypy]\n")
    result = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    return [line.removeprefix(f"{path.name}:") for line in result.stdout.splitlines()]


def test_a_strict_type_checker_sees_every_type_and_no_any(tmp_path: Path) -> None:
    lines = check(tmp_path / "user.py", USER)
    assert not [line for line in lines if " error:" in line]
    revealed = [line for line in lines if "Revealed type" in line]
    assert len(revealed) == len(REVEALED)
    for line, expected in zip(revealed, REVEALED, strict=True):
        assert expected in line


def test_a_type_checker_finds_mistakes_in_calls(tmp_path: Path) -> None:
    lines = check(tmp_path / "user.py", MISTAKES)
    found = {int(line.split(":")[0]) for line in lines if " error:" in line}
    assert found == {5, 6, 7, 8, 9}


@pytest.mark.parametrize("name", ["generate", "stream", "astream", "request"])
def test_help_shows_every_option_with_its_default_and_meaning(name: str) -> None:
    method = getattr(GPT, name)
    parameters = inspect.signature(method).parameters
    assert list(parameters) == ["self", "prompt", *OPTIONS]
    documentation = inspect.getdoc(method)
    assert documentation is not None
    for option in OPTIONS.values():
        if option.name not in ("stop", "stop_ids", "logit_bias"):
            assert parameters[option.name].default == option.default
        assert f"{option.name}: {option.help}" in " ".join(documentation.split())
    assert max(map(len, documentation.splitlines())) <= 120


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
def test_every_option_has_a_range_a_help_in_two_languages_and_a_group(option: object) -> None:
    assert isinstance(option, type(next(iter(OPTIONS.values()))))
    assert option.help.endswith((".", "?")) and option.help_zh.endswith("。")
    assert option.group in ("sampling", "ending", "output")
    assert option.type in (bool,) or option.minimum is not None or option.name in ("stop", "stop_ids", "logit_bias")


def test_an_unknown_option_is_answered_with_the_nearest_name() -> None:
    gpt = clearhead.load()
    methods: list[Any] = [gpt.generate, gpt.stream, gpt.astream, gpt.request]
    for method in methods:
        with pytest.raises(clearhead.ClearheadError, match=r"'max_tokens' is not .* did you mean 'max_new_tokens'\?"):
            method("a", max_tokens=3)
