"""`clearhead serve`: an HTTP server with OpenAI's API."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clearhead.cli.generate import LoadOptions
from clearhead.cli.options import flatten
from clearhead.errors import InputError

EPILOG = """
Examples:

[bold]clearhead serve[/]                             serve the bundled model at http://127.0.0.1:8000/v1

[bold]clearhead serve -m gpt2 --dtype int8[/]        a model from the hub

[bold]CLEARHEAD_API_KEYS=secret clearhead serve --host 0.0.0.0[/]
"""

_NETWORK = {"rich_help_panel": "The network"}
_CAPACITY = {"rich_help_panel": "Capacity"}
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class NetworkOptions:
    """Where the server listens, and whom it answers."""

    host: Annotated[str, typer.Option(help="Listen on this address; 0.0.0.0 for all.", **_NETWORK)] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Listen on this port.", min=0, max=65535, **_NETWORK)] = 8000
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Answer only requests that carry one of the keys in this file, one per line. Keys may also be given "
            "in the environment variable CLEARHEAD_API_KEYS, separated by commas.",
            **_NETWORK,
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let web pages of this origin call the server; may be given several times.", **_NETWORK),
    ] = None
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.", **_NETWORK)] = "info"
    log_texts: Annotated[
        bool, typer.Option("--log-texts", help="Write prompts and generated texts to the log.", **_NETWORK)
    ] = False


@dataclass(frozen=True)
class CapacityOptions:
    """How much the server takes on."""

    max_running: Annotated[int, typer.Option(help="How many texts are generated together.", min=1, **_CAPACITY)] = 32
    max_waiting: Annotated[
        int, typer.Option(help="How many more may wait; beyond that, requests get status 429.", min=0, **_CAPACITY)
    ] = 256
    cache_tokens: Annotated[
        int,
        typer.Option(
            help="Keep this many tokens of ended texts for later prompts with the same beginning.", min=0, **_CAPACITY
        ),
    ] = 16384
    memory_tokens: Annotated[
        int | None,
        typer.Option(
            help="Keep at most this many tokens in the engine's key/value cache, including --cache-tokens; texts "
            "wait while it is full. By default, --max-running whole contexts fit.",
            min=1,
            **_CAPACITY,
        ),
    ] = None
    max_logprobs: Annotated[
        int, typer.Option(help="The most alternatives per token that a request may ask for.", min=0, **_CAPACITY)
    ] = 5
    drain_seconds: Annotated[
        float,
        typer.Option(
            help="After SIGTERM, let accepted requests run for up to this many seconds.", min=0, max=86400, **_CAPACITY
        ),
    ] = 30.0


@flatten
def serve(
    network: NetworkOptions,
    capacity: CapacityOptions,
    loading: LoadOptions,
    model_name: Annotated[
        str | None, typer.Option(help="The model's name in the API; the folder's name if it is left out.")
    ] = None,
) -> None:
    """Serve a model over HTTP, with OpenAI's API.

    Requests run together, and each gets the same text as if it ran alone. The routes are /v1/completions,
    /v1/chat/completions, /v1/models, /tokenize, /detokenize, /tokenizer_info, /health, /metrics and /openapi.json.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {' and '.join(missing)}; install them with: pip install 'clearhead[serve]'")
    if network.log_level not in ("debug", "info", "warning", "error"):
        raise InputError(f"--log-level is {network.log_level!r}; give debug, info, warning or error.")
    from clearhead.inference.scheduler import Limits
    from clearhead.server.run import Address, read_keys
    from clearhead.server.run import serve as run
    from clearhead.server.settings import ServerSettings

    settings = ServerSettings(
        model_name=model_name or _name_of(loading.model),
        api_keys=read_keys(network.api_key_file),
        cors_origins=tuple(network.cors_origin or ()),
        max_logprobs=capacity.max_logprobs,
        log_texts=network.log_texts,
        limits=Limits(
            max_live=capacity.max_running, max_waiting=capacity.max_waiting, cached_tokens=capacity.cache_tokens
        ),
    )
    address = Address(network.host, network.port, network.log_level, capacity.drain_seconds)
    run(functools.partial(loading.load, capacity.memory_tokens), settings, address)


def _name_of(model: str | None) -> str:
    if model is None:
        return "clearhead"
    return Path(model).resolve().name if Path(model).exists() else model
