"""The pages about the anatomy: what they print is what the commands print, and both languages print the same."""

import re
from pathlib import Path

import pytest
from command_line import call

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```\n\$ clearhead (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def printed(page: str) -> list[tuple[str, str]]:
    """The commands of a page with what stands below each."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["anatomy.md", "anatomy.zh.md"])
def test_commands_print_what_the_page_says(page: str) -> None:
    blocks = printed(page)
    assert len(blocks) == 6
    for command, shown in blocks:
        output = "\n".join(line.rstrip() for line in call(*command.split()).stdout.decode().splitlines())
        at = 0
        for piece in filter(None, (piece.strip("\n") for piece in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE))):
            found = output.find(piece, at)
            assert found >= 0, f"`clearhead {command}` does not print, in this order:\n{piece}"
            at = found + len(piece)


def test_both_languages_show_the_same() -> None:
    assert printed("anatomy.md") == printed("anatomy.zh.md")
    numbers = [
        sorted(re.findall(r"\d[\d,.]*\d", (DOCS / page).read_text(encoding="utf-8")))
        for page in ("anatomy.md", "anatomy.zh.md")
    ]
    assert set(numbers[0]) == set(numbers[1])
    for page in ("anatomy.md", "anatomy.zh.md"):
        for target in re.findall(r"\]\(([^)]+)\)", (DOCS / page).read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), target
