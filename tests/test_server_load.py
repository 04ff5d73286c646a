"""Many requests at once, starting and stopping, and the command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import command_line
import httpx
import numpy as np
import pytest
import server_grid
from served import PROMPTS, StepGate, TestServer, alone, pages_in_use, serving, wait_for

import clearhead
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.inference.scheduler import Limits
from clearhead.server import ServerSettings, create_app

pytest_plugins = ["server_fixtures"]


# ---------------------------------------------------------------------------------------------------------------
# Many at once
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_do_not_depend_on_the_load(tiny_gpt: GPT) -> None:
    grid = server_grid.bodies(server_grid.PROMPTS[::3])
    compared, answers = server_grid.compare(tiny_gpt, grid, 1000)
    assert compared == 12 * len(grid)
    for body, choices in zip(grid, answers, strict=True):
        if not body.get("echo"):
            options = {name: value for name, value in body.items() if name not in ("prompt", "max_tokens", "logprobs")}
            if "logit_bias" in options:
                options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
            direct = alone(tiny_gpt, body["prompt"], max_new_tokens=body["max_tokens"], **options)
            assert [choice["text"] for choice in choices] == list(direct.texts)


def test_results_do_not_depend_on_the_memory(tiny_gpt: GPT, tiny_folder: Path) -> None:
    grid = server_grid.bodies(server_grid.PROMPTS[::5])
    small = clearhead.load(tiny_folder, cache_tokens=256)
    limits = Limits(max_live=16, cached_tokens=200)
    with serving(tiny_gpt) as ample, serving(small, ServerSettings(limits=limits)) as scarce:
        expected = asyncio.run(server_grid.round_of(ample.url, grid, 1, False))
        assert asyncio.run(server_grid.round_of(scarce.url, grid, 44, False)) == expected
    assert pages_in_use(small) == 0


def test_stopping_answers_what_was_accepted(tiny_gpt: GPT) -> None:
    running = TestServer(tiny_gpt, ServerSettings())
    gate = StepGate(running)
    found: list[httpx.Response] = []
    body = {"prompt": "a", "max_tokens": 30, "ignore_eos": True, "seed": 1}
    threads = [
        threading.Thread(
            target=lambda: found.append(httpx.post(f"{running.url}/v1/completions", json=body, timeout=120))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: running.scheduler.load().running + running.scheduler.load().waiting == 4)
    running.begin_to_stop()
    gate.release()
    running.stop()
    for thread in threads:
        thread.join()
    texts = {response.json()["choices"][0]["text"] for response in found}
    assert len(found) == 4 and texts == {
        alone(tiny_gpt, "a", seed=1, max_new_tokens=30, stop_at_end_of_text=False).text
    }


def test_while_the_model_loads_every_route_says_so(tiny_gpt: GPT) -> None:
    release = threading.Event()

    def load() -> GPT:
        release.wait(120)
        return tiny_gpt

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
            until = time.monotonic() + 60
            while (await http.get("/health")).status_code != 200:
                assert time.monotonic() < until
                await asyncio.sleep(0.01)

    asyncio.run(look())
    assert tiny_gpt.tokenizer is not None
    with pytest.raises(InputError, match="no tokenizer"):
        create_app(GPT(tiny_gpt.model))


def test_astream_gives_what_stream_gives(tiny_gpt: GPT) -> None:
    async def collect(seed: int) -> str:
        return "".join([piece async for piece in tiny_gpt.astream(PROMPTS[0], seed=seed, max_new_tokens=20)])

    async def together() -> list[str]:
        return list(await asyncio.gather(*(collect(seed) for seed in range(6))))

    expected = ["".join(tiny_gpt.stream(PROMPTS[0], seed=seed, max_new_tokens=20)) for seed in range(6)]
    assert asyncio.run(together()) == expected
    assert np.unique(expected).size > 1

    async def wrong() -> None:
        async for _ in tiny_gpt.astream("a", n=2):
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
    tiny_folder: Path, tiny_gpt: GPT, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# keys\nsecret\n")
    port = free_port()
    command = [
        *(sys.executable, "-m", "clearhead", "serve", "-m", str(tiny_folder), "--port", str(port)),
        *("--api-key-file", str(keys), "--log-level", "warning", "--cache-tokens", "500", "--memory-tokens", "2000"),
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
        accepted = threading.Barrier(9, timeout=60)

        def stream(_: int) -> list[str]:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
                lines = answer.iter_lines()
                first = next(lines)
                accepted.wait()
                return [first, *lines]

        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(stream, range(8))
            accepted.wait()
            process.send_signal(signal.SIGTERM)
        expected = alone(tiny_gpt, "a", seed=1, max_new_tokens=60, stop_at_end_of_text=False).text
        for lines in answers:
            text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {"))
            assert "data: [DONE]" in lines and text == expected
        assert process.wait(60) == 0
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
