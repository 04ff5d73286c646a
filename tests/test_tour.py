"""The tour: every chapter does what it says, in both languages; the checker finds faults; the pages are served."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
from typer.testing import CliRunner

from clearhead.cli.app import make_app
from clearhead.errors import InputError
from clearhead.tour import Chapter, check, find, parse, rewrite
from clearhead.tour.cells import same_drawing
from clearhead.tour.server import open_server
from clearhead.tour.site import Site

TOUR = Path(__file__).parents[1] / "docs" / "tour"
CHAPTERS = find(TOUR)
ENGLISH = [chapter for chapter in CHAPTERS if chapter.language == "en"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: f"{c.language}-{c.path.stem}")
def test_a_chapter_does_what_it_says(chapter: Chapter) -> None:
    assert [str(problem) for problem in check(chapter.path)] == []


@pytest.mark.parametrize("chapter", ENGLISH, ids=lambda c: c.path.stem)
def test_both_languages_run_the_same_code(chapter: Chapter) -> None:
    ours, translated = (
        [cell.code for cell in parse(path.read_text(encoding="utf-8"))]
        for path in (chapter.path, TOUR / "zh" / chapter.path.name)
    )
    assert [_without_words(code) for code in translated] == [_without_words(code) for code in ours]
    for code, other in zip(ours, translated, strict=True):
        changed = [(a, b) for a, b in zip(_strings(code), _strings(other), strict=True) if a != b]
        assert [b for a, b in changed if not (_CHINESE.search(b) or b == a.replace(".svg", "-zh.svg"))] == []


@pytest.mark.parametrize(
    ("translated", "same"),
    [
        ('print(f"共 {n:3} 个，{x:.2f}", 4)', True),
        ('print(f"{n:3}{x:.2f}", 4)', True),
        ('print(f"{n:4} and {x:.2f}", 4)', False),
        ('print(f"{n:3} and {x:.1f}", 4)', False),
        ('print(f"{n:3} and {x}", 4)', False),
        ('print(f"{n!r:3} and {x:.2f}", 4)', False),
        ('print(f"{x:.2f} and {n:3}", 4)', False),
        ('print(f"{n:3} and {x:.2f}", 5)', False),
        ('print(f"{n:3} and {x:.2f}", 4, lang="zh")', True),
        ('print(f"{n:3} and {x:.2f}", 4, end="")', False),
    ],
)
def test_nothing_but_words_may_be_translated(translated: str, same: bool) -> None:
    assert (_without_words(translated) == _without_words('print(f"{n:3} and {x:.2f}", 4)')) is same


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: f"{c.language}-{c.path.stem}")
def test_the_list_of_chapters_names_each(chapter: Chapter) -> None:
    assert f"({chapter.path.name})" in (chapter.path.parent / "README.md").read_text(encoding="utf-8")
    assert chapter.title.startswith(f"{int(chapter.number)}. ")


def test_every_figure_is_shown() -> None:
    shown = {link for c in CHAPTERS for cell in parse(c.path.read_text(encoding="utf-8")) for link in cell.figures}
    assert {Path(link).name for link in shown} == {file.name for file in (TOUR / "figures").iterdir()}


_CHINESE = re.compile("[\u4e00-\u9fff]")


class _WordRemover(ast.NodeTransformer):
    """Empties strings and drops `lang=`; values in f-strings stay, with their conversions and formats."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        return ast.JoinedStr([self.visit(part) for part in node.values if isinstance(part, ast.FormattedValue)])

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.FormattedValue:
        node.value = self.visit(node.value)  # the format beside it is no word
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "lang"]
        return self.generic_visit(node)


def _without_words(code: str) -> str:
    """A cell's syntax without its strings (also those around a value in an f-string), which may be translated."""
    return ast.dump(_WordRemover().visit(ast.parse(code)))


def _strings(code: str) -> list[str]:
    """A cell's strings in order, but for the pieces of f-strings and the language of a drawing."""
    tree = ast.parse(code)
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    pieces |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "lang"}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [str(node.value) for node in strings if id(node) not in pieces]


# --------------------------------------------------------------------------------------------------------------
# The checker
# --------------------------------------------------------------------------------------------------------------

GOOD = """# 3. A chapter

```python
from pathlib import Path

n = 2
print(n + 1)  # three
```

```text
3
```

Words between.

```python
Path("it.svg").write_text(f"<svg width='{n}.04'/>")
```

![it](figures/03-it.svg)

```console
$ not run
```
"""


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "03-it.svg").write_text("<svg width='2.1'/>")
    path = tmp_path / "03-it.md"
    path.write_text(GOOD)
    return path


def test_a_good_chapter_has_no_problem(chapter: Path) -> None:
    before = Path.cwd()
    assert check(chapter) == []
    assert rewrite(chapter) == []
    assert Path.cwd() == before
    assert sorted(path.name for path in chapter.parent.iterdir()) == ["03-it.md", "figures"]


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("```text\n3", "```text\n4", 3, "line 1 of the output is written as '4', but the cell prints '3'."),
        ("```text\n3", "```text\n3\n5", 3, "written as '5', but the cell prints no more"),
        ("```text\n3\n```", "", 3, "the cell prints '3', but no output is written below it"),
        ("print(n + 1)", "n", 3, "the cell prints nothing, but '3' is written below it"),
        ("n = 2", "n = 3", 3, "but the cell prints '4'"),
        ("n = 2", "n = 3", 16, "figures/03-it.svg differs from what the cell draws"),
        ("print(n + 1)", "print(n +\n1)\nprint(m)", 3, "the cell failed: NameError: name 'm' is not defined (line 9)"),
        ("print(n + 1)", "print(n +", 3, "the cell failed: "),
        ('Path("it.svg")', 'Path("other.svg")', 16, "the cell did not write it.svg"),
        ("figures/03-it", "figures/04-it", 16, "does not begin with the chapter's number"),
        ("Words", "[Words](04-next.md)", 14, "the link to 04-next.md is broken"),
        ("Words", "[Words](../../src/clearhead/no.py)", 14, "is broken"),
        ("Words", "![Words](figures/03-no.svg)", 14, "the link to figures/03-no.svg is broken"),
    ],
)
def test_the_checker_names_the_fault_and_its_line(chapter: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    chapter.write_text(GOOD.replace(old, new))
    problems = [str(problem) for problem in check(chapter)]
    assert any(text.startswith(f"{chapter}:{line}") and said in text for text in problems), problems


def test_rewriting_puts_all_of_it_right_and_changes_no_other_word(chapter: Path) -> None:
    (chapter.parent / "figures" / "03-it.svg").unlink()
    chapter.write_text(GOOD.replace("```text\n3\n```", "```text\nold\nlines\n```"))
    assert {path.name for path in rewrite(chapter)} == {"03-it.md", "03-it.svg"}
    assert chapter.read_text() == GOOD
    assert check(chapter) == []
    chapter.write_text(GOOD.replace("\n```text\n3\n```\n", ""))
    rewrite(chapter)
    assert chapter.read_text() == GOOD


def test_nothing_is_written_where_a_cell_fails(chapter: Path) -> None:
    text = GOOD.replace("n = 2", "n = 1").replace("Path(", "Bath(")
    chapter.write_text(text)
    with pytest.raises(InputError, match=r"03-it\.md:16: the cell failed: NameError"):
        rewrite(chapter)
    assert chapter.read_text() == text


def test_an_output_with_fences_in_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "01-x.md"
    path.write_text('```python\nprint("```text\\nx\\n```  ")\n```\n')
    rewrite(path)
    assert check(path) == []
    assert parse(path.read_text())[0].output == "```text\nx\n```"


def test_only_links_into_the_package_that_exist_count_as_its_source(chapter: Path) -> None:
    chapter.write_text(GOOD.replace("Words", "[Words](../../src/clearhead/model.py) [web](https://example.org/x)"))
    assert check(chapter) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("<path d='M1.0 2'/>", "<path d='M1.1 2'/>", True),
        ("<path d='M1.0 2'/>", "<path d='M1.2 2'/>", False),
        ("<path d='M1.0 2'/>", "<path d='M1.0 2 3'/>", False),
        ("<text>a</text>", "<text>b</text>", False),
        ("<path d='M1-2'/>", "<path d='M1 2'/>", False),
    ],
)
def test_drawings_may_differ_in_rounding_only(one: str, other: str, same: bool) -> None:
    assert same_drawing(one, other) is same


@pytest.mark.parametrize("make", ["nothing", "file", "empty", "latin"])
def test_a_folder_without_a_tour_is_named(tmp_path: Path, make: str) -> None:
    place = tmp_path / "tour"
    if make == "file":
        place.write_text("x")
    elif make != "nothing":
        place.mkdir()
    if make == "latin":
        (place / "01-x.md").write_bytes(b"# caf\xe9")
    with pytest.raises(InputError, match="tour"):
        find(place)


# --------------------------------------------------------------------------------------------------------------
# The pages
# --------------------------------------------------------------------------------------------------------------


def _get(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get_content_type(), error.read().decode()


class _Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.alts: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "img":
            self.alts.append(found.get("alt"))
        for name in ("href", "src"):
            link = found.get(name)
            if link and not link.startswith(("#", "data:", "https:")):
                self.links.append(link)


def test_every_page_and_all_that_it_links_to_is_served(address: str) -> None:
    there = {"README.md", *(chapter.path.name for chapter in ENGLISH)}
    todo, seen = [f"{address}/"], set[str]()
    while todo:
        url = todo.pop()
        seen.add(url)
        status, kind, text = _get(url)
        assert status == 200, url
        if kind != "text/html" or "/src/" in url:
            continue
        found = _Links(text)
        assert all(found.alts), url
        for link in found.links:
            target = urljoin(url, link).partition("#")[0]
            is_written = not target.endswith(".html") or f"{Path(target).stem}.md" in there
            if is_written and target not in seen and target not in todo:
                todo.append(target)
    for chapter in CHAPTERS:
        base = "" if chapter.language == "en" else f"{chapter.language}/"
        assert f"{address}/{base}{chapter.path.stem}.html" in seen
    assert f"{address}/style.css" in seen
    assert f"{address}/src/clearhead/model.py" in seen


def test_a_page_has_its_language_its_code_and_its_output(address: str) -> None:
    _, _, english = _get(f"{address}/01-embedding.html")
    assert '<html lang="en">' in english
    assert '<a href="/zh/01-embedding.html" lang="zh"' in english
    assert "<samp>[433, 415, 638, 465, 258, 642, 13]" in english
    assert 'href="02-attention.html"><small>Next</small>2. Attention' in english
    _, _, chinese = _get(f"{address}/zh/02-attention.html")
    assert '<html lang="zh-CN">' in chinese
    assert "上一章" in chinese and "下一章" in chinese


@pytest.mark.parametrize(
    "path",
    [
        "/nothing.html",
        "/99-none.html",
        "/../README.md",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/src/clearhead/../../../pyproject.toml",
        "/src/clearhead/bundled/config.json",
        "/src/clearhead/no.py",
        "/figures/..%2fREADME.md",
        "/figures/no.svg",
    ],
)
def test_only_the_tour_and_the_source_are_served(address: str, path: str) -> None:
    status, kind, text = _get(address + path)
    assert (status, kind) == (404, "text/html")
    assert "This page does not exist" in text


def test_a_chapter_that_breaks_while_it_is_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "01-x.md").write_text("# 1. X <b>\n\n<script>alert(1)</script>\n")
    with open_server(Site(tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        here = f"http://127.0.0.1:{server.server_port}/01-x.html"
        status, _, text = _get(here)
        assert status == 200
        assert "<script>" not in text and "<title>1. X &lt;b&gt;" in text
        (tmp_path / "01-x.md").write_bytes(b"# 1. \xff")
        status, _, text = _get(here)
        assert status == 500 and "is not UTF-8" in text
        server.shutdown()
        thread.join()


def test_a_port_that_is_taken_is_said() -> None:
    with open_server(Site(TOUR)) as server, pytest.raises(InputError, match="another program uses it"):
        open_server(Site(TOUR), server.server_port)
    with pytest.raises(InputError, match="port 70000 cannot be opened"):
        open_server(Site(TOUR), 70_000)


# --------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------


def _clearhead(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clearhead", "tour", *args], capture_output=True, text=True, timeout=90
    )


def test_the_command_checks_and_writes(chapter: Path) -> None:
    folder = str(chapter.parent)
    good = _clearhead(folder, "--check")
    assert (good.returncode, good.stdout) == (0, "en 03-it: 2 cells, as written\n")
    chapter.write_text(GOOD.replace("n + 1", "n + 2"))
    bad = _clearhead(folder, "--check")
    assert bad.returncode == 1 and "03-it.md:3: line 1 of the output" in bad.stdout
    assert _clearhead(folder, "--write").stdout == f"wrote {chapter}.\n"
    assert "4\n" in chapter.read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--lang", "fr"], "--lang is 'fr'; give en or zh."),
        (["--write"], "--write needs the folder"),
        (["no-such-folder"], "no-such-folder is not a folder"),
        (["--check", "--write"], "give one of"),
    ],
)
def test_bad_options_are_said(args: list[str], said: str) -> None:
    result = CliRunner().invoke(make_app(), ["tour", *args])
    assert said in f"{result.output} {result.exception}"
    assert result.exit_code == 2 or isinstance(result.exception, InputError)


def test_the_command_serves_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "clearhead", "tour", "--no-open", "--lang", "zh"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("导览在 http://127.0.0.1:")
        status, _, text = _get(first.split()[-1])
        assert status == 200 and "GPT-2 导览" in text
        time.sleep(0.1)
        process.send_signal(2)  # Ctrl-C
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
