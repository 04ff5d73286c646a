"""The log of `clearhead serve`: it has no prompt, no generated text and no API key unless texts are asked for."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import wait_for

from clearhead.gpt import GPT

pytest_plugins = ["server_fixtures"]

KEY, WRONG_KEY = "the-right-key", "a-key-of-something-else"
SECRET = "SesameOpen"

# A server as the command runs it, with two faults whose messages quote the prompt: one in a route, one in a step.
FAULTY = """
import sys
from pathlib import Path
import clearhead
import clearhead.server.run
from clearhead.server.run import Address, serve
from clearhead.server.settings import ServerSettings
from clearhead.tokenizer import Tokenizer

folder, level, texts, key, port_file = sys.argv[1:]
gpt = clearhead.load(folder)
encode, kind = Tokenizer.encode, type(gpt.runner)
extend = kind.extend

def faulty_encode(self, text, **options):
    if text.startswith("route fault"):
        try:
            {}[text]
        except KeyError as error:
            raise RuntimeError(f"cannot encode {text!r}") from error
    return encode(self, text, **options)

def faulty_extend(self, work):
    for _, ids in work:
        if (text := gpt.tokenizer.decode(ids)).startswith("step fault"):
            raise RuntimeError(f"cannot run {text!r}")
    return extend(self, work)

def telling(address):
    listener = listen(address)
    Path(port_file).write_text(str(listener.getsockname()[1]))
    return listener

Tokenizer.encode, kind.extend = faulty_encode, faulty_extend
listen, clearhead.server.run._listen = clearhead.server.run._listen, telling
settings = ServerSettings(api_keys=(key,), log_texts=texts == "texts", max_body_bytes=5000, body_seconds=0.5)
serve(gpt, settings, Address(port=0, log_level=level))
"""


@contextmanager
def logged(folder: Path, log: Path, level: str, texts: str) -> Iterator[tuple[str, int]]:
    """Run the server with its log in a file, which is complete after the `with`."""
    port = log.with_name("port")
    command = [sys.executable, "-c", FAULTY, str(folder), level, texts, KEY, str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError, httpx.TransportError, ValueError):
                return httpx.get(f"http://127.0.0.1:{int(port.read_text())}/health", timeout=60).is_success
            return False

        wait_for(answers, 120)
        yield "127.0.0.1", int(port.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def use_all_routes(host: str, port: int, forced: int) -> str:
    """Send a secret to every route in every way that succeeds and that fails; return the text that is generated.

    Args:
        host: where the server listens.
        port: where the server listens.
        forced: the token to generate.
    """
    forcing = {"max_tokens": 6, "logit_bias": {str(forced): 100}, "temperature": 0}
    asked = {"prompt": SECRET, **forcing}
    chat = {"messages": [{"role": "user", "content": SECRET}], **forcing}
    bodies: list[tuple[str, Any]] = [
        ("/v1/completions", {**asked, "echo": True, "logprobs": 2}),
        ("/v1/completions", {**asked, "stream": True}),
        ("/v1/completions", {**asked, "max_tokens": 10**4}),
        ("/v1/completions", {**asked, "model": SECRET}),
        ("/v1/completions", {**asked, "temperature": SECRET}),
        ("/v1/completions", {**asked, SECRET: 1}),
        ("/v1/completions", {**asked, "regex": f"({SECRET}"}),
        ("/v1/completions", {"prompt": {SECRET: SECRET}}),
        ("/v1/completions", {"prompt": f"{SECRET} \ud800"}),
        ("/v1/completions", {"prompt": SECRET * 1000}),
        ("/v1/completions", {"prompt": f"route fault {SECRET}"}),
        ("/v1/completions", {"prompt": f"step fault {SECRET}"}),
        ("/v1/completions", {"prompt": f"step fault {SECRET}", "stream": True}),
        ("/v1/completions", [SECRET]),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": SECRET, "content": SECRET}]}),
        ("/v1/chat/completions", {"messages": SECRET}),
        ("/tokenize", {"prompt": SECRET}),
        ("/tokenize", {"prompt": [SECRET]}),
        ("/tokenize", {"prompt": f"route fault {SECRET}"}),
        ("/detokenize", {"tokens": [SECRET]}),
        ("/inspect", {"text": SECRET}),
        ("/inspect", {"prompt": SECRET}),
        (f"/v1/completions?prompt={SECRET}&api_key={KEY}", asked),
    ]
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with httpx.Client(base_url=f"http://{host}:{port}", timeout=600) as http:
        answers = [http.post(path, content=json.dumps(body), headers=headers) for path, body in bodies]
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 400, 404, 413, 500}
        assert not any("cannot run" in answer.text or "cannot encode" in answer.text for answer in answers)
        http.post("/v1/completions", content=f'{{"prompt": "{SECRET}', headers=headers)
        for key in (WRONG_KEY, f"{KEY} {SECRET}"):
            assert http.post("/v1/completions", json=asked, headers={"Authorization": key}).status_code == 401
        http.get(f"/v1/models?api_key={KEY}&text={SECRET}", headers=headers)
        http.get(f"/tokenize?prompt={SECRET}", headers={"X-Api-Key": KEY})
    for raw in (
        f"{SECRET} {KEY}\r\n\r\n",
        f"POST /tokenize HTTP/1.1\r\nHost: x\r\nX-{SECRET}\x00: {KEY}\r\n\r\n",
        f"POST /tokenize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 99\r\n\r\n{SECRET}",
    ):
        with socket.create_connection((host, port), timeout=60) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(raw.encode())
            connection.recv(1000)
    text = answers[1].text
    return "".join(json.loads(line[6:])["choices"][0]["text"] for line in text.splitlines() if line[6:7] == "{")


def a_word(gpt: GPT) -> tuple[int, str]:
    """Return a token that is letters only, the longest of them, and its text."""
    assert gpt.tokenizer is not None
    words = [(token, gpt.tokenizer.decode([token])) for token in range(gpt.tokenizer.vocab_size)]
    return max((one for one in words if one[1].isalpha()), key=lambda one: len(one[1]))


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_no_text_and_no_key_gets_into_the_log(tiny_folder: Path, tiny_gpt: GPT, tmp_path: Path, level: str) -> None:
    log = tmp_path / "log"
    forced, word = a_word(tiny_gpt)
    with logged(tiny_folder, log, level, "none") as (host, port):
        generated = use_all_routes(host, port, forced)
    found = log.read_text()
    assert generated == word * 6
    for private in (SECRET, generated, KEY, WRONG_KEY):
        assert private not in found
    assert "POST /v1/completions failed" in found and "RuntimeError" in found and "in faulty_encode" in found
    assert found.count("KeyError") == 2, "the cause of each of two faults"
    assert ('"POST /v1/completions HTTP/1.1" 413' in found) == (level in ("debug", "info"))


def test_texts_get_into_the_log_if_they_are_asked_for(tiny_folder: Path, tiny_gpt: GPT, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logged(tiny_folder, log, "info", "texts") as (host, port):
        generated = use_all_routes(host, port, a_word(tiny_gpt)[0])
    found = log.read_text()
    assert f'POST /v1/completions: {{"prompt": "{SECRET}"' in found
    assert re.search(rf'POST /v1/completions answered 200: {{.*"text":"{SECRET}{generated}"', found)
    assert "POST /v1/completions answered 200: data: {" in found and r"\n\ndata: [DONE]" in found
    assert f"RuntimeError: cannot encode 'route fault {SECRET}'" in found
    for private in (KEY, WRONG_KEY):
        assert private not in found


@pytest.mark.slow
def test_a_second_signal_ends_the_server_without_a_traceback() -> None:
    command = [sys.executable, "-m", "clearhead", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stderr is not None
        try:
            while "the model is loaded" not in (line := process.stderr.readline()):
                assert line, "it ended before the model was loaded"
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
