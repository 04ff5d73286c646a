"""The chapters as Jupyter notebooks, with the outputs and figures that the chapters show."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from clearhead.errors import InputError
from clearhead.tour.cells import Cell, parse
from clearhead.tour.chapters import Chapter, find, read
from clearhead.utils import atomic

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FIGURE = re.compile(r"(!\[[^\]]*\]\()(?:\.\./)*(figures/[\w.-]+\))")


def write_notebooks(root: Path, language: str, folder: Path) -> list[Path]:
    """Write each chapter of a tour as a notebook, and the figures into the subfolder `figures`.

    Args:
        root: the tour's folder, such as `docs/tour`.
        language: one of `LANGUAGES`.
        folder: the folder to create.

    Returns:
        The notebooks, in the order of the chapters.

    Raises:
        InputError: if the tour has no chapter in this language, a chapter or figure cannot be read, or `folder`
            exists: the notebooks in it may have been edited.
    """
    chapters = [chapter for chapter in find(root) if chapter.language == language]
    if not chapters:
        raise InputError(f"{root} has no chapter in this language; leave out --lang.")
    if folder.exists():
        raise InputError(f"{folder} exists, and its notebooks may have been edited; give the name of a new folder.")
    names = {chapter.path.name for chapter in chapters}
    with atomic.atomic_folder(folder) as temporary:
        (temporary / "figures").mkdir()
        for chapter in chapters:
            text = read(chapter.path)
            cells = parse(text)
            atomic.write_text(temporary / f"{chapter.path.stem}.ipynb", _notebook(chapter, text, cells, names))
            for link in (link for cell in cells for link in cell.figures):
                atomic.write_text(temporary / "figures" / Path(link).name, read(chapter.path.parent / link))
    return [folder / f"{chapter.path.stem}.ipynb" for chapter in chapters]


def _notebook(chapter: Chapter, text: str, cells: Sequence[Cell], names: set[str]) -> str:
    """Return a chapter as the JSON of a notebook (nbformat 4.5)."""
    lines = text.splitlines(keepends=True)
    parts: list[dict[str, object]] = []
    start = 0
    for count, cell in enumerate(cells, 1):
        parts += _markdown(lines[start : cell.line], names)
        parts.append(_code(cell, count))
        start = cell.output_end
    parts += _markdown(lines[start:], names)
    for number, part in enumerate(parts):
        part["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}, "title": chapter.title}
    whole = {"cells": parts, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _code(cell: Cell, count: int) -> dict[str, object]:
    shown: list[dict[str, object]] = []
    if cell.output:
        output = f"{cell.output}\n".splitlines(keepends=True)
        shown.append({"name": "stdout", "output_type": "stream", "text": output})
    source = cell.code.rstrip("\n").splitlines(keepends=True)
    return {"cell_type": "code", "execution_count": count, "metadata": {}, "outputs": shown, "source": source}


def _markdown(lines: Sequence[str], names: set[str]) -> list[dict[str, object]]:
    """Return the text between two code cells as a cell; none if it is blank."""
    text = _LINK.sub(lambda found: _linked(found, names), _FIGURE.sub(r"\1\2", "".join(lines).strip("\n")))
    return [{"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}] if text else []


def _linked(found: re.Match[str], names: set[str]) -> str:
    """Return a link to a chapter as one to its notebook; only its words if the target is not among the notebooks."""
    words, link = found[1], found[2]
    target, mark, heading = link.partition("#")
    if re.match(r"[a-z]+:", link) or not target:
        return found[0]
    return f"[{words}]({target.removesuffix('.md')}.ipynb{mark}{heading})" if target in names else words
