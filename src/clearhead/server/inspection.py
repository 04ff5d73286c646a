"""`GET /`, the page, and `/inspect`, which describes the model to it and computes activations for a text."""

from __future__ import annotations

import base64
import threading
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from clearhead.server.answers import Service
from clearhead.server.problems import ProblemError
from clearhead.server.schemas import Strict
from clearhead.web.export import fill_page

if TYPE_CHECKING:
    from clearhead.lens import Trace
    from clearhead.model import GPTModel

_FIRST_NUMBERS = 8
_VECTORS = (
    "norm_1.output",
    "attention.output",
    "norm_2.output",
    "feed_forward.up",
    "feed_forward.activated",
    "feed_forward.output",
    "residual_out",
)

Floats = npt.NDArray[np.floating[Any]]


class InspectRequest(Strict):
    """The body of `POST /inspect`."""

    prompt: Annotated[str | list[Annotated[int, Field(ge=0)]], Field(description="Text or token ids.")]
    ask: Annotated[
        list[Literal["logits", "probabilities", "attention", "norms", "lens", "vectors"]],
        Field(description="What to return besides the tokens."),
    ] = Field(default_factory=list)
    removed: Annotated[
        list[Annotated[str, Field(pattern=r"^(attention\.\d+(\.\d+)?|feed_forward\.\d+)$")]],
        Field(max_length=1000, description="Parts to remove: attention.2.5 is head 5 of block 2."),
    ] = Field(default_factory=list)
    last: Annotated[int | None, Field(ge=1, description="Run only this many of the last tokens.")] = None
    position: Annotated[int | None, Field(ge=0, description="The token for lens and vectors; by default the last.")] = (
        None
    )
    block: Annotated[int, Field(ge=0, description="The block of vectors.")] = 0
    top: Annotated[int, Field(ge=1, le=100, description="How many tokens lens returns for each block.")] = 5


class Inspector:
    """Runs texts through the model with PyTorch hooks, one at a time, apart from the requests that the server runs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._model: GPTModel | None = None

    def answer(self, body: InspectRequest) -> dict[str, object]:
        """Return what a body asks for.

        Raises:
            ProblemError: if it does not fit the model.
        """
        service = self._service
        ids = service.encode(body.prompt, special=False) if isinstance(body.prompt, str) else body.prompt
        beyond = [token for token in ids if token >= service.config.vocab_size]
        if beyond:
            raise ProblemError(400, f"the prompt contains token {beyond[0]}, which the model does not have.", "prompt")
        found: dict[str, object] = {"ids": ids, "texts": self._texts(ids), "names": [self._name(id) for id in ids]}
        if not body.ask:
            return found
        if not ids:
            raise ProblemError(400, "the prompt is empty; give some text.", "prompt")
        window = ids[-min(service.config.context_length, body.last or len(ids)) :]
        with self._lock:
            return {**found, "start": len(ids) - len(window), **self._watched(body, window)}

    def _watched(self, body: InspectRequest, ids: list[int]) -> dict[str, object]:
        from clearhead.lens import edit, watch

        model, config = self._private_model(), self._service.config
        position = len(ids) - 1 if body.position is None else body.position
        if position >= len(ids):
            raise ProblemError(400, f"position is {position}, but {len(ids)} tokens are run.", "position")
        if body.block >= config.n_layers:
            raise ProblemError(400, f"block is {body.block}, but the model has {config.n_layers}.", "block")
        with ExitStack() as changes:
            for name in body.removed:
                part, block, *head = name.split(".")
                if int(block) >= config.n_layers or (head and int(head[0]) >= config.n_heads):
                    raise ProblemError(400, f"the model has no part {name}.", "removed")
                target = f"blocks.{block}.attention.mixed" if head else f"blocks.{block}.{part}.output"
                changes.enter_context(edit(model, target, 0, heads=int(head[0]) if head else None))
            trace = watch(model, ids, _watched_names(body))
        found: dict[str, object] = {}
        residuals = [trace["embedding"], *(trace[f"blocks.{i}.residual_out"] for i in range(config.n_layers))]
        if "logits" in body.ask:
            found["logits"] = base64.b64encode(trace["logits"][-1].astype("<f4").tobytes()).decode()
        if "probabilities" in body.ask:
            shares = _softmax(trace["logits"][:-1])
            found["probabilities"] = [None, *(float(shares[t, id]) for t, id in enumerate(ids[1:]))]
        if "attention" in body.ask:
            found["attention"] = [_pattern(trace, layer) for layer in range(config.n_layers)]
        if "norms" in body.ask:
            found["norms"] = [[_size(vector) for vector in residual] for residual in residuals]
        if "lens" in body.ask:
            found["lens"] = [self._lens(model, residual[position], body.top) for residual in residuals]
        if "vectors" in body.ask:
            names = ["embedding", *(f"blocks.{body.block}.{part}" for part in _VECTORS)]
            found["vectors"] = [_vector(name, trace[name][position]) for name in names]
        return found

    def _private_model(self) -> GPTModel:
        """Return a model that serves no other request: hooks on a shared one would change what others get."""
        from clearhead.model_weights import share_weights

        if self._model is None:
            self._model = share_weights(self._service.gpt.model)
        return self._model

    def _lens(self, model: GPTModel, vector: Floats, top: int) -> list[dict[str, object]]:
        from clearhead.lens import logit_lens

        shares = _softmax(logit_lens(model, vector[None]))[0]
        order = np.argsort(-shares, kind="stable")[:top].tolist()
        return [{"id": id, "name": self._name(id), "probability": float(shares[id])} for id in order]

    def _texts(self, ids: list[int]) -> list[str]:
        """Return each token's text; tokens that share a character get it where it is complete."""
        decoder = self._service.tokenizer.stream()
        texts = [decoder.push(id) for id in ids]
        if texts:
            texts[-1] += decoder.finish()
        return texts

    def _name(self, id: int) -> str:
        tokenizer = self._service.tokenizer
        if id >= tokenizer.vocab_size:
            return f"<{id}>"
        data = tokenizer.token_bytes(id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in data)


def served_page(service: Service) -> str:
    """Return the page for this server's model; it sends requests to this server only.

    If the server has API keys, the page says nothing about the model: it asks the reader for a key, and then this
    server for `GET /inspect`.
    """
    about = {"locked": True} if service.settings.api_keys else describe(service)
    return fill_page({**about, "server": True}, "", connect="'self'")


def describe(service: Service) -> dict[str, object]:
    """Return the description of the model that the page needs before it asks about texts."""
    return {
        "name": service.settings.model_name,
        "parameters": _parameters(service),
        "config": asdict(service.config),
        "endOfText": service.tokenizer.end_of_text,
    }


def _watched_names(body: InspectRequest) -> list[str]:
    """Return the activations that an answer needs."""
    names = ["embedding", "*.residual_out"]
    if {"logits", "probabilities"} & set(body.ask):
        names.append("logits")
    if "attention" in body.ask:
        names.append("*.attention.pattern")
    if "vectors" in body.ask:
        names += [f"blocks.{body.block}.{part}" for part in _VECTORS]
    return names


def _parameters(service: Service) -> int:
    from clearhead.anatomy import count_parameters

    return count_parameters(service.config).total


def _pattern(trace: Trace[Any], layer: int) -> list[list[list[float]]]:
    heads = np.round(trace[f"blocks.{layer}.attention.pattern"].astype(np.float64), 6)
    return [[row[: t + 1].tolist() for t, row in enumerate(head)] for head in heads]


def _vector(name: str, vector: Floats) -> dict[str, object]:
    short = name.partition(".")[2].partition(".")[2] or name
    return {"name": short, "width": len(vector), "size": _size(vector), "numbers": vector[:_FIRST_NUMBERS].tolist()}


def _size(vector: Floats) -> float:
    return float(np.sqrt((vector.astype(np.float64) ** 2).mean()))


def _softmax(logits: Floats) -> npt.NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    shares: npt.NDArray[np.float64] = weights / weights.sum(-1, keepdims=True)
    return shares
