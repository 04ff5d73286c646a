"""The READMEs and the pages in `docs`: every command and every piece of Python runs and prints what the page shows.

`documented.py` says how a page marks what cannot be run here. `make test-docs` also runs what takes minutes.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from documented import ROOT, Block, Command, Directives, blocks, pages
from documented_runs import RUN, Session, check_elsewhere, check_script, furnish, same_code

PAGES = pages()
ENGLISH = [page for page in PAGES if not page.endswith(".zh.md")]
PROSE = [*PAGES, "src/clearhead/bundled/README.md", *(f"docs/tour/{p.name}" for p in (ROOT / "docs/tour").glob("*.md"))]
EVERYTHING = os.environ.get("DOCS") == "all"


def english_of(page: str) -> list[Block]:
    """Return the blocks of the page of which this one is a translation."""
    original = page.replace(".zh.md", ".md")
    return blocks(original) if original != page and (ROOT / original).exists() else []


def same(one: Block, other: Block) -> bool:
    """Return whether a block of a translation is that of the English page, but for the words of comments."""
    if one.language != other.language:
        return False
    if one.language == "python":
        return same_code(one.text, other.text)
    if one.language == "toml":
        return tomllib.loads(one.text) == tomllib.loads(other.text)
    if one.text == other.text:
        return True
    commands = [[(words(command), command.shown) for command in block.commands()] for block in (one, other)]
    return commands[0] == commands[1] != []


def words(command: Command) -> tuple[str, ...]:
    """Return a command's words, without a comment; lines that no shell reads are one word."""
    try:
        return tuple(shlex.split(command.text, comments=True))
    except ValueError:
        return (command.text,)


def resolved(page: str) -> list[tuple[Block, bool]]:
    """Return the blocks of a page, and of each whether the English page shows it too; then its directives hold."""
    english = english_of(page)
    known = {words(command) for other in english for command in other.commands()}
    found = []
    for block in blocks(page):
        commands = block.commands()
        if twin := next((other for other in english if same(block, other)), None):
            found.append((replace(block, directives=twin.directives), True))
        elif commands and all(words(command) in known and command.shown is None for command in commands):
            found.append((replace(block, directives=Directives(skip=("",))), True))
        else:
            found.append((block, False))
    return found


def wanted(block: Block, command: Command) -> bool:
    """Return whether a command is run now."""
    left_out = (*block.directives.skip, *(() if EVERYTHING else block.directives.slow))
    return not any(part in command.text for part in left_out)


def is_output(block: Block, above: Block | None) -> bool:
    """Return whether a block shows what the Python above it prints."""
    below = not block.language and block.follows and above is not None and above.language == "python"
    return below and block.text.split()[0] not in ("$", *RUN)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_marked(page: str) -> None:
    above = None
    for block, _ in resolved(page):
        where = f"{page}:{block.line}"
        parts = {part for part in (*block.directives.skip, *block.directives.slow) if part}
        assert all(any(part in command.text for command in block.commands()) for part in parts), f"{where}: {parts}"
        if "" in block.directives.skip or is_output(block, above):
            pass
        elif block.language:
            assert block.language in ("python", "toml"), f"{where}: {block.language} is neither run nor marked"
        else:
            for command in block.commands():
                if wanted(block, command) and words(command)[0] not in RUN:
                    check_elsewhere(list(words(command)), where)
        above = block


@pytest.mark.parametrize("page", PROSE)
def test_every_command_has_its_options(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = [c.text for block in blocks(page) for c in block.commands() if "clearhead " in c.text]
    for command in [*shown, *re.findall(r"`((?:clearhead|python|make|pip|torchrun) [^`\n]+)`", text)]:
        for part in re.split(r" \| |&& ", re.sub(r"^torchrun .*-m ", "", command)):
            typed = [word for word in shlex.split(part, comments=True) if word not in ("...", "…")]
            if typed[0] == "python":
                check_script(typed[1:], f"{page}: `{command}`")
            elif typed[0] in ("clearhead", "make", "pip"):
                check_elsewhere(typed, f"{page}: `{command}`")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolved(page)
    known = [is_same or "" in block.directives.skip for block, is_same in found]
    if not found or (page not in ENGLISH and all(known)):
        return  # the English page's test runs the same blocks
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    with Session(page, tmp_path) as session:
        above = None
        for index, (block, _) in enumerate(found):
            following = found[index + 1][0] if index + 1 < len(found) else None
            left_out = "" in block.directives.skip or (block.language and not wanted(block, Command("", None)))
            if not left_out and not is_output(block, above):
                commands = [command for command in block.commands() if wanted(block, command)]
                shown = following.text if following is not None and is_output(following, block) else None
                session.run(block, commands, shown)
            above = block
