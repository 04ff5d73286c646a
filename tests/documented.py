"""What the pages of the documentation show: fenced blocks, the commands in them, and how a test may run each.

Every fenced block is run by `test_documentation.py`, unless an HTML comment above it, which no reader sees, says
otherwise. `<!-- test: ... -->` holds directives between semicolons:

    skip (REASON)            do not run the block: it needs the network, another program, or shows no command
    slow (REASON)            run it in `make test-docs` only
    skip "PART" (REASON)     the same for the commands that contain PART; also `slow "PART" (REASON)`
    numbers vary             compare the output without its numbers, which depend on texts, machine or time
    output of COMMAND        the block is what this command prints
    file NAME                the block is a file, which later commands read by this name
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_DIRECTIVE = re.compile(r'(skip|slow)(?: "([^"]+)")? \(([^()]+)\)|(numbers vary)|output of (.+)|file (\S+)')
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^<!-- test: ([^\n]*) -->\n\Z", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command of a block: what is typed, and what the page shows below it, if anything."""

    text: str
    shown: str | None


@dataclass(frozen=True)
class Directives:
    """How a block is tested; `skip` and `slow` are the parts of commands to which they apply, "" for all."""

    skip: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    numbers_vary: bool = False
    output_of: str = ""
    file: str = ""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, from `line` on."""

    line: int
    language: str
    text: str
    directives: Directives
    follows: bool
    """Whether the block above ends right here, with nothing but white space between them."""

    def commands(self) -> list[Command]:
        """Return the commands of a block: lines after `$ ` with what is shown below, or all its lines."""
        if self.language:
            return []
        if self.directives.output_of:
            return [Command(self.directives.output_of, self.text)]
        text = self.text.replace("\\\n", " ")
        if not text.startswith("$ "):
            return [Command(line, None) for line in text.splitlines() if line.strip()]
        sessions = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
        return [Command(command, shown) for command, _, shown in (one.partition("\n") for one in sessions)]


def pages() -> list[str]:
    """Return the pages with commands, from the root of the repository; translations are found from them."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        ValueError: if a comment above a block is no directive.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0, f"{page}: a fence is not closed"
    found, end = [], -1
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        comment = _COMMENT.search(text, 0, match.start())
        above = text[end : comment.start() if comment else match.start()]
        directives = _parse(comment[1], f"{page}:{line}") if comment else Directives()
        found.append(Block(line, match[1], match[2], directives, end >= 0 and not above.strip()))
        end = match.end()
    return found


def _parse(text: str, where: str) -> Directives:
    skip: list[str] = []
    slow: list[str] = []
    vary, output, file = False, "", ""
    for one in " ".join(text.split()).split("; "):
        match = _DIRECTIVE.fullmatch(one)
        if match is None:
            raise ValueError(f"{where}: {one!r} is no directive")
        if match[1]:
            (skip if match[1] == "skip" else slow).append(match[2] or "")
        vary = vary or bool(match[4])
        output, file = match[5] or output, match[6] or file
    return Directives(tuple(skip), tuple(slow), vary, output, file)


def difference(shown: str, printed: str, numbers_vary: bool) -> str:
    """Return the part of a page's output that a command did not print in this order, or "".

    A line `...` stands for lines that the page leaves out. Times and rates are never compared; if numbers vary, no
    number is, nor the text after `|`, which a model in training wrote.
    """
    output = _normalized(printed, numbers_vary)
    pieces = re.split(r"^\.\.\.\n", _normalized(shown, numbers_vary), flags=re.MULTILINE)
    at = 0
    for index, piece in enumerate(pieces):
        found = output.find(piece, at)
        if found < 0 or (index == 0 and found > 0):
            return piece
        at = found + len(piece)
    return output[at:] if pieces[-1] else ""


def _normalized(text: str, numbers_vary: bool) -> str:
    lines = []
    for line in text.strip("\n").splitlines():
        line = re.sub(r"\d[\d,.]*(?= (s|ms|tokens/s|MB/s|GB)\b)", "#", line.rstrip())
        if numbers_vary:
            line = re.sub(r"(?<=\S)\|.*", "|", re.sub(r"\d[\d,.]*\d|\d", "#", line))
            line = re.sub(r"  +", " ", line)
        lines.append(line + "\n")
    return "".join(lines)
