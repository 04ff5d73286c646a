"""The server as a part of another ASGI application: a prefix, a lifespan, keys, and routes beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httpx
import openai
import pytest
from fastapi import FastAPI
from served import alone, pages_in_use
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from clearhead.gpt import GPT
from clearhead.server import ServerSettings, create_app

pytest_plugins = ["server_fixtures"]

KEY = "secret"


def in_fastapi(llm: FastAPI) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with llm.router.lifespan_context(llm):
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/own")
    async def own() -> str:
        return "own"

    app.mount("/ai/llm", llm)
    return app


def in_starlette(llm: FastAPI) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with llm.router.lifespan_context(llm):
            yield

    async def own(_: Request) -> PlainTextResponse:
        return PlainTextResponse("own")

    return Starlette(lifespan=lifespan, routes=[Route("/own", own), Mount("/ai/llm", llm)])


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x", timeout=120)


@pytest.mark.parametrize("within", [in_fastapi, in_starlette])
def test_a_mounted_server_works_under_its_prefix(
    tiny_gpt: GPT, within: Callable[[FastAPI], FastAPI | Starlette]
) -> None:
    llm = create_app(lambda: tiny_gpt, ServerSettings(model_name="tiny", api_keys=(KEY,)))
    app = within(llm)

    async def look() -> None:
        async with client_of(app) as http, app.router.lifespan_context(app):
            while (await http.get("/ai/llm/health")).status_code == 503:
                await asyncio.sleep(0.01)
            assert (await http.get("/own")).text.strip('"') == "own"
            assert (await http.get("/ai/llm/")).status_code == 200, "the page asks for a key itself"
            for path in ("/ai/llm/v1/models", "/ai/llm/metrics", "/ai/llm/health/", "/ai/llm//"):
                assert (await http.get(path)).status_code == 401
            assert (await http.get("/health")).status_code == 404
            base = "http://x/ai/llm/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key=KEY, http_client=http) as client:  # type: ignore[arg-type]
                answer = await client.completions.create(model="tiny", prompt="Once", seed=1)
                assert answer.choices[0].text == alone(tiny_gpt, "Once", seed=1).text
                stream = await client.completions.create(model="tiny", prompt="Once", seed=1, stream=True)
                assert "".join([part.choices[0].text async for part in stream]) == answer.choices[0].text
                with pytest.raises(openai.NotFoundError) as raised:
                    await client.completions.create(model="other", prompt="Once")
                assert raised.value.code == "model_not_found"
                described = await http.get("/ai/llm/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
                assert "/v1/completions" in described.json()["paths"]
                counted = await http.get("/ai/llm/metrics", headers={"Authorization": f"Bearer {KEY}"})
                assert 'route="/v1/completions",status="200"' in counted.text
        assert llm.state.clearhead.draining

    asyncio.run(look())
    assert pages_in_use(tiny_gpt) == 0


def test_the_end_of_the_lifespan_ends_running_texts(tiny_gpt: GPT) -> None:
    llm = create_app(tiny_gpt)
    app = in_starlette(llm)
    scheduler = llm.state.clearhead.service.scheduler

    async def leave() -> int:
        async with client_of(app) as http, contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(app.router.lifespan_context(app))
            body = {"prompt": "a", "max_tokens": 60, "ignore_eos": True, "n": 100}
            asked = asyncio.create_task(http.post("/ai/llm/v1/completions", json=body))
            while not scheduler.load().running:
                await asyncio.sleep(0.001)
            await stack.aclose()
            return (await asked).status_code

    assert asyncio.run(leave()) in (200, 429), "complete if the machine is fast, refused as the server ends otherwise"
    assert pages_in_use(tiny_gpt) == 0 and scheduler.load().running == scheduler.load().waiting == 0


def test_a_model_that_no_lifespan_loads_is_explained(tiny_gpt: GPT) -> None:
    app = Starlette(routes=[Mount("/llm", create_app(lambda: tiny_gpt)), Mount("/ready", create_app(tiny_gpt))])

    async def look() -> None:
        async with client_of(app) as http:
            refused = await http.post("/llm/v1/completions", json={"prompt": "a"})
            assert (
                refused.status_code == 503 and "run this application's lifespan" in refused.json()["error"]["message"]
            )
            assert (await http.post("/ready/v1/completions", json={"prompt": "a"})).status_code == 200

    asyncio.run(look())
