"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field

from clearhead.inference.scheduler import Limits


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server accepts, and how it names its model.

    Attributes:
        model_name: the model's name in the API.
        api_keys: a request must carry one of them; none to accept every request.
        cors_origins: web pages of these origins may call the server; none by default.
        max_body_bytes: a larger body is refused.
        body_seconds: a body that takes longer to arrive is refused.
        max_logprobs: the most alternatives per token that a request may ask for.
        max_choices: the most texts that a request may ask for, over all of its prompts.
        log_texts: write prompts and generated texts to the log.
        limits: how much runs and waits.
    """

    model_name: str = "clearhead"
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    max_logprobs: int = 5
    max_choices: int = 128
    log_texts: bool = False
    limits: Limits = field(default_factory=lambda: Limits(cached_tokens=16384))
