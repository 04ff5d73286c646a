"""The server's routes on a real socket, with the `openai` package."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from served import PROMPTS, StepGate, TestServer, alone, serving, wait_for
from transformers import GPT2LMHeadModel

from clearhead.gpt import GPT
from clearhead.inference.options import OPTIONS
from clearhead.inference.scheduler import Limits
from clearhead.server import ServerSettings
from clearhead.tokenizer.conversation import ChatMessage, ConversationFormat

pytest_plugins = ["server_fixtures"]


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
    openai_client: openai.OpenAI, tiny_gpt: GPT, prompt: str, options: dict[str, Any]
) -> None:
    sent = {"model": "clearhead", "prompt": prompt, "max_tokens": 12, "n": 2, **options}
    found = openai_client.completions.create(**sent)
    ours = {name: value for name, value in options.items() if name != "extra_body"} | options.get("extra_body", {})
    if "logit_bias" in ours:
        ours["logit_bias"] = {int(token): bias for token, bias in ours["logit_bias"].items()}
    expected = alone(tiny_gpt, prompt, max_new_tokens=12, n=2, **ours)
    assert [choice.text for choice in found.choices] == list(expected.texts)
    assert [choice.finish_reason for choice in found.choices] == [one.finish_reason for one in expected.samples]
    assert found.usage is not None and found.usage.prompt_tokens == len(expected.prompt_ids)
    assert found.usage.completion_tokens == sum(len(one.ids) for one in expected.samples)
    streamed: dict[int, str] = {0: "", 1: ""}
    reasons: dict[int, str] = {}
    chunks = list(openai_client.completions.create(**sent, stream=True, stream_options={"include_usage": True}))
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


def test_prompts_may_be_texts_ids_lists_or_absent(openai_client: openai.OpenAI, tiny_gpt: GPT) -> None:
    assert tiny_gpt.tokenizer is not None
    ids = tiny_gpt.tokenizer.encode(PROMPTS[1])
    one = openai_client.completions.create(model="clearhead", prompt=PROMPTS[1], seed=1).choices[0].text
    assert openai_client.completions.create(model="clearhead", prompt=ids, seed=1).choices[0].text == one
    many = openai_client.completions.create(model="clearhead", prompt=[PROMPTS[1], PROMPTS[0]], temperature=0, n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == alone(tiny_gpt, PROMPTS[1], temperature=0).text
    assert many.choices[2].text == alone(tiny_gpt, PROMPTS[0], temperature=0).text
    lists = openai_client.completions.create(model="clearhead", prompt=[ids, ids[:2]], temperature=0)
    assert lists.choices[1].text == alone(tiny_gpt, ids[:2], temperature=0).text
    end = tiny_gpt.tokenizer.end_of_text
    assert end is not None
    absent = openai_client.completions.create(model="clearhead", prompt=None, temperature=0)
    assert absent.choices[0].text == alone(tiny_gpt, [end], temperature=0).text
    special = openai_client.completions.create(
        model="clearhead", prompt="<|endoftext|>", temperature=0, extra_body={"special": True}
    )
    assert special.choices[0].text == absent.choices[0].text


def test_echo_scores_the_prompt_as_transformers_does(
    openai_client: openai.OpenAI, tiny_gpt: GPT, tiny_folder: Path
) -> None:
    assert tiny_gpt.tokenizer is not None
    peer = GPT2LMHeadModel.from_pretrained(tiny_folder).eval()
    ids = tiny_gpt.tokenizer.encode(PROMPTS[2])
    with torch.no_grad():
        logs = peer(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
    # As lm-eval asks for log-likelihoods.
    sent: dict[str, Any] = {"prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
    choice = openai_client.completions.create(model="clearhead", seed=1234, **sent).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None and choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    assert choice.logprobs.top_logprobs is not None
    tops, own = choice.logprobs.top_logprobs[1:-1], choice.logprobs.token_logprobs[1:-1]
    choices = logs[:, : tiny_gpt.tokenizer.vocab_size]
    greedy = [max(top.values()) == logprob for top, logprob in zip(tops, own, strict=True)]
    assert greedy == [int(row.argmax()) == token for row, token in zip(choices, ids[1:], strict=False)]
    assert choice.logprobs.text_offset is not None and choice.logprobs.tokens is not None
    for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    assert choice.text.startswith(PROMPTS[2])
    # Without new tokens.
    sent["max_tokens"] = 0
    scored = openai_client.completions.create(model="clearhead", **sent)
    assert scored.choices[0].text == PROMPTS[2] and scored.usage is not None and scored.usage.completion_tokens == 0
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs == choice.logprobs.token_logprobs[:-1]
    # And streamed.
    parts = [part.choices[0] for part in openai_client.completions.create(model="clearhead", stream=True, **sent)]
    assert "".join(part.text for part in parts) == PROMPTS[2]
    streamed = [one for part in parts if part.logprobs for one in part.logprobs.token_logprobs or []]
    assert streamed == scored.choices[0].logprobs.token_logprobs


def test_echo_has_the_bits_of_gpt_score(openai_client: openai.OpenAI, tiny_gpt: GPT) -> None:
    """Prompts that run together; the last one has nearly as many tokens as the context."""
    assert tiny_gpt.tokenizer is not None
    prompts = [tiny_gpt.tokenizer.encode(text) for text in PROMPTS] + [[*range(20, 80)]]
    answer = openai_client.completions.create(
        model="clearhead",
        prompt=prompts,
        max_tokens=0,
        logprobs=3,
        echo=True,
        extra_body={"return_tokens_as_token_ids": True},
    )
    scores = [tiny_gpt.score(ids, after_end_of_text=False, top=3) for ids in prompts]
    for choice, score in zip(answer.choices, scores, strict=True):
        assert choice.logprobs is not None and choice.logprobs.top_logprobs is not None
        assert choice.logprobs.token_logprobs == [token.logprob for token in score.tokens]
        for top, token in zip(choice.logprobs.top_logprobs[1:], score.tokens[1:], strict=True):
            assert top == {f"token_id:{id}": logprob for id, logprob in [*token.top, (token.id, token.logprob)]}


def test_logprobs_of_generated_tokens(openai_client: openai.OpenAI, tiny_gpt: GPT) -> None:
    assert tiny_gpt.tokenizer is not None
    expected = alone(tiny_gpt, PROMPTS[0], seed=2, max_new_tokens=10, logprobs=3).samples[0]
    sent: dict[str, Any] = {"model": "clearhead", "prompt": PROMPTS[0], "seed": 2, "max_tokens": 10, "logprobs": 3}
    found = openai_client.completions.create(**sent).choices[0].logprobs
    assert found is not None and found.top_logprobs is not None
    assert found.token_logprobs == [one.logprob for one in expected.logprobs]
    named = (
        openai_client.completions.create(**sent, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs
    )
    assert named is not None and named.tokens == [f"token_id:{token}" for token in expected.ids]
    assert named.top_logprobs is not None
    for top, one in zip(named.top_logprobs, expected.logprobs, strict=True):
        assert top == {f"token_id:{token}": value for token, value in [*one.top, (one.id, one.logprob)]}
    with pytest.raises(openai.BadRequestError, match="lists up to 5") as raised:
        openai_client.completions.create(**{**sent, "logprobs": 6})
    assert raised.value.param == "logprobs"


def test_best_of_returns_the_most_likely_texts(openai_client: openai.OpenAI, tiny_gpt: GPT) -> None:
    found = openai_client.completions.create(model="clearhead", prompt="it", seed=9, max_tokens=8, best_of=6, n=2)
    samples = alone(tiny_gpt, "it", seed=9, max_new_tokens=8, n=6, logprobs=0).samples
    mean = {one.text: math.fsum(t.logprob for t in one.logprobs) / max(1, len(one.logprobs)) for one in samples}
    assert [choice.text for choice in found.choices] == sorted(mean, key=lambda text: -mean[text])[:2]


# ---------------------------------------------------------------------------------------------------------------
# The other routes
# ---------------------------------------------------------------------------------------------------------------


def test_chat_continues_a_plain_text(openai_client: openai.OpenAI, tiny_gpt: GPT) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "A."},
        {"role": "user", "content": [{"type": "text", "text": "it"}]},
    ]
    assert tiny_gpt.tokenizer is not None
    plain = ConversationFormat(tiny_gpt.tokenizer)
    text = plain.text([ChatMessage("system", "A."), ChatMessage("user", "it")])
    assert text == "A.\n\nUser: it\nAssistant:" and plain.stop == ("\nUser:",)
    expected = alone(tiny_gpt, text, seed=3, max_new_tokens=12, stop=plain.stop).text or ""
    sent: dict[str, Any] = {"model": "clearhead", "messages": messages, "seed": 3, "max_completion_tokens": 12}
    found = openai_client.chat.completions.create(**sent, logprobs=True, top_logprobs=2)
    assert found.choices[0].message.content == expected.lstrip(" ")
    assert found.choices[0].logprobs is not None and found.choices[0].logprobs.content is not None
    raw = b"".join(bytes(one.bytes or []) for one in found.choices[0].logprobs.content)
    assert raw.decode("utf-8", "ignore").startswith(expected[:3])
    pieces, reason = "", None
    for chunk in openai_client.chat.completions.create(**sent, stream=True):
        pieces += chunk.choices[0].delta.content or ""
        reason = reason or chunk.choices[0].finish_reason
    assert pieces == found.choices[0].message.content and reason == found.choices[0].finish_reason


def test_models_tokens_health_metrics_and_schema(
    openai_client: openai.OpenAI, http: httpx.Client, tiny_gpt: GPT
) -> None:
    assert tiny_gpt.tokenizer is not None
    (model,) = openai_client.models.list().data
    assert model.to_dict()["base_model"] is True and "not trained to chat" in str(model.to_dict()["description"])
    assert model.id == openai_client.models.retrieve("clearhead").id == "clearhead"
    with pytest.raises(openai.NotFoundError, match="not served here") as raised:
        openai_client.completions.create(model="gpt-4", prompt="a")
    assert raised.value.code == "model_not_found"
    end = tiny_gpt.tokenizer.end_of_text
    tokens = http.post("/tokenize", json={"prompt": "a day<|endoftext|>", "add_special_tokens": False}).json()["tokens"]
    assert tokens == [*tiny_gpt.tokenizer.encode("a day"), end]
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
    assert (body["temperature"]["minimum"], body["presence_penalty"]["maximum"]) == (0, 1000)
    assert body["top_p"]["exclusiveMinimum"] == 0 and body["top_p"]["maximum"] == 1
    responses = schema["paths"]["/v1/completions"]["post"]["responses"]
    assert "422" not in responses and "ErrorResponse" in json.dumps(responses["400"])


def test_the_asynchronous_client_and_its_retries(tiny_gpt: GPT) -> None:
    limits = Limits(max_live=1, max_waiting=0)
    expected = [alone(tiny_gpt, PROMPTS[0], seed=seed).text for seed in range(5)]

    async def ask(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=40) as client:

            async def one(seed: int) -> str:
                found = await client.completions.create(model="clearhead", prompt=PROMPTS[0], seed=seed)
                return found.choices[0].text

            async def streamed(seed: int) -> str:
                chunks = await client.completions.create(model="clearhead", prompt=PROMPTS[0], seed=seed, stream=True)
                return "".join([chunk.choices[0].text async for chunk in chunks])

            return await asyncio.gather(*map(one, range(3)), *map(streamed, (3, 4)))

    def until_refused(server: TestServer, gate: StepGate) -> None:
        wait_for(lambda: ',status="429"} 4.0' in httpx.get(f"{server.url}/metrics").text)
        gate.release()

    with serving(tiny_gpt, ServerSettings(limits=limits)) as busy:
        opener = threading.Thread(target=until_refused, args=(busy, StepGate(busy)))
        opener.start()
        assert asyncio.run(ask(busy.url)) == expected  # the first waits until the four others were refused with 429
        opener.join()


def test_further_ends_of_text_end_a_text_as_in_the_library(tiny_gpt: GPT) -> None:
    ids = alone(tiny_gpt, PROMPTS[0], temperature=0).ids
    ending = GPT(tiny_gpt.model, tiny_gpt.tokenizer, runner=tiny_gpt.runner, end_ids=[ids[4]])
    expected = alone(ending, PROMPTS[0], temperature=0)
    assert len(expected.ids) < len(ids)
    with serving(ending) as server:
        for ignore in (False, True):
            body = {"prompt": PROMPTS[0], "temperature": 0, "ignore_eos": ignore}
            (choice,) = httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"]
            wanted = alone(ending, PROMPTS[0], temperature=0, stop_at_end_of_text=not ignore)
            assert (choice["text"], choice["finish_reason"]) == (wanted.text, wanted.samples[0].finish_reason)
