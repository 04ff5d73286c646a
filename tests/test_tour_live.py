"""The chapters' figures that readers can change, in a real Chromium, against the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import needs_chromium

from clearhead import GPT
from clearhead.lens import logit_lens
from clearhead.tour.live import LIVE_FIGURES

pytest_plugins = ["page_fixtures"]
pytestmark = needs_chromium

TOUR = Path(__file__).parents[1] / "docs" / "tour"


class OpenChapter:
    """A chapter whose figures are live; it records console messages, errors and requests."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(120_000)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(url)
        self.finish()

    def finish(self) -> None:
        """Wait until every figure shows what its controls say."""
        self.tab.wait_for_function(
            "() => [...document.querySelectorAll('figure[data-live]')].every(one => one.dataset.state === 'ready')"
        )

    def shares(self, name: str) -> list[float]:
        """Return the probabilities that a distribution shows, the rest last."""
        texts = self.tab.locator(f"#{name}-distribution .share").all_text_contents()
        return [float(text.strip("%<")) / 100 for text in texts]

    def close(self, address: str) -> None:
        """Check that nothing went wrong and nothing was requested elsewhere, and close it."""
        assert self.said == []
        assert all(url.startswith((address, "blob:", "data:")) for url in self.requests)
        self.context.close()


def distribution(logits: Any, temperature: float, keep: int | None = None) -> list[float]:
    """Return the eight largest probabilities and the rest; with `keep`, of the likeliest tokens only."""
    values = np.sort(logits.astype(np.float64))[::-1]
    weights = np.exp((values - values[0]) / temperature)
    if keep is not None:
        weights[keep:] = 0
    shares = weights / weights.sum()
    return [*shares[:8].tolist(), float(shares[8:].sum())]


def test_a_prompt_and_the_sliders_change_the_distribution(browser: Any, address: str, rounded_gpt: GPT) -> None:
    chapter = OpenChapter(browser, f"{address}/09-sampling.html")
    for prompt in (LIVE_FIGURES["09-temperature"]["prompt"], "The dog"):
        chapter.tab.fill("#temperature-prompt", prompt)
        chapter.finish()
        logits = rounded_gpt.watch(prompt, "logits")["logits"][-1]
        for temperature in (0.5, 1.0, 2.0):
            chapter.tab.fill("#temperature-temperature", str(temperature))
            assert np.allclose(chapter.shares("temperature"), distribution(logits, temperature), atol=1e-4)
    logits = rounded_gpt.watch(LIVE_FIGURES["09-cut"]["prompt"], "logits")["logits"][-1]
    chapter.tab.fill("#cut-topK", "4")
    assert np.allclose(chapter.shares("cut"), distribution(logits, 1, keep=4), atol=1e-4)
    chapter.tab.fill("#cut-prompt", "")
    chapter.finish()
    assert chapter.shares("cut") == []
    chapter.close(address)


def test_attention_follows_the_prompt_by_mouse_and_by_keyboard(browser: Any, address: str, rounded_gpt: GPT) -> None:
    chapter = OpenChapter(browser, f"{address}/02-attention.html")
    tab = chapter.tab
    assert tab.get_attribute("#heads [aria-pressed=true]", "data-at") == "2,1", "the head of the picture"
    prompt = "A cat saw the sea"
    tab.fill("figure .live-prompt", prompt)
    chapter.finish()  # what is drawn anew loses the focus
    tab.locator("#heads [aria-pressed=true]").focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    chapter.finish()
    pattern = rounded_gpt.watch(prompt)["blocks.3.attention.pattern"][2]
    shown = [float(one) for one in tab.locator("#panel svg .number").all_text_contents()]
    expected = [100 * weight for t, row in enumerate(pattern) for weight in row[: t + 1] if weight >= 0.005]
    assert np.allclose(shown, expected, atol=0.51)
    chapter.close(address)


def test_the_lens_is_that_of_the_library_in_chinese(browser: Any, address: str, rounded_gpt: GPT) -> None:
    chapter = OpenChapter(browser, f"{address}/zh/06-block-and-output.html")
    assert rounded_gpt.tokenizer is not None
    assert "提示词" in chapter.tab.inner_text("figure .caption")
    trace = rounded_gpt.watch(LIVE_FIGURES["06-lens"]["prompt"])
    rows = chapter.tab.locator("#lens-table tr")
    for block in range(rounded_gpt.config.n_layers):
        best = int(np.argmax(logit_lens(rounded_gpt.model, trace[f"blocks.{block}.residual_out"][-1:])[0]))
        first = rows.nth(block + 1).locator("td b").first.text_content()
        assert str(first).strip("·") == rounded_gpt.tokenizer.decode([best]).strip()
    chapter.close(address)


def test_the_picture_stays_without_javascript(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{address}/02-attention.html")
    assert tab.is_visible("figure[data-live=attention] img[src='figures/02-pattern.svg']")
    context.close()


@pytest.mark.parametrize("path", ["02-attention", "09-sampling"])
def test_axe_finds_no_errors_in_a_live_chapter(browser: Any, address: str, axe: str, path: str) -> None:
    # The script runs in a world of its own: the chapter's policy allows none but the tour's.
    chapter = OpenChapter(browser, f"{address}/{path}.html", bypass_csp=True)
    chapter.tab.evaluate(axe)
    found = chapter.tab.evaluate("() => axe.run('figure')")
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]] == []
    chapter.close(address)


def test_every_live_figure_is_in_a_chapter_of_each_language() -> None:
    for name in LIVE_FIGURES:
        for folder, suffix in ((TOUR, ""), (TOUR / "zh", "-zh")):
            text = "".join(path.read_text(encoding="utf-8") for path in folder.glob(f"{name[:2]}-*.md"))
            assert f"figures/{name}{suffix}.svg" in text
