"""Measure a server under load: tokens per second in all, and the time to the first token.

    python bench/server_load.py --users 1 8 32 -- clearhead serve --port 8123
    python bench/server_load.py --url http://127.0.0.1:8080 --users 8   # any running server with OpenAI's API

Each user sends the next request as soon as the last one is answered. All requests are streamed and greedy, and end
after the same number of tokens, which the server's own counts confirm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import time

import httpx

TEXT = "One day a little dog went to the park and saw a big red ball near the old tree by the lake with his mom"
WORDS = TEXT.split()


def prompt(user: int, turn: int, length: int) -> str:
    """Return a prompt that no other request has, of about so many tokens."""
    return f"Story {user} {turn}. " + " ".join(WORDS[(user + i) % len(WORDS)] for i in range(length))


async def ask(client: httpx.AsyncClient, body: dict[str, object]) -> tuple[float, int]:
    """Return the seconds to the first token and the number of tokens of one request."""
    start, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and chunk.get("choices"):
                first = time.perf_counter() - start
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return first, tokens


async def load(url: str, users: int, args: argparse.Namespace) -> None:
    """Run some users for some seconds, and print what they saw."""
    limits = httpx.Limits(max_connections=users)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        until = time.perf_counter() + args.seconds
        firsts: list[float] = []
        total = 0

        async def user(number: int) -> None:
            nonlocal total
            turn = 0
            while time.perf_counter() < until:
                body = {
                    "model": model, "prompt": prompt(number, turn, args.prompt_tokens), "max_tokens": args.tokens,
                    "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
                }  # fmt: skip
                first, tokens = await ask(client, body)
                firsts.append(first)
                total += tokens
                turn += 1

        start = time.perf_counter()
        await asyncio.gather(*(user(number) for number in range(users)))
        seconds = time.perf_counter() - start
    ordered = sorted(firsts)
    print(
        f"{users:4d} users  {total / seconds:8.0f} tokens/s  "
        f"first token: median {statistics.median(ordered) * 1000:6.0f} ms, "
        f"99th percentile {ordered[int(0.99 * (len(ordered) - 1))] * 1000:6.0f} ms  ({len(ordered)} requests)"
    )


def wait_until_ready(url: str) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/v1/models").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


def main() -> None:
    """Measure a server that runs already, or start one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8123")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("command", nargs="*", help="start this server first, and stop it in the end")
    args = parser.parse_args()
    process = subprocess.Popen(args.command) if args.command else None
    try:
        wait_until_ready(args.url)
        asyncio.run(load(args.url, 1, argparse.Namespace(**{**vars(args), "seconds": 2})))
        for users in args.users:
            asyncio.run(load(args.url, users, args))
    finally:
        if process is not None:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
