"""The page on a server: `/inspect` against the library, and the page in a real Chromium against the same seeds."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from browsers import needs_chromium
from pages import OpenPage
from served import TestServer, serving

import clearhead
from clearhead import GPT
from clearhead.lens import logit_lens
from clearhead.server import ServerSettings

pytest_plugins = ["page_fixtures"]

START = "Once upon a time"
PROMPT = "The little dog saw a cat."


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return clearhead.load(backend="torch")


@pytest.fixture(scope="module")
def server(gpt: GPT) -> Iterator[TestServer]:
    with serving(clearhead.load(backend="torch")) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: TestServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def inspect(http: httpx.Client, prompt: str | list[int], **details: Any) -> dict[str, Any]:
    answer = http.post("/inspect", json={"prompt": prompt, **details})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def logits_of(found: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(found["logits"]), "<f4")


def test_the_model_is_described(http: httpx.Client, gpt: GPT) -> None:
    found = http.get("/inspect").json()
    assert found["config"]["n_layers"] == gpt.config.n_layers and found["parameters"] == 4_605_440
    assert gpt.tokenizer is not None and found["endOfText"] == gpt.tokenizer.end_of_text


def test_tokens_are_those_of_the_tokenizer(http: httpx.Client, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    found = inspect(http, "A <|endoftext|> dog 😀")
    assert found["ids"] == gpt.tokenizer.encode("A <|endoftext|> dog 😀")
    assert "".join(found["texts"]) == "A <|endoftext|> dog 😀"


def test_what_is_inside_is_what_the_library_sees(http: httpx.Client, gpt: GPT) -> None:
    asked = ["logits", "probabilities", "attention", "norms", "lens", "vectors"]
    found = inspect(http, PROMPT, ask=asked, position=3, block=2, top=4)
    trace = gpt.watch(PROMPT)
    assert np.allclose(logits_of(found), trace["logits"][-1], atol=1e-3)
    # `score` begins with the end-of-text token; the page does not.
    logprobs = torch.log_softmax(torch.tensor(trace["logits"][:-1]), -1)[range(len(found["ids"]) - 1), found["ids"][1:]]
    assert np.allclose(np.log(found["probabilities"][1:]), logprobs, atol=1e-3)
    for layer, heads in enumerate(found["attention"]):
        for head, rows in enumerate(heads):
            for t, row in enumerate(rows):
                assert np.allclose(row, trace[f"blocks.{layer}.attention.pattern"][head, t, : t + 1], atol=1e-3)
    residuals = [trace["embedding"], *(trace[f"blocks.{i}.residual_out"] for i in range(gpt.config.n_layers))]
    assert np.allclose(found["norms"], [np.sqrt((x.astype(np.float64) ** 2).mean(-1)) for x in residuals], rtol=1e-3)
    for residual, top in zip(residuals, found["lens"], strict=True):
        assert [one["id"] for one in top] == list(
            np.argsort(-logit_lens(gpt.model, residual[3:4])[0], kind="stable")[:4]
        )
    for vector in found["vectors"]:
        name = vector["name"] if vector["name"] == "embedding" else f"blocks.2.{vector['name']}"
        assert np.allclose(vector["numbers"], trace[name][3][:8], rtol=1e-3, atol=1e-3)


def test_a_removed_part_changes_the_answer_and_no_other_request(http: httpx.Client, gpt: GPT) -> None:
    with gpt.edit("blocks.2.attention.mixed", 0, heads=5), gpt.edit("blocks.1.feed_forward.output", 0):
        expected = gpt.watch(PROMPT, "logits")["logits"][-1]
    found = inspect(http, PROMPT, ask=["logits"], removed=["attention.2.5", "feed_forward.1"])
    assert np.allclose(logits_of(found), expected, atol=1e-3)
    assert np.allclose(
        logits_of(inspect(http, PROMPT, ask=["logits"])), gpt.watch(PROMPT, "logits")["logits"][-1], atol=1e-3
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"prompt": [99_999]}, "contains token 99999"),
        ({"prompt": "", "ask": ["norms"]}, "the prompt is empty"),
        ({"prompt": "a", "ask": ["lens"], "position": 9}, "position is 9, but 1 tokens"),
        ({"prompt": "a", "ask": ["vectors"], "block": 6}, "block is 6, but the model has 6"),
        ({"prompt": "a", "ask": ["logits"], "removed": ["attention.9"]}, "no part attention.9"),
        ({"prompt": "a", "removed": ["norm.1"]}, "removed"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(http: httpx.Client, body: dict[str, Any], sentence: str) -> None:
    answer = http.post("/inspect", json=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"] + str(answer.json()["error"]["param"])


def opened_page(browser: Any, url: str, state: str = "ready") -> OpenPage:
    return OpenPage(browser, f"{url}/", state=state, viewport={"width": 1280, "height": 900})


def generate(page: OpenPage, tokens: int) -> str:
    page.length(tokens)
    page.click("#run")
    return "".join(page.texts())


@needs_chromium
def test_a_seed_gives_the_same_text_streamed_and_from_a_branch(browser: Any, server: TestServer, gpt: GPT) -> None:
    expected = gpt.generate(START, seed=1, max_new_tokens=20).text
    page = opened_page(browser, server.url)
    assert generate(page, 12) == START + str(gpt.generate(START, seed=1, max_new_tokens=12).text)
    assert any(url.endswith("/v1/completions") for url in page.requests)
    assert generate(page, 8) == f"{START}{expected}"  # token by token, since the text does not begin here
    for name in ("lens", "residual", "journey", "attention"):
        page.click(f"#tab-{name}")
    page.click("[data-ablate='feed_forward.2']")
    assert page.tab.locator("#restore").count() == 1
    for text in ("a\ud83d </script>", "a" * 20_000):
        page.ask(
            "text => { const box = $('prompt'); box.value = text; box.dispatchEvent(new InputEvent('input')); }", text
        )
        page.finish()
        page.click("#step")
        assert "interrupted" not in page.status()
    assert page.said == []
    assert all(url.startswith((server.url, "data:")) for url in page.requests)
    page.close()


@needs_chromium
def test_a_server_that_goes_away_leaves_the_text(browser: Any) -> None:
    with serving(clearhead.load(backend="torch")) as running:
        page = opened_page(browser, running.url)
        before = generate(page, 5)
    page.click("#run")
    assert "interrupted" in page.status() and page.tab.get_attribute("#status", "class") == "error"
    assert "".join(page.texts()) == before
    assert page.tab.is_enabled("#run"), "it can be tried again"
    page.close()


@contextmanager
def breaking(url: str) -> Iterator[tuple[str, threading.Event]]:
    """Pass requests on to a server, except that a stream's connection ends after 3,000 bytes, when the event is set."""
    break_now = threading.Event()
    with httpx.Client(timeout=120) as upstream:

        class Proxy(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.pass_on(upstream.get(f"{url}{self.path}").content, "text/html; charset=utf-8")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = upstream.post(f"{url}{self.path}", content=body, headers={"Content-Type": "application/json"})
                kind = answer.headers["Content-Type"]
                self.pass_on(
                    answer.content[:3000] if "event-stream" in kind else answer.content, kind, len(answer.content)
                )

            def pass_on(self, body: bytes, kind: str, promised: int | None = None) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(promised or len(body)))
                self.end_headers()
                self.wfile.write(body)
                if promised is not None and promised > len(body):
                    break_now.wait(60)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}", break_now
        finally:
            break_now.set()
            proxy.shutdown()
            thread.join()
            proxy.server_close()


@needs_chromium
def test_a_stream_that_breaks_keeps_what_has_come(browser: Any, server: TestServer, gpt: GPT) -> None:
    with breaking(server.url) as (url, break_now):
        page = opened_page(browser, url)
        page.length(40)
        shown = len(page.texts())
        page.tab.click("#run")
        page.tab.wait_for_function("shown => document.querySelectorAll('#tokens .token').length > shown", arg=shown)
        break_now.set()  # a browser drops what it received and the page has not read yet
        page.finish()
        text = "".join(page.texts())
        assert "interrupted" in page.status() and "The text so far is kept." in page.status()
        assert len(text) > len(START)
        whole = f"{START}{gpt.generate(START, seed=1, max_new_tokens=40).text}"
        assert whole.startswith(text) and len(text) < len(whole)
        page.close()


@needs_chromium
def test_a_server_with_keys_asks_for_one_and_tells_nothing_before(browser: Any, gpt: GPT, axe: str) -> None:
    settings = ServerSettings(api_keys=("the right key",), model_name="secret-model")
    with serving(clearhead.load(backend="torch"), settings) as running:
        assert "secret-model" not in httpx.get(running.url).text
        assert httpx.get(f"{running.url}/inspect").status_code == 401
        page = opened_page(browser, running.url, "locked")
        page.ask(axe)
        assert page.accessibility_errors() == []
        page.tab.keyboard.type("wrong")  # the field has the focus
        page.tab.keyboard.press("Enter")
        page.tab.wait_for_selector("#key-problem:not(:empty)")
        assert "API key is missing or wrong" in page.tab.inner_text("#key-problem")
        page.tab.fill("#key", "the right key")
        page.tab.click("form button")
        page.finish()
        assert "secret-model" in page.tab.inner_text("#model")
        assert generate(page, 5) == START + str(gpt.generate(START, seed=1, max_new_tokens=5).text)
        assert page.ask("() => [document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
        assert "the right key" not in page.tab.content()
        page.close()
