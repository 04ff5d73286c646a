"""The Chinese page that follows the article number by number: its links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/article.zh.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target
