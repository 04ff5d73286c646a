"""The server on a real socket, with the `openai` package and with requests that no client would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command_line
import httpx
import numpy as np
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import TestServer, serving, wait_until_idle
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.inference.options import OPTIONS
from clearhead.inference.scheduler import Limits
from clearhead.server import ServerSettings, create_app
from clearhead.server.chat import STOP, write_conversation
from clearhead.server.schemas import Message
from clearhead.tokenizer import Tokenizer

TEXT = "Once upon a time there was a little girl — she said: “über naïve 🙂 cats!” and it was a big day. "
PROMPTS = ["Once upon a time", "a little girl — she", "it was a big day. Once upon a time there was", "🙂"]
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random GPT-2 of transformers, with 5 rows more than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train([TEXT] * 4, 300)
    torch.manual_seed(1)
    shape = GPT2Config(
        vocab_size=tokenizer.vocab_size + 5,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
    )
    GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def gpt(folder: Path) -> GPT:
    return clearhead.load(folder)


@pytest.fixture(scope="module")
def server(gpt: GPT) -> Iterator[TestServer]:
    with serving(gpt) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TestServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: TestServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def alone(gpt: GPT, prompt: Any, **options: Any) -> Any:
    """What the library gives, with the API's defaults of temperature and top-p."""
    return gpt.generate(prompt, **{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16, **options})


# ---------------------------------------------------------------------------------------------------------------
# /v1/completions
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"seed": 3},
        {"seed": 4, "temperature": 1.4, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"seed": 5, "stop": [" a", "🙂"]},
        {"seed": 6, "logit_bias": {"40": 5.0, "41": -100}},
        {"seed": 7, "extra_body": {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.3}},
    ],
)
def test_completions_are_what_the_library_generates(
    client: openai.OpenAI, gpt: GPT, prompt: str, options: dict[str, Any]
) -> None:
    sent = {"model": "clearhead", "prompt": prompt, "max_tokens": 12, "n": 2, **options}
    found = client.completions.create(**sent)
    ours = {name: value for name, value in options.items() if name != "extra_body"} | options.get("extra_body", {})
    if "logit_bias" in ours:
        ours["logit_bias"] = {int(token): bias for token, bias in ours["logit_bias"].items()}
    expected = alone(gpt, prompt, max_new_tokens=12, n=2, **ours)
    assert [choice.text for choice in found.choices] == list(expected.texts)
    assert [choice.finish_reason for choice in found.choices] == [one.finish_reason for one in expected.samples]
    assert found.usage is not None and found.usage.prompt_tokens == len(expected.prompt_ids)
    assert found.usage.completion_tokens == sum(len(one.ids) for one in expected.samples)
    streamed: dict[int, str] = {0: "", 1: ""}
    reasons: dict[int, str] = {}
    chunks = list(client.completions.create(**sent, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert [streamed[0], streamed[1]] == list(expected.texts)
    assert reasons == {index: one.finish_reason for index, one in enumerate(expected.samples)}
    assert chunks[-1].choices == [] and chunks[-1].usage == found.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}  # the second run finds the prefix
    )


def test_prompts_may_be_texts_ids_lists_or_absent(client: openai.OpenAI, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    ids = gpt.tokenizer.encode(PROMPTS[1])
    one = client.completions.create(model="clearhead", prompt=PROMPTS[1], seed=1).choices[0].text
    assert client.completions.create(model="clearhead", prompt=ids, seed=1).choices[0].text == one
    many = client.completions.create(model="clearhead", prompt=[PROMPTS[1], PROMPTS[0]], temperature=0, n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == alone(gpt, PROMPTS[1], temperature=0).text
    assert many.choices[2].text == alone(gpt, PROMPTS[0], temperature=0).text
    lists = client.completions.create(model="clearhead", prompt=[ids, ids[:2]], temperature=0)
    assert lists.choices[1].text == alone(gpt, ids[:2], temperature=0).text
    end = gpt.tokenizer.end_of_text
    assert end is not None
    absent = client.completions.create(model="clearhead", prompt=None, temperature=0)
    assert absent.choices[0].text == alone(gpt, [end], temperature=0).text
    special = client.completions.create(
        model="clearhead", prompt="<|endoftext|>", temperature=0, extra_body={"special": True}
    )
    assert special.choices[0].text == absent.choices[0].text


def test_echo_scores_the_prompt_as_transformers_does(client: openai.OpenAI, gpt: GPT, folder: Path) -> None:
    assert gpt.tokenizer is not None
    peer = GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = gpt.tokenizer.encode(PROMPTS[2])
    with torch.no_grad():
        logs = peer(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
    # As lm-eval asks for log-likelihoods.
    sent: dict[str, Any] = {"prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
    choice = client.completions.create(model="clearhead", seed=1234, **sent).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None and choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    assert choice.logprobs.top_logprobs is not None
    tops, own = choice.logprobs.top_logprobs[1:-1], choice.logprobs.token_logprobs[1:-1]
    choices = logs[:, : gpt.tokenizer.vocab_size]
    greedy = [max(top.values()) == logprob for top, logprob in zip(tops, own, strict=True)]
    assert greedy == [int(row.argmax()) == token for row, token in zip(choices, ids[1:], strict=False)]
    assert choice.logprobs.text_offset is not None and choice.logprobs.tokens is not None
    for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    assert choice.text.startswith(PROMPTS[2])
    # Without new tokens.
    sent["max_tokens"] = 0
    scored = client.completions.create(model="clearhead", **sent)
    assert scored.choices[0].text == PROMPTS[2] and scored.usage is not None and scored.usage.completion_tokens == 0
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs == choice.logprobs.token_logprobs[:-1]
    # And streamed.
    parts = [part.choices[0] for part in client.completions.create(model="clearhead", stream=True, **sent)]
    assert "".join(part.text for part in parts) == PROMPTS[2]
    streamed = [one for part in parts if part.logprobs for one in part.logprobs.token_logprobs or []]
    assert streamed == scored.choices[0].logprobs.token_logprobs


def test_logprobs_of_generated_tokens(client: openai.OpenAI, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    expected = alone(gpt, PROMPTS[0], seed=2, max_new_tokens=10, logprobs=3).samples[0]
    sent: dict[str, Any] = {"model": "clearhead", "prompt": PROMPTS[0], "seed": 2, "max_tokens": 10, "logprobs": 3}
    found = client.completions.create(**sent).choices[0].logprobs
    assert found is not None and found.top_logprobs is not None
    assert found.token_logprobs == [one.logprob for one in expected.logprobs]
    named = client.completions.create(**sent, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs
    assert named is not None and named.tokens == [f"token_id:{token}" for token in expected.ids]
    assert named.top_logprobs is not None
    for top, one in zip(named.top_logprobs, expected.logprobs, strict=True):
        assert top == {f"token_id:{token}": value for token, value in [*one.top, (one.id, one.logprob)]}
    with pytest.raises(openai.BadRequestError, match="lists up to 5") as raised:
        client.completions.create(**{**sent, "logprobs": 6})
    assert raised.value.param == "logprobs"


def test_best_of_returns_the_most_likely_texts(client: openai.OpenAI, gpt: GPT) -> None:
    found = client.completions.create(model="clearhead", prompt="it", seed=9, max_tokens=8, best_of=6, n=2)
    samples = alone(gpt, "it", seed=9, max_new_tokens=8, n=6, logprobs=0).samples
    mean = {one.text: math.fsum(t.logprob for t in one.logprobs) / max(1, len(one.logprobs)) for one in samples}
    assert [choice.text for choice in found.choices] == sorted(mean, key=lambda text: -mean[text])[:2]


# ---------------------------------------------------------------------------------------------------------------
# The other routes
# ---------------------------------------------------------------------------------------------------------------


def test_chat_continues_a_plain_text(client: openai.OpenAI, gpt: GPT) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "A."},
        {"role": "user", "content": [{"type": "text", "text": "it"}]},
    ]
    text = write_conversation([Message.model_validate(one) for one in messages])
    assert text == "A.\n\nUser: it\nAssistant:"
    expected = alone(gpt, text, seed=3, max_new_tokens=12, stop=[STOP]).text or ""
    sent: dict[str, Any] = {"model": "clearhead", "messages": messages, "seed": 3, "max_completion_tokens": 12}
    found = client.chat.completions.create(**sent, logprobs=True, top_logprobs=2)
    assert found.choices[0].message.content == expected.lstrip(" ")
    assert found.choices[0].logprobs is not None and found.choices[0].logprobs.content is not None
    raw = b"".join(bytes(one.bytes or []) for one in found.choices[0].logprobs.content)
    assert raw.decode("utf-8", "ignore").startswith(expected[:3])
    pieces, reason = "", None
    for chunk in client.chat.completions.create(**sent, stream=True):
        pieces += chunk.choices[0].delta.content or ""
        reason = reason or chunk.choices[0].finish_reason
    assert pieces == found.choices[0].message.content and reason == found.choices[0].finish_reason


def test_models_tokens_health_metrics_and_schema(client: openai.OpenAI, http: httpx.Client, gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("clearhead").id == "clearhead"
    with pytest.raises(openai.NotFoundError, match="not served here") as raised:
        client.completions.create(model="gpt-4", prompt="a")
    assert raised.value.code == "model_not_found"
    end = gpt.tokenizer.end_of_text
    tokens = http.post("/tokenize", json={"prompt": "a day<|endoftext|>", "add_special_tokens": False}).json()["tokens"]
    assert tokens == [*gpt.tokenizer.encode("a day"), end]
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "a day<|endoftext|>"}
    assert http.get("/tokenizer_info").json()["eos_token"] == "<|endoftext|>"
    assert http.get("/health").json() == {"status": "ok"}
    metrics = http.get("/metrics").text
    for name in (
        "requests_running",
        "requests_waiting",
        "time_to_first_token_seconds_bucket",
        "generated_tokens_total",
    ):
        assert f"clearhead_{name}" in metrics
    schema = http.get("/openapi.json").json()
    body = schema["components"]["schemas"]["CompletionRequest"]["properties"]
    assert OPTIONS["temperature"].accepted in json.dumps(body["temperature"])
    assert schema["paths"].keys() >= {"/v1/completions", "/v1/chat/completions", "/tokenize", "/health"}


# ---------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "sentence"),
    [
        ({"prompt": "a", "temperature": "warm"}, 400, "temperature", "valid number"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature", "give a number"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p", "above 0"),
        ({"prompt": "a", "n": 0}, 400, "n", "greater than or equal to 1"),
        ({"prompt": "a", "n": 10**9}, 400, "n", "less than or equal to 128"),
        ({"prompt": "a", "n": True}, 400, "n", "valid integer"),
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ({"prompt": "a", "max_tokens": 10**30}, 400, "max_tokens", ""),
        ({"prompt": "a", "stop": ["x"] * 500_000}, 400, "stop", "at most 4"),
        ({"prompt": "a", "stop": ""}, 400, "stop", "at least 1 character"),
        ({"prompt": "a", "suffix": "z"}, 400, "suffix", "not supported"),
        ({"prompt": "a", "best_of": 2, "n": 3}, 400, "best_of", "at least as many"),
        ({"prompt": "a", "best_of": 2, "stream": True}, 400, "best_of", "cannot be streamed"),
        ({"prompt": "a", "tempature": 1}, 400, "tempature", "not a parameter"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias", "not a token id"),
        ({"prompt": "a", "logit_bias": {"99999": 1}}, 400, None, "the vocabulary has"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options", "needs stream"),
        ({"prompt": ""}, 400, "prompt", "empty"),
        ({"prompt": []}, 400, "prompt", ""),
        ({"prompt": [[1], []]}, 400, "prompt", ""),
        ({"prompt": [1.5]}, 400, "prompt", ""),
        ({"prompt": [10**6]}, 400, "prompt", "which the model does not have"),
        ({"prompt": {"a": 1}}, 400, "prompt", ""),
        ({"prompt": ["a"] * 100, "n": 2}, 400, "n", "200 texts"),
        ([1, 2], 400, None, "not valid"),
        ("text", 400, None, "not valid"),
        (None, 400, None, ""),
    ],
)
def test_what_cannot_be_answered_is_refused_with_an_error_object(
    http: httpx.Client, body: Any, status: int, param: str | None, sentence: str
) -> None:
    response = http.post("/v1/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == status and error["param"] == param
    assert sentence in error["message"] and error["type"] == "invalid_request_error"
    assert error.keys() == {"message", "type", "param", "code"}


def test_a_prompt_beyond_the_context_is_refused_and_one_that_fills_it_is_not(client: openai.OpenAI, gpt: GPT) -> None:
    context = gpt.config.context_length
    full = client.completions.create(model="clearhead", prompt=[5] * context, max_tokens=1, temperature=0)
    assert full.usage is not None and full.usage.prompt_tokens == context
    for prompt, tokens in (([5] * context, 2), ([5] * (context + 1), 0), ("a " * 500, 1)):
        with pytest.raises(openai.BadRequestError, match="reads 64 tokens") as raised:
            client.completions.create(model="clearhead", prompt=prompt, max_tokens=tokens)
        assert raised.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}', b"[" * 100_000, b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "a", "\\ud800": 1}', b'{"prompt": "a", "stop": "\\udfff"}',
        b'{"prompt": "a", "user": null, "user": 3}',
    ],
)  # fmt: skip
def test_broken_bodies_are_refused(http: httpx.Client, raw: bytes) -> None:
    response = http.post("/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 or (response.status_code == 200 and b"udfff" in raw)
    if response.status_code == 400:
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_routes_and_methods_have_error_objects(http: httpx.Client) -> None:
    for response in (
        http.get("/v1/nothing"),
        http.get("/v1/completions"),
        http.get("/../../etc/passwd"),
        http.get("/v1/models/..%2f..%2fetc%2fpasswd"),
    ):
        assert response.status_code in (404, 405) and response.json()["error"]["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
parameters = st.sampled_from(
    ["prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logit_bias", "logprobs", "echo", "best_of",
     "stream", "stream_options", "suffix", "top_k", "min_p", "presence_penalty", "messages", "model", "user", "special"]
)  # fmt: skip
sensible = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["a", "it was", [1, 2], [[3], [4, 5]], ["a", "🙂"]]), "max_tokens": st.integers(0, 3)},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "n": st.integers(1, 3),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=5),
        "seed": st.integers(),
        "logprobs": st.integers(0, 6),
        "echo": st.booleans(),
        "stream": st.booleans(),
        "best_of": st.integers(0, 4),
        "logit_bias": st.dictionaries(st.integers(-1, 400).map(str), st.floats(-200, 200), max_size=3),
    },
)


@pytest.mark.slow
@settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
@given(
    route=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]),
    body=st.dictionaries(parameters, json_values, max_size=6) | sensible,
)
def test_no_body_causes_a_server_error(http: httpx.Client, route: str, body: dict[str, Any]) -> None:
    content = json.dumps(body, ensure_ascii=True).encode()
    response = http.post(route, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.slow
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(max_size=200))
def test_no_bytes_cause_a_server_error(http: httpx.Client, raw: bytes) -> None:
    response = http.post("/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


# ---------------------------------------------------------------------------------------------------------------
# Keys, sizes, times
# ---------------------------------------------------------------------------------------------------------------


def test_keys_guard_every_route_but_health(gpt: GPT) -> None:
    with serving(gpt, ServerSettings(api_keys=KEYS)) as guarded, httpx.Client(base_url=guarded.url) as http:
        assert http.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing", "/tokenizer_info"):
            assert http.get(path).status_code == 401
        wrong: tuple[Any, ...] = (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": "first-key"},
            {"X-Api-Key": "first-key"},
        )
        for headers in (*wrong, {"Authorization": b"Bearer \xfc"}):
            response = http.post("/v1/completions?api_key=first-key", json={"prompt": "a"}, headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
        for key in KEYS:
            with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0) as client:
                assert client.models.list().data
        client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="no", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_large_and_slow_bodies_are_refused(gpt: GPT) -> None:
    settings = ServerSettings(max_body_bytes=1000, body_seconds=0.3)
    with serving(gpt, settings) as limited:
        response = httpx.post(f"{limited.url}/v1/completions", json={"prompt": "a" * 2000})
        assert response.status_code == 413 and "1,000 bytes" in response.json()["error"]["message"]
        host, port = limited.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(1000).partition(b"\r\n")[0]
        with socket.create_connection((host, int(port)), timeout=10) as wide:
            wide.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b" 400 " in wide.recv(1000).partition(b"\r\n")[0]
        assert httpx.get(f"{limited.url}/health").status_code == 200


def test_web_pages_of_other_origins_may_not_call(gpt: GPT, server: TestServer) -> None:
    preflight = {"Origin": "https://here.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{server.url}/v1/completions", headers=preflight).headers
    with serving(gpt, ServerSettings(cors_origins=("https://here.example",), api_keys=KEYS)) as allowed:
        response = httpx.options(f"{allowed.url}/v1/completions", headers=preflight)
        assert response.headers["access-control-allow-origin"] == "https://here.example"
        foreign = httpx.options(f"{allowed.url}/v1/completions", headers={**preflight, "Origin": "https://x.example"})
        assert "access-control-allow-origin" not in foreign.headers


def test_a_full_queue_is_answered_with_429_and_a_client_that_leaves_frees_its_place(gpt: GPT) -> None:
    limits = Limits(max_live=1, max_waiting=1)
    endless = {"prompt": "a", "max_tokens": 60, "ignore_eos": True, "stream": True}
    with serving(gpt, ServerSettings(limits=limits)) as small, httpx.Client(base_url=small.url) as http:
        slow_down(small, 0.05)
        with http.stream("POST", "/v1/completions", json=endless) as first:
            lines = first.iter_lines()
            next(lines)
            leaving = threading.Thread(target=leave, args=(small.url, endless))
            leaving.start()
            until = time.monotonic() + 10
            while small.scheduler.load().waiting == 0:
                assert time.monotonic() < until
                time.sleep(0.005)
            busy = http.post("/v1/completions", json={"prompt": "a"})
            assert (
                busy.status_code == 429 and busy.headers["Retry-After"] and busy.json()["error"]["code"] == "overloaded"
            )
            leaving.join()  # it leaves before its first token
            while small.scheduler.load().waiting:
                assert time.monotonic() < until
                time.sleep(0.005)
        wait_until_idle(small.scheduler)
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def slow_down(server: TestServer, seconds: float) -> None:
    """Make each step of a server take a while."""
    runner: Any = server.scheduler.runner
    extend = runner.extend

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(runner, name)

        def extend(self, work: Any) -> Any:
            time.sleep(seconds)
            return extend(work)

    server.scheduler._batch._runner = Slow()


def leave(url: str, body: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(f"{url}/v1/completions", json={**body, "stream": False}, timeout=0.5)


def test_the_asynchronous_client_and_its_retries(gpt: GPT) -> None:
    limits = Limits(max_live=1, max_waiting=0)
    expected = [alone(gpt, PROMPTS[0], seed=seed).text for seed in range(5)]

    async def ask(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=40) as client:

            async def one(seed: int) -> str:
                found = await client.completions.create(model="clearhead", prompt=PROMPTS[0], seed=seed)
                return found.choices[0].text

            async def streamed(seed: int) -> str:
                chunks = await client.completions.create(model="clearhead", prompt=PROMPTS[0], seed=seed, stream=True)
                return "".join([chunk.choices[0].text async for chunk in chunks])

            return await asyncio.gather(*map(one, range(3)), *map(streamed, (3, 4)))

    with serving(gpt, ServerSettings(limits=limits)) as busy:
        assert asyncio.run(ask(busy.url)) == expected  # all but one are refused with 429 at first


# ---------------------------------------------------------------------------------------------------------------
# Many at once
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cached_tokens", [0, 1000])
def test_results_do_not_depend_on_the_load(gpt: GPT, cached_tokens: int) -> None:
    choices: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.3},
        {"top_p": 0.7},
        {"top_k": 4, "n": 2},
        {"echo": True, "max_tokens": 2},
    ]
    grid: list[dict[str, Any]] = [
        {"prompt": prompt, "max_tokens": 10, "logprobs": 2, "seed": seed, **options}
        for prompt in [*PROMPTS, TEXT[:60], TEXT[:60] + "a", TEXT[:60] + " little"]
        for seed, options in enumerate(choices)
    ]
    limits = Limits(max_live=16, prompt_tokens=8, cached_tokens=cached_tokens)

    async def ask(client: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> list[Any]:
        response = await client.post("/v1/completions", json={**body, "stream": stream})
        assert response.status_code == 200, response.text
        if not stream:
            return [(one["text"], one["logprobs"]["token_logprobs"]) for one in response.json()["choices"]]
        found: list[Any] = [("", []) for _ in range(body.get("n", 1))]
        for line in response.text.splitlines():
            if line.startswith("data: {"):
                for one in json.loads(line[6:])["choices"]:
                    text, logprobs = found[one["index"]]
                    found[one["index"]] = text + one["text"], logprobs + one["logprobs"]["token_logprobs"]
        return found

    async def run(url: str, concurrency: int, stream: bool) -> list[list[Any]]:
        gate = asyncio.Semaphore(concurrency)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:

            async def one(body: dict[str, Any]) -> list[Any]:
                async with gate:
                    return await ask(client, body, stream)

            return await asyncio.gather(*map(one, grid))

    with serving(gpt, ServerSettings(limits=limits)) as loaded:
        expected = asyncio.run(run(loaded.url, 1, False))
        for concurrency in (1, 8, 44):
            for stream in (False, True):
                assert asyncio.run(run(loaded.url, concurrency, stream)) == expected
        report = loaded.scheduler.load()
        assert (report.cached_prompt_tokens > 0) == (cached_tokens > 0)
        assert report.prefix_tokens <= cached_tokens
    for body, found in zip(grid, expected, strict=True):
        if not body.get("echo"):
            options = {name: body[name] for name in ("temperature", "top_p", "top_k") if name in body}
            direct = alone(gpt, body["prompt"], seed=body["seed"], n=body.get("n", 1), max_new_tokens=10, **options)
            assert [text for text, _ in found] == list(direct.texts)


def test_stopping_answers_what_was_accepted(gpt: GPT) -> None:
    running = TestServer(gpt, ServerSettings())
    slow_down(running, 0.02)
    found: list[httpx.Response] = []
    body = {"prompt": "a", "max_tokens": 30, "ignore_eos": True, "seed": 1}
    threads = [
        threading.Thread(
            target=lambda: found.append(httpx.post(f"{running.url}/v1/completions", json=body, timeout=30))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while running.scheduler.load().running < 4:
        assert time.monotonic() < until
        time.sleep(0.005)
    running.stop()
    for thread in threads:
        thread.join()
    texts = {response.json()["choices"][0]["text"] for response in found}
    assert len(found) == 4 and texts == {alone(gpt, "a", seed=1, max_new_tokens=30, stop_at_end_of_text=False).text}


def test_while_the_model_loads_every_route_says_so(gpt: GPT) -> None:
    release = threading.Event()

    def load() -> GPT:
        release.wait(20)
        return gpt

    app = create_app(load)

    async def look() -> None:
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            health = await http.get("/health")
            assert health.status_code == 503 and health.json() == {"status": "loading"}
            answer = await http.post("/v1/completions", json={"prompt": "a"})
            assert answer.status_code == 503 and "still loading" in answer.json()["error"]["message"]
            release.set()
            until = time.monotonic() + 20
            while (await http.get("/health")).status_code != 200:
                assert time.monotonic() < until
                await asyncio.sleep(0.01)

    asyncio.run(look())
    assert gpt.tokenizer is not None
    with pytest.raises(InputError, match="no tokenizer"):
        create_app(GPT(gpt.model))


def test_astream_gives_what_stream_gives(gpt: GPT) -> None:
    async def collect(seed: int) -> str:
        return "".join([piece async for piece in gpt.astream(PROMPTS[0], seed=seed, max_new_tokens=20)])

    async def together() -> list[str]:
        return list(await asyncio.gather(*(collect(seed) for seed in range(6))))

    expected = ["".join(gpt.stream(PROMPTS[0], seed=seed, max_new_tokens=20)) for seed in range(6)]
    assert asyncio.run(together()) == expected
    assert np.unique(expected).size > 1

    async def wrong() -> None:
        async for _ in gpt.astream("a", n=2):
            pass

    with pytest.raises(InputError, match="n is 2"):
        asyncio.run(wrong())


# ---------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop_and_answers_what_it_accepted(
    folder: Path, gpt: GPT, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# keys\nsecret\n")
    port = free_port()
    command = [
        *(sys.executable, "-m", "clearhead", "serve", "-m", str(folder), "--port", str(port)),
        *("--api-key-file", str(keys), "--log-level", "warning", "--cache-tokens", "500"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        status = 0
        while status != 200:
            assert time.monotonic() < until and process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(f"{url}/health").status_code
            time.sleep(0.02)
        body = {"prompt": "a", "max_tokens": 60, "ignore_eos": True, "seed": 1, "stream": True}
        headers = {"Authorization": "Bearer secret"}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [first, *lines]
        text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in rest if line.startswith("data: {"))
        assert rest[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in rest
        assert text == alone(gpt, "a", seed=1, max_new_tokens=60, stop_at_end_of_text=False).text
        assert process.wait(30) == 0
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


@pytest.mark.slow
def test_the_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        for arguments, sentence in (
            (("--api-key-file", str(tmp_path / "none")), "could not be read"),
            (("--api-key-file", str(empty)), "has no API key"),
            (("--log-level", "loud"), "give debug, info, warning or error"),
            (("--port", port), "cannot be used"),
            (("--host", "host.invalid"), "cannot be used"),
            (("-m", str(tmp_path), "--port", "0"), "clearhead: "),
        ):
            result = command_line.run("serve", *arguments)
            error = result.stderr.decode()
            assert result.returncode == 2 and sentence in error and "Traceback" not in error
