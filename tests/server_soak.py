"""Load a server for a long time with clients that disconnect, send garbage and retry.

    python tests/server_soak.py --minutes 20

At the end there must be no 500, nothing that runs or waits, no page in use, and no more memory than after the warm-up.
The clients are a process of their own, so that the memory is the server's alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import httpx
import openai
from served import pages_in_use, serving, wait_until_idle

import clearhead
from clearhead.inference.scheduler import Limits
from clearhead.server import ServerSettings

CLIENTS = 12
WARM_UP = 0.25
"""The part of the time after which memory must not grow any more."""
MAX_GROWTH = 1.05
PROMPTS = ["Once upon a time", "The dog", "One day, Tom and Lily went to the park. " * 6, "🙂"]


def body(chance: random.Random) -> dict[str, object]:
    """Return a request of any size."""
    found: dict[str, object] = {
        "prompt": chance.choice(PROMPTS) + str(chance.randrange(50)),
        "max_tokens": chance.randrange(1, 60),
        "n": chance.choice([1, 1, 1, 3]),
        "stream": chance.random() < 0.5,
    }
    if chance.random() < 0.3:
        found |= {"logprobs": 2, "echo": chance.random() < 0.5}
    if chance.random() < 0.1:
        found["choice"] = ["yes", f"no {chance.randrange(10**6)}"]
    return found


def client(url: str, seed: int, until: float) -> None:
    """Behave badly until the time is over."""
    chance = random.Random(seed)
    address = urllib.parse.urlsplit(url)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=5) as polite:
        while time.time() < until:
            content = json.dumps(body(chance)).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            match chance.randrange(6):
                case 0:  # leave at once, or in the middle of the answer
                    with socket.create_connection((address.hostname, address.port or 0)) as connection:
                        connection.sendall(head + content)
                        connection.settimeout(chance.choice([0.001, 0.05, 0.5]))
                        with contextlib.suppress(TimeoutError):
                            connection.recv(100)
                case 1:  # garbage
                    with socket.create_connection((address.hostname, address.port or 0)) as connection:
                        connection.sendall(chance.choice([b"", head]) + chance.randbytes(chance.randrange(500)))
                case 2:  # half a body
                    with socket.create_connection((address.hostname, address.port or 0)) as connection:
                        connection.sendall(head + content[: len(content) // 2])
                case 3:
                    httpx.post(f"{url}/v1/chat/completions", content=chance.randbytes(200), timeout=None)
                case _:
                    sent = json.loads(content)
                    extra = {"choice": sent.pop("choice")} if "choice" in sent else None
                    with contextlib.suppress(openai.RateLimitError):
                        answer = polite.completions.create(model="clearhead", **sent, extra_body=extra, timeout=600)
                        for _ in answer if sent["stream"] else ():
                            pass


def resident_bytes() -> int:
    """Return the memory of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def soak(minutes: float) -> None:
    """Serve for so long, and check what is left.

    Raises:
        AssertionError: if the server did not stay as it was.
    """
    gpt = clearhead.load()
    settings = ServerSettings(limits=Limits(max_live=8, max_waiting=8, cached_tokens=4000))
    seconds, start = 60 * minutes, time.monotonic()
    warm = peak = 0
    with serving(gpt, settings) as server:
        clients = subprocess.Popen([sys.executable, __file__, "--clients", server.url, "--seconds", str(seconds)])
        while clients.poll() is None:
            time.sleep(1)
            now = resident_bytes()
            if time.monotonic() - start < WARM_UP * seconds:
                warm = max(warm, now)
            else:
                peak = max(peak, now)
        assert clients.returncode == 0, "a client failed"
        wait_until_idle(server.scheduler)
        metrics = httpx.get(f"{server.url}/metrics").text
    counts = [line for line in metrics.splitlines() if line.startswith("clearhead_requests_total")]
    print("\n".join(counts))
    print(f"memory: {warm / 2**20:.1f} MiB after the warm-up, {peak / 2**20:.1f} MiB at most after it")
    assert not any('status="5' in line for line in counts), "a request failed"
    assert pages_in_use(gpt) == 0, "a page did not come back"
    assert peak < warm * MAX_GROWTH, "the memory grew"


def main() -> None:
    """Run the server, or, in the process that it starts, the clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clients is None:
        soak(args.minutes)
        return
    until = time.time() + args.seconds
    threads = [threading.Thread(target=client, args=(args.clients, seed, until)) for seed in range(CLIENTS)]
    failed: list[object] = []

    def report(given: threading.ExceptHookArgs) -> None:
        failed.append(given)
        threading.__excepthook__(given)

    threading.excepthook = report
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
