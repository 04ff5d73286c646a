"""Send the same requests under every kind of load, and compare every byte of the answers.

    python tests/server_grid.py                       # the bundled model: 1,008 requests
    python tests/server_grid.py -m path/to/gpt2 --dtype int8

The grid is prompts x sampling settings x concurrency 1, 8 and 44 x prefix cache off and on x whole and streamed. Texts,
log-probabilities, alternatives, offsets and finish reasons must all be those of the first round: one request at a time,
without a cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
from served import TEXT, TestServer, serving

import clearhead
from clearhead.gpt import GPT
from clearhead.inference.scheduler import Limits
from clearhead.server import ServerSettings

CONCURRENCY = (1, 8, 44)
PROMPTS = [
    "Once upon a time", "a little girl — she", "it was a big day. Once upon a time there was", "🙂", "The dog", "a",
    "One day, Tom", "Lily saw", TEXT[:60], TEXT[:60] + "a", TEXT[:60] + " little", TEXT[:60] + " little dog",
]  # fmt: skip
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"top_p": 0.7, "stop": [" a", "."]},
    {"top_k": 4, "n": 2},
    {"min_p": 0.05, "repetition_penalty": 1.2, "logit_bias": {"40": 2.0}},
    {"echo": True, "max_tokens": 2},
    {"echo": True, "max_tokens": 0, "logprobs": 5},
]

Choices = list[dict[str, Any]]


def bodies(prompts: Sequence[str] = PROMPTS) -> list[dict[str, Any]]:
    """Return the requests of one round."""
    return [
        {"prompt": prompt, "max_tokens": 12, "logprobs": 2, "seed": seed, **sampling}
        for prompt in prompts
        for seed, sampling in enumerate(SAMPLING)
    ]


async def ask(client: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> Choices:
    """Return the choices of one answer; those of a stream put together."""
    response = await client.post("/v1/completions", json={**body, "stream": stream})
    assert response.status_code == 200, response.text
    if not stream:
        return list(response.json()["choices"])
    joined: dict[int, dict[str, Any]] = {}
    for line in response.text.splitlines():
        for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
            known = joined.setdefault(choice["index"], choice)
            if known is choice:
                continue
            known["text"] += choice["text"]
            known["finish_reason"] = choice["finish_reason"]
            for name, values in (choice["logprobs"] or {}).items():
                known["logprobs"][name] += values
    return [joined[index] for index in sorted(joined)]


async def round_of(url: str, grid: Sequence[dict[str, Any]], concurrency: int, stream: bool) -> list[Choices]:
    """Send every request, so many at a time."""
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)) as client:

        async def one(body: dict[str, Any]) -> Choices:
            async with gate:
                return await ask(client, body, stream)

        return await asyncio.gather(*map(one, grid))


def rounds(server: TestServer, grid: Sequence[dict[str, Any]]) -> dict[str, list[Choices]]:
    """Return the answers at each concurrency, whole and streamed, by a description."""
    return {
        f"{concurrency} at a time, {'streamed' if stream else 'whole'}": asyncio.run(
            round_of(server.url, grid, concurrency, stream)
        )
        for concurrency in CONCURRENCY
        for stream in (False, True)
    }


def compare(gpt: GPT, grid: Sequence[dict[str, Any]], cached_tokens: int) -> tuple[int, list[Choices]]:
    """Run the whole grid without and with a prefix cache.

    Returns:
        the number of requests that were compared, and the answers.

    Raises:
        AssertionError: if an answer differs.
    """
    expected: list[Choices] | None = None
    compared = 0
    for cache in (0, cached_tokens):
        limits = Limits(max_live=16, prompt_tokens=8, cached_tokens=cache)
        with serving(gpt, ServerSettings(limits=limits)) as server:
            for name, found in rounds(server, grid).items():
                expected = found if expected is None else expected
                for body, ours, first in zip(grid, found, expected, strict=True):
                    assert json.dumps(ours) == json.dumps(first), f"{name}, {cache} cached tokens: {body}"
                compared += len(found)
            report = server.scheduler.load()
            assert (report.cached_prompt_tokens > 0) == (cache > 0) and report.prefix_tokens <= cache
    assert expected is not None
    return compared, expected


def main() -> None:
    """Compare the answers for one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    gpt = clearhead.load(args.model, dtype=args.dtype, threads=args.threads)
    compared, answers = compare(gpt, bodies(), 5000)
    texts = {choice["text"] for choices in answers for choice in choices}
    print(f"{compared:,} requests, {len(texts)} different texts: all answers identical")


if __name__ == "__main__":
    main()
