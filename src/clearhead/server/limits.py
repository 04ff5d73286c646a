"""What is checked before a request is looked at: its key, the size of its body, and the time that the body takes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clearhead.server.problems import error_response

OPEN_ROUTES = ("/health", "/")  # the page shows nothing about the model until it has a key


class KeyCheck:
    """Let requests pass that carry an API key: `Authorization: Bearer KEY`.

    Args:
        app: the application behind it.
        keys: the keys; none to let everything pass.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "http" and self._keys and _route(scope) not in OPEN_ROUTES:
            kind, _, key = HTTPConnection(scope).headers.get("authorization", "").partition(" ")
            # Compared with every key, so that the time says nothing about which one is near.
            matches = [secrets.compare_digest(key.strip().encode("latin-1"), known) for known in self._keys]
            if kind.lower() != "bearer" or not any(matches):
                response = error_response(
                    401,
                    "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
                    code="invalid_api_key",
                )
                response.headers["WWW-Authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _route(scope: Scope) -> str:
    """Return the path inside the application, which may be mounted under a prefix."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class BodyLimit:
    """Read the body of a request before it is looked at, up to a size and within a time.

    Args:
        app: the application behind it.
        max_bytes: a larger body is answered with 413.
        seconds: a body that takes longer is answered with 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on with its body read."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self._seconds)
        except TimeoutError:
            await error_response(408, f"the body took longer than {self._seconds:g} s to arrive.")(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        if len(body) > self._max_bytes:
            response = error_response(413, f"the body is larger than the {self._max_bytes:,} bytes that are accepted.")
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, or its beginning if it is too large; None if the client has gone."""
        parts, size, more = [], 0, True
        while more and size <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)
