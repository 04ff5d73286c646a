"""The outline and the copy buttons of the tour's pages, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import needs_chromium

from clearhead.tour import Chapter, find, parse
from clearhead.tour.chapters import read
from clearhead.tour.site import markdown_page

pytestmark = needs_chromium

TOUR = Path(__file__).parents[1] / "docs" / "tour"
SCHEMES = ["light", "dark"]


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """Return a function that opens a page of the tour; nothing may go wrong in it."""
    contexts, said = [], list[str]()

    def opened(path: str, **options: Any) -> Any:
        contexts.append(browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(address + path)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert said == []


@pytest.mark.parametrize("chapter", find(TOUR), ids=lambda c: f"{c.language}-{c.path.stem}")
def test_headings_have_addresses_and_an_outline(chapter: Chapter) -> None:
    text = read(chapter.path)
    page = markdown_page(text)
    assert len(page.outline) >= 3
    for key in page.outline:
        assert page.html.count(f'<h2 id="{key}">') == 1


def test_equal_headings_have_different_addresses() -> None:
    page = markdown_page("# A `b` & c!\n\n## Why\n\n## Why\n\n## `x` <y>\n\n## ?\n")
    assert page.outline == {"why": "Why", "why-1": "Why", "x-y": "x &lt;y&gt;", "section": "?"}
    assert '<h1 id="a-b--c">' in page.html


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_outline_leads_to_its_headings(open_page: Any, width: int, scripts: bool) -> None:
    size = {"width": width, "height": 740}
    tab = open_page("/zh/03-norm.html", viewport=size, java_script_enabled=scripts)
    assert tab.locator(".copy").count() == (len(parse(read(TOUR / "zh/03-norm.md"))) if scripts else 0)
    if width < 500:
        tab.locator("summary").focus()
        tab.keyboard.press("Enter")
    links = tab.locator(f".contents.{'narrow' if width < 500 else 'wide'} ol ol a")
    headings = tab.locator("main h2").all_text_contents()
    assert links.all_text_contents() == headings
    links.last.focus()
    tab.keyboard.press("Enter")
    assert tab.url.partition("#")[2]
    box = tab.locator("main h2").last.bounding_box()
    assert 0 < box["y"] < size["height"]
    if scripts:
        assert tab.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(
    ("path", "words"), [("/03-norm.html", ("Copy", "Copied")), ("/zh/03-norm.html", ("复制", "已复制"))]
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_button_copies_the_code(open_page: Any, path: str, words: tuple[str, str], scheme: str) -> None:
    tab = open_page(path, color_scheme=scheme)
    cells = parse(read(TOUR / path.replace(".html", ".md").lstrip("/")))
    button = tab.locator(".copy").nth(1)
    assert button.text_content() == words[0]
    button.focus()
    assert button.evaluate("one => getComputedStyle(one).opacity") == "1"
    tab.keyboard.press("Enter")
    tab.wait_for_function("words => document.querySelectorAll('.copy')[1].textContent === words", arg=words[1])
    assert tab.evaluate("navigator.clipboard.readText()") == cells[1].code
    tab.wait_for_function("words => document.querySelectorAll('.copy')[1].textContent === words", arg=words[0])


def test_where_copying_is_not_allowed_the_code_is_selected(open_page: Any) -> None:
    tab = open_page("/03-norm.html")
    tab.evaluate("Object.defineProperty(navigator, 'clipboard', {value: {writeText: () => Promise.reject(Error())}})")
    tab.locator(".copy").nth(0).click()
    expected = parse(read(TOUR / "03-norm.md"))[0].code
    tab.wait_for_function("() => getSelection().toString().length > 0")
    assert tab.evaluate("getSelection().toString()").strip() == expected.strip()
