"""The code cells of a chapter: find them, run them in order, and compare their output and figures with what is written.

A cell is a fenced block marked `python`. If it prints, the fenced block marked `text` right after it is its output. A
paragraph that is only an image, right after that, is a figure that the cell wrote: `figures/05-name.svg` is the file
`name.svg` of chapter 05. The cells of a chapter share a new namespace and a new working directory.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from markdown_it import MarkdownIt
from markdown_it.token import Token

from clearhead.errors import InputError
from clearhead.tour.chapters import read
from clearhead.utils import atomic

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_NEAR = 0.11  # lengths are rounded to 0.1, so another CPU's last bits may move one by that much


@dataclass(frozen=True, slots=True)
class Cell:
    """One code cell, with the output and figures written below it.

    Attributes:
        code: its source.
        line: the line of the file, from 0, on which its fence begins.
        end: the line after its closing fence.
        output: the written output, without trailing spaces; None if there is none.
        output_end: the line after the output's closing fence; `end` if there is no output.
        figures: the links of the images below.
    """

    code: str
    line: int
    end: int
    output: str | None
    output_end: int
    figures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CellResult:
    """The result of running a cell.

    Attributes:
        output: what it printed, without trailing spaces.
        files: the contents of the figures that it wrote, by their links.
        error: the exception that ended it, as one line; "" if it succeeded.
    """

    output: str
    files: dict[str, str]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A difference between a chapter and what its code does; as a string, one sentence with file and line."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line + 1}: {self.text}"


def parse(text: str) -> list[Cell]:
    """Return the code cells of a chapter's Markdown, in order."""
    blocks = list(_blocks(MarkdownIt("commonmark").parse(text)))
    cells = []
    for index, block in enumerate(blocks):
        if block.type != "fence" or block.info.strip() != "python":
            continue
        after = blocks[index + 1 :]
        is_output = bool(after) and after[0].type == "fence" and after[0].info.strip() == "text"
        figures = takewhile(bool, map(_image, after[1:] if is_output else after))
        line, end = _lines(block)
        cells.append(
            Cell(
                code=block.content,
                line=line,
                end=end,
                output=_trimmed(after[0].content) if is_output else None,
                output_end=_lines(after[0])[1] if is_output else end,
                figures=tuple(figures),
            )
        )
    return cells


def run(path: Path, cells: Sequence[Cell]) -> Iterator[CellResult]:
    """Run a chapter's cells and yield their results; stop after a cell that fails.

    Args:
        path: the chapter's file; error messages name it, with the lines of the Markdown.
        cells: its cells.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory(prefix="clearhead-tour-") as folder:
        for cell in cells:
            result = _run_one(path, cell, namespace, folder)
            yield result
            if result.error:
                return


def check(path: Path) -> list[Problem]:
    """Run a chapter and return every output, figure or link that is not as written.

    Raises:
        InputError: if the chapter cannot be read.
    """
    text = read(path)
    cells = parse(text)
    problems = [] if cells else [Problem(path, 0, "the chapter has no code cell.")]
    for cell, result in zip(cells, run(path, cells), strict=False):
        if result.error:
            problems.append(Problem(path, cell.line, f"the cell failed: {result.error}"))
            continue
        if result.output != (cell.output or ""):
            problems.append(Problem(path, cell.line, _difference(cell.output, result.output)))
        problems += [
            Problem(path, cell.line, fault)
            for link in cell.figures
            if (fault := _figure_fault(path, link, result.files.get(link)))
        ]
    return problems + _broken_links(path, text)


def rewrite(path: Path) -> list[Path]:
    """Run a chapter, write its current outputs and figures, and return the files that changed.

    Raises:
        InputError: if the chapter cannot be read, or a cell fails; nothing is written then.
    """
    text = read(path)
    cells, lines = parse(text), text.splitlines(keepends=True)
    results = list(run(path, cells))
    if results and results[-1].error:
        failed = cells[len(results) - 1]
        raise InputError(str(Problem(path, failed.line, f"the cell failed: {results[-1].error}")))
    written = []
    for cell, result in reversed(list(zip(cells, results, strict=True))):  # from the end, so that line numbers stay
        if result.output != (cell.output or ""):
            lines[cell.end : cell.output_end] = _fenced(result.output)
        for link, svg in result.files.items():
            if _figure_fault(path, link, svg):
                figure = Path(os.path.normpath(path.parent / link))
                figure.parent.mkdir(exist_ok=True)
                atomic.write_text(figure, svg)
                written.append(figure)
    if "".join(lines) != text:
        atomic.write_text(path, "".join(lines))
        written.append(path)
    return written


def same_drawing(one: str, other: str) -> bool:
    """Tell whether two SVGs are equal except for rounding: every number within a tenth of a pixel, all else equal."""
    if _NUMBER.sub("#", one) != _NUMBER.sub("#", other):
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(a == b or abs(float(a) - float(b)) < _NEAR for a, b in pairs)


def _run_one(path: Path, cell: Cell, namespace: dict[str, object], folder: str) -> CellResult:
    printed, error = io.StringIO(), ""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            # Empty lines before it give the code the line numbers of the Markdown.
            exec(compile("\n" * (cell.line + 1) + cell.code, str(path), "exec"), namespace)
    except Exception as failure:
        line = next((f.lineno for f in traceback.extract_tb(failure.__traceback__) if f.filename == str(path)), None)
        where = f" (line {line})" if line else ""
        error = f"{''.join(traceback.format_exception_only(failure)).strip()}{where}"
    finally:
        os.chdir(before)
    files = {link: Path(folder, _file_of(path, link)) for link in cell.figures}
    return CellResult(
        _trimmed(printed.getvalue()),
        {link: file.read_text(encoding="utf-8") for link, file in files.items() if file.is_file()},
        error,
    )


def _figure_fault(path: Path, link: str, svg: str | None) -> str:
    """Return what is wrong with a figure, or ""."""
    name, kept = _file_of(path, link), path.parent / link
    if not PurePosixPath(link).name.startswith(f"{path.name[:2]}-"):
        return f"the figure {link} does not begin with the chapter's number; rename it."
    if svg is None:
        return f"the cell did not write {name}, which the figure {link} shows."
    if not kept.is_file():
        return f"the figure {link} does not exist; write it with: clearhead tour {path.parent} --write"
    if not same_drawing(svg, kept.read_text(encoding="utf-8")):
        return f"the figure {link} differs from what the cell draws."
    return ""


def _broken_links(path: Path, text: str) -> list[Problem]:
    """Return links to files that do not exist; links to the web are not checked."""
    faults = []
    for block in MarkdownIt("commonmark").parse(text):
        for part in block.children or ():
            link = str(part.attrs.get("href") or part.attrs.get("src") or "")
            if not link or re.match(r"[a-z]+:|#", link):
                continue
            if not (path.parent / link.partition("#")[0]).exists() and not _is_source(path, link):
                faults.append(Problem(path, _lines(block)[0], f"the link to {link} is broken: there is no such file."))
    return faults


def _is_source(path: Path, link: str) -> bool:
    """Tell whether a link is to a file of the package, which is in another folder if the package is installed."""
    inside = re.fullmatch(r"(?:\.\./)+src/(clearhead/[\w/]+\.py)", link)
    return inside is not None and (Path(__file__).parents[2] / inside[1]).is_file()


def _difference(written: str | None, printed: str) -> str:
    if written is None:
        return f"the cell prints {_short(printed)}, but no output is written below it."
    if not printed:
        return f"the cell prints nothing, but {_short(written)} is written below it."
    old, new = written.splitlines(), printed.splitlines()
    number = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    was = repr(old[number]) if number < len(old) else "the end"
    now = repr(new[number]) if number < len(new) else "no more"
    return f"line {number + 1} of the output is written as {was}, but the cell prints {now}."


def _short(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return repr(first if len(first) <= 60 else f"{first[:60]}…")


def _blocks(tokens: Iterable[Token]) -> Iterator[Token]:
    """Yield the outermost blocks; a paragraph as its inline token."""
    inside = ""
    for token in tokens:
        if token.level == 0 and token.nesting == 1:
            inside = token.type
        own = token.level == 0 and token.nesting != -1 and token.type != "paragraph_open"
        if own or (token.level == 1 and inside == "paragraph_open"):
            yield token
        if token.level == 0 and token.nesting == -1:
            inside = ""


def _image(block: Token) -> str:
    """Return the link of an image that is alone in its paragraph, or ""."""
    parts = block.children or []
    return str(parts[0].attrs["src"]) if len(parts) == 1 and parts[0].type == "image" else ""


def _file_of(path: Path, link: str) -> str:
    """Return the file name under which a cell writes a figure: without the chapter's number."""
    return PurePosixPath(link).name.removeprefix(f"{path.name[:2]}-")


def _lines(token: Token) -> tuple[int, int]:
    return (token.map[0], token.map[1]) if token.map else (0, 0)


def _fenced(output: str) -> list[str]:
    if not output:
        return []
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", output)), 3)
    return ["\n", f"{ticks}text\n", *(f"{line}\n" for line in output.split("\n")), f"{ticks}\n"]


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
