"""A server in a thread, on a real socket of 127.0.0.1."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from clearhead.gpt import GPT
from clearhead.inference.scheduler import Scheduler
from clearhead.server import ServerSettings, create_app

TEXT = "Once upon a time there was a little girl — she said: “über naïve 🙂 cats!” and it was a big day. "
PROMPTS = ["Once upon a time", "a little girl — she", "it was a big day. Once upon a time there was", "🙂"]


class TestServer:
    """A running server.

    Attributes:
        url: where it listens, without a path.
        scheduler: what runs its requests.
    """

    __test__ = False

    def __init__(self, gpt: GPT, settings: ServerSettings) -> None:
        self._app = create_app(gpt, settings)
        config = uvicorn.Config(self._app, port=0, log_level="warning", http="h11", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        until = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < until and self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.scheduler: Scheduler = self._app.state.clearhead.service.scheduler

    def stop(self) -> None:
        """Stop it, and wait for its thread."""
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"


@contextmanager
def serving(gpt: GPT, settings: ServerSettings | None = None) -> Iterator[TestServer]:
    """Serve a model inside a `with`."""
    server = TestServer(gpt, settings or ServerSettings())
    try:
        yield server
    finally:
        server.stop()


def wait_until_idle(scheduler: Scheduler, seconds: float = 20) -> None:
    """Wait until nothing runs or waits."""
    until = time.monotonic() + seconds
    while (load := scheduler.load()).running or load.waiting:
        assert time.monotonic() < until, f"still busy: {load}"
        time.sleep(0.01)


def alone(gpt: GPT, prompt: Any, **options: Any) -> Any:
    """What the library gives, with the API's defaults of temperature and top-p."""
    return gpt.generate(prompt, **{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16, **options})


def slow_down(server: TestServer, seconds: float) -> None:
    """Make each step of a server take a while."""
    runner: Any = server.scheduler.runner
    extend = runner.extend

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(runner, name)

        def extend(self, work: Any) -> Any:
            time.sleep(seconds)
            return extend(work)

    server.scheduler._batch._runner = Slow()
