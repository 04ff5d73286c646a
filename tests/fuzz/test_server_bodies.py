"""Bodies of requests: every one gets an answer that is right or an error object, never 500 and never silence.

`make fuzz` sends 10,000 bodies of each kind to each route, 100,000 and more in all: made from the schema in
`/openapi.json`, good ones that were damaged, and bytes. The suite sends a few of each (FUZZ_INPUTS sets the number).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from served import TestServer, pages_in_use, serving, wait_until_idle

from clearhead.gpt import GPT
from clearhead.inference.scheduler import Limits
from clearhead.server import ServerSettings
from fuzz.harness import damage_bytes, damage_json, dump
from fuzz.schema_values import SchemaValues

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.slow

INPUTS = int(os.environ.get("FUZZ_INPUTS", "25"))
SECONDS_UNTIL_HUNG = 300  # on a machine that may pause this process

MESSAGES = [{"role": "system", "content": "A."}, {"role": "user", "content": [{"type": "text", "text": "it 🙂"}]}]
SAMPLING: dict[str, Any] = {
    "max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "n": 2, "stop": [" a"], "seed": 1, "presence_penalty": 0.1,
    "frequency_penalty": 0.1, "logit_bias": {"40": 1.5}, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
    "user": "me", "model": "clearhead", "stream": False,
}  # fmt: skip
STRUCTURED = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array", "maxItems": 2}}}
GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": "it was", **SAMPLING},
        {"prompt": [[3], [4, 5]], "logprobs": 2, "echo": True, "max_tokens": 0},
        {"prompt": ["a", "🙂"], **SAMPLING, "stream": True, "stream_options": {"include_usage": True}, "logprobs": 1},
        {"prompt": [1, 2], "best_of": 3, "n": 2, "return_tokens_as_token_ids": True, "ignore_eos": True},
        {"prompt": "a", "response_format": STRUCTURED, "max_tokens": 5},
        {"prompt": "a", "regex": "[0-9]{3}-[a-z]+", "max_tokens": 5},
        {"prompt": "a", "choice": ["yes", "no"]},
    ],
    "/v1/chat/completions": [
        {"messages": MESSAGES, **SAMPLING},
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 3, "stream": True},
        {"messages": MESSAGES, "response_format": {"type": "json_object"}, "max_tokens": 5},
    ],
    "/tokenize": [{"prompt": "a day<|endoftext|>", "add_special_tokens": False}],
    "/detokenize": [{"tokens": [1, 2, 200]}],
    "/inspect": [
        {"prompt": "it", "ask": ["probabilities", "attention", "norms", "lens", "vectors"], "block": 1, "top": 3},
        {"prompt": [1, 2], "ask": ["logits"], "removed": ["attention.0.1", "feed_forward.1"], "last": 1},
    ],
}
ROUTES = list(GOOD)


class Client:
    """A connection that is kept open, as clients do."""

    def __init__(self, server: TestServer) -> None:
        address = urllib.parse.urlsplit(server.url)
        self._connection = http.client.HTTPConnection(
            str(address.hostname), int(address.port or 0), timeout=SECONDS_UNTIL_HUNG
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def check(self, route: str, content: bytes, kind: str = "application/json") -> int:
        """Send a body and check the answer; return its status."""
        try:
            self._connection.request("POST", route, content, {"Content-Type": kind})
            answer = self._connection.getresponse()
            body = answer.read()
        except BaseException:
            self._connection.close()  # the next body gets a new one
            raise
        assert answer.status in (200, 400, 404, 413), (route, content, body)
        if answer.status != 200:
            error = json.loads(body)["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["message"], (route, content, body)
        elif answer.headers["Content-Type"].startswith("text/event-stream"):
            lines = [line for line in body.decode().split("\n\n") if line]
            assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
            assert not any("server_error" in line for line in lines), (route, content, body)
        else:
            json.loads(body)
        return answer.status


@pytest.fixture(scope="module")
def small_server(tiny_gpt: GPT) -> Iterator[TestServer]:
    limits = Limits(cached_tokens=500)
    with serving(tiny_gpt, ServerSettings(max_choices=6, max_body_bytes=100_000, limits=limits)) as running:
        yield running
        wait_until_idle(running.scheduler)
    assert pages_in_use(tiny_gpt) == 0, "a page did not come back"


@pytest.fixture(scope="module")
def client(small_server: TestServer) -> Iterator[Client]:
    opened = Client(small_server)
    yield opened
    opened.close()


several = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def values(small_server: TestServer) -> SchemaValues:
    with urllib.request.urlopen(f"{small_server.url}/openapi.json") as answer:
        return SchemaValues(json.load(answer))


@pytest.mark.parametrize("route", ROUTES)
@several
@given(number=st.integers(0, 2**63))
def test_bodies_of_the_schema(route: str, number: int, client: Client, values: SchemaValues) -> None:
    schema = values.document["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    client.check(route, dump(values.make(schema, random.Random(number))))


@pytest.mark.parametrize("route", ROUTES)
@several
@given(number=st.integers(0, 2**63))
def test_damaged_bodies(route: str, number: int, client: Client) -> None:
    chance = random.Random(number)
    good = chance.choice(GOOD[route])
    content = dump(damage_json(good, chance)) if chance.random() < 0.8 else damage_bytes(dump(good), chance)
    client.check(route, content)


@several
@given(raw=st.binary(max_size=300), route=st.sampled_from(ROUTES), kind=st.sampled_from(["application/json", "", "x"]))
def test_bytes(raw: bytes, route: str, kind: str, client: Client) -> None:
    client.check(route, raw, kind)


@pytest.mark.parametrize("route", ROUTES)
def test_the_good_bodies_are_good(route: str, client: Client) -> None:
    assert {client.check(route, dump(body)) for body in GOOD[route]} == {200}
