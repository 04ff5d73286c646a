"""The ASGI application: its routes, and the model's way from loading to shutting down."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.inference.scheduler import Scheduler
from clearhead.server.answers import Service
from clearhead.server.chat import chat
from clearhead.server.completions import complete
from clearhead.server.inspection import Inspector, InspectRequest, describe, served_page
from clearhead.server.limits import BodyLimit, KeyCheck
from clearhead.server.logs import TextLog
from clearhead.server.metrics import Metrics
from clearhead.server.problems import JSON, FaultBarrier, ProblemError, add_handlers
from clearhead.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, ErrorResponse, TokenizeRequest
from clearhead.server.settings import ServerSettings
from clearhead.tokenizer.conversation import ConversationFormat
from clearhead.version import __version__

log = logging.getLogger("clearhead.server")


class ModelState:
    """The model of an application, which may still be loading.

    Attributes:
        started: whether the application's lifespan has begun, which loads the model.
        service: answers requests; None while the model loads.
        inspector: answers `/inspect`; made at the first request.
        draining: whether the server is shutting down.
        error: why the model could not be loaded.
        on_error: called then.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.started = False
        self.service: Service | None = None
        self.inspector: Inspector | None = None
        self.draining = False
        self.error: Exception | None = None
        self.on_error: Callable[[], None] = lambda: None
        self.metrics = Metrics(lambda: None if self.service is None else self.service.scheduler.load())

    def set(self, gpt: GPT) -> None:
        """Begin to serve a model.

        Raises:
            InputError: if it has no tokenizer.
            TokenizerError: if its chat template is not valid.
        """
        if gpt.tokenizer is None:
            raise InputError(
                "the model has no tokenizer, and a server needs one; put tokenizer.json next to the weights."
            )
        scheduler = Scheduler(gpt.runner, gpt.tokenizer, self.settings.limits)
        conversation = ConversationFormat(gpt.tokenizer)
        self.service = Service(
            gpt, scheduler, self.settings, self.metrics, _fingerprint(gpt), int(time.time()), conversation
        )

    def ready(self) -> Service:
        """Return what answers requests.

        Raises:
            ProblemError: if the model is still loading.
        """
        if self.service is None and not self.started:
            raise ProblemError(
                503,
                "the model is not loaded: run this application's lifespan in the lifespan of the one it is part of.",
            )
        if self.service is None:
            raise ProblemError(503, "the model is still loading; try again in a moment.")
        return self.service


def create_app(model: GPT | Callable[[], GPT], settings: ServerSettings | None = None) -> FastAPI:
    """Return an ASGI application that serves a model with OpenAI's API.

    It may be mounted in another application under any prefix. Its lifespan loads the model and ends running texts; a
    server runs it, but another application has to: `async with app.router.lifespan_context(app)` in its own lifespan.

    Args:
        model: the model; or a function that loads it, which runs in a thread when the application starts, while every
            route answers 503.
        settings: limits, keys and names.

    Raises:
        InputError: if the model has no tokenizer.
        TokenizerError: if its chat template is not valid.
    """
    settings = settings or ServerSettings()
    state = ModelState(settings)
    if isinstance(model, GPT):
        state.set(model)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.started = True
        loading = None if isinstance(model, GPT) else asyncio.create_task(_load(state, model))
        yield
        state.draining = True
        if loading is not None:
            loading.cancel()
        if state.service is not None:
            await state.service.scheduler.close()

    app = FastAPI(title="Clearhead", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.clearhead = state
    app.openapi = _true_schema(app)  # type: ignore[method-assign]
    add_handlers(app)
    _add_routes(app, state)
    _add_page_routes(app, state)
    _add_tokenizer_routes(app, state)
    if settings.log_texts:
        app.add_middleware(TextLog)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds)
    app.add_middleware(KeyCheck, keys=settings.api_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(FaultBarrier)
    app.add_middleware(_CountRequests, metrics=state.metrics)
    return app


def _true_schema(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return a function that builds the OpenAPI schema without FastAPI's 422: invalid requests get 400 here."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in found["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                found["components"]["schemas"].pop(name, None)
            app.openapi_schema = found
        return app.openapi_schema

    return describe


async def _load(state: ModelState, model: Callable[[], GPT]) -> None:
    try:
        state.set(await asyncio.to_thread(model))
        log.info("the model is loaded")
    except Exception as error:
        log.error("the model could not be loaded: %s", error)
        state.error = error
        state.on_error()


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "model": ErrorResponse}
    for status, what in {
        400: "The request is not valid.", 401: "The API key is missing or wrong.", 404: "No such model.",
        408: "The body came too slowly.", 413: "The body is too large.", 429: "Too many requests wait.",
        503: "The model is loading.",
    }.items()
}  # fmt: skip


def _add_routes(app: FastAPI, state: ModelState) -> None:
    @app.post("/v1/completions", responses=_ERRORS)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """Continue one or several prompts."""
        return await complete(state.ready(), body, http)

    @app.post("/v1/chat/completions", responses=_ERRORS)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """Continue a conversation, written by the model's chat template, or as plain text if it has none."""
        return await chat(state.ready(), body, http)

    @app.get("/v1/models")
    async def models() -> Response:
        """List the model that is served."""
        return JSON({"object": "list", "data": [_model(state.ready())]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Describe the model that is served."""
        service = state.ready()
        service.check_model(name)
        return JSON(_model(service))

    @app.head("/health", include_in_schema=False)  # as load balancers ask
    @app.get("/health")
    async def health() -> Response:
        """Say whether requests are answered: 503 while the model loads and while the server shuts down."""
        ready = state.service is not None and not state.draining
        return JSON(
            {"status": "ok" if ready else "loading" if state.service is None else "draining"}, 200 if ready else 503
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return metrics in Prometheus's format."""
        return Response(state.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page_routes(app: FastAPI, state: ModelState) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Return the page for this model."""
        return HTMLResponse(served_page(state.ready()), headers={"X-Content-Type-Options": "nosniff"})

    @app.get("/inspect", responses=_ERRORS)
    async def described() -> Response:
        """Describe the model as the page needs it: name, parameters, shape and end-of-text token."""
        return JSON(describe(state.ready()))

    @app.post("/inspect", responses=_ERRORS)
    async def inspect(body: InspectRequest) -> Response:
        """Return what the model computes for a text: attention, logit lens, sizes, probabilities, logits."""
        if state.inspector is None:
            state.inspector = Inspector(state.ready())
        return JSON(await asyncio.to_thread(state.inspector.answer, body))


def _add_tokenizer_routes(app: FastAPI, state: ModelState) -> None:
    @app.post("/tokenize", responses=_ERRORS)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Return the tokens of a text; special tokens in it become their ids."""
        service = state.ready()
        service.check_model(body.model)
        ids = service.encode(body.prompt, special=True)
        return JSON({"tokens": ids, "count": len(ids), "max_model_len": service.config.context_length})

    @app.post("/detokenize", responses=_ERRORS)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Return the text of tokens."""
        service = state.ready()
        service.check_model(body.model)
        return JSON({"prompt": service.tokenizer.decode(body.tokens)})

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        """Return the special tokens."""
        service = state.ready()
        end = service.tokenizer.end_of_text
        name = None if end is None else service.tokenizer.token_bytes(end).decode("utf-8", "replace")
        special = {"eos_token": name, "bos_token": name, "pad_token": name, "eos_token_id": end}
        size = service.tokenizer.vocab_size
        template = service.tokenizer.chat_template
        return JSON(
            {**special, "chat_template": template, "vocab_size": size, "max_length": service.config.context_length}
        )


def _model(service: Service) -> dict[str, object]:
    chat = service.conversation.has_template
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "clearhead",
        "max_model_len": service.config.context_length,
        "base_model": not chat,
        "description": "A GPT-2 with a chat template of its own."
        if chat
        else "A GPT-2: a base model that continues text. It was not trained to chat, and reads a chat as plain text.",
    }


def _fingerprint(gpt: GPT) -> str:
    """Return a name that changes with the model's shape, its tokenizer, what runs it, and Clearhead's version."""
    assert gpt.tokenizer is not None
    parts = [__version__, repr(gpt.config), gpt.tokenizer.sha256(), type(gpt.runner).__name__, *gpt.notes]
    return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


class _CountRequests:
    """Count responses by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)
