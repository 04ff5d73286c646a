"""The page in a real Chromium, from file:// without a network, against the same model in Python."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import needs_chromium

import clearhead
from clearhead import GPT, weights
from clearhead.errors import InputError
from clearhead.lens import logit_lens
from clearhead.loading import bundled
from clearhead.web import export

PROMPTS = ("Once upon a time", "The little dog saw a cat.", "One day, Lily and Tom went to the park", '"I am sorry,"')
HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> \udfff \u202e\0"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the bundled model."""
    source = weights.open(bundled())
    path = tmp_path_factory.mktemp("page") / "story.html"
    path.write_text(export.page_html("bundled", source.config, source.load(), source.tokenizer()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> GPT:
    """The bundled model in PyTorch, with the weights rounded as in the page's file."""
    import torch

    model = clearhead.load(backend="torch")
    rounded = export.rounded(weights.open(bundled()).load())
    with torch.no_grad():
        for name, parameter in model.model.state_dict().items():
            parameter.copy_(torch.from_numpy(rounded["token_embedding.weight" if name == "head.weight" else name]))
    return model


class OpenPage:
    """A page in its own offline context; it records console messages, errors and requests."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, reduced_motion="reduce", accept_downloads=True, **options)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(120_000)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("html[data-state=ready]")

    def ask(self, code: str, value: Any = None) -> Any:
        """Run a function in the page and return its result."""
        return self.tab.evaluate(code, value)

    def finish(self) -> None:
        """Wait until the model is idle."""
        self.tab.wait_for_timeout(100)  # what a click starts may begin a little later
        self.tab.wait_for_selector("#run:enabled")

    def wait_for_tokens(self, n: int) -> None:
        """Wait until the text has n tokens."""
        self.tab.wait_for_function("n => document.querySelectorAll('#tokens .token').length === n", arg=n)

    def check(self) -> None:
        """Check that nothing went wrong and nothing was requested."""
        assert self.said == []
        assert all(url.startswith(("file:", "blob:")) for url in self.requests)


@pytest.fixture(scope="module")
def shared(browser: Any, file: Path) -> Iterator[OpenPage]:
    opened = OpenPage(browser, file)
    yield opened
    opened.check()
    opened.context.close()


@pytest.fixture
def fresh(browser: Any, file: Path) -> Iterator[OpenPage]:
    opened = OpenPage(browser, file, viewport={"width": 1280, "height": 900})
    yield opened
    opened.check()
    opened.context.close()


GENERATE = """async ({ids, params, most}) => {
  const found = [];
  const options = {generated: 0, params: {...DEFAULTS, ...params}, most, ablation: []};
  await page.backend.generate(ids, options, ({id}) => found.push(id));
  return found;
}"""


def compare_texts(
    page: OpenPage, gpt: GPT, prompts: list[str], tokens: int, js: dict[str, Any], **options: Any
) -> None:
    assert gpt.tokenizer is not None
    for prompt in prompts:
        ids = gpt.tokenizer.encode(prompt)
        found = page.ask(GENERATE, {"ids": ids, "params": js, "most": tokens})
        assert found == list(gpt.generate(prompt, max_new_tokens=tokens, **options).ids), (prompt, options)


# --- The model ---------------------------------------------------------------------------------------------------


@needs_chromium
def test_logits_are_those_of_python(shared: OpenPage, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    for prompt in PROMPTS:
        ids = gpt.tokenizer.encode(prompt)
        found = shared.ask("async ids => Array.from(await page.backend.logits(ids, []))", ids)
        assert np.allclose(found, gpt.watch(prompt, "logits")["logits"][-1], atol=1e-3)


@needs_chromium
def test_greedy_texts_are_those_of_python(shared: OpenPage, gpt: GPT) -> None:
    compare_texts(shared, gpt, list(PROMPTS), 40, {"temperature": 0}, temperature=0)


@pytest.mark.slow
@needs_chromium
def test_a_hundred_greedy_texts_are_those_of_python(shared: OpenPage, gpt: GPT) -> None:
    names, things = ("Tom", "Lily", "Ben", "Mia", "Max"), ("a dog", "a red hat", "the sea", "an old tree")
    starts = (
        "{0} had {1}.",
        "One day, {0} saw {1}",
        "{0} was sad because of {1}",
        "Look, {0}! It is {1}",
        "{0} ate {1}",
    )
    prompts = [start.format(name, thing) for start in starts for name in names for thing in things]
    assert len(prompts) == 100
    compare_texts(shared, gpt, prompts, 100, {"temperature": 0}, temperature=0)


@pytest.mark.slow
@needs_chromium
def test_a_seed_gives_the_same_text_as_in_python(shared: OpenPage, gpt: GPT) -> None:
    for seed in (*range(47), 2**31, 2**32 + 1, 2**53 - 1):
        compare_texts(shared, gpt, ["Once upon a time"], 8, {"seed": seed}, seed=seed)


@needs_chromium
@pytest.mark.parametrize(
    ("js", "options"),
    [
        ({"topK": 5, "topP": 1}, {"top_k": 5, "top_p": 1}),
        ({"topK": 40, "topP": 0.5, "temperature": 1.5}, {"top_k": 40, "top_p": 0.5, "temperature": 1.5}),
        ({"minP": 0.1, "topP": 1, "temperature": 1.3}, {"min_p": 0.1, "top_p": 1, "temperature": 1.3}),
        ({"repetition": 1.3, "temperature": 1}, {"repetition_penalty": 1.3, "temperature": 1}),
        ({"presence": 1.5, "frequency": 0.5}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}),
        ({"topP": 1, "temperature": 2}, {"top_p": 1, "temperature": 2}),
    ],
)
def test_every_option_acts_as_in_python(
    shared: OpenPage, gpt: GPT, js: dict[str, Any], options: dict[str, Any]
) -> None:
    compare_texts(shared, gpt, list(PROMPTS[:2]), 25, {"seed": 3, **js}, seed=3, **options)


@needs_chromium
def test_a_text_beyond_the_context_goes_on_as_in_python(shared: OpenPage, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    prompt = " ".join(["The cat sat on the mat and the dog sat too."] * 21)
    count = len(gpt.tokenizer.encode(prompt))
    assert 240 < count <= gpt.config.context_length
    compare_texts(shared, gpt, [prompt], 40, {"temperature": 0}, temperature=0)


@needs_chromium
def test_the_tokenizer_is_exact(shared: OpenPage, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    rng = random.Random(1)
    letters = [chr(code) for code in (*range(32, 127), *range(32, 127), *range(0xA0, 0x250), *range(0x391, 0x4FF))]
    letters += [
        *" \t\n\r\u0085\u00a0\u2003\u3000\ufeff\u200b",
        *"'s't'll're'd've",
        "词",
        "元",
        "한",
        "😀",
        "👩‍👩‍👧",
        "e\u0301",
    ] * 8
    texts = ["".join(rng.choices(letters, k=rng.randrange(40))) for _ in range(10_000)]
    texts += ["", "a" * 5000, " " * 3000, "<|endoftext|>", "\n\n\n x", "don't've 12,345 …"]
    found = shared.ask("texts => Promise.all(texts.map(async text => (await page.backend.encode(text)).ids))", texts)
    assert found == [gpt.tokenizer.encode(text) for text in texts]


@needs_chromium
def test_what_is_inside_is_what_python_sees(shared: OpenPage, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    prompt = "The little dog saw a cat. The dog"
    ids, trace = gpt.tokenizer.encode(prompt), gpt.watch(prompt)
    code = """async ids => {
      const found = await page.backend.inspect(ids, [], 32);
      return {...found, patterns: found.patterns.map(heads => heads.map(rows => rows.map(row => Array.from(row)))),
        lens: await page.backend.lens(4, 5), journey: await page.backend.journey(4, 2)};
    }"""
    found = shared.ask(code, ids)
    for layer, heads in enumerate(found["patterns"]):
        expected = trace[f"blocks.{layer}.attention.pattern"]
        for head, rows in enumerate(heads):
            for t, row in enumerate(rows):
                assert np.allclose(row, expected[head, t, : t + 1], atol=1e-3)
    residuals = [trace["embedding"], *(trace[f"blocks.{i}.residual_out"] for i in range(gpt.config.n_layers))]
    assert np.allclose(found["norms"], [np.sqrt((x.astype(np.float64) ** 2).mean(-1)) for x in residuals], rtol=1e-3)
    for depth, top in enumerate(found["lens"]):
        logits = logit_lens(gpt.model, residuals[depth][4:5])[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert [one["id"] for one in top] == list(np.argsort(-probabilities, kind="stable")[:5])
        assert np.allclose([one["probability"] for one in top], np.sort(probabilities)[::-1][:5], atol=1e-3)
    for step in found["journey"]:
        name = step["name"] if step["name"] == "embedding" else f"blocks.2.{step['name']}"
        vector = trace[name][4]
        assert step["width"] == len(vector)
        assert np.allclose(step["numbers"], vector[:8], rtol=1e-3, atol=1e-3)
    assert found["count"] == len(ids)


@needs_chromium
@pytest.mark.parametrize("name", ["attention.2.5", "attention.1", "feed_forward.3"])
def test_an_ablation_is_that_of_python(shared: OpenPage, gpt: GPT, name: str) -> None:
    assert gpt.tokenizer is not None
    prompt = PROMPTS[1]
    part, block, *head = name.split(".")
    if head:
        edit = gpt.edit(f"blocks.{block}.attention.mixed", 0, heads=int(head[0]))
    else:
        edit = gpt.edit(f"blocks.{block}.{part}.output", 0)
    with edit:
        expected = gpt.watch(prompt, "logits")["logits"][-1]
    ids = gpt.tokenizer.encode(prompt)
    found = shared.ask("async ([ids, name]) => Array.from(await page.backend.logits(ids, [name]))", [ids, name])
    assert np.allclose(found, expected, atol=1e-3)
    intact = shared.ask("async ids => Array.from(await page.backend.logits(ids, []))", ids)
    assert not np.allclose(found, intact, atol=1e-2)


# --- The playground ----------------------------------------------------------------------------------------------


def texts(page: OpenPage) -> list[str]:
    return list(page.tab.locator("#tokens .token").all_text_contents())


@needs_chromium
def test_the_text_goes_on_and_back_and_branches(fresh: OpenPage, gpt: GPT) -> None:
    tab = fresh.tab
    tab.fill("#length", "12")
    tab.dispatch_event("#length", "change")
    tab.click("#run")
    fresh.finish()
    first = texts(fresh)
    expected = gpt.generate("Once upon a time", seed=1, max_new_tokens=12).text
    assert "".join(first) == f"Once upon a time{expected}"
    assert tab.inner_text("#status") == "Generated 12 tokens."
    tab.click("#undo")
    fresh.wait_for_tokens(len(first) - 12)
    assert "".join(texts(fresh)) == "Once upon a time"
    tab.click("#redo")
    fresh.wait_for_tokens(len(first))
    assert texts(fresh) == first
    tab.click("#tokens .token >> nth=8")
    tab.wait_for_selector("#distribution button.taken")
    taken = int(str(tab.get_attribute("#distribution button.taken", "data-id")))
    other = tab.locator(f"#distribution button:not([data-id='{taken}'])").first
    chosen = int(str(other.get_attribute("data-id")))
    other.click()
    tab.wait_for_selector("#branches li >> nth=1")
    assert fresh.ask("() => page.path().ids.at(-1)") == chosen
    assert len(texts(fresh)) == 9
    tab.click("#branches button >> nth=0")
    tab.wait_for_selector("#tokens .token >> nth=15")
    assert texts(fresh) == first


@needs_chromium
def test_the_distribution_is_exact_and_follows_the_sliders(fresh: OpenPage, gpt: GPT) -> None:
    from clearhead.inference.options import SamplingParams
    from clearhead.inference.sampling import Sampler

    tab = fresh.tab
    logits = gpt.watch("Once upon a time", "logits")["logits"][-1]
    tab.wait_for_selector("#distribution button >> nth=19")
    settings: list[tuple[dict[str, float], dict[str, Any]]] = [
        ({}, {"temperature": 0.8, "top_p": 0.95}),
        ({"temperature": 1.5, "topP": 1}, {"temperature": 1.5}),
        ({"topK": 3}, {"temperature": 1.5, "top_k": 3}),
        ({"topK": 0, "minP": 0.05}, {"temperature": 1.5, "min_p": 0.05}),
    ]
    for sliders, options in settings:
        for name, value in sliders.items():
            tab.locator(f"#{name}").evaluate(
                "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
            )
        ids, probabilities = Sampler(SamplingParams(**options), vocab_size=len(logits)).distribution(logits)
        expected = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
        rows = tab.locator("#distribution li")
        shown = [float(text.strip("%<")) / 100 for text in rows.locator(".share").all_text_contents()]
        listed = [int(str(button.get_attribute("data-id"))) for button in rows.locator("button").all()]
        assert len(listed) == 20
        assert np.allclose(shown[:20], [expected.get(id, 0) for id in listed], atol=6e-5)
        assert abs(sum(shown) - 1) < 21 * 6e-5, "the rest has a bar of its own"


@needs_chromium
def test_everything_works_by_keyboard(fresh: OpenPage) -> None:
    tab = fresh.tab
    tab.focus("#step")
    tab.keyboard.press("Enter")
    fresh.finish()
    count = len(texts(fresh))
    assert count > 4
    tab.locator("#tokens .token[tabindex='0']").focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(f"#tokens .token[aria-pressed=true][data-index='{count - 3}']")
    tab.focus("#temperature")
    before = tab.inner_text("#temperature-value")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#temperature-value") != before
    tab.focus("#tab-attention")
    for name in ("lens", "residual", "journey"):
        tab.keyboard.press("ArrowRight")
        tab.wait_for_selector(f"#tab-{name}[aria-selected=true]")
    tab.wait_for_selector("#journey-table")
    tab.keyboard.press("ArrowRight")
    tab.locator("#heads button[tabindex='0']").focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    assert tab.get_attribute("#heads [aria-pressed=true]", "data-at") == "3,2"
    tab.focus("#language")
    tab.keyboard.press("Enter")
    assert tab.inner_text("#run") == "续写"
    assert tab.get_attribute("html", "lang") == "zh-CN"


@needs_chromium
def test_a_removed_part_changes_the_distribution(fresh: OpenPage) -> None:
    tab = fresh.tab
    tab.wait_for_selector("#distribution button >> nth=19")
    before = tab.locator("#distribution .share").all_text_contents()
    tab.click("[data-ablate='feed_forward.2']")
    tab.wait_for_selector("#restore")
    tab.wait_for_timeout(500)
    assert tab.locator("#distribution .share").all_text_contents() != before
    tab.click("#restore")
    tab.wait_for_selector("#restore", state="detached")
    tab.wait_for_timeout(500)
    assert tab.locator("#distribution .share").all_text_contents() == before


@needs_chromium
@pytest.mark.parametrize("text", [HOSTILE, "词元" * 200, "", "word " * 20_000])
def test_any_text_is_shown_as_text(fresh: OpenPage, text: str) -> None:
    tab = fresh.tab
    fresh.ask("text => { const prompt = $('prompt'); prompt.value = text; return plant(text); }", text)
    fresh.ask("() => page.backend.encode('x')")  # answered after what is still running
    assert tab.title() == "GPT-2 at work · Clearhead"
    assert tab.locator("script, img").count() == 5
    if text:
        tab.click("#step")
        fresh.finish()


@needs_chromium
def test_the_export_is_the_page_with_its_text(fresh: OpenPage, browser: Any, tmp_path: Path) -> None:
    tab = fresh.tab
    tab.click("#step")
    fresh.finish()
    shown = texts(fresh)
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
    saved = json.loads((tmp_path / "state.json").read_text())
    assert [token["text"] for token in saved["tokens"]] == shown
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    again = OpenPage(browser, tmp_path / "again.html")
    assert texts(again) == shown
    again.check()
    again.context.close()


@needs_chromium
@pytest.mark.parametrize("width", [360, 1280, 2560])
def test_nothing_is_wider_than_the_screen(browser: Any, file: Path, width: int) -> None:
    opened = OpenPage(browser, file, viewport={"width": width, "height": 900})
    assert opened.ask("() => document.documentElement.scrollWidth") <= width
    opened.check()
    opened.context.close()


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_errors(browser: Any, file: Path, tmp_path: Path, scheme: str) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    installed = subprocess.run(
        ["npm", "install", "--no-save", "--prefix", str(tmp_path), "axe-core@4"],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip("npm cannot install axe-core")
    opened = OpenPage(browser, file, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    opened.tab.click("#step")
    opened.finish()
    opened.ask((tmp_path / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8"))
    for name in ("attention", "lens", "residual", "journey"):
        opened.tab.click(f"#tab-{name}")
        opened.tab.wait_for_timeout(300)
        found = opened.ask("() => axe.run()")
        assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]] == []
    opened.context.close()


# --- The file ----------------------------------------------------------------------------------------------------


def test_the_file_is_under_8_mb_and_allows_no_requests(file: Path) -> None:
    html = file.read_text(encoding="utf-8")
    assert file.stat().st_size < 8_000_000
    policy = html.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
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
