"""The pages about other models: their pictures are up to date, and every family is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clearhead.anatomy.architecture.families import FAMILIES
from clearhead.cli.app import make_app

ROOT = Path(__file__).parents[1]
PAGES = ("architecture.md", "architecture.zh.md")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(make_app(), list(arguments), catch_exceptions=False, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


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
