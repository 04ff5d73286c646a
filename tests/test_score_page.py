"""The web page of scored texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browsers import needs_chromium
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.evaluation.score_page import rank_class, score_page
from clearhead.evaluation.surprisal import InputText, SurprisalOptions, SurprisalTable

TEXT = 'The dog <sat> & "slept".\nThen 🙂 x\u0301 xylophone 我们!'


class Texts(HTMLParser):
    """Collects the tokens of a page: their text, classes and tips."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tokens: list[tuple[str, dict[str, str | None]]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "span" and dict(attrs).get("data-tip") is not None
        if self._inside:
            self.tokens.append(("", dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            text, attributes = self.tokens[-1]
            self.tokens[-1] = (text + data, attributes)


def test_the_page_has_the_text_its_ranks_and_the_likely_tokens() -> None:
    table = SurprisalTable(clearhead.load(), SurprisalOptions(top=3))
    (rows,) = table.rows([InputText("a<b", TEXT)])
    page = score_page([rows], table.metadata(), "Surprisal")
    tokens = Texts(page).tokens
    assert "".join(text for text, _ in tokens) == TEXT and "<h2>a&lt;b</h2>" in page
    shown = [row for row in rows if row["token"]]
    for (text, attributes), row in zip(tokens, shown, strict=True):
        tip, style = attributes["data-tip"] or "", attributes["style"] or ""
        assert text == row["token"] and attributes["class"] == f"t {rank_class(row['rank'])}"
        assert tip.startswith(f"{row['surprisal']:.2f} bits, rank {row['rank'] + 1:,}")
        assert len(tip.splitlines()) == 4 and repr(row["top_1"]) in tip and ("←" in tip) == (row["rank"] < 3)
        assert float(style.removeprefix("--s:").rstrip("%")) == pytest.approx(
            min(1, row["surprisal"] / 16) * 55, abs=0.06
        )


def test_the_page_can_be_in_chinese() -> None:
    table = SurprisalTable(clearhead.load(), SurprisalOptions(top=3, bos=False))
    page = score_page(table.rows([InputText("a", TEXT)]), {}, "惊异度", "zh")
    assert '<html lang="zh-CN">' in page and "前面没有内容" in page and "个词元" in page
    tips = [attributes["data-tip"] or "" for _, attributes in Texts(page).tokens]
    assert all("排名" in tip for tip in tips[1:]) and not re.search(r"\b(bits|rank|tokens|entropy|tint)\b", page)


def test_ranks_have_the_classes_of_gltr() -> None:
    found = [rank_class(rank) for rank in (0, 9, 10, 99, 100, 999, 1000)]
    assert found == ["top10", "top10", "top100", "top100", "top1000", "top1000", "beyond"]


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    text, page = tmp_path / "t.txt", tmp_path / "t.html"
    text.write_text(TEXT, encoding="utf-8")
    found = CliRunner().invoke(make_app(), ["score", str(text), "--html", str(page), "--no-bos"])
    assert found.exit_code == 0 and "nothing comes before it" in page.read_text(encoding="utf-8")
    refused = CliRunner().invoke(make_app(), ["score", str(text), "--html", str(page), "--by", "word"])
    assert refused.exit_code == 2 and "leave -o and --by out" in re.sub(r"[\s│]+", " ", refused.output)


@needs_chromium
@pytest.mark.slow
def test_in_a_browser_colours_differ_by_theme_and_a_tip_appears(browser: Any, tmp_path: Path) -> None:
    table = SurprisalTable(clearhead.load(), SurprisalOptions(top=3))
    file = tmp_path / "page.html"
    file.write_text(score_page(table.rows([InputText("a", TEXT)]), table.metadata(), "Surprisal"), encoding="utf-8")
    seen = []
    for theme in ("light", "dark"):
        page = browser.new_page(color_scheme=theme, viewport={"width": 700, "height": 500})
        page.goto(file.as_uri())
        seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        lines = page.locator(".legend .t").evaluate_all(
            "all => all.map(one => getComputedStyle(one).borderBottomStyle)"
        )
        assert lines == ["none", "dotted", "solid", "double"]  # what a reader without colour sees
        token = page.locator(".text .t").nth(1)
        read = "element => getComputedStyle(element, '::after').content"
        assert token.evaluate(read) == "none"
        token.hover()
        assert "bits, rank" in token.evaluate(read)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.close()
    assert seen[0] != seen[1]
