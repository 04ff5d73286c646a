"""The page as people use it, in a real Chromium from file://, offline: by mouse, by keyboard, with any text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import needs_chromium
from pages import OpenPage

from clearhead import GPT, weights
from clearhead.errors import InputError
from clearhead.inference.options import SamplingParams
from clearhead.inference.sampling import Sampler
from clearhead.loading import bundled
from clearhead.web import export

pytest_plugins = ["page_fixtures"]

START = "Once upon a time"
HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> \u202e\0"
TABS = ("attention", "lens", "residual", "journey")
SLIDERS = ("temperature", "topK", "topP", "minP", "repetition", "presence", "frequency")


# --- Text ------------------------------------------------------------------------------------------------------------


@needs_chromium
def test_the_text_goes_on_and_back_and_branches(fresh: OpenPage, rounded_gpt: GPT) -> None:
    tab = fresh.tab
    fresh.length(12)
    fresh.click("#run")
    first = fresh.texts()
    expected = rounded_gpt.generate(START, seed=1, max_new_tokens=12).text
    assert "".join(first) == f"{START}{expected}"
    assert fresh.status() == "Generated 12 tokens."
    assert re.fullmatch(r"\d+ tokens/s", tab.inner_text("#speed"))
    fresh.click("#undo")
    assert "".join(fresh.texts()) == START
    fresh.click("#redo")
    assert fresh.texts() == first
    fresh.click("#tokens .token >> nth=8")
    taken = int(str(tab.get_attribute("#distribution .taken", "data-id")))
    other = tab.locator(f"#distribution button:not([data-id='{taken}'])").first
    chosen = int(str(other.get_attribute("data-id")))
    other.click()
    fresh.finish()
    assert fresh.ask("() => page.path().ids.at(-1)") == chosen
    assert len(fresh.texts()) == 9
    assert tab.locator("#branches li").count() == 2
    fresh.click("#branches button >> nth=0")
    assert fresh.texts() == first
    fresh.click("#branch-map .tip >> nth=1")
    assert len(fresh.texts()) == 9
    fresh.click("#undo")
    assert fresh.texts() == first, "a change of branch can be undone"


@needs_chromium
def test_stopping_and_going_on_gives_the_text_of_one_run(fresh: OpenPage, rounded_gpt: GPT) -> None:
    assert rounded_gpt.tokenizer is not None
    prompt = rounded_gpt.tokenizer.encode("The wolf said")  # at temperature 0 it repeats itself, and never ends
    fresh.write("The wolf said")
    fresh.tab.fill("#temperature", "0")
    fresh.length(1000)
    # The page itself stops at a token, so that it does not matter how fast the model is.
    fresh.ask("""() => {
      const grow = page.tree.grow.bind(page.tree);
      page.tree.grow = (...token) => {
        grow(...token);
        if (page.path().ids.length === 12) document.getElementById("stop").click();
      };
      document.getElementById("run").click();
    }""")
    fresh.finish()
    assert re.fullmatch(r"Stopped after \d+ tokens\.", fresh.status())
    stopped = fresh.ask("() => page.path().ids.length")
    fresh.length(5)
    fresh.click("#run")
    ids = fresh.ask("() => page.path().ids")
    assert len(ids) == stopped + 5
    expected = rounded_gpt.generate("The wolf said", temperature=0, max_new_tokens=len(ids) - len(prompt))
    assert ids == prompt + list(expected.ids)


@needs_chromium
def test_the_distribution_is_exact_and_follows_the_sliders(fresh: OpenPage, rounded_gpt: GPT) -> None:
    logits = rounded_gpt.watch(START, "logits")["logits"][-1]
    settings: list[tuple[dict[str, float], dict[str, Any]]] = [
        ({}, {"temperature": 0.8, "top_p": 0.95}),
        ({"temperature": 1.5, "topP": 1}, {"temperature": 1.5}),
        ({"topK": 3}, {"temperature": 1.5, "top_k": 3}),
        ({"topK": 0, "minP": 0.05}, {"temperature": 1.5, "min_p": 0.05}),
    ]
    for sliders, options in settings:
        for name, value in sliders.items():
            fresh.tab.fill(f"#{name}", str(value))
        ids, probabilities = Sampler(SamplingParams(**options), vocab_size=len(logits)).distribution(logits)
        expected = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
        shown = [float(text.strip("%<")) / 100 for text in fresh.shares()]
        listed = [int(str(one.get_attribute("data-id"))) for one in fresh.tab.locator("#distribution button").all()]
        assert len(listed) == 20
        assert np.allclose(shown[:20], [expected.get(id, 0) for id in listed], atol=6e-5)
        assert abs(sum(shown) - 1) < 21 * 6e-5, "the rest has a bar of its own"


@needs_chromium
@pytest.mark.parametrize(
    "text", [HOSTILE, "a\ud83d b\udfff c", "词元" * 20, "词元" * 200, "", "word " * 20_000, "a" * 100_000]
)
def test_any_text_is_shown_as_text(fresh: OpenPage, text: str) -> None:
    tab = fresh.tab
    fresh.ask(
        "text => { const box = $('prompt'); box.value = text; box.dispatchEvent(new InputEvent('input')); }", text
    )
    fresh.finish()
    assert tab.title() == "GPT-2 at work · Clearhead"
    assert tab.locator("script, img").count() == 5
    shown = "".join(fresh.texts())
    if fresh.ask("() => page.path().ids.length") <= 400:
        assert shown == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tab.locator("#tokens .token").count() <= 400, "a long text may not freeze the page"
    assert tab.is_disabled("#run") is (text == "")
    if text:
        before = fresh.ask("() => page.path().ids.length")
        fresh.click("#step")
        assert fresh.ask("() => page.path().ids.length") in (before, before + 1)
    else:
        assert "Write a prompt first." in tab.inner_text("#next-after")


# --- Every control ---------------------------------------------------------------------------------------------------


@needs_chromium
def test_every_control_works_by_mouse(fresh: OpenPage) -> None:
    tab = fresh.tab
    fresh.write("The little dog saw a cat.")
    fresh.click("#step")
    fresh.click("#step")
    for direction, count in (("undo", 8), ("undo", 7), ("redo", 8)):
        fresh.click(f"#{direction}")
        assert len(fresh.texts()) == count
    tab.click("#penalties summary")
    for name in SLIDERS:
        before, box = tab.inner_text(f"#{name}-value"), tab.locator(f"#{name}").bounding_box()
        assert box is not None
        tab.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2)
        assert tab.inner_text(f"#{name}-value") != before
    tab.click("#reset")
    assert tab.inner_text("#temperature-value") == "0.80" and tab.inner_text("#topK-value") == "all"
    tab.fill("#seed", "12.7")
    tab.dispatch_event("#seed", "change")
    assert tab.input_value("#seed") == "12"
    fresh.click("#tokens .token >> nth=3")
    assert tab.get_attribute("#tokens .token >> nth=3", "aria-pressed") == "true"
    fresh.click("#distribution button >> nth=5")
    assert len(fresh.texts()) == 4 and "The little dog" in tab.input_value("#prompt")
    for name in TABS:
        fresh.click(f"#tab-{name}")
        assert tab.get_attribute("#panel", "aria-labelledby") == f"tab-{name}"
    tab.select_option("#choose-block", "4")
    fresh.finish()
    assert "block 4" in tab.inner_text("#panel")
    tab.select_option("#choose-token", "1")
    fresh.finish()
    assert "·little" in tab.inner_text("#panel > p")
    fresh.click("#tab-residual")
    tab.locator("#panel polyline").first.dispatch_event("click")
    fresh.finish()
    assert "“The”" in tab.inner_text("#panel > p")
    fresh.click("#tab-attention")
    fresh.click("#heads button >> nth=11")
    assert tab.input_value("#choose-block") == "1" and tab.input_value("#choose-head") == "4"
    tab.select_option("#choose-head", "2")
    fresh.finish()
    assert tab.get_attribute("#heads [aria-pressed=true]", "data-at") == "1,2"
    fresh.click("#panel .cell:not(.masked) >> nth=1")  # a cell of the second token's row
    assert tab.input_value("#choose-token") == "1"
    tab.select_option("#theme", "dark")
    assert tab.get_attribute("html", "data-theme") == "dark"
    fresh.click("#language")
    assert tab.inner_text("#run") == "续写" and tab.get_attribute("html", "lang") == "zh-CN"
    left = fresh.ask("() => [...document.querySelectorAll('[data-word]')].filter(one => !one.textContent).length")
    assert left == 0


@needs_chromium
def test_every_control_works_by_keyboard(fresh: OpenPage) -> None:
    tab = fresh.tab
    tab.focus("#prompt")
    fresh.press("Control+A", "Delete")
    tab.keyboard.type("The dog")
    fresh.finish()
    assert fresh.texts() == ["The", " dog"]
    tab.focus("#length")
    fresh.press("Control+A")
    tab.keyboard.type("6")
    fresh.press("Tab")  # from here on, Tab leads from control to control
    tab.focus("#run")
    fresh.press("Enter")
    assert len(fresh.texts()) == 8
    tab.focus("#undo")
    fresh.press("Space")
    assert len(fresh.texts()) == 2
    tab.focus("#redo")
    fresh.press("Enter")
    assert len(fresh.texts()) == 8
    tab.locator("#tokens .token[tabindex='0']").focus()
    fresh.press("ArrowLeft", "ArrowLeft", "Enter")
    assert tab.get_attribute("#tokens .token >> nth=5", "aria-pressed") == "true"
    fresh.press("Home", "End", "ArrowLeft", "Space")
    assert tab.get_attribute("#tokens .token >> nth=6", "aria-pressed") == "true"
    tab.focus("#penalties summary")
    fresh.press("Enter")
    for name in SLIDERS:
        before = tab.inner_text(f"#{name}-value")
        tab.focus(f"#{name}")
        fresh.press("ArrowLeft" if name == "topP" else "ArrowRight")
        assert tab.inner_text(f"#{name}-value") != before
    tab.focus("#reset")
    fresh.press("Enter")
    assert tab.inner_text("#temperature-value") == "0.80"
    tab.locator("#distribution button:not(.taken)").first.focus()
    fresh.press("Enter")
    assert len(fresh.texts()) == 7
    tab.locator("#branches button").first.focus()
    fresh.press("Enter")
    assert len(fresh.texts()) == 8
    tab.focus("#tab-attention")
    for name in (*TABS[1:], "attention"):
        fresh.press("ArrowRight")
        assert tab.get_attribute(f"#tab-{name}", "aria-selected") == "true"
    tab.locator("#heads button[tabindex='0']").focus()
    fresh.press("ArrowDown", "ArrowRight")
    assert tab.get_attribute("#heads [aria-pressed=true]", "data-at") == "3,2"
    for name in ("choose-block", "choose-head", "choose-token"):
        tab.focus(f"#{name}")
        before = tab.input_value(f"#{name}")
        fresh.press("ArrowUp")
        assert tab.input_value(f"#{name}") != before
        assert fresh.ask("() => document.activeElement.id") == name, "the focus stays on a control that is drawn anew"
    for name in ("attention.2.1", "attention.2", "feed_forward.2"):
        tab.focus(f"[data-ablate='{name}']")
        fresh.press("Enter")
        assert tab.get_attribute(f"[data-ablate='{name}']", "aria-pressed") == "true"
    tab.focus("#restore")
    fresh.press("Enter")
    assert tab.locator("#restore").count() == 0
    tab.focus("#export summary")
    fresh.press("Enter")
    with tab.expect_download() as download:
        tab.focus("#exportJson")
        fresh.press("Enter")
    assert json.loads(Path(download.value.path()).read_text())["text"].startswith("The dog")
    tab.focus("#theme")
    fresh.press("ArrowDown")
    assert tab.get_attribute("html", "data-theme") == "light"
    tab.focus("#language")
    fresh.press("Enter")
    assert tab.inner_text("#run") == "续写"


@needs_chromium
def test_everything_on_the_page_can_be_reached_by_tab(fresh: OpenPage) -> None:
    fresh.click("#step")
    fresh.ask("() => document.querySelectorAll('details').forEach(one => (one.open = true))")
    code = """() => [...document.querySelectorAll('button, input, select, textarea, summary, [tabindex="0"]')]
      .filter(one => !one.disabled && one.tabIndex >= 0).length"""
    expected, reached = fresh.ask(code), set()
    fresh.tab.focus("#export summary")
    for _ in range(expected + 5):
        reached.add(fresh.ask("() => (document.activeElement.dataset.reached ??= String(Math.random()))"))
        fresh.tab.keyboard.press("Tab")
    assert len(reached) >= expected


@needs_chromium
def test_a_removed_part_changes_the_distribution_and_the_tints(fresh: OpenPage) -> None:
    before, tints = fresh.shares(), fresh.ask("() => $('tokens').innerHTML")
    fresh.click("[data-ablate='feed_forward.2']")
    assert fresh.shares() != before
    assert fresh.ask("() => $('tokens').innerHTML") != tints
    fresh.click("#restore")
    assert fresh.shares() == before
    assert fresh.ask("() => $('tokens').innerHTML") == tints


# --- Export ----------------------------------------------------------------------------------------------------------


@needs_chromium
def test_the_export_is_the_page_with_its_state(fresh: OpenPage, browser: Any, tmp_path: Path) -> None:
    tab = fresh.tab
    fresh.length(6)
    fresh.click("#run")
    fresh.click("#tokens .token >> nth=6")
    fresh.click("#distribution button:not(.taken) >> nth=0")
    tab.fill("#temperature", "1.25")
    fresh.click("#heads button >> nth=20")
    fresh.click("[data-ablate='attention.2.6']")
    shown, shares = fresh.texts(), fresh.shares()
    for button, name in (
        ("exportHtml", "again.html"),
        ("exportJson", "state.json"),
        ("exportSvg", "a.svg"),
        ("exportPng", "a.png"),
    ):
        tab.click("#export summary")
        with tab.expect_download() as download:
            tab.click(f"#{button}")
        download.value.save_as(tmp_path / name)
    fresh.finish()
    saved = json.loads((tmp_path / "state.json").read_text())
    assert [token["text"] for token in saved["tokens"]] == shown
    assert saved["settings"]["temperature"] == 1.25 and saved["ablation"] == ["attention.2.6"]
    assert sum("id" in node for node in saved["tree"]["nodes"]) == 7, "both branches"
    picture = (tmp_path / "a.svg").read_text()
    assert picture.startswith("<svg") and "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    png = (tmp_path / "a.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20], "big") > 400, "twice the picture's width"
    again = OpenPage(browser, (tmp_path / "again.html").as_uri())
    assert again.texts() == shown and again.shares() == shares
    assert again.tab.locator("#branches li").count() == 2
    assert again.tab.get_attribute("#heads [aria-pressed=true]", "data-at") == "2,6"
    again.click("#step")
    again.check()
    again.close()


# --- What can fail ---------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("delete window.Worker", "does not support web workers"),
        (
            "window.Worker = class { constructor() { throw new Error('workers are forbidden here'); } }",
            "forbidden here",
        ),
    ],
)
def test_a_browser_without_workers_is_told(browser: Any, file: Path, before: str, sentence: str) -> None:
    opened = OpenPage(browser, file.as_uri(), state="failed", before=before)
    assert "could not start" in opened.status() and sentence in opened.status()
    assert opened.tab.locator("main :is(button, input, textarea):enabled").count() == 0
    opened.check()
    opened.close()


@needs_chromium
def test_a_damaged_file_is_told(browser: Any, file: Path, tmp_path: Path) -> None:
    html = file.read_text(encoding="utf-8")
    damaged = tmp_path / "damaged.html"
    start = '<script id="weights" type="text/plain">'
    damaged.write_text(html.replace(start, f"{start}***"), encoding="utf-8")
    opened = OpenPage(browser, damaged.as_uri(), state="failed")
    assert "could not start" in opened.status()
    opened.close()


# --- Looks -----------------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("width", [360, 1280, 2560])
def test_nothing_is_wider_than_the_screen(browser: Any, file: Path, width: int) -> None:
    opened = OpenPage(browser, file.as_uri(), viewport={"width": width, "height": 900})
    for name in TABS:
        opened.click(f"#tab-{name}")
        assert opened.ask("() => document.documentElement.scrollWidth") <= width
    opened.check()
    opened.close()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_errors(browser: Any, file: Path, axe: str, scheme: str) -> None:
    opened = OpenPage(browser, file.as_uri(), color_scheme=scheme, viewport={"width": 1280, "height": 900})
    opened.click("#step")
    opened.click("#undo")
    opened.click("#distribution button >> nth=3")  # so that there are branches
    opened.tab.click("#penalties summary")
    opened.ask(axe)
    for name in TABS:
        opened.click(f"#tab-{name}")
        assert opened.accessibility_errors() == []
    opened.close()


# --- The file --------------------------------------------------------------------------------------------------------


def test_the_file_is_under_8_mb_and_allows_no_requests(file: Path) -> None:
    html = file.read_text(encoding="utf-8")
    assert file.stat().st_size < 8_000_000
    policy = html.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"'unsafe[\w-]*'|'[\w-]*unsafe[\w-]*'", policy) == ["'wasm-unsafe-eval'"]
    assert "connect-src 'none'" in policy
    assert "http:" not in html.partition("<script")[0] and "https:" not in html.partition("<script")[0]


def test_rounding_keeps_weights_to_half_a_step() -> None:
    matrix = np.random.default_rng(1).normal(size=(5, 70)).astype(np.float32)
    matrix[2] = 0
    whole, scales = export.quantize(matrix)
    assert whole.shape == (5, 96) and scales.shape == (5, 3)
    rounded = export.rounded({"x": matrix})["x"]
    step = np.repeat(scales, export.GROUP, axis=1)[:, :70]
    assert np.all(np.abs(rounded - matrix) <= 0.51 * step + 1e-12)
    assert not rounded[2].any()


def test_a_model_that_cannot_be_in_one_file_is_named() -> None:
    source = weights.open(bundled())
    config, tokenizer = source.config, source.tokenizer()
    large = {"token_embedding.weight": np.broadcast_to(np.float32(0), (500_000, 1024))}
    with pytest.raises(InputError, match=r"take 544 MB as int8, but one HTML file can have at most 256 MB"):
        export.page_html("large", config, large, tokenizer)
    with pytest.raises(InputError, match="byte-level BPE"):
        export.page_html("no tokenizer", config, {}, None)
