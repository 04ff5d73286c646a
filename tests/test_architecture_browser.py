"""Charts of architectures in a real browser, with its fonts: no text lies on another; the theme is the reader's."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from browsers import needs_chromium
from test_architecture import CONFIGS, of_config

from clearhead.anatomy.architecture.chart import architecture_diagram
from clearhead.anatomy.diagram.svg import diagram_svg
from clearhead.drawing.svg import side_by_side

pytestmark = [pytest.mark.slow, needs_chromium]

MEASURE = """() => [...document.querySelectorAll("body > svg")].map(svg =>
    [...svg.querySelectorAll("text")].filter(text => text.textContent.trim()).map(text => {
        const box = text.getBoundingClientRect()
        return [text.textContent, box.left, box.top, box.right, box.bottom, getComputedStyle(text).fill]
    }))"""
TOLERANCE = 2  # pixels that two lines' boxes may share, because a box is higher than its letters


def overlap(one: list[Any], other: list[Any]) -> bool:
    width = min(one[3], other[3]) - max(one[1], other[1])
    height = min(one[4], other[4]) - max(one[2], other[2])
    return bool(width > TOLERANCE and height > TOLERANCE)


def brightness(colour: str) -> float:
    """Return 0 for black to 255 for white, of `rgb(...)`."""
    return sum(map(float, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_text_lies_on_another(browser: Any, lang: str) -> None:
    charts = [diagram_svg(architecture_diagram(of_config(key), lang)) for key in CONFIGS]
    charts.append(side_by_side(charts[:2], lang))
    shades = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.set_content(f"<body>{''.join(charts)}</body>")
        measured = page.evaluate(MEASURE)
        page.close()
        assert len(measured) == len(charts) and all(len(texts) > 20 for texts in measured)
        for texts in measured:
            found = [(one[0], other[0]) for one, other in combinations(texts, 2) if overlap(one, other)]
            assert found == [], scheme
        shades[scheme] = brightness(measured[0][0][5])
    assert shades["light"] < 128 < shades["dark"]
