"""Texts that must match a JSON schema, a regular expression or a list of choices, whatever the model prefers."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import serving

import clearhead
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.inference import continuation
from clearhead.inference.generation import generate
from clearhead.inference.output_format import FormatMatcher, OutputFormat
from clearhead.inference.requests import Request, Sample
from clearhead.loading import bundled
from clearhead.tokenizer import Tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 3},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return clearhead.load()


def sample(gpt: GPT, format: OutputFormat, **options: Any) -> Sample:
    assert gpt.tokenizer is not None
    request = Request(gpt.tokenizer.encode("Once"), output_format=format, **{"max_new_tokens": 120, **options})
    return generate(gpt.runner, gpt.tokenizer, [request])[0].samples[0]


def check(value: Any) -> None:
    assert value.keys() == {"name", "age", "pets"}
    assert isinstance(value["name"], str) and len(value["name"]) <= 12
    assert type(value["age"]) is int and 0 <= value["age"] <= 99
    assert len(value["pets"]) <= 3 and set(value["pets"]) <= {"cat", "dog"}


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 0.7, 1.5]), bias=st.booleans())
def test_a_finished_text_is_json_of_the_schema(gpt: GPT, seed: int, temperature: float, bias: bool) -> None:
    found = sample(gpt, OutputFormat.json_schema(SCHEMA), seed=seed, temperature=temperature)
    assert found.text is not None
    if found.finish_reason == "stop":
        check(json.loads(found.text))
    else:
        assert len(found.ids) == 120


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), pattern=st.sampled_from([r"[0-9]{3}-[a-z]{2,5}\.", r"(ab|🙂)+c", r"é[^a-z]{1,3}x"]))
def test_a_finished_text_matches_the_whole_expression(gpt: GPT, seed: int, pattern: str) -> None:
    found = sample(gpt, OutputFormat.regex(pattern), seed=seed, temperature=1.3)
    assert found.text is not None
    if found.finish_reason == "stop":
        assert re.fullmatch(pattern, found.text)


def test_a_choice_is_one_of_the_texts_and_every_seed_gives_one(gpt: GPT) -> None:
    choices = ["cat", "dog (big)", "🙂 x"]
    found = {sample(gpt, OutputFormat.choice(choices), seed=seed, temperature=3.0).text for seed in range(40)}
    assert found <= set(choices) and len(found) > 1


def test_a_text_that_is_cut_says_so(gpt: GPT) -> None:
    found = sample(gpt, OutputFormat.json_schema(SCHEMA), seed=1, max_new_tokens=3)
    assert found.finish_reason == "length" and found.text is not None and found.text.startswith("{")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OutputFormat.json_schema({"type": "objekt"}), "Invalid type"),
        (lambda: OutputFormat.regex("(a"), "unclosed group"),
        (lambda: OutputFormat.choice([]), "at least one text"),
        (lambda: OutputFormat.choice(["a", ""]), "none may be empty"),
        (lambda: OutputFormat.regex("a" * 200_000), "at most 100,000"),
        (lambda: OutputFormat.json_schema({"a": float("nan")}), "is not JSON"),
    ],
)
def test_a_format_that_cannot_be_is_refused(gpt: GPT, make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sample(gpt, make())


def test_through_the_server(gpt: GPT) -> None:
    with (
        serving(gpt) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "pets", "schema": SCHEMA}}
        found = client.chat.completions.create(
            model="clearhead",
            messages=[{"role": "user", "content": "Hi"}],
            response_format=wanted,
            seed=3,
            max_completion_tokens=150,
        ).choices[0]
        assert found.message.content is not None
        if found.finish_reason == "stop":
            check(json.loads(found.message.content))
        one = client.completions.create(
            model="clearhead", prompt="The", seed=1, extra_body={"choice": ["yes", "no"]}, n=4
        )
        assert {choice.text for choice in one.choices} <= {"yes", "no"}
        assert {choice.finish_reason for choice in one.choices} == {"stop"}
        for body, param in (
            ({"regex": "(a"}, None),
            ({"regex": "a", "choice": ["b"]}, "response_format"),
            ({"response_format": {"type": "json_schema"}}, "response_format"),
            ({"response_format": {"type": "xml"}}, "response_format"),
            ({"choice": []}, "choice"),
        ):
            response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", **body})
            assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_samples_of_a_request_share_a_compiled_format(gpt: GPT) -> None:
    assert gpt.tokenizer is not None
    ids = gpt.tokenizer.encode("Once")
    request = Request(ids, output_format=OutputFormat.json_schema(SCHEMA), n=6, seed=4, max_new_tokens=80)
    together = generate(gpt.runner, gpt.tokenizer, [request])[0].samples
    assert len({one.text for one in together}) > 1
    fresh = GPT(gpt.model, Tokenizer.from_folder(bundled()), runner=gpt.runner)
    assert fresh.tokenizer is not None
    assert generate(fresh.runner, fresh.tokenizer, [request])[0].samples == together
    assert generate(gpt.runner, gpt.tokenizer, [request])[0].samples == together  # none changed the kept one


def test_a_schema_is_compiled_beside_the_event_loop(gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, may_end = threading.Event(), threading.Event()

    class Slow(FormatMatcher):
        def __init__(self, format: OutputFormat, tokenizer: Tokenizer) -> None:
            compiling.set()
            assert may_end.wait(60)
            super().__init__(format, tokenizer)

    monkeypatch.setattr(continuation, "FormatMatcher", Slow)
    answers: list[httpx.Response] = []
    body = {"prompt": "Once", "choice": ["yes", "no"], "seed": 1}
    with serving(gpt) as server:
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60))
        )
        asking.start()
        assert compiling.wait(60)
        plain = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Once", "max_tokens": 2}, timeout=60)
        assert plain.status_code == 200 and not answers
        may_end.set()
        asking.join()
    assert answers[0].json()["choices"][0]["text"] in ("yes", "no")
