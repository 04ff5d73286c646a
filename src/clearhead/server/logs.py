"""The server's log. Prompts, generated texts and API keys stay out of it; `log_texts` lets the texts in."""

from __future__ import annotations

import copy
import logging
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import uvicorn.config
import uvicorn.logging
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clearhead.utils.localization import localized, users_language

texts = logging.getLogger("clearhead.texts")

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n", 9: "\\t"}


class PrivateFormatter(uvicorn.logging.DefaultFormatter):
    """Write an exception as its type and the lines of code that led to it: its message may quote a prompt."""

    def formatException(  # noqa: N802 (a name of logging)
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Return the text for an exception and its causes, the first cause first."""
        return "\n".join("".join(traceback.format_tb(one.__traceback__)) + type(one).__name__ for one in _chain(ei[1]))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    if error is not None:
        yield from _chain(error.__cause__ or (None if error.__suppress_context__ else error.__context__))
        yield error


def without_query(record: logging.LogRecord) -> bool:
    """Drop the query from a line of the access log, since a mistaken client may send a key or a prompt there."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, *rest = record.args
        record.args = (client, method, str(path).partition("?")[0], *rest)
    return True


def in_users_language(record: logging.LogRecord) -> bool:
    """Put a line of uvicorn or of the server into the user's language, with the error that it quotes; no texts."""
    if users_language() != "en" and record.name != texts.name and isinstance(record.msg, str):
        record.msg = localized(record.msg)
        record.__dict__.pop("color_message", None)  # the English line with colours, which uvicorn would prefer
        if isinstance(record.args, tuple):
            record.args = tuple(localized(str(one)) if isinstance(one, Exception) else one for one in record.args)
    return True


def log_config(level: str, *, with_texts: bool) -> dict[str, Any]:
    """Return the configuration of `logging` for a server in its own process.

    Args:
        level: debug, info, warning or error; the log of texts does not depend on it.
        with_texts: write what `TextLog` logs, and the messages of unexpected exceptions.
    """
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    if not with_texts:
        config["formatters"]["default"]["()"] = PrivateFormatter
    config["filters"] = {
        "without_query": {"()": lambda: without_query},
        "in_users_language": {"()": lambda: in_users_language},
    }
    config["handlers"]["access"]["filters"] = ["without_query"]
    config["handlers"]["default"]["filters"] = ["in_users_language"]
    config["loggers"]["clearhead"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    config["loggers"][texts.name] = {"level": "INFO"}
    config["root"] = {"handlers": ["default"], "level": "WARNING"}
    return config


class TextLog:
    """Log the body of each POST request and of its response.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log its body as it comes and the response when it has ended."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        status, answer = 0, bytearray()

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                texts.info("POST %s: %s", scope["path"], _line(message.get("body", b"")))
            return message

        async def said(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.extend(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, heard, said)
        finally:
            texts.info("POST %s answered %d: %s", scope["path"], status, _line(bytes(answer)))


def _line(body: bytes) -> str:
    """Return a body as one line: nothing in it can pass for another line of the log."""
    return body.decode("utf-8", "backslashreplace").rstrip("\n").translate(_CONTROL)
