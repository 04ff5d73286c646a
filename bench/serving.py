"""Measure servers under load with locust: tokens per second in all, and the time to the first token.

    python bench/serving.py --users 1 8 32 \\
        --server 'clearhead=clearhead serve -m models/transformers --dtype int8 --threads 2 --port 8123' \\
        --server 'llama.cpp=python bench/serving_llama_cpp.py models/gguf-q8_0 --threads 2 --port 8123' \\
        --server 'transformers=transformers serve models/transformers --port 8123'
    python bench/serving.py --users 8                      # a server that runs already, at --url

Each server is started, measured with each number of users, and stopped before the next one starts. Each user sends the
next request as soon as the last one is answered. All requests are streamed and greedy, and end after the same number of
tokens. If a server counts tokens in its stream, its count is taken. The first seconds, until all users write, do not
count.

`--json` keeps the results in a file, and adds new ones to those that are there: a run can be made in pieces, and the
table shows all of them.
"""

from __future__ import annotations

# ruff: noqa: I001 (locust replaces sockets, and must be first)
import locust
import locust.env

import argparse
import json
import os
import shlex
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from cpu import cpu_features, cpu_name

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


def measure(url: str, users: int, load: Load, seconds: float) -> dict[str, float]:
    """Run some users for some seconds, and return what they saw."""
    environment = locust.env.Environment(user_classes=[user_class(load)], host=url, stop_timeout=600)
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
    return {
        "tokens_per_second": tokens / window,
        "first_token_median": statistics.median(first),
        "first_token_p99": first[int(0.99 * (len(first) - 1))],
        "requests": len(counted),
    }


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


def measure_server(name: str, command: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Start a server if there is a command for it, and yield a result for each number of users."""
    process = subprocess.Popen(shlex.split(command)) if command else None
    try:
        model = model_of(args.url)
        for users in args.users:
            load = Load(model, args.chat, args.tokens, args.prompt_words)
            yield {"server": name, "users": users, "command": command, **measure(args.url, users, load, args.seconds)}
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def table(report: dict[str, Any]) -> str:
    """Return the results as lines."""
    lines = [f"CPU: {report['cpu']}, {report['cores']} cores ({', '.join(report['features'])})", ""]
    lines.append(f"{'server':<24}{'users':>6}{'tokens/s':>10}{'first token: median':>22}{'99th percentile':>17}")
    for one in report["results"]:
        median, late = one["first_token_median"] * 1000, one["first_token_p99"] * 1000
        speed = f"{one['server']:<24}{one['users']:>6}{one['tokens_per_second']:>10,.0f}"
        lines.append(f"{speed}{median:>19,.0f} ms{late:>14,.0f} ms")
    return "\n".join(lines)


def main() -> None:
    """Measure servers, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", metavar="NAME=COMMAND", help="start this server first; repeatable")
    parser.add_argument("--url", default="http://127.0.0.1:8123", help="where each server listens")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=40)
    parser.add_argument("--chat", action="store_true", help="use /v1/chat/completions")
    parser.add_argument("--json", type=Path, help="add the results to this file")
    args = parser.parse_args()
    report: dict[str, Any] = {"cpu": cpu_name(), "cores": os.cpu_count(), "features": cpu_features(), "results": []}
    if args.json and args.json.exists():
        report = json.loads(args.json.read_text(encoding="utf-8"))
    for server in args.server or [f"{args.url}="]:
        name, _, command = server.partition("=")
        for result in measure_server(name, command, args):
            before = [one for one in report["results"] if (one["server"], one["users"]) != (name, result["users"])]
            report["results"] = [*before, result]
            if args.json:
                args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(table(report))


if __name__ == "__main__":
    main()
