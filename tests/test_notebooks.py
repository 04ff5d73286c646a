"""What a notebook shows of results: short texts, and well-formed HTML that escapes what models and users wrote."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import clearhead
from clearhead.anatomy import count_parameters
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.utils.html import LONGEST_TABLE, html_table
from clearhead.verification import verify_weights

EVIL = "<script>alert(1)</script> & 'x'"


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return clearhead.load()


class Strict(HTMLParser):
    """Check that every element is closed in order, and collect names and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize(
    ("make", "short"),
    [
        (lambda gpt: gpt.generate(EVIL, max_new_tokens=3, logprobs=2, seed=1), "Generation("),
        (lambda gpt: gpt.generate([1, 2], max_new_tokens=3, n=2), "Generation("),
        (lambda gpt: gpt.score(EVIL), "Score("),
        (lambda gpt: count_parameters(gpt.config), "ParameterTree("),
        (lambda _: clearhead.weights.open("bundled").plan("gguf"), "ConversionPlan("),
        (lambda _: verify_weights("bundled"), "Verification("),
        (lambda gpt: gpt.watch(EVIL, "logits"), ""),
        (lambda gpt: gpt.walk(EVIL), "Walk("),
    ],
    ids=["generation", "samples", "score", "account", "plan", "verification", "trace", "walk"],
)
def test_results_are_short_as_text_and_well_formed_as_html(gpt: GPT, make: Callable[[GPT], Any], short: str) -> None:
    made = make(gpt)
    assert repr(made).startswith(short) and (not short or len(repr(made)) < 300)
    shown = parsed(made._repr_html_())
    assert "script" not in shown.tags
    assert "iframe" in shown.tags or shown.text.strip()


def test_log_probabilities_carry_the_text_of_their_tokens(gpt: GPT) -> None:
    found = gpt.generate("Once upon a time", max_new_tokens=4, logprobs=3, seed=1)
    assert found.samples[0].logprobs is not None
    assert "".join(str(one.text) for one in found.samples[0].logprobs) == found.text
    for one in found.samples[0].logprobs:
        assert len(one.top_texts) == len(one.top) == 3


def test_a_walk_is_saved_as_a_page(gpt: GPT, tmp_path: Path) -> None:
    walk = gpt.walk("Once upon a time", temperature=0, seed=3)
    walk.save(tmp_path / "walk.html", "zh")
    assert "Once upon a time" in (tmp_path / "walk.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        gpt.walk("Once", temprature=1)  # type: ignore[call-arg]


def test_a_long_table_says_how_much_it_leaves_out() -> None:
    shown = parsed(html_table(["a", "b"], ((i, 0.5) for i in range(LONGEST_TABLE + 7)), EVIL))
    assert shown.tags.count("tr") == LONGEST_TABLE + 1 and "and 7 more" in shown.text and EVIL in shown.text
