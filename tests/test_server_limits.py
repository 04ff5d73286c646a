"""What the server refuses: parameters, broken bodies, keys, sizes, times, and more than it can take on."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import StepGate, TestServer, serving, wait_for, wait_until_idle

from clearhead.gpt import GPT
from clearhead.inference.scheduler import Limits
from clearhead.server import ServerSettings

pytest_plugins = ["server_fixtures"]

KEYS = ("first-key", "second-key")


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


def test_a_prompt_beyond_the_context_is_refused_and_one_that_fills_it_is_not(
    openai_client: openai.OpenAI, tiny_gpt: GPT
) -> None:
    context = tiny_gpt.config.context_length
    full = openai_client.completions.create(model="clearhead", prompt=[5] * context, max_tokens=1, temperature=0)
    assert full.usage is not None and full.usage.prompt_tokens == context
    for prompt, tokens in (([5] * context, 2), ([5] * (context + 1), 0), ("a " * 500, 1)):
        with pytest.raises(openai.BadRequestError, match="reads 64 tokens") as raised:
            openai_client.completions.create(model="clearhead", prompt=prompt, max_tokens=tokens)
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


def test_bodies_that_are_not_json_are_refused_with_what_to_do(http: httpx.Client) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "text/plain"}):
        response = http.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 400
        assert "add the header 'Content-Type: application/json'" in response.json()["error"]["message"]
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = http.post("/v1/completions", content=gzip.compress(body), headers=packed)
    assert response.status_code == 400 and "without a Content-Encoding" in response.json()["error"]["message"]
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert http.post("/v1/completions", content=body, headers=charset).status_code == 200


def test_an_error_about_a_large_expression_is_short(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"prompt": "a", "regex": "(" * 5000 + "a" + ")" * 5000})
    message = response.json()["error"]["message"]
    assert response.status_code == 400 and message.startswith("the output format cannot be used") and len(message) < 400


def test_health_answers_head(http: httpx.Client) -> None:
    response = http.head("/health")
    assert response.status_code == 200 and not response.content


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_connection_serves_pipelined_requests_in_order(server: TestServer, version: str) -> None:
    """HTTP/1.0 closes the connection after the first answer, which is complete all the same."""
    raw = b""
    for seed in range(3):
        content = json.dumps({"prompt": "a", "seed": seed, "max_tokens": 3, "stream": seed != 1}).encode()
        ending = b"Connection: close\r\n" if seed == 2 else b""
        raw += b"POST /v1/completions HTTP/%s\r\nHost: x\r\nContent-Type: application/json\r\n" % version.encode()
        raw += ending + b"Content-Length: %d\r\n\r\n" % len(content) + content
    host, port = server.url.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(raw)
        while part := connection.recv(65536):
            found += part
    complete = 1 if version == "1.0" else 3
    assert found.count(b" 200 OK") == complete and found.count(b"data: [DONE]") == (1 if version == "1.0" else 2)


def test_a_client_that_does_not_read_holds_up_nobody(tiny_gpt: GPT) -> None:
    body = {"prompt": "a", "max_tokens": 60, "ignore_eos": True, "stream": True, "n": 128, "logprobs": 5}
    with serving(tiny_gpt) as busy, open_request(busy.url, body):
        wait_for(lambda: busy.scheduler.load().generated_tokens > 0)
        wait_until_idle(busy.scheduler)  # its texts end, whether it reads them or not
        assert httpx.post(f"{busy.url}/v1/completions", json={"prompt": "a"}, timeout=60).status_code == 200


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


def test_keys_guard_every_route_but_health_and_the_page(tiny_gpt: GPT) -> None:
    with serving(tiny_gpt, ServerSettings(api_keys=KEYS)) as guarded, httpx.Client(base_url=guarded.url) as http:
        assert http.get("/health").status_code == 200
        assert http.get("/").status_code == 200, "the page asks for a key itself"
        for path in ("/inspect", "/v1/models", "/metrics", "/openapi.json", "/v1/nothing", "/tokenizer_info"):
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


def test_large_and_slow_bodies_are_refused(tiny_gpt: GPT) -> None:
    with serving(tiny_gpt, ServerSettings(max_body_bytes=1000)) as limited:
        response = httpx.post(f"{limited.url}/v1/completions", json={"prompt": "a" * 2000})
        assert response.status_code == 413 and "1,000 bytes" in response.json()["error"]["message"]
    with serving(tiny_gpt, ServerSettings(body_seconds=0.3)) as limited:
        host, port = limited.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(1000).partition(b"\r\n")[0]
        with socket.create_connection((host, int(port)), timeout=60) as wide:
            wide.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b" 400 " in wide.recv(1000).partition(b"\r\n")[0]
        assert httpx.get(f"{limited.url}/health").status_code == 200


def test_web_pages_of_other_origins_may_not_call(tiny_gpt: GPT, server: TestServer) -> None:
    preflight = {"Origin": "https://here.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{server.url}/v1/completions", headers=preflight).headers
    with serving(tiny_gpt, ServerSettings(cors_origins=("https://here.example",), api_keys=KEYS)) as allowed:
        response = httpx.options(f"{allowed.url}/v1/completions", headers=preflight)
        assert response.headers["access-control-allow-origin"] == "https://here.example"
        foreign = httpx.options(f"{allowed.url}/v1/completions", headers={**preflight, "Origin": "https://x.example"})
        assert "access-control-allow-origin" not in foreign.headers


def test_a_full_queue_is_answered_with_429_and_a_client_that_leaves_frees_its_place(tiny_gpt: GPT) -> None:
    limits = Limits(max_live=1, max_waiting=1)
    # The first step must give a whole character, or nothing is sent; half of the tokens are only a part of one.
    letter = {str(tiny_gpt.tokenizer.encode("b")[0]): 100} if tiny_gpt.tokenizer else {}
    endless = {"prompt": "a", "max_tokens": 60, "ignore_eos": True, "stream": True, "logit_bias": letter}
    with serving(tiny_gpt, ServerSettings(limits=limits)) as small, httpx.Client(base_url=small.url) as http:
        gate = StepGate(small)
        gate.permit(1)
        with http.stream("POST", "/v1/completions", json=endless) as first:
            lines = first.iter_lines()
            next(lines)
            with open_request(small.url, {**endless, "stream": False}):
                wait_for(lambda: small.scheduler.load().waiting == 1)
                busy = http.post("/v1/completions", json={"prompt": "a"})
                assert busy.status_code == 429 and busy.json()["error"]["code"] == "overloaded"
                assert busy.headers["Retry-After"]
            wait_for(lambda: small.scheduler._cancelled)  # the second client left before its first token
            gate.permit(1)
            wait_for(lambda: small.scheduler.load().waiting == 0)
            assert small.scheduler.load().running == 1
        wait_for(lambda: small.scheduler._cancelled)
        gate.release()
        wait_until_idle(small.scheduler)
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def open_request(url: str, body: dict[str, Any]) -> socket.socket:
    """Send a request and return its connection, before any answer."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(content) + content
    )
    return connection
