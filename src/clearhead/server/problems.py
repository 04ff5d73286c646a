"""Errors as OpenAI's API writes them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clearhead.errors import ClearheadError, OverloadedError

log = logging.getLogger("clearhead.server")

RETRY_SECONDS = "1"
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}


class ProblemError(Exception):
    """A refusal of a request.

    Args:
        status: the HTTP status.
        message: a sentence for the user.
        param: the parameter that it is about.
        code: a short name for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class JSON(Response):
    """A JSON response; a text that is not valid Unicode gets question marks instead of failing."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of a value."""
        return to_json(content)


def to_json(content: object) -> bytes:
    """Return a value as JSON in UTF-8."""
    return _ENCODER.encode(content).encode("utf-8", "replace")


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """Return the body of an error response."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, param: str | None = None, code: str | None = None) -> JSON:
    """Return an error response; 429 and 503 say when to try again."""
    headers = {"Retry-After": RETRY_SECONDS} if status in (429, 503) else None
    return JSON(error_object(status, message, param, code), status, headers)


def problem_of(error: ClearheadError) -> ProblemError:
    """Return the refusal that corresponds to an error of the library."""
    if isinstance(error, OverloadedError):
        return ProblemError(429, str(error), code="overloaded")
    if isinstance(error, ValueError):  # InputError and TokenizerError
        return ProblemError(400, str(error))
    return ProblemError(500, str(error))


def add_handlers(app: FastAPI) -> None:
    """Make every error of an application an OpenAI error object."""

    @app.exception_handler(ProblemError)
    def problem(_: Request, error: ProblemError) -> Response:
        return error_response(error.status, error.message, error.param, error.code)

    @app.exception_handler(ClearheadError)
    def user_error(_: Request, error: ClearheadError) -> Response:
        found = problem_of(error)
        return error_response(found.status, found.message, found.param, found.code)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            return error_response(
                400, "the body was not sent as JSON; add the header 'Content-Type: application/json'."
            )
        message, param = _first(error.errors())
        return error_response(400, message, param)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.url.path!r} here; the routes are listed in /openapi.json."
        elif error.status_code == 400:  # FastAPI could not decode the body
            message = "the body could not be read; send JSON in UTF-8, without a Content-Encoding."
        elif error.status_code == 405:
            message = f"{request.url.path} does not accept {request.method}."
        return error_response(error.status_code, message)


class FaultBarrier:
    """Answer a request with 500 if something unexpected goes wrong, and log it once.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        begun = False

        async def watching(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception as error:
            if scope["type"] != "http" or begun:
                raise  # the server that runs the application closes the connection
            log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            await error_response(500, "the server failed to answer; its log has the details.")(scope, receive, send)


def _first(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return the message and the parameter of the first validation error."""
    # A value that may have several types has an error for each of them; one about the value says more than the others.
    found = next((one for one in errors if not one["type"].endswith("_type")), errors[0])
    path = [str(part) for part in found["loc"] if part != "body"]
    param = path[0] if path else None
    if found["type"] == "json_invalid":
        return f"the body is not JSON: {found.get('ctx', {}).get('error', 'it could not be read')}.", None
    if found["type"] == "extra_forbidden":
        return f"{param!r} is not a parameter of this route; leave it out.", param
    reason = str(found["msg"]).removeprefix("Value error, ")
    if isinstance(found.get("ctx", {}).get("error"), ValueError):
        return reason, param
    reason = reason[:1].lower() + reason[1:]
    return (f"{param}: {reason}." if param else f"the body is not valid: {reason}."), param
