"""A server in a thread, on a real socket of 127.0.0.1."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from clearhead.gpt import GPT
from clearhead.inference.scheduler import Scheduler
from clearhead.server import ServerSettings, create_app


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
