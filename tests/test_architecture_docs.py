"""The pages about other models: their commands print what they show, and their pictures are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_anatomy_docs import printed
from typer.testing import CliRunner

from clearhead.anatomy.architecture.families import FAMILIES
from clearhead.cli.app import make_app

ROOT = Path(__file__).parents[1]
PAGES = ("architecture.md", "architecture.zh.md")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(make_app(), list(arguments), catch_exceptions=False, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_commands_print_what_the_page_says(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = printed(page)
    assert len(blocks) == 2
    for command, shown in blocks:
        output, at = run(*command.split()), 0
        for piece in filter(None, (piece.strip("\n") for piece in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE))):
            found = output.find(piece, at)
            assert found >= 0, f"`clearhead {command}` does not print, in this order:\n{piece}\nbut\n{output}"
            at = found + len(piece)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_pictures_are_up_to_date(lang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "docs" / "architecture"
    models = (str(folder / "gpt2.json"), "--compare", str(folder / "llama-3-8b.json"))
    drawn = run("architecture", *models, "--svg", "--lang", lang)
    name = "gpt2-and-llama.svg" if lang == "en" else "gpt2-and-llama.zh.svg"
    assert drawn == (folder / name).read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize("page", PAGES)
def test_every_family_is_in_the_table_and_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = "".join(line for line in text.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`([\w-]+)`", rows)) - {"model_type"} == set(FAMILIES)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
