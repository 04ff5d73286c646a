"""A server in a thread, on a real socket of 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
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
        config = uvicorn.Config(
            self._app, port=0, log_level="warning", http="h11", timeout_graceful_shutdown=60, timeout_keep_alive=600
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started, "the server did not start"
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.scheduler: Scheduler = self._app.state.clearhead.service.scheduler

    def begin_to_stop(self) -> None:
        """Tell it to stop, and wait until it takes no more connections."""
        self._server.should_exit = True
        address = urllib.parse.urlsplit(self.url)

        def refused() -> bool:
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection((address.hostname, address.port)),
            ):
                return False
            return True

        wait_for(refused)

    def stop(self) -> None:
        """Stop it, and wait for its thread."""
        self._server.should_exit = True
        self._thread.join(90)
        assert not self._thread.is_alive(), "the server did not stop"


@contextmanager
def serving(gpt: GPT, settings: ServerSettings | None = None) -> Iterator[TestServer]:
    """Serve a model inside a `with`."""
    server = TestServer(gpt, settings or ServerSettings())
    try:
        yield server
    finally:
        server.stop()


def wait_until_idle(scheduler: Scheduler) -> None:
    """Wait until nothing runs or waits, and the thread that ran it has ended."""
    wait_for(lambda: scheduler.load().running == scheduler.load().waiting == 0 and scheduler._thread is None)


def alone(gpt: GPT, prompt: Any, **options: Any) -> Any:
    """What the library gives, with the API's defaults of temperature and top-p."""
    return gpt.generate(prompt, **{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16, **options})


class StepGate:
    """Holds back the steps of a server's model until the test lets them run, so that no test depends on speed."""

    def __init__(self, server: TestServer) -> None:
        self._runner: Any = server.scheduler.runner
        self._steps = threading.Semaphore(0)
        self._open = False
        server.scheduler._batch._runner = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def extend(self, work: Any) -> Any:
        """Run a step when it may."""
        assert self._steps.acquire(timeout=120), "the test held back a step for too long"
        if self._open:
            self._steps.release()
        return self._runner.extend(work)

    def permit(self, steps: int) -> None:
        """Let so many steps run."""
        self._steps.release(steps)

    def release(self) -> None:
        """Let every further step run."""
        self._open = True
        self._steps.release()


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something is so; the time is only for a test that fails."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def pages_in_use(gpt: GPT) -> int:
    """Return how many pages of the engine's key/value cache are not free."""
    runner: Any = gpt.runner
    return sum(count > 0 for count in runner._cache._users.values())
