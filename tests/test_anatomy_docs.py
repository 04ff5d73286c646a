"""The pages about the anatomy: both languages state the same numbers."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_both_languages_state_the_same_numbers() -> None:
    numbers = [
        sorted(re.findall(r"\d[\d,.]*\d", (DOCS / page).read_text(encoding="utf-8")))
        for page in ("anatomy.md", "anatomy.zh.md")
    ]
    assert set(numbers[0]) == set(numbers[1])
    for page in ("anatomy.md", "anatomy.zh.md"):
        for target in re.findall(r"\]\(([^)]+)\)", (DOCS / page).read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), target
