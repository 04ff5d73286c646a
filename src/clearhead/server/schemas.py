"""The requests of the API: types, ranges and defaults.

The ranges of sampling options come from `clearhead.inference.options`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import GroupedMetadata
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from clearhead.inference.options import OPTIONS

LONGEST_STOP = 256
"""Characters of a stop string."""


class InRange(GroupedMetadata):
    """Check a value by the declaration of a sampling option, and describe it by the option's help."""

    def __init__(self, name: str) -> None:
        self._option = OPTIONS[name]

    def __iter__(self) -> Iterator[object]:
        """Yield the annotations that pydantic reads."""
        yield AfterValidator(self._check)
        text = f"{self._option.help} Accepted: {self._option.accepted}."
        yield Field(description=text, json_schema_extra=self._bounds())

    def _bounds(self) -> dict[str, Any]:
        """Return the range in JSON Schema's terms, extended to special values such as temperature 0."""
        special = [float(value) for value, _ in self._option.meanings if isinstance(value, (int, float))]
        lowest, highest = self._option.minimum, self._option.maximum
        bounds: dict[str, Any] = {}
        if lowest is not None:
            bounds["exclusiveMinimum" if self._option.open_below else "minimum"] = min([lowest, *special])
        if highest is not None:
            bounds["maximum"] = max([highest, *special])
        return bounds

    def _check(self, value: object) -> object:
        if value is not None:
            self._option.check(value)
        return value


def _unlimited(value: object) -> object:
    """Other servers write 0 or -1 for no top-k."""
    return None if value in (0, -1) and not isinstance(value, bool) else value


def _unsigned(value: object) -> object:
    """OpenAI's seeds may be negative."""
    return value & (2**63 - 1) if isinstance(value, int) and -(2**63) <= value < 0 else value


StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Logit = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """A body in which a wrong type or an unknown parameter is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    """What a stream contains besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JSONSchema(BaseModel):
    """A named JSON schema."""

    model_config = ConfigDict(extra="ignore")

    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """What a text must match: anything, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class SamplingRequest(Strict):
    """The parameters that completions and chat have in common."""

    model: str | None = None
    temperature: Annotated[float | None, InRange("temperature")] = None
    top_p: Annotated[float | None, InRange("top_p")] = None
    n: Annotated[int | None, Field(ge=1, le=128, description="How many texts to generate for each prompt.")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[list[StopString], Field(max_length=4)] | StopString | None = None
    presence_penalty: Annotated[float | None, InRange("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, InRange("frequency_penalty")] = None
    logit_bias: Annotated[dict[Annotated[str, Field(max_length=12)], Logit], Field(max_length=1024)] | None = None
    seed: Annotated[int | None, BeforeValidator(_unsigned), InRange("seed")] = None
    user: Annotated[str, Field(max_length=1024)] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    top_k: Annotated[int | None, BeforeValidator(_unlimited), InRange("top_k")] = None
    min_p: Annotated[float | None, InRange("min_p")] = None
    repetition_penalty: Annotated[float | None, InRange("repetition_penalty")] = None
    response_format: ResponseFormat | None = None
    regex: Annotated[str | None, Field(description="The text must match this regular expression.")] = None
    choice: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(min_length=1, max_length=1024, description="The text must be one of these."),
    ] = None
    ignore_eos: Annotated[bool, Field(description="Go on after the end-of-text token.")] = False


class CompletionRequest(SamplingRequest):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        str
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=2048)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=2048)]
        | None,
        Field(description="Text or token ids, or a list of either; the end-of-text token if it is left out."),
    ] = None
    max_tokens: Annotated[int | None, Field(ge=0, le=1 << 20, description="0 with echo scores the prompt only.")] = None
    best_of: Annotated[int | None, Field(ge=1, le=20)] = None
    logprobs: Annotated[int | None, Field(ge=0)] = None
    echo: bool | None = None
    suffix: str | None = None
    return_tokens_as_token_ids: Annotated[bool, Field(description="Write tokens as token_id:N in logprobs.")] = False
    special: Annotated[bool, Field(description=OPTIONS["special"].help)] = False


class ErrorDetail(BaseModel):
    """What was wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response that refuses a request."""

    error: ErrorDetail


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=256)]
    name: str | None = None


class ChatRequest(SamplingRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: Annotated[int | None, Field(ge=1, le=1 << 20)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=1 << 20)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = False


class DetokenizeRequest(Strict):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[Token]
