"""The Chinese page that follows the article number by number: its commands and its code print what it shows."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from command_line import call

PAGE = Path(__file__).parents[1] / "docs/article.zh.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```\n\$ clearhead (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_commands_print_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = BLOCK.findall(TEXT)
    assert len(found) >= 10
    for command, shown in found:
        result = call(*shlex.split(command))
        assert result.returncode == 0, result.stderr
        output = "\n".join(line.rstrip() for line in result.stdout.decode().splitlines()) + "\n"
        at = 0
        for piece in filter(None, (piece.strip("\n") for piece in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE))):
            at = output.find(piece, at)
            assert at >= 0, f"`clearhead {command}` does not print, in this order:\n{piece}\n---\n{output}"
            at += len(piece)


def test_the_code_prints_what_the_page_says() -> None:
    ((code, shown),) = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {})
    assert printed.getvalue() == shown


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target
