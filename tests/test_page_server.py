"""The page on a server: `/inspect` against the library, and the page in a real Chromium against the same seeds."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from browsers import needs_chromium
from serving import TestServer, serving

import clearhead
from clearhead import GPT
from clearhead.lens import logit_lens

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


def opened_page(browser: Any, url: str) -> tuple[Any, list[str], list[str]]:
    tab = browser.new_context(reduced_motion="reduce").new_page()
    tab.set_default_timeout(120_000)
    said: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(f"{url}/")
    tab.wait_for_selector("html[data-state=ready]")
    return tab, said, requests


def generate(tab: Any, tokens: int) -> str:
    tab.fill("#length", str(tokens))
    tab.dispatch_event("#length", "change")
    tab.click("#run")
    tab.wait_for_selector("#run:enabled")
    return "".join(tab.locator("#tokens .token").all_text_contents())


@needs_chromium
def test_a_seed_gives_the_same_text_streamed_and_from_a_branch(browser: Any, server: TestServer, gpt: GPT) -> None:
    expected = gpt.generate("Once upon a time", seed=1, max_new_tokens=20).text
    tab, said, requests = opened_page(browser, server.url)
    assert generate(tab, 12) == "Once upon a time" + str(
        gpt.generate("Once upon a time", seed=1, max_new_tokens=12).text
    )
    assert any(url.endswith("/v1/completions") for url in requests)
    assert generate(tab, 8) == f"Once upon a time{expected}"  # token by token, since the text does not begin here
    tab.click("#tab-lens")
    tab.wait_for_selector("#lens-table")
    assert said == []
    assert all(url.startswith((server.url, "data:")) for url in requests)


@needs_chromium
def test_a_server_that_goes_away_leaves_the_text(browser: Any) -> None:
    with serving(clearhead.load(backend="torch")) as running:
        tab, _, _ = opened_page(browser, running.url)
        before = generate(tab, 5)
    tab.click("#run")
    tab.wait_for_selector("#run:enabled")
    assert "interrupted" in tab.inner_text("#status")
    assert "".join(tab.locator("#tokens .token").all_text_contents()) == before
