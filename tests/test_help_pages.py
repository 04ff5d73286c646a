"""`--help`: each page fits 80 columns, says what a value is, and its examples have options that exist."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from command_line import call
from documented_runs import check_options
from rich.cells import cell_len

from clearhead.cli.app import GROUPS, VERBS, load_verb
from clearhead.cli.help_page import metavar

PAGES = [(), *((verb,) for verb in VERBS), *((group,) for group in GROUPS)]
PAGES += [("weights", "inspect"), ("weights", "map"), ("weights", "verify"), ("weights", "convert")]
PAGES += [("weights", "fetch"), ("corpus", "build"), ("corpus", "inspect"), ("lens", "report")]


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_a_page_fits_a_terminal(page: tuple[str, ...], lang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = call(*page, "--help", "--lang", lang)
    assert result.returncode == 0, result.stderr
    options, _, examples = result.stdout.decode().partition("Examples:" if lang == "en" else "示例：")
    assert max(map(cell_len, options.splitlines())) <= 80
    assert "<bool>" not in options and "…" not in options
    assert "[bold]" not in examples and "[/" not in examples and "\n\n " not in examples
    assert re.search(r"--help +-h ", options)


EPILOGS = {verb: load_verb(verb)[1] for verb in VERBS}
EPILOGS |= {
    f"{group} {verb}": epilog
    for group in GROUPS
    for verb, (_, epilog) in import_module(f"clearhead.cli.{group}").VERBS.items()
}


def test_every_verb_below_a_word_has_its_page_here() -> None:
    assert {tuple(verb.split()) for verb in EPILOGS} <= set(PAGES)


@pytest.mark.parametrize("verb", EPILOGS)
def test_the_options_of_examples_exist(verb: str) -> None:
    examples = re.findall(r"^\[bold\](.*?)\[/\]", EPILOGS[verb], re.MULTILINE)
    assert any(f"clearhead {verb}" in example for example in examples)
    for example in examples:
        command = re.split(r"(?:^|[ |])clearhead ", example.replace("\\[", "["), maxsplit=1)[1]
        check_options(shlex.split(command), example)


def test_a_switch_has_no_value_and_others_say_what_theirs_is() -> None:
    assert metavar(bool) == "" and metavar(bool | None) == ""
    assert metavar(int | None) == "N" and metavar(list[str] | None) == "TEXT" and metavar(Path) == "PATH"


def test_a_default_stands_behind_the_help() -> None:
    page = call("generate", "--help").stdout.decode()
    assert re.search(r"\[default:[\s│]*0\.8\]", page) and "[dim]" not in page
    assert "[默认：" in call("generate", "--help", "--lang", "zh").stdout.decode()
