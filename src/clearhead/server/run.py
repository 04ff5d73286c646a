"""Run a server in this process until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.server.app import ModelState, create_app
from clearhead.server.logs import log_config
from clearhead.server.settings import ServerSettings

log = logging.getLogger("clearhead.server")

KEYS_VARIABLE = "CLEARHEAD_API_KEYS"


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how a server listens.

    Attributes:
        host: the network interface's address.
        port: the TCP port; 0 for any free one.
        log_level: debug, info, warning or error.
        drain_seconds: how long accepted requests may run on after a signal to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    log_level: str = "info"
    drain_seconds: float = 30.0


def serve(model: GPT | Callable[[], GPT], settings: ServerSettings, address: Address) -> None:
    """Serve a model until SIGTERM or SIGINT; accepted requests are answered before the function returns.

    Args:
        model: as for `create_app`.
        settings: limits, keys and names.
        address: where to listen.

    Raises:
        InputError: if the address is in use or not available.
        ClearheadError: if the model cannot be loaded.
    """
    app = create_app(model, settings)
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http="h11",
        log_level=address.log_level,
        log_config=log_config(address.log_level, with_texts=settings.log_texts),
        timeout_graceful_shutdown=max(1, round(address.drain_seconds)),
        server_header=False,
    )
    state: ModelState = app.state.clearhead
    asyncio.run(_Server(config, state).run(_listen(address)))
    if state.error is not None:
        raise state.error


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the API keys of the environment variable and of a file with one key per line.

    Raises:
        InputError: if the file cannot be read, or has no key.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(f"{file} could not be read ({reason}); give a file with one API key per line.") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InputError(f"{file} has no API key; write one per line.")
        keys += found
    return tuple(key for key in keys if key)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{address.host} port {address.port} cannot be used ({reason}); give another one.") from None
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server; a signal ends it in order, and the process exits with status 0."""

    def __init__(self, config: uvicorn.Config, state: ModelState) -> None:
        super().__init__(config)
        self._state = state
        state.on_error = self._stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `run`: uvicorn would raise them again at the end."""
        yield

    async def run(self, listener: socket.socket) -> None:  # type: ignore[override]
        """Serve until a signal comes."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        await self.serve([listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where: uvicorn does not when it is given a socket."""
        await super().startup(sockets)
        for one in sockets or ():
            host, port = one.getsockname()[:2]
            log.info(
                "listening at http://%s:%d/v1; Ctrl+C stops the server", f"[{host}]" if ":" in host else host, port
            )

    def _stop(self) -> None:
        self._state.draining = True
        if self.should_exit:
            self.force_exit = True  # a second signal does not wait
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cancelled would log a traceback
        self.should_exit = True
