"""Measure servers under load with locust: tokens per second in all, and the time to the first token.

    python bench/server_load.py --users 1 8 32 -- clearhead serve --port 8123
    python bench/server_load.py --url http://127.0.0.1:8080 --users 8   # any running server with OpenAI's API
    python bench/server_load.py --chat -- transformers serve gpt2 --port 8123   # a server that speaks only chat

Each user sends the next request as soon as the last one is answered. All requests are streamed and greedy, and end
after the same number of tokens. If a server counts tokens in its stream, its count is taken. The first seconds, until
all users write, do not count.
"""

from __future__ import annotations

# ruff: noqa: I001 (locust replaces sockets, and must be first)
import locust
import locust.env

import argparse
import json
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gevent

TEXT = "One day a little dog went to the park and saw a big red ball near the old tree by the lake with his mom"
WORDS = TEXT.split(" ")
WARM_SECONDS = 3.0


@dataclass
class Sample:
    """One answer: when it began and ended, the seconds to its first token, and its tokens."""

    start: float
    end: float
    first: float
    tokens: int


@dataclass
class Load:
    """What all users of a run share."""

    model: str
    chat: bool
    tokens: int
    prompt_words: int
    samples: list[Sample] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    users: int = 0

    def body(self, user: int, turn: int) -> dict[str, object]:
        """Return a request that no other one begins like."""
        words = " ".join(WORDS[(user + i) % len(WORDS)] for i in range(self.prompt_words))
        prompt = f"Story {user} {turn}. {words}"
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        return {
            "model": self.model, "max_tokens": self.tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, **asked,
        }  # fmt: skip


def user_class(load: Load) -> type[locust.FastHttpUser]:
    """Return the class of locust's users for a run."""

    class Writer(locust.FastHttpUser):
        network_timeout = connection_timeout = 600.0

        def on_start(self) -> None:
            self.number, self.turn = load.users, 0
            load.users += 1

        @locust.task
        def write(self) -> None:
            path = "/v1/chat/completions" if load.chat else "/v1/completions"
            start, first, tokens = time.perf_counter(), 0.0, load.tokens
            body = load.body(self.number, self.turn)
            self.turn += 1
            close = {"Connection": "close"}  # servers keep connections for different times
            with self.client.post(path, json=body, headers=close, stream=True, catch_response=True) as response:
                if response.status_code != 200:
                    load.errors.append(f"status {response.status_code}: {response.text or response.error}")
                    return
                for chunk in events(response):
                    if not first and any(_text(choice) for choice in chunk.get("choices", ())):
                        first = time.perf_counter() - start
                    if chunk.get("usage"):
                        tokens = chunk["usage"]["completion_tokens"]
            load.samples.append(Sample(start, time.perf_counter(), first or time.perf_counter() - start, tokens))

    return Writer


def events(response: Any) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream as they come."""
    while line := response._response.readline(b"\n"):  # locust's own iterator waits until a block is full
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def _text(choice: dict[str, Any]) -> object:
    return choice.get("text") or choice.get("delta", {}).get("content") or choice.get("finish_reason")


def measure(url: str, users: int, load: Load, seconds: float) -> None:
    """Run some users for some seconds, and print what they saw."""
    environment = locust.env.Environment(user_classes=[user_class(load)], host=url, stop_timeout=300)
    runner = environment.create_local_runner()
    began = time.perf_counter()
    runner.start(users, spawn_rate=100)
    gevent.sleep(WARM_SECONDS + seconds)
    ended = time.perf_counter()
    runner.stop()  # after the answers on their way
    runner.quit()
    counted = [one for one in load.samples if one.end > began + WARM_SECONDS and one.start < ended]
    if load.errors or not counted:
        raise SystemExit(f"{len(load.errors)} requests failed: {load.errors[:1]}")
    # Of an answer that began before the time that counts, or ended after it, a part of the tokens counts.
    window = ended - began - WARM_SECONDS
    tokens = sum(
        one.tokens * (min(one.end, ended) - max(one.start, began + WARM_SECONDS)) / (one.end - one.start)
        for one in counted
    )
    first = sorted(one.first for one in counted)
    median, late = statistics.median(first) * 1000, first[int(0.99 * (len(first) - 1))] * 1000
    print(
        f"{users:4d} users  {tokens / window:8.0f} tokens/s  first token: median {median:6.0f} ms, "
        f"99th percentile {late:6.0f} ms  ({len(counted)} requests)",
        flush=True,
    )


def model_of(url: str) -> str:
    """Wait until a server answers, and return the name of its model."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
                return str(json.load(answer)["data"][0]["id"])
        except (urllib.error.URLError, OSError, IndexError):
            gevent.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


def main() -> None:
    """Measure a server that runs already, or start one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8123")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=40)
    parser.add_argument("--chat", action="store_true", help="use /v1/chat/completions")
    parser.add_argument("--model", help="the model's name in requests; the first that the server lists if left out")
    parser.add_argument("command", nargs="*", help="start this server first, and stop it in the end")
    args = parser.parse_args()
    process = subprocess.Popen(args.command) if args.command else None
    try:
        first_model = model_of(args.url)
        model = args.model or first_model
        for users in args.users:
            measure(args.url, users, Load(model, args.chat, args.tokens, args.prompt_words), args.seconds)
    finally:
        if process is not None:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
