"""The READMEs in both languages: their commands run, their code prints what they show, their links lead somewhere."""

from __future__ import annotations

import itertools
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import call

import clearhead

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "README.zh.md"]
NOT_RUN = {
    "chat": "it needs a model of the hub",
    "serve": "it serves until it is stopped",
    "tour": "it serves until it is stopped",
    "train": "it takes hours",
    "bench": "it takes minutes",
}


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


def commands(page: str) -> list[list[str]]:
    """Return the arguments of every line of a page that calls `clearhead`."""
    lines = [line for block in blocks(page, "") for line in block.splitlines() if line.startswith("clearhead ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


COMMANDS = [pytest.param(words, id=" ".join(words)[:50]) for page in PAGES for words in commands(page)]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_runs(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] in NOT_RUN:
        assert call(words[0], "--help").returncode == 0
        return
    monkeypatch.chdir(tmp_path)
    Path("held_out.txt").write_text("Once upon a time there was a dog. It was happy.\n")
    Path("items.csv").write_text("id,text\n1,The dog ran home.\n2,The cat sat down.\n")
    shutil.copytree(Path(clearhead.__file__).parent / "bundled", "runs/mine/model")
    result = call(*words)
    assert result.returncode == 0, result.stderr.decode()
    for option, name in itertools.pairwise(words):
        if option in ("-o", "--html"):
            assert Path(name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_prints_what_is_shown(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)
    model = names["model"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 163_009_536  # type: ignore[attr-defined]
    shown = next(block for block in blocks(page, "") if block.startswith(" she was"))
    assert capsys.readouterr().out.endswith(shown)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/how-it-is-built.md", "docs/how-it-is-built.zh.md"])
def test_every_link_leads_to_a_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


def test_both_pages_are_short_and_show_the_same_commands() -> None:
    verbs = []
    for page in PAGES:
        assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) < 150
        verbs.append([words[0] for words in commands(page)])
    assert verbs[0] == verbs[1]


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_runs(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(example), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 2
