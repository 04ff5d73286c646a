"""The tour's chapters as notebooks: valid, complete, with links that lead somewhere, and they run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from command_line import call
from notebooks import printed, run_notebook

from clearhead.errors import InputError
from clearhead.tour import LANGUAGES, find, folder, parse
from clearhead.tour.notebooks import write_notebooks

CHAPTERS = find(folder())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("notebooks")
    for language in LANGUAGES:
        paths = write_notebooks(folder(), language, root / language)
        assert [path.stem for path in paths] == [one.path.stem for one in CHAPTERS if one.language == language]
    return root


def cells(notebook: dict[str, Any], kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: f"{c.language}-{c.path.stem}")
def test_a_notebook_has_what_its_chapter_has(written: Path, chapter: Any) -> None:
    path = written / chapter.language / f"{chapter.path.stem}.ipynb"
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    text = chapter.path.read_text(encoding="utf-8")
    expected = parse(text)
    assert cells(notebook, "code") == [cell.code.rstrip("\n") for cell in expected]
    assert [output.rstrip("\n") for output in printed(notebook)] == [cell.output or "" for cell in expected]
    words = "\n".join(cells(notebook, "markdown"))
    assert re.findall("^#+ .*", words, re.MULTILINE) == re.findall("^#+ .*", _without_code(text), re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", words) if not re.match("[a-z]+:", link)]
    assert [link for link in links if not (path.parent / link.partition("#")[0]).is_file()] == []
    assert sum(link.startswith("figures/") for link in links) == sum(len(cell.figures) for cell in expected)


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_notebook_runs_and_prints_what_it_shows(written: Path, language: str) -> None:
    path = written / language / "05-shortcut.ipynb"
    shown = printed(json.loads(path.read_text(encoding="utf-8")))
    assert [text.rstrip() for text in printed(run_notebook(path))] == [text.rstrip() for text in shown]
    assert list(path.parent.glob("gradients*.svg"))


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.ipynb").write_text("{}")
    with pytest.raises(InputError, match="may have been edited; give the name of a new folder"):
        write_notebooks(folder(), "en", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.ipynb"]


def test_a_language_without_chapters_is_said(tmp_path: Path) -> None:
    (tmp_path / "01-x.md").write_text("# 1. X\n\n```python\nprint(1)\n```\n")
    with pytest.raises(InputError, match="no chapter in this language"):
        write_notebooks(tmp_path, "zh", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_writes_notebooks(tmp_path: Path) -> None:
    result = call("tour", "--notebook", str(tmp_path / "new"), "--lang", "zh")
    assert result.returncode == 0 and "11 个 notebook" in result.stdout.decode()
    assert "嵌入" in (tmp_path / "new" / "01-embedding.ipynb").read_text(encoding="utf-8")
    assert call("tour", "--notebook", str(tmp_path / "new")).returncode == 2
